"""What the viewer is given, checked: examples, sides, where steps are; and text made visible."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlaa_lib import traces
from vlaa_lib.tables import known
from vlaa_lib.traces.steps import untagged

MAX_NAME_CHARS = 200  # ours, of an id, a source or a name
# what a key holds where it holds anything; every other key is read as text or as a number
_TABLES = ("parts", "reasons")
_LISTS = ("group", "pieces", "logps", "entropies", "verdicts")
# what cannot be seen but turns, hides or breaks what is seen: controls, marks of direction,
# zero-width characters, halves of surrogate pairs
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""Spell out characters that nobody sees, such as those that turn the direction of reading.

    >>> visible("3 \u202eabc")
    '3 ‹U+202E›abc'
    """
    return _UNSEEN.sub(lambda found: f"‹U+{ord(found[0]):04X}›", text.replace("\r\n", "\n"))


def beginning(text: Any, chars: int) -> str:
    """Return the first characters of what is not None as `visible` text, and how many are left out.

    >>> beginning("a question", 3), beginning(None, 3)
    ('a q… (7 more characters)', '')
    """
    text = "" if text is None else str(text)
    left = len(text) - chars
    return visible(text[:chars]) + (f"… ({left:,} more characters)" if left > 0 else "")


def checked(examples: Sequence[Any]) -> list[dict[str, Any]]:
    """Return examples with id, names and traces as text, steps found, and what is missing as None.

    Raises:
        ValueError: an example is malformed, or its id is used twice.
    """
    made = [_example(example, place) for place, example in enumerate(examples)]
    _refuse_twice([example["id"] for example in made], "examples", "id")
    return made


def _example(example: Any, place: int) -> dict[str, Any]:
    here = f"examples[{place}]"
    if not isinstance(example, dict) or not isinstance(example.get("sides"), (list, tuple)):
        raise ValueError(f"{here} is not a dict with a list `sides`; see show.prepare.prepare")
    example = {key: known(value) for key, value in example.items()}
    image = example.get("image")
    if image is not None and not isinstance(image, (str, Path)) and not hasattr(image, "convert"):
        raise ValueError(f"{here}: `image` is {_kind(image)}; give a path, a PIL image or None")
    for key, kind, wanted in (("scene", dict, "a dict"), ("frame", str, "a text")):
        if not isinstance(example.get(key), (kind, type(None))):
            raise ValueError(f"{here}: `{key}` is {_kind(example[key])}; give {wanted} or None")
    for number, side in enumerate(example["sides"]):
        if not isinstance(side, dict) or not known(side.get("name")):
            raise ValueError(f"{here}: sides[{number}] is not a dict with a `name`; name the model")
    sides = [_side(side, example.get("scene"), here) for side in example["sides"]]
    _refuse_twice([side["name"] for side in sides], here, "side named")
    return example | {"id": beginning(example.get("id", place), MAX_NAME_CHARS), "sides": sides}


def _side(side: dict[str, Any], scene: dict | None, here: str) -> dict[str, Any]:
    """Return a side with what is worked out once, on all of its text, however much is sent."""
    side = {key: known(value) for key, value in side.items()}
    made = side | {
        "name": beginning(side["name"], MAX_NAME_CHARS),
        "text": str(side["text"]) if side.get("text") is not None else "",
    }
    whose = f"of side {made['name']!r}"
    for key in _TABLES:
        if not isinstance(made.get(key), (Mapping, type(None))):
            raise ValueError(f"{here}: `{key}` {whose} is {_kind(made[key])}; give a dict by part")
    for key in _LISTS:
        if (value := made.get(key)) is None:
            continue
        if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__len__"):
            raise ValueError(f"{here}: `{key}` {whose} is {_kind(value)}; give a list")
        made[key] = list(value)
    if not all(isinstance(one, Mapping) for one in made.get("group") or ()):
        raise ValueError(f"{here}: `group` {whose} has more than dicts; give one a rollout")
    truth_from, steps = _told(made, scene, here)
    return made | {"truth_from": truth_from, "steps": _places(made["text"], steps)}


def _told(
    side: dict[str, Any], scene: dict | None, here: str
) -> tuple[str | None, list[traces.Step]]:
    """Return who says what is true, as `traces.measure` does, and the steps of a trace."""
    if scene:
        try:
            return "scene", traces.check_steps(side["text"], scene)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{here}: `scene` is none of the micro-world's: {error!r}") from error
    if (verdicts := side.get("verdicts")) is None:
        return None, []
    steps = traces.check_steps(side["text"], None)
    if len(verdicts) != len(steps) or any(one not in (True, False, None) for one in verdicts):
        raise ValueError(
            f"{here}: `verdicts` of side {side['name']!r}: give True, False or None for each of "
            f"its {len(steps)} steps (see traces.check_steps); there are {len(verdicts)} values"
        )
    told = (None if one is None else bool(one) for one in verdicts)
    return "judge", [replace(step, truth=one) for step, one in zip(steps, told, strict=True)]


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"


def _places(text: str, steps: list[traces.Step]) -> list[tuple[int, int, bool | None]]:
    """Find each step of `traces.check_steps` in its text: (start, end, truth)."""
    text, found, cursor = untagged(text), [], 0  # or "think" is found in the tag of that name
    for step in steps:
        start = text.index(step.text, cursor)  # a step is a piece of the text, in order
        cursor = start + len(step.text)
        while cursor < len(text) and text[cursor] in ".!?;":
            cursor += 1
        found.append((start, cursor, step.truth))
    return found


def _refuse_twice(keys: list[str], where: str, what: str) -> None:
    seen: dict[str, int] = {}
    for place, key in enumerate(keys):
        if key in seen:
            raise ValueError(
                f"{where}: {what} {key!r} twice, at {seen[key]} and {place}; each must be unique"
            )
        seen[key] = place
