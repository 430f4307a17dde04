"""A world of known truth: what it adds to the core, which never imports it.

The micro-world (`vlaa_lib.pocket`) is one: it knows every fact of its pictures, so it can say
whether a step of a trace is true and what an open answer is worth. It is found through the entry
point group `vlaa_lib.worlds` (see pyproject.toml); without it real records lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from vlaa_lib import VlaaError


@dataclass(frozen=True)
class World:
    """What a world can say of its own records; the defaults are those of no world at all."""

    # source -> (reward part, the public source that it stands for)
    sources: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    # whether a sentence is true; None where that cannot be told
    check: Callable[[str, dict], bool | None] = lambda sentence, scene: None
    # why a scene is none of this world's; empty text where it is
    scene_problem: Callable[[Any], str] = lambda scene: ""
    # whether the answer follows from what was stated
    follows: Callable[[str, str], bool | None] = lambda trace, question: None
    # what was said again after a doubt word, by outcome
    corrections: Callable[[str, dict | None], dict[str, int | None]] = (
        lambda trace, scene: dict.fromkeys(("helped", "hurt", "unchanged"))
    )
    reward_model: Any = None  # the default scorer of open answers (`rewards.RewardModel`)


@cache
def known() -> World:
    """Return the installed world, or one that knows nothing.

    Raises:
        VlaaError: the micro-world is there, but the installation does not name it.
    """
    for entry in entry_points(group="vlaa_lib.worlds"):
        return entry.load()
    if find_spec("vlaa_lib.pocket"):  # without it steps would go unchecked and nobody would know
        raise VlaaError(
            "the micro-world lies beside the library, but this installation is older and does not "
            "name it; install again: python -m pip install -e ."
        )
    return World()
