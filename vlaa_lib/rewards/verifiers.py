"""Rule verifiers (paper §4): one strict reader and one score each for a number and a letter.

Before them: what a score is, and the wrappers that people write around an answer. A verifier
raises GoldError where it cannot use the record's gold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate
from typing import Any

from vlaa_lib.records import Record, RecordError, normalise_gold

from . import quantities

MAX_ANSWER_CHARS = 4_000  # ours: five times the paper's 800 new tokens holds any honest answer

# --- scores, and the wrappers around answers ------------------------------------------------------

# Bounded quantifiers throughout: model text may be built to make a pattern backtrack.
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore)\s{0,3},?\s{1,3})?(?:the\s{1,3})?"
    r"(?:(?:final|correct|right|best)\s{1,3}){0,2}"
    r"(?:answer|option|choice|result|value|equation|function|expression)\s{0,3}"
    r"(?:is\s{0,3}:?|:|=)\s{0,3}(?=\S)",
    re.IGNORECASE,
)
_WRAPPERS = (
    ("\\boxed{", "}"), ("\\fbox{", "}"), ("\\text{", "}"), ("\\textbf{", "}"), ("\\mathrm{", "}"),
    ("\\mathbf{", "}"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"),
    ("`", "`"), ('"', '"'),
)
_MAX_WRAPPERS = 6  # ours: bold, dollar, boxed, text and two to spare


@dataclass(frozen=True)
class Score:
    """What a completion earned, in [0, 1], and why."""

    value: float
    reason: str  # for people to read; nothing else may depend on its words
    kind: str = ""  # the verifier that read the answer; empty: wrong format, or a judge said none
    is_format: bool = False  # the format is wrong, so that no answer was verified


def scored(kind: str, value: float, said: str) -> Score:
    """Return a verifier's score; its name stands in front of the reason."""
    return Score(value, f"{kind}: {said}", kind)


def _compared(kind: str, found: Any, gold: Any) -> Score:
    said = f"{found} is right" if found == gold else f"{found} instead of {gold}"
    return scored(kind, float(found == gold), said)


class GoldError(RecordError):
    """A gold that its own verifier cannot use: a data error, found by `mixed.audit`."""


def gold_text(record: Record) -> str:
    """Return the gold's text, normalised also where the record was not read from a file."""
    return normalise_gold(record.solution or record.gt)


def excerpt(text: str, limit_chars: int = 60) -> str:
    """Quote the start of a model's text for a reason.

    >>> excerpt("3 or 7"), excerpt("a" * 9, 4)
    ("'3 or 7'", "'aaaa...'")
    """
    return repr(text if len(text) <= limit_chars else text[:limit_chars] + "...")


def bare(answer: str) -> str:
    r"""Strip a lead-in, LaTeX and Markdown wrappers and the final full stop from an answer.

    >>> bare(r"The final answer is: $\boxed{\text{B}}$."), bare(r"\boxed{3} or \boxed{7}")
    ('B', '\\boxed{3} or \\boxed{7}')
    """
    text = answer.strip()
    for _ in range(_MAX_WRAPPERS):
        before, lead = text, _LEAD.match(text)
        text = _unwrap(text[lead.end() :] if lead else text)
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        if text == before:
            break
    return text


def _unwrap(text: str) -> str:
    """Take off one wrapper that the whole text is inside of."""
    for opening, closing in _WRAPPERS:
        inside = text[len(opening) : len(text) - len(closing)]
        if not inside or text != opening + inside + closing:
            continue
        if closing == "}":  # it may be text, or belong to something else
            marks = re.findall(r"(?<!\\)[{}]", inside)
            depths = list(accumulate((1 if m == "{" else -1 for m in marks), initial=0))
            is_whole = min(depths) == depths[-1] == 0 and not inside.endswith("\\")
        else:
            is_whole = closing not in inside
        if is_whole:
            return inside.strip()
    return text


_SYMBOLS = str.maketrans({
    "−": "-", "·": r"\cdot ", "×": r"\times ", "÷": "/", "π": r"\pi ", "θ": r"\theta ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ",
    "∈": r"\in ", "°": r"^\circ ", "∠": r"\angle ",
    "△": r"\triangle ", "²": "^2", "³": "^3", "\u00a0": " ",
})  # fmt: skip
_ROOT_SIGN = re.compile(r"√\s{0,3}(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")


def symbols(text: str) -> str:
    r"""Write Unicode mathematics as LaTeX; LaTeX stays as it is.

    >>> symbols("√{3} − 2×π"), symbols("45°")
    ('\\sqrt{3} - 2\\times \\pi ', '45^\\circ ')
    """
    text = _ROOT_SIGN.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or m[3] or ''}}}", text)
    return text.translate(_SYMBOLS)


# --- digit ---------------------------------------------------------------------------------------

_THERE = re.compile(  # what comes before a number and the nouns that it counts
    r"(?:there\s(?:are|is|were|was|remain|will\sbe|would\sbe)|(?:i|we)\s(?:see|count|have|find|get)"
    r"|(?:that|this|which)\sleaves)\s(?:(?:now|only|exactly|still|just|a\stotal\sof)\s){0,2}",
    re.IGNORECASE,
)


def read_number(text: str, question: str = "") -> Decimal | None:
    """Read one number, in a sentence or behind a true sum, with a unit or nouns behind it.

    The nouns are everyday ones or the question's words.

    >>> read_number("1,000"), read_number("three"), read_number("3 or 7"), read_number("x3y")
    (Decimal('1000'), Decimal('3'), None, None)
    >>> read_number("There are 3 objects left."), read_number("5 - 2 = 3"), read_number("5 - 2 = 4")
    (Decimal('3'), Decimal('3'), None)
    """
    text = symbols(bare(text.strip().removesuffix("。")))
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)  # `3\text{ or } 7` is words as well
    text = " ".join(text.split())
    if there := _THERE.match(text):
        return _counted(text[there.end() :], question, needs_noun=True)
    *sums, end = text.split("=", maxsplit=8)
    found = _counted(end.strip(), question)
    is_true = all(quantities.worked_out(one.strip()) == found for one in sums)
    return found if is_true else None


