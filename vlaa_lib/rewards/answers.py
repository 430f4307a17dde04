"""Reading answers: the wrappers people write around one, and the types shared by verifiers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlaa_lib.records import Record, RecordError, normalise_gold

MAX_ANSWER_CHARS = 4_000  # ours: five times the paper's 800 new tokens holds any honest answer

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
    """What a completion earned, in [0, 1], and why.

    Attributes:
        reason: for people to read; nothing else may depend on its words.
        kind: the verifier that read the answer, as `Record.reward`; empty where the format is wrong
            or a judge gave no number.
        is_format: the format is wrong, so that no answer was verified.
    """

    value: float
    reason: str
    kind: str = ""
    is_format: bool = False


def scored(kind: str, value: float, said: str) -> Score:
    """Return the score of a verifier, whose name stands in front of its reason."""
    return Score(value, f"{kind}: {said}", kind)


class GoldError(RecordError):
    """A gold that its own verifier cannot use: a data error, found by `audit`."""


def gold_text(record: Record) -> str:
    """Return the text of the gold, normalised here when the record was not read from a file."""
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
    """Take off one wrapper, if the whole text is inside it."""
    for opening, closing in _WRAPPERS:
        inside = text[len(opening) : len(text) - len(closing)]
        if len(text) <= len(opening) + len(closing) or text != opening + inside + closing:
            continue
        if closing == "}" and (inside.endswith("\\") or not _is_balanced(inside)):
            continue  # the brace at the end is text, or belongs to something else
        if closing != "}" and closing in inside:
            continue
        return inside.strip()
    return text


def _is_balanced(text: str) -> bool:
    """Say whether braces pair up without ever closing one that the text did not open."""
    depth = 0
    for mark in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if mark == "{" else -1
        if depth < 0:
            return False
    return depth == 0
