"""Steps of a solution: where each begins and ends in the completion.

A policy goes on from `text[:end]` of a step, so tags and full stops stay in, unlike in the
sentences that `vlaa_lib.traces` holds against a scene.
"""

from __future__ import annotations

import re

from vlaa_lib.prompts import ANY_TAG, THINK_CLOSE

# ours, as the paper's delimiter is not known; its printed solutions have lines "Step 1: ..."
_MARKER = re.compile(r"^[ \t#*>_-]{0,8}step[ \t]{1,3}\d{1,3}\b", re.IGNORECASE | re.MULTILINE)
_LIST_NUMBER = r"(?<!\n\d)(?<!\n\d\d)(?<!\A\d)(?<!\A\d\d)"  # "1. First" is no sentence "1."
_END = re.compile(rf"{_LIST_NUMBER}[.!?;](?=\s|<|\Z)|\n|(?={THINK_CLOSE})")
_WORD = re.compile(r"\w")


def spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each step; only white space is left between them (ours).

    A step is a sentence or a line; from the first line "Step 1" on it is all up to the next such
    line. What follows the think block is a step of its own. Cutting at an end changes no step
    before it.

    >>> spans("Two cubes. 3.5 is no end.")
    [(0, 10), (11, 25)]
    """
    found: list[tuple[int, int]] = []
    start = before = 0
    has_words = False
    for cut in [*_cuts(text), len(text)]:
        has_words = has_words or bool(_WORD.search(ANY_TAG.sub("", text[before:cut])))
        before = cut
        if has_words:
            found.append((start, cut))
            start, has_words = cut, False
    if found:  # marks after the last word belong to it
        found[-1] = (found[-1][0], len(text))
    inside = [(start, text[start:end]) for start, end in found]
    return [(at + len(t) - len(t.lstrip()), at + len(t.rstrip())) for at, t in inside]


def split(text: str) -> list[str]:
    """Split a completion into its steps; an empty one has none.

    >>> split("<think>Two cubes. One ball.</think><answer>3</answer>")
    ['<think>Two cubes.', 'One ball.', '</think><answer>3</answer>']
    >>> split("Step 1: Look. Two cubes.\\nStep 2: The answer is 3.")
    ['Step 1: Look. Two cubes.', 'Step 2: The answer is 3.']
    """
    return [text[start:end] for start, end in spans(text)]


def _cuts(text: str) -> list[int]:
    """Return where a step could end, in order."""
    marker = _MARKER.search(text)
    first = marker.start() if marker else len(text)
    cuts = [match.end() for match in _END.finditer(text, 0, first)]
    if marker:
        later = *_MARKER.finditer(text, first), *re.finditer(THINK_CLOSE, text)
        cuts += sorted(match.start() for match in later if match.start() >= first)
    return cuts
