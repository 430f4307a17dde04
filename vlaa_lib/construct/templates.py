"""The prompts of the steps that ask: ours, or a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlaa_lib import VlaaError, prompts
from vlaa_lib.llm.messages import SLOT

# step -> file of a user's own template, slots it must have, slots it may have besides
_FILES = {
    "caption": ("1.captioning.txt", (), ("question",)),
    "distil": ("2.r1cot.txt", ("caption", "question"), ()),
    "rewrite": ("3.rewrite.txt", ("input",), ()),
    "verify": ("4.verify.txt", ("gold", "pred"), ("question",)),
}


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
        VlaaError: none of the files is there, or one lacks a slot or has a foreign one.
    """
    found = {}
    for step, (name, needed, allowed) in _FILES.items():
        path = Path(folder) / name
        if not path.exists():
            continue
        try:
            found[step] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise VlaaError(f"{path}: cannot be read ({error})") from None
        slots = set(SLOT.findall(found[step]))
        if missing := set(needed) - slots:
            raise VlaaError(f"{path}: no slot {{{min(missing)}}}; the step cannot do without")
        if foreign := slots - {*needed, *allowed}:
            known = ", ".join(f"{{{slot}}}" for slot in (*needed, *allowed))
            raise VlaaError(f"{path}: slot {{{min(foreign)}}} has no value here; use {known}")
    if not found:
        names = ", ".join(name for name, *_ in _FILES.values())
        raise VlaaError(f"{folder}: holds none of {names}")
    return Templates(**found)
