"""VLMEvalKit's extraction rules, rebuilt from their described behaviour, for comparison only.

`kit-2025-04` is the paper's time, `kit-2026-08` today; `-vlaa` puts the tag rule of the kit's
VLAA-Thinker class in front. Where the kit would ask its judge, nothing is decided here: the path
is `kit-judge` and the verdict None. Left out: its random letter after a failed judge, `eval` of
model text, crashes (they become a verdict with the reason) and its four refusal sentences.
"""

from __future__ import annotations

import json
import math
import re
from typing import NamedTuple

from vlaa_lib.prompts import ANSWER_CLOSE, ANSWER_OPEN

from .files import Row, listed
from .tasks import Task, text_of

MODES = ("kit-2025-04", "kit-2026-08", "kit-2025-04-vlaa", "kit-2026-08-vlaa")

_API_FAILURE = "Failed to obtain answer via API"
_TO_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer is\s{0,9}\*{0,9}\s{0,9}([a-d])", re.IGNORECASE)  # no word boundary
_LAST_TOKENS = 4  # today's kit: a letter counts only among so many


class Verdict(NamedTuple):
    """What the kit reads and makes of it; `hit` None where it would ask its judge."""

    answer: str
    path: str
    hit: bool | None
    reason: str


_JUDGE = Verdict("", "kit-judge", None, "kit: asks its judge")


def prepared(text: str, mode: str) -> str:
    """Apply the VLAA tag rule where the mode has it: one answer block, else the whole text.

    >>> prepared("<think>x</think><answer> B </answer>", "kit-2025-04-vlaa")
    'B'
    """
    if not mode.endswith("-vlaa"):
        return text
    start = text.find(ANSWER_OPEN)
    end = text.find(ANSWER_CLOSE, start) if start >= 0 else -1
    again = text.find(ANSWER_OPEN, end) if end >= 0 else -1
    if end < 0 or (again >= 0 and text.find(ANSWER_CLOSE, again) >= 0):
        return text
    return text[start + len(ANSWER_OPEN) : end].strip()


def infer(text: str, choices: dict[str, str], mode: str) -> str:
    """Infer an option as the kit's `can_infer` does: a letter, `Z`, or nothing.

    >>> both = {"A": "red", "B": "blue"}
    >>> infer("B, since the sea is never of any other colour.", both, "kit-2025-04")
    'B'
    >>> infer("B, since the sea is never of any other colour.", both, "kit-2026-08")
    ''
    """
    if _API_FAILURE in text:
        return ""
    is_today = mode.startswith("kit-2026-08")
    tokens = text.translate(_TO_BLANKS).split()
    present = set(tokens)
    named = [letter for letter in choices if letter in present]
    if len(named) == 1 and (
        not is_today or tokens.index(named[0]) >= len(tokens) - _LAST_TOKENS
    ):
        return named[0]
    if not named and "Z" in present:
        return "Z"
    if is_today and (match := _ANSWER_IS.search(text)):
        return match[1].upper()
    return _infer_text(text, choices, is_today)


def _infer_text(text: str, choices: dict[str, str], is_today: bool) -> str:
    if is_today and len(text) > 2 * sum(map(len, choices.values())):
        return ""
    text = text.lower()
    named = [letter for letter, option in choices.items() if option.lower() in text]
    return named[0] if len(named) == 1 else ""


def verdict(name: str, made: Task, row: Row, text: str, mode: str) -> Verdict:
    """Read and judge a completion as the kit would, up to where it asks its judge.

    Args:
        name: one of the six, see `tasks.family`.
    """
    text = prepared(text, mode)
    if name in ("MathVerse", "LogicVista"):
        return _JUDGE  # nothing but the judge reads these
    if name == "DynaMath":
        return _dynamath(text_of(row.get("answer_type")), made.gold, text)
    if made.kind != "option":
        return _free(name, row, made.gold, text)
    letter = infer(text, made.choices or {}, mode)
    if not letter:
        return _JUDGE
    return Verdict(letter, "kit-infer", letter == made.gold, f"kit: {letter}, gold {made.gold}")


def _free(name: str, row: Row, gold: str, text: str) -> Verdict:
    """Compare a whole reply with the gold, as the kit does before it asks its judge."""
    kind = {"integer": int, "float": float}.get(text_of(row.get("answer_type")), str)
    if name == "MathVision":
        is_same = text.strip().lower() == gold.lower()  # the rest of its rule evaluates the text
    elif listed(gold) is not None:
        return Verdict(text[:200], "kit-list", False, "kit: a list is never right")
    else:
        try:
            is_same = kind(text) == kind(gold)
        except (ValueError, OverflowError):
            is_same = False
    return Verdict(text.strip(), "kit-whole", True, "kit: the whole reply") if is_same else _JUDGE


def _dynamath(kind: str, gold: str, text: str) -> Verdict:
    """Read DynaMath's JSON, or the whole reply, with the kit's one parser."""
    body = text[text.find("{") : text.rfind("}") + 1] if "{" in text else text
    try:
        said, path = json.loads(body.replace("\\", ""), strict=False)["short answer"], "kit-json"
    except (ValueError, RecursionError, KeyError, TypeError):
        said, path = text, "kit-whole"
    if not isinstance(said, str):
        if kind in ("float", "multiple choice"):
            return Verdict(str(said), path, False, "kit: a JSON number is no text")
        return Verdict(str(said), path, None, "kit: crashes on a JSON number")
    if kind == "float":
        value, wanted = _float(said), _float(gold)
        hit = None not in (value, wanted) and abs(value - wanted) <= 0.001
        return Verdict("" if value is None else str(value), path, hit, f"kit: {value}, gold {gold}")
    if kind == "multiple choice":
        named = said.strip().upper()
        found = [named] if len(named) == 1 else [c for c in "ABCDE" if c in named]
        letter = found[0] if len(found) == 1 else ""
        hit = letter == gold if letter else gold in body[:3]
        return Verdict(letter, path, hit, f"kit: letter {letter or 'unknown'}, gold {gold}")
    hit = said.strip().lower() in gold.lower()  # the gold contains the prediction
    return Verdict(said.strip(), path, hit, f"kit: found inside the gold: {hit}")


def _float(text: str) -> float | None:
    words = text.split()
    word = words[0] if words else ""
    factor = math.pi if word.endswith("π") else 1.0
    try:
        return float(word.removesuffix("π")) * factor
    except ValueError:
        return None
