"""The local teacher's rules for rewriting and verifying: plain text in, plain text out."""

from __future__ import annotations

import re
import string

from vlaa_lib.rewards.verifiers import iou

from .microworld import facts

_WORDS = "caption|description|rationale"
# said of the text, then said of the picture; the first letter keeps its case
_SEEN = (
    (rf"\baccording to the (?:{_WORDS})\b,?", "the image shows"),
    (
        rf"\b(?:the|this) (?:{_WORDS}) (?:says|states|mentions|describes|notes|reads|tells)\b",
        "the image shows",
    ),
    (rf"\b(?:the|this) (?:{_WORDS})\b", "the image"),
)

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w%])")
_LETTER = re.compile(
    r"\b(?:option|choice|answer(?: is)?):?\s*\(?([A-H])\b|^\W*([A-H])\W*$", re.IGNORECASE
)
_BOX = re.compile(r"\[([-\d.,\s]+)\]")


def rewrite(text: str) -> str:
    """Turn wording such as "the caption says" into "the image shows", and change nothing else.

    >>> rewrite("According to the description, there are two. So the caption has two.")
    'The image shows there are two. So the image has two.'
    """
    for said, seen in _SEEN:
        pattern = re.compile(said, re.IGNORECASE)
        text = pattern.sub(lambda match, seen=seen: _cased(seen, match[0]), text)
    return text


def _cased(text: str, like: str) -> str:
    return text[0].upper() + text[1:] if like[0].isupper() else text


def agrees(gold: str, pred: str) -> bool:
    """Tell whether an answer is the gold, by the kind of gold: box, number, letter or text.

    Boxes agree at an intersection over union of 0.5; of several numbers or letters in prose the
    last counts; texts are equal without case, spaces and punctuation, or a gold of plain words
    stands as such in the answer; a description shares a fact with the gold. Ours: rules a fair
    reader would accept on the micro-world; mathematics is compared as text.

    >>> agrees("3", "There are 3 left."), agrees("C", "So it is 2 (Option C)"), agrees("3", "4")
    (True, True, False)
    """
    if box := _box(gold):
        other = _box(pred)
        return other is not None and iou(box, other) >= 0.5
    if _same(gold, pred):
        return True
    if _NUMBER.fullmatch(gold.strip()):
        numbers = [] if "\\" in pred or "^" in pred else _NUMBER.findall(pred)
        return bool(numbers) and float(numbers[-1]) == float(gold)
    if re.fullmatch(r"[A-H]", gold.strip()):
        letters = ["".join(found).upper() for found in _LETTER.findall(pred)]
        return bool(letters) and letters[-1] == gold.strip()
    return _says(gold, pred) or _shares_fact(gold, pred)


def _bare(text: str) -> str:
    """Lower-case, without dollar signs and the punctuation around words."""
    words = (word.strip(string.punctuation) for word in text.lower().replace("$", " ").split())
    return " ".join(filter(None, words))


def _same(gold: str, pred: str) -> bool:
    """Compare without case, spaces, dollar signs and a full stop; signs and brackets count."""
    a, b = (re.sub(r"[\s$]", "", text.lower()).rstrip(".") for text in (gold, pred))
    return a == b and bool(a)


def _says(gold: str, pred: str) -> bool:
    plain = re.fullmatch(r"[A-Za-z' -]{3,}", gold.strip())
    return plain is not None and f" {_bare(gold)} " in f" {_bare(pred)} "


def _shares_fact(gold: str, pred: str) -> bool:
    return bool(set(facts.extract(gold)) & set(facts.extract(pred)))


def _box(text: str) -> tuple[float, ...] | None:
    """Read the last `[x1, y1, x2, y2]` of a text, or None."""
    for inside in reversed(_BOX.findall(text)):
        try:
            values = tuple(float(value) for value in inside.split(","))
        except ValueError:
            continue
        if len(values) == 4:
            return values
    return None
