"""What a benchmark row asks for: the kind of its answer, its choices, its gold.

The six benchmarks differ in columns, not in what an answer can be. `task` reads the columns of one
row, and everything after it (extraction, verdict) depends on the kind alone:

* option: one letter of `choices` (all letters A to I where the choices stand in the picture);
* letters: a set of letters; number: one number; list: numbers in brackets;
* maths: an expression, compared by Math-Verify; text: a few words;
* box and open, of our records alone: one box; the whole text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from vlaa_lib import rewards
from vlaa_lib.records import Record
from vlaa_lib.rewards.choices import choose
from vlaa_lib.rewards.verifiers import bare, excerpt, read_number

from .benchmarks import Row, family, is_missing, listed

LETTERS = "ABCDEFGHI"  # the most that We-Math and LogicVista offer


@dataclass(frozen=True)
class Task:
    """One row's question as far as scoring needs it; `problem` says what is wrong with its gold."""

    kind: str
    gold: str
    question: str = ""
    choices: dict[str, str] | None = None
    tolerance: Decimal | None = None  # of a number, absolute
    places: int | None = None  # digits behind the point that a number counts with
    problem: str = ""
    frame: str = ""  # of a box, and the size in px of the picture that it counts in
    size: Sequence[float] | None = None


def text_of(value: Any) -> str:
    """Return a cell as text: nothing for an empty cell, which spreadsheets read as NaN.

    >>> text_of(float("nan")), text_of(None), text_of(3.0), text_of(" B ")
    ('', '', '3', 'B')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers with one empty cell
    return str(value).strip()


def real(text: str, question: str = "") -> Decimal | None:
    r"""Read one number: digits or words with a unit, a fraction, a multiple of pi, a percentage.

    >>> real("1,000"), real("50%"), real(r"\frac{1}{2}"), real("3 or 4"), round(real("2π"), 3)
    (Decimal('1000'), Decimal('50'), Decimal('0.5'), None, Decimal('6.283'))
    """
    text = bare(text).lstrip("$€£").removesuffix("%").removesuffix("\\").strip().replace("−", "-")
    if (value := read_number(text, question)) is not None:
        return value
    if len(text) > 80:
        return None
    if match := re.fullmatch(r"([+-]?\d{0,15}(?:\.\d{1,15})?)\s?\*?\s?(?:π|\\?pi)", text):
        return Decimal(match[1] + "1" * (match[1] in ("", "+", "-"))) * Decimal(math.pi)
    if power := re.fullmatch(
        r"([+-]?\d{1,15}(?:\.\d{1,15})?)\s?(?:×|\*|\\times|\\cdot)\s?"
        r"10\^(?:\{\s?)?([+-]?\d{1,2})(?:\s?\})?", text,
    ):
        return Decimal(power[1]).scaleb(int(power[2]))
    ratio = re.fullmatch(
        r"([+-]?)(?:\\[dt]?frac\{(\d{1,15})\}\{(\d{1,15})\}|(\d{1,15})\s?/\s?(\d{1,15}))", text
    )
    if ratio is None:
        return None
    over, under = (int(ratio[i] or ratio[i + 2]) for i in (2, 3))
    return Decimal(f"{ratio[1]}{over}") / under if under else None


def numbers(text: str) -> list[Decimal] | None:
    """Read a list of numbers in brackets.

    >>> numbers("[1, 2.5]"), numbers("[1, x]"), numbers("1, 2")
    ([Decimal('1'), Decimal('2.5')], None, None)
    """
    match = re.fullmatch(r"[\[(]([^\[\]()]{1,400})[\])]", bare(text))
    found = [real(part) for part in match[1].split(",")] if match else [None]
    return None if None in found else found


def letters(text: str, question: str = "") -> frozenset[str] | None:
    r"""Read a set of a question's letters strictly: `A, C`, `AC`, `A/C`, `A and C`; else None.

    >>> asked = "Which?\nChoices:\nA: 1\nB: 2\nC: 3"
    >>> sorted(letters("A and C", asked)), letters("A, A", asked), letters("A or C", asked)
    (['A', 'C'], None, None)
    """
    text = bare(text)
    between = r"(?:\s{0,3}[,/;&和]\s{0,3}|(?:\s{0,3},)?\s{1,3}and\s{1,3})"
    if not re.fullmatch(rf"[A-Z]{{1,26}}|[A-Z](?:{between}[A-Z]){{1,25}}", text):
        return None
    named = re.findall(r"[A-Z]", text)
    known = rewards.options(question) or LETTERS  # a question without choices: in its picture
    return frozenset(named) if len(set(named)) == len(named) and set(named) <= set(known) else None


def of_record(record: Record) -> Task:
    """Read what a record asks for, so that held-out records are read as benchmarks are."""
    kind = {"digit": "number", "mcq": "option", "math": "maths", "iou": "box"}.get(record.reward)
    choices = rewards.options(record.question)
    return Task(kind or "open", record.solution, record.question, choices,
                frame=record.frame or "norm01", size=record.meta.get("image_size"))  # fmt: skip


def task(benchmark: str, row: Row) -> Task:
    """Read what a row asks for and what is right."""
    made = _read(family(benchmark), row)
    problem = made.problem or ("is empty" if not made.gold else _gold_problem(made))
    return replace(made, problem=f"gold {excerpt(made.gold)} {problem}") if problem else made


def _read(name: str, row: Row) -> Task:
    """Read a benchmark's columns; all else depends on the kind of the task alone."""

    def cell(column: str) -> str:
        return text_of(row.get(column))

    question, answer, kind = cell("question"), cell("answer"), cell("answer_type")
    micro = cell("micro_reward")  # micro rows say which verifier their answer is meant for
    if micro in ("digit", "math"):
        return Task("number" if micro == "digit" else "maths", answer, question)
    told = text_of(row.get("question_for_eval") or row.get("question"))  # with its choices
    if micro == "mcq" and name in ("MathVision", "MathVerse", "DynaMath"):
        return _option(question, rewards.options(told), answer)
    match name:
        case "MathVista" if cell("question_type") == "multi_choice":
            return _option(question, _of_list(row), cell("answer_option") or answer)
        case "MathVista":
            # the benchmark's own scorer rounds a float to the row's precision; the kit does not
            digits = re.fullmatch(r"(\d)(?:\.0)?", cell("precision")) if kind == "float" else None
            places = int(digits[1]) if digits else None
            kinds = {"integer": "number", "float": "number", "list": "list"}
            return Task(kinds.get(kind, "text"), answer, question, places=places)
        case "MathVision" if (choices := _of_list(row)) != {}:
            return _option(question, choices, answer)
        case "MathVerse" if cell("question_type").startswith("multi"):
            return _option(question, rewards.options(told), answer)
        case "MathVision" | "MathVerse":
            return Task("maths", answer, question)
        case "DynaMath" if kind == "multiple choice":
            return _option(question, rewards.options(question), answer)
        case "DynaMath" if kind in ("float", "int", "integer"):
            return Task("number", answer, question, tolerance=Decimal("0.001"))  # DynaMath's own
        case "DynaMath":
            return Task("text", answer, question)
        case "WeMath":
            return _option(question, {c: text for c in LETTERS if (text := cell(c))}, answer)
    # LogicVista, where some golds are numbers
    return Task("number" if re.fullmatch(r"\d{1,4}", answer) else "letters", answer, question)


def _option(question: str, choices: dict[str, str] | None, gold: str) -> Task:
    """Make the task of choosing; a gold that is a choice's text becomes that choice's letter."""
    if choices is None:
        return Task("option", gold, problem="has choices that cannot be read as a list")
    letter = choose(gold, choices)[0] if choices else gold.upper()
    return Task("option", letter or gold, question, choices)


def _of_list(row: Row) -> dict[str, str] | None:
    """Letter the entries of the column `choices`; None where they cannot be read."""
    found = [] if is_missing(text_of(row.get("choices"))) else listed(row["choices"])
    return None if found is None else {chr(65 + i): text for i, text in enumerate(found[:26])}


def _gold_problem(made: Task) -> str:
    known = made.choices or LETTERS
    if made.kind == "option" and not (made.gold in known and len(made.gold) == 1):
        return f"is none of the choices {', '.join(known)}"
    if made.kind == "letters" and not letters(made.gold, made.question):
        return "is no set of letters"
    if made.kind == "number" and real(made.gold, made.question) is None:
        return "is not one number"
    return "is no list of numbers" if made.kind == "list" and not numbers(made.gold) else ""
