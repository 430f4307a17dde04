"""Prompt templates: fill the slots of one, and read the values back out of a filled one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vlaa_lib import prompts
from vlaa_lib.llm.messages import SLOT

# step -> file of a user's own template, slots it must have, slots it may have besides
_FILES = {
    "caption": ("1.captioning.txt", (), ("question",)),
    "distil": ("2.r1cot.txt", ("caption", "question"), ()),
    "rewrite": ("3.rewrite.txt", ("input",), ()),
    "verify": ("4.verify.txt", ("gold", "pred"), ("question",)),
}


class TemplateError(ValueError):
    """A user's own template that cannot be used; the message names file, slot and remedy."""


@dataclass(frozen=True)
class Templates:
    """The prompt of each step that asks; the defaults are in our own words."""

    caption: str = prompts.CAPTION_PROMPT
    distil: str = prompts.DISTIL_PROMPT
    rewrite: str = prompts.REWRITE_PROMPT
    verify: str = prompts.VERIFY_PROMPT


OURS = Templates()


def read_templates(folder: str | Path) -> Templates:
    """Read a user's own templates by the authors' file names; a file not there keeps ours.

    Raises:
        TemplateError: none of the files is there, or one lacks a slot or has a foreign one.
    """
    found = {}
    for step, (name, needed, allowed) in _FILES.items():
        path = Path(folder) / name
        if not path.exists():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"{path}: cannot be read ({error})") from None
        slots = set(SLOT.findall(text))
        if missing := set(needed) - slots:
            raise TemplateError(f"{path}: no slot {{{min(missing)}}}; the step cannot do without")
        if foreign := slots - {*needed, *allowed}:
            known = ", ".join(f"{{{slot}}}" for slot in (*needed, *allowed))
            raise TemplateError(f"{path}: slot {{{min(foreign)}}} has no value here; use {known}")
        found[step] = text
    if not found:
        names = ", ".join(name for name, *_ in _FILES.values())
        raise TemplateError(f"{folder}: holds none of {names}")
    return Templates(**found)


def read(template: str, text: str) -> dict[str, str] | None:
    """Read the slot values back out of a filled template; None when the text is not one.

    >>> read("Q: {question} A: {gold}", "Q: how many? A: 3")
    {'question': 'how many?', 'gold': '3'}
    """
    pieces = SLOT.split(template)  # text, slot, text, slot, ..., text
    pattern = "".join(
        f"(?P<{piece}>.*?)" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)
    )
    match = re.fullmatch(pattern, text, re.DOTALL)
    return match.groupdict() if match else None
