"""Prompt templates: fill the slots of one, and read the values back out of a filled one."""

from __future__ import annotations

import re

_SLOT = re.compile(r"\{(caption|question|input|gold|pred)\}")


def fill(template: str, **values: str) -> str:
    """Put values into a template's slots, in one pass: braces inside a value stay text.

    `str.format` would trip over LaTeX braces, in templates and values alike.

    >>> fill("Q: {question} in {braces}", question="what is {gold}?", gold="3")
    'Q: what is {gold}? in {braces}'
    """
    return _SLOT.sub(lambda slot: values[slot[1]], template)


def read(template: str, text: str) -> dict[str, str] | None:
    """Read the slot values back out of a filled template; None when the text is not one.

    >>> read("Q: {question} A: {gold}", "Q: how many? A: 3")
    {'question': 'how many?', 'gold': '3'}
    """
    pieces = _SLOT.split(template)  # text, slot, text, slot, ..., text
    pattern = "".join(
        f"(?P<{piece}>.*?)" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)
    )
    match = re.fullmatch(pattern, text, re.DOTALL)
    return match.groupdict() if match else None
