"""What a benchmark row asks for: the kind of its answer, its choices, its gold.

The six benchmarks differ in columns, not in what an answer can be. `task` reads the columns of one
row, and everything after it (extraction, verdict) depends on the kind alone:

* option: one letter of `choices` (all letters A to I where the choices stand in the picture);
* letters: a set of letters; number: one number; list: numbers in brackets;
* maths: an expression, compared by Math-Verify; text: a few words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from vlaa_lib import rewards
from vlaa_lib.rewards.answers import bare, excerpt
from vlaa_lib.rewards.verifiers import choose, read_number

from .files import Row, family, listed

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

    >>> real("1,000"), real("1/4"), real("50%"), real(r"\frac{1}{2}"), real("3 or 4")
    (Decimal('1000'), Decimal('0.25'), Decimal('50'), Decimal('0.5'), None)
    >>> round(real("2π"), 3)
    Decimal('6.283')
    """
    text = bare(text).lstrip("$€£").removesuffix("%").removesuffix("\\").strip().replace("−", "-")
    if (value := read_number(text, question)) is not None:
        return value
    if len(text) > 80:
        return None
    if match := re.fullmatch(r"([+-]?\d{0,15}(?:\.\d{1,15})?)\s?\*?\s?(?:π|\\?pi)", text):
        return Decimal(match[1] + "1" * (match[1] in ("", "+", "-"))) * Decimal(math.pi)
    if re.fullmatch(r"[+-]?(?:\.\d{1,30}|\d{1,15}(?:\.\d{1,15})?[eE][+-]?\d{1,2})", text):
        return Decimal(text)
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
    r"""Read a set of a question's letters strictly: `A, C`, `AC`, `A and C`; else None.

    A question without choices has them in its picture: then any of the letters A to I will do.

    >>> asked = "Which?\nChoices:\nA: 1\nB: 2\nC: 3"
    >>> sorted(letters("A and C", asked)), letters("A, A", asked), letters("A or C", asked)
    (['A', 'C'], None, None)
    """
    text = bare(text)
    if not re.fullmatch(r"[A-Z]{1,26}|[A-Z](?:\s{0,3}(?:,|,? and)\s{1,3}[A-Z]|,[A-Z]){1,25}", text):
        return None
    named = re.findall(r"[A-Z]", text)
    known = rewards.options(question) or LETTERS
    return frozenset(named) if len(set(named)) == len(named) and set(named) <= set(known) else None


def task(benchmark: str, row: Row) -> Task:
    """Read what a row asks for and what is right.

    Raises:
        ValueError: unknown benchmark.
    """
    name = family(benchmark)
    micro = _MICRO.get(text_of(row.get("micro_reward")))
    made = micro(name, row) if micro else _TASKS[name](row)
    problem = made.problem or ("is empty" if not made.gold else _CHECKS[made.kind](made))
    if not problem:
        return made
    return Task(**(vars(made) | {"problem": f"gold {excerpt(made.gold)} {problem}"}))


def _option(row: Row, choices: dict[str, str] | None, gold: str) -> Task:
    """Make the task of choosing; a gold that is a choice's text becomes that choice's letter."""
    if choices is None:
        return Task("option", gold, problem="has choices that cannot be read as a list")
    letter = choose(gold, choices)[0] if choices else gold.upper()
    return Task("option", letter or gold, text_of(row.get("question")), choices)


def _of_list(row: Row) -> dict[str, str] | None:
    """Letter the entries of the column `choices`; None where they cannot be read."""
    if not text_of(row.get("choices")):
        return {}
    found = listed(row["choices"])
    return None if found is None else {chr(65 + i): text for i, text in enumerate(found[:26])}


def _free(kind: str, row: Row, **more: Any) -> Task:
    return Task(kind, text_of(row.get("answer")), text_of(row.get("question")), **more)


def _mathvista(row: Row) -> Task:
    if text_of(row.get("question_type")) == "multi_choice":
        gold = text_of(row.get("answer_option")) or text_of(row.get("answer"))
        return _option(row, _of_list(row), gold)
    kind = {"integer": "number", "float": "number", "list": "list"}
    answer_type, places = text_of(row.get("answer_type")), text_of(row.get("precision"))
    # the benchmark's own scorer rounds a float to the row's precision; the kit leaves that out
    digits = re.fullmatch(r"(\d)(?:\.0)?", places) if answer_type == "float" else None
    return _free(kind.get(answer_type, "text"), row, places=int(digits[1]) if digits else None)


def _mathvision(row: Row) -> Task:
    choices, gold = _of_list(row), text_of(row.get("answer"))
    return _free("maths", row) if choices == {} else _option(row, choices, gold)


def _mathverse(row: Row) -> Task:
    if not text_of(row.get("question_type")).startswith("multi"):
        return _free("maths", row)
    choices = rewards.options(text_of(row.get("question_for_eval") or row.get("question")))
    return _option(row, choices, text_of(row.get("answer")))


def _dynamath(row: Row) -> Task:
    kind = text_of(row.get("answer_type"))
    if kind == "multiple choice":
        choices = rewards.options(text_of(row.get("question")))
        return _option(row, choices, text_of(row.get("answer")))
    if kind in ("float", "int", "integer"):
        return _free("number", row, tolerance=Decimal("0.001"))  # DynaMath's own
    return _free("text", row)


def _wemath(row: Row) -> Task:
    choices = {c: text for c in LETTERS if (text := text_of(row.get(c)))}
    return _option(row, choices, text_of(row.get("answer")))


def _logicvista(row: Row) -> Task:
    return _free("letters", row)


def _micro_choice(name: str, row: Row) -> Task:
    if name == "MathVista":
        return _mathvista(row)
    if name in ("WeMath", "LogicVista"):
        return _TASKS[name](row)
    asked = text_of(row.get("question_for_eval") or row.get("question"))
    return _option(row, rewards.options(asked), text_of(row.get("answer")))


# the columns of each benchmark are read by one function; all else depends on the kind of the task
_TASKS: dict[str, Callable[[Row], Task]] = {
    "MathVista": _mathvista,
    "MathVision": _mathvision,
    "MathVerse": _mathverse,
    "DynaMath": _dynamath,
    "WeMath": _wemath,
    "LogicVista": _logicvista,
}
# micro rows say which verifier their answer is meant for
_MICRO: dict[str, Callable[[str, Row], Task]] = {
    "digit": lambda name, row: _free("number", row),
    "math": lambda name, row: _free("maths", row),
    "mcq": _micro_choice,
}
_CHECKS: dict[str, Callable[[Task], str]] = {
    "option": lambda t: (
        "" if t.gold in (t.choices or LETTERS) and len(t.gold) == 1
        else f"is none of the choices {', '.join(t.choices or LETTERS)}"
    ),
    "letters": lambda t: "" if letters(t.gold, t.question) else "is no set of letters",
    "number": lambda t: "" if real(t.gold, t.question) is not None else "is not one number",
    "list": lambda t: "" if numbers(t.gold) else "is no list of numbers",
    "maths": lambda t: "",
    "text": lambda t: "",
}
