"""Steps: the sentences of a trace, each held against the scene it speaks of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlaa_lib import worlds
from vlaa_lib.prompts import TAGS, sentences

_ANY_TAG = re.compile("|".join(map(re.escape, TAGS)), re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """One sentence of a trace: True or False against the scene, None where it cannot be checked."""

    text: str
    truth: bool | None


def untagged(trace: str) -> str:
    """Return a trace with its tags blank, each character where it was."""
    return _ANY_TAG.sub(lambda tag: "\n" * len(tag[0]), trace)


def split(trace: str) -> list[str]:
    """Return the sentences of a trace, without tags."""
    return sentences(untagged(trace))


def check_steps(trace: str, scene: dict | None) -> list[Step]:
    """Split a trace into sentences and hold each against the scene; False if any part is false.

    Without a scene, as for real pictures, no sentence can be checked.

    >>> scene = {"kind": "bars", "bars": [{"color": "red", "value": 3}]}
    >>> [s.truth for s in check_steps("The red bar reaches 3. It reaches 4. Hmm.", scene)]
    [True, None, None]
    """
    check = worlds.known().check
    return [Step(part, check(part, scene) if scene else None) for part in split(trace)]


def step_counts(trace: str, scene: dict | None) -> dict[str, int | None]:
    """Count steps, checked ones, false ones, and number the first false one (all ours).

    Steps are sentences, numbered from 1; where no scene is known, only their number is.

    >>> step_counts("One. Two.", None)
    {'steps': 2, 'checked_steps': None, 'false_steps': None, 'first_false_step': None}
    """
    found = [step.truth for step in check_steps(trace, scene)]
    return {
        "steps": len(found),
        "checked_steps": len(found) - found.count(None) if scene else None,
        "false_steps": found.count(False) if scene else None,
        "first_false_step": found.index(False) + 1 if False in found else None,
    }