def _counted(text: str, question: str, needs_noun: bool = False) -> Decimal | None:
    """Read a number and what may stand behind it."""
    nouns = quantities.nouns_of(question)
    number, *words = (quantities.split_unit(text, nouns)[0] or text).split(maxsplit=8) or [""]
    if (needs_noun and number == text) or not quantities.are_nouns(words, nouns):
        return None
    number = bare(number)  # $3$ cubes
    return quantities.decimal(number[1:-1] if re.fullmatch(r"\([^()]*\)", number) else number)


def digit(record: Record, answer: str) -> Score:
    """Score 1 when the whole answer is the gold number."""
    gold = read_number(gold_text(record))
    if gold is None:
        raise GoldError(
            f"digit: gold {excerpt(gold_text(record))} is not one number; correct 'gt' or set "
            "'reward' to open"
        )
    found = read_number(answer, record.question)
    if found is None:
        return scored("digit", 0.0, f"{excerpt(answer)} is not one number")
    return _compared("digit", found, gold)


# --- multiple choice -----------------------------------------------------------------------------

_MARKS = tuple(re.compile(pattern, re.MULTILINE) for pattern in (
    # in this order: A. on lines, A. inside a line, a. on lines
    r"^[ \t]{0,8}\(?([A-Z])[).:]\s{0,8}",
    r"(?:\A|(?<=[\s,;'\"\[]))\(?([A-Z])[).:]\s{1,8}",
    r"^[ \t]{0,8}\(?([a-z])[).:]\s{0,8}",
))
_CHOICES_WORD = re.compile(r"\b(?:choices|options)\s{0,3}:", re.IGNORECASE)
_LETTER = re.compile(
    r"(?:(?:option|choice|answer)\s{1,3})?[(\[]?([A-Z])\s{0,2}[)\].:]{0,2}"
    r"(?:\s{1,3}is\s{1,3}(?:the\s{1,3})?(?:correct|right)(?:\s{1,3}(?:answer|option|choice))?)?",
    re.IGNORECASE | re.ASCII,
)
_LETTER_AND_TEXT = re.compile(
    r"(?i:(?:option|choice)\s{1,3})?\(?([A-Za-z])\s{0,2}[).:]{1,2}(.+)", re.DOTALL
)


def options(question: str) -> dict[str, str]:
    r"""Read the choices of a question: `A: ...`, `A) ...`, `(A) ...` or `A. ...`, from A on.

    >>> options("Which?\nChoices:\nA: 1\nB: \\frac{1}{2}")
    {'A': '1', 'B': '\\frac{1}{2}'}
    >>> options("Which? (A) red (B) dark blue"), options("How many?")
    ({'A': 'red', 'B': 'dark blue'}, {})
    """
    tail = _CHOICES_WORD.split(question)[-1]
    for mark in _MARKS:
        run: list[re.Match] = []
        for match in mark.finditer(tail):
            if match[1] in "Aa" and len(run) < 2:
                run = [match]
            elif run and ord(match[1]) == ord(run[-1][1]) + 1:
                run.append(match)
        if len(run) >= 2:
            ends = [match.start() for match in run[1:]] + [len(tail)]
            return {
                m[1].upper(): _choice_text(tail, m, end) for m, end in zip(run, ends, strict=True)
            }
    return {}


def _choice_text(tail: str, mark: re.Match, end: int) -> str:
    text, quote = tail[mark.end() : end], tail[max(0, mark.start() - 1) : mark.start()]
    if quote and quote in "'\"" and quote in text:  # ['A) 1', 'B) 2']
        text = text.rpartition(quote)[0]
    return text.strip().rstrip(",;").strip()


def _plain(text: str) -> str:
    return " ".join(symbols(bare(text)).casefold().split())


def choose(text: str, choices: dict[str, str]) -> tuple[str | None, str]:
    """Find the one choice that an answer names: (letter, "") or (None, what is wrong).

    >>> choose("(b)", {"A": "1", "B": "2"}), choose("A", {})
    (('B', ''), ('A', ''))
    >>> choose("A. 2", {"A": "1", "B": "2"})
    (None, "letter A does not go with '2'")
    """
    text = bare(text)
    if match := _LETTER.fullmatch(text):
        letter = match[1].upper()
        if choices and letter not in choices:
            return None, f"{letter} is none of the choices {', '.join(choices)}"
        return letter, ""
    named = [letter for letter, choice in choices.items() if _plain(choice) == _plain(text)]
    if len(named) == 1:
        return named[0], ""
    if named:
        return None, f"{excerpt(text)} is the text of choices {', '.join(named)}"
    match = _LETTER_AND_TEXT.fullmatch(text)
    if match and (letter := match[1].upper()) in choices:
        if _plain(match[2]) == _plain(choices[letter]):
            return letter, ""
        return None, f"letter {letter} does not go with {excerpt(match[2].strip())}"
    return None, f"{excerpt(text)} names no single choice"


def mcq(record: Record, answer: str) -> Score:
    """Score 1 when the answer is the gold's letter, or exactly that choice's text."""
    choices = options(record.question)
    gold, problem = choose(gold_text(record), choices)
    if gold is None:
        raise GoldError(f"mcq: gold: {problem}; correct 'gt' or the choices in 'question'")
    found, problem = choose(answer, choices)
    return _compared("mcq", found, gold) if found else scored("mcq", 0.0, problem)
