"""Rule verifiers (paper §4): one strict reader and one score each for a number and a letter.

Before them: what a score is, and the wrappers that people write around an answer. A verifier
raises GoldError where it cannot use the record's gold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate
from typing import Any

from vlaa_lib.records import Record, RecordError, normalise_gold

from . import quantities

MAX_ANSWER_CHARS = 4_000  # ours: five times the paper's 800 new tokens holds any honest answer

# --- scores, and the wrappers around answers ------------------------------------------------------

# Bounded quantifiers throughout: model text may be built to make a pattern backtrack.
_NOUN = (
    r"(?:(?:the|our|my)\s{1,3})?(?:(?:final|correct|right|best)\s{1,3}){0,2}"
    r"(?:answer|option|choice|result|value|equation|function|expression|"
    r"(?:最终|正确|最后)?(?:答案|选项|结果))"
)
_LEADS = tuple(re.compile(pattern, re.IGNORECASE) for pattern in (
    r"(?:so|thus|hence|therefore|then|finally|overall|altogether|consequently|as\sa\sresult|to\ssum"
    r"\sup|in\s(?:total|all|summary|short|conclusion|the\send))(?:\s{0,3}[,:]\s{0,3}|\s{1,3})(?=\S)",
    r"(?:因此|所以|综上|故)\s{0,3},?\s{0,3}(?=\S)",
    r"we\s(?:can\s)?(?:have|get|find|obtain|conclude)(?:\sthat)?\s{0,3}[,:]?\s{1,3}(?=\S)",
    rf"[#*_\s]{{0,8}}{_NOUN}[*_:\s]{{0,6}}\n\s{{0,9}}(?=\S)",  # a heading
    rf"(\*\*|__){_NOUN}(?:\s{{0,3}}:\1|\1\s{{0,3}}:?)\s{{0,3}}(?=\S)",
    rf"{_NOUN}\s{{0,3}}(?:(?:is|are|(?:would|must|should)\sbe)(?:\s(?:therefore|thus|then))?\b"
    r"\s{0,3}:?|[是为]\s{0,3}:?|:|=)\s{0,3}(?=\S)",
))  # fmt: skip
_WRAPPERS = (
    ("\\boxed{", "}"), ("\\fbox{", "}"), ("\\text{", "}"), ("\\textbf{", "}"), ("\\mathrm{", "}"),
    ("\\mathbf{", "}"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"),
    ("`", "`"), ('"', '"'), ("<<", ">>"),
)
# full-width marks as ASCII; letters and digits that only look alike stay what they are
_MARKS = {chr(n + 0xFEE0): chr(n) for n in range(0x21, 0x7F) if not chr(n).isalnum()}
ASCII = str.maketrans(_MARKS | {"。": ".", "、": ",", "【": "[", "】": "]", "“": '"', "”": '"'})
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


def compared(kind: str, found: Any, gold: Any) -> Score:
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
    text = answer.translate(ASCII).strip()
    for _ in range(_MAX_WRAPPERS):
        before = text
        for pattern in _LEADS:
            text = text[lead.end() :] if (lead := pattern.match(text)) else text
        text = _unwrap(text)
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


# a sentence's end, and what begins a reason; never inside `A, C`, `3.5` or `B, or C`
_CUT = re.compile(
    r"[.;!](?=\s|$)|,(?=\s(?!or\b|and\b)[a-z]{2})|\s(?:because|since|as|which|so|where|for|with)\b"
)
CLAUSE = re.compile(
    r"[,;]\s(?=[A-Za-z])|[.!?]\s|\b(?:so|then|hence|thus|therefore)\b", re.IGNORECASE
)
_REASON = re.compile(
    r"\s(?:because|since)\b.*|,\s(?:as|which|where|for|with|not)\b.*", re.IGNORECASE | re.DOTALL
)
VERB = re.compile(
    r"\b(?:is|are|was|were|equals|measures|becomes)\b(?:\s(?:equal\sto|exactly|only)\b)?"
)
UNSURE = re.compile(  # premises, guesses, denials; but the month of May is none
    r"\A\s{0,3}(?:if|given|since|because|as|when|let|not)\b|\b(?:if|unless|suppose|assum(?:e|ing)|"
    r"whether|maybe|perhaps|probably|possibly|might|(?-i:may)|could|guess|doubt|unlikely|wrong|"
    r"incorrect|false|untrue|cannot|never|but|except|not\s(?:true|correct|right|think|the\scase))\b"
    r"|n['’]t\b",
    re.IGNORECASE,
)
_AGAIN = re.compile(r"\b(?:or|and|but)\s(?:it|they|this|that)\s{0,3}$|\d.{0,30}\b(?:or|and)\b")


def shortened(piece: str) -> Iterator[str]:
    """Yield a text whole, and up to the end of its first clause."""
    piece = piece.strip().strip("*_ ")
    yield piece
    if cut := _CUT.search(piece):
        yield piece[: cut.start()].strip("*_ ")


def predicates(sentence: str) -> Iterator[str]:
    """Yield what a sentence says in its last clause that something is or equals.

    Nothing where it is a question, or that clause a premise, a guess or a denial.

    >>> list(predicates("D is the midpoint, so the angle is 30°.")), list(predicates("2 + 1 = 3"))
    (['30°.', '30°'], ['3'])
    >>> list(predicates("If the angle is 30°, we have")), list(predicates("The angle may be 30°"))
    ([], [])
    """
    clause = CLAUSE.split(_REASON.sub("", sentence))[-1]
    *before, said = VERB.split(clause)
    is_unsure = UNSURE.search(clause) or _AGAIN.search(" ".join(before[1:]))
    if is_unsure or sentence.rstrip().endswith("?"):
        return
    name, sign, value = said.rpartition("=")
    if before and not re.search(r"[\d+*/-]", name):  # an equation: `the line is y = 2x`
        yield from filter(None, shortened(said))
    if sign:
        yield from filter(None, shortened(value))


def told(text: str) -> str:
    """Return what a sentence with a verb says of its subject; an answer without one as it is.

    >>> told("The area is $12$ square units."), told("12"), told("7 = 3")
    ('$12$ square units', '12', '7 = 3')
    """
    if not VERB.search(text) or len(text) > 300 or "\n" in text:
        return text
    said = bare(next(predicates(text), text))
    return said if ("=" in said) == ("=" in text) else text  # an equation stays whole


_SYMBOLS = str.maketrans({
    "−": "-", "·": r"\cdot ", "×": r"\times ", "÷": "/", "π": r"\pi ", "θ": r"\theta ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ",
    "∈": r"\in ", "°": r"^\circ ", "∠": r"\angle ", "△": r"\triangle ",
    "²": "^2", "³": "^3", "\u00a0": " ",
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
    """Read one number with at most a unit, of everyday nouns or the question's words, behind it.

    >>> read_number("1,000"), read_number("three"), read_number("3 or 7"), read_number("x3y")
    (Decimal('1000'), Decimal('3'), None, None)
    """
    return _counted(_one_line(text), question)


def said_number(text: str, question: str = "") -> Decimal | None:
    """Read one number as `read_number` does, or in a sentence that counts, or behind a true sum.

    >>> said_number("There are 3 objects left."), said_number("5 - 2 = 3"), said_number("5 = 3")
    (Decimal('3'), Decimal('3'), None)
    """
    text = _one_line(text)
    if there := _THERE.match(text):
        return _counted(text[there.end() :], question, needs_noun=True)
    text = told(text)
    *sums, end = text.split("=", maxsplit=8)
    found = _counted(end.strip(), question)
    is_true = all(quantities.worked_out(one.strip()) == found for one in sums)
    return found if is_true else None


def _one_line(text: str) -> str:
    text = symbols(bare(text))
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)  # `3\text{ or } 7` is words as well
    return " ".join(text.split())


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
    found = said_number(answer, record.question)
    if found is None:
        return scored("digit", 0.0, f"{excerpt(answer)} is not one number")
    return compared("digit", found, gold)
