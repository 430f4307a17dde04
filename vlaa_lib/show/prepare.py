"""What the viewer draws, worked out in Python and tested there: runs of text, steps, boxes."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from vlaa_lib import traces, worlds
from vlaa_lib.escape import visible
from vlaa_lib.images import open_image
from vlaa_lib.prompts import split_think_answer
from vlaa_lib.tables import known, number
from vlaa_lib.traces.measures import untagged

from .style import MAX_NAME_CHARS, beginning, segments, style_of

Span = tuple[int, Any]  # (end, value): a layer of spans covers a text from its start

MAX_CHARS = 20_000  # ours, of one trace: five times the longest completion of the paper's settings
MAX_OTHER_CHARS = 2000  # ours, of any other text: a question, a reason, one rollout of a group
MIN_CHARS = 50  # ours: a shorter beginning of a text shows nothing
MAX_BYTES = 5_000_000  # ours: more is slow to open, and a notebook that keeps it is no longer shown
RIGHT_FROM = 0.5  # ours: a reward from here on counts as right where `correct` is not given


def prepare(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Turn examples into what the viewer's script draws: JSON without NaN, pixels or offsets.

    Args:
        examples: dicts with `id`, `source`, `image` (PIL or path), `question`, `gold`, `scene`
            (None: steps are not checked), `frame` (of boxes; see `records.FRAMES`), `image_size`
            (px, for `pixel_resized`) and `sides`. A side is a dict with `name`, `text` and, where
            known, `answer` (else what the tags hold), `reward`, `reason` or `reasons` and `parts`
            by name, `correct`, `advantage`, `tokens`, `clipped`, `mean_logp`, `entropy`, `group`
            (rollouts of the same prompt), `pieces`, `logps`, `entropies` (of each token) and
            `verdicts` (where no scene is known a judge's, True, False or None, of each step of
            `traces.check_steps(text, None)`).
    Returns:
        `examples`, `names` (of the sides, with label and colour) and the `unit` of lengths. All of
        it has at most `MAX_BYTES` as JSON: every text is cut as far as that needs, and says so.
        Steps are counted on the whole trace; `truthFrom` is absent where nobody checked them.
    Raises:
        ValueError: an example is malformed or its id is used twice; or there are too many.
    """
    examples = [_checked(example, f"examples[{n}]", n) for n, example in enumerate(examples)]
    _refuse_twice("examples: id", [example["id"] for example in examples])
    sides = [side for example in examples for side in example["sides"]]
    unit = "tokens" if all(number(side.get("tokens")) is not None for side in sides) else "words"
    names = dict.fromkeys(side["name"] for side in sides)
    looks = {name: style_of(name, index) for index, name in enumerate(names)}
    state: dict[str, Any] = {"names": [
        {"name": name, "label": look.label, "color": look.color} for name, look in looks.items()]}
    state["unit"] = unit
    longest = max((len(side["text"]) for side in sides), default=0)
    chars = min(MAX_CHARS, max(longest, MAX_OTHER_CHARS))
    while True:
        state["examples"] = [_example(example, chars, unit) for example in examples]
        size = len(json.dumps(state, ensure_ascii=False).encode())
        if size <= MAX_BYTES:
            return state
        if chars == MIN_CHARS:
            raise ValueError(
                f"{len(examples)} examples are {size:,} bytes with each text cut to {chars} "
                f"characters, more than {MAX_BYTES:,}; show fewer of them at a time"
            )
        # marks differ, so this may take a few
        chars = max(MIN_CHARS, int(chars * min(0.7, MAX_BYTES / size)))


# --- what is given, checked ----------------------------------------------------------------------

# of a side; every other key is read as text or as a number
_TABLES, _LISTS = ("parts", "reasons"), ("group", "pieces", "logps", "entropies", "verdicts")


def _checked(example: Any, here: str, place: int) -> dict[str, Any]:
    """Return an example with id, names and traces as text, steps found, what is missing as None."""
    if not isinstance(example, dict) or not isinstance(example.get("sides"), (list, tuple)):
        raise ValueError(f"{here} is not a dict with a list `sides`; see show.prepare.prepare")
    example = {key: known(value) for key, value in example.items()}
    for at, side in enumerate(example["sides"]):
        if not isinstance(side, dict) or not known(side.get("name")):
            raise ValueError(f"{here}: sides[{at}] is not a dict with a `name`; name the model")
    scene = example.get("scene")
    if scene and (problem := worlds.known().scene_problem(scene)):
        raise ValueError(f"{here}: `scene` is none of the micro-world's: {problem}")
    sides = [_checked_side(side, scene, here) for side in example["sides"]]
    _refuse_twice(f"{here}: side named", [side["name"] for side in sides])
    return example | {"id": beginning(example.get("id", place), MAX_NAME_CHARS), "sides": sides}


def _checked_side(side: dict[str, Any], scene: dict | None, here: str) -> dict[str, Any]:
    """Return a side with what is worked out once, on all of its text, however much is sent."""
    side = {key: known(value) for key, value in side.items()}
    side["name"] = name = beginning(side["name"], MAX_NAME_CHARS)
    side["text"] = text = str(side["text"]) if side.get("text") is not None else ""
    for key in (*_TABLES, *_LISTS):
        if (value := side.get(key)) is None:
            continue
        if isinstance(value, Mapping) != (key in _TABLES) or not isinstance(value, Collection) or (
            isinstance(value, (str, bytes))
        ):
            said, what = "a dict by part" if key in _TABLES else "a list", type(value).__name__
            raise ValueError(f"{here}: `{key}` of side {name!r} is of type {what}; give {said}")
        side[key] = value if key in _TABLES else list(value)  # arrays, too
    if not all(isinstance(one, Mapping) for one in side.get("group") or ()):
        raise ValueError(f"{here}: `group` of side {name!r} has more than dicts; "
                         "give one a rollout")
    steps = traces.check_steps(text, scene)
    judged = None if scene else side.get("verdicts")
    if judged is not None:
        if len(judged) != len(steps) or any(one not in (True, False, None) for one in judged):
            raise ValueError(
                f"{here}: `verdicts` of side {name!r}: give True, False or None for each "
                f"of its {len(steps)} steps (traces.check_steps); there are {len(judged)} values"
            )
        told = (None if one is None else bool(one) for one in judged)
        steps = [replace(step, truth=one) for step, one in zip(steps, told, strict=True)]
    side["truth_from"] = "scene" if scene else "judge" if judged is not None else None
    return side | {"steps": _places(text, steps) if side["truth_from"] else []}


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


def _refuse_twice(what: str, keys: list[str]) -> None:
    seen: dict[str, int] = {}
    for at, key in enumerate(keys):
        if (first := seen.setdefault(key, at)) != at:
            raise ValueError(f"{what} {key!r} twice, at {first} and {at}; each must be unique")


# --- what is sent --------------------------------------------------------------------------------


def _example(example: dict[str, Any], chars: int, unit: str) -> dict[str, Any]:
    short = min(chars, MAX_OTHER_CHARS)
    made = {key: beginning(example.get(key), short) for key in ("question", "gold")}
    made["source"] = beginning(example.get("source"), MAX_NAME_CHARS)
    read, problem = _box_reader(example)
    gold = read(str(example.get("gold", "")))
    sides = [_side(side, chars, unit, read, gold) for side in example["sides"]]
    return made | {"id": example["id"], "box": gold, "boxProblem": problem, "sides": sides}


def _side(side: dict[str, Any], chars: int, unit: str, read_box: Any, gold: Any) -> dict[str, Any]:
    """Return one trace's runs and numbers; what is not known is left out."""
    from vlaa_lib.rewards import iou  # here: the page is also drawn where no box is

    text, steps, by = side["text"], side["steps"], side["truth_from"]
    shown, short = text[:chars], min(chars, MAX_OTHER_CHARS)
    truths = [truth for _start, _end, truth in steps]
    shades, problem = _shades(side, text)
    reward, correct = number(side.get("reward")), side.get("correct")
    if correct is None and reward is not None:
        correct = reward >= RIGHT_FROM
    parsed, answer = split_think_answer(text), side.get("answer")
    answer = parsed.answer if answer is None else str(answer)  # given: read also without tags
    box = read_box(answer)
    parts, reasons = side.get("parts") or {}, side.get("reasons") or {}
    facts = {key: number(side.get(key)) for key in ("advantage", "tokens", "mean_logp", "entropy")}
    made = facts | {
        "name": side["name"],
        "body": _body(shown, steps, shades),
        "more": len(text) - len(shown),
        "length": facts["tokens"] if unit == "tokens" else len(text.split()),
        "reward": reward,
        "correct": None if correct is None else bool(correct),
        "parts": [[beginning(part, MAX_NAME_CHARS), number(parts.get(part)),
                   beginning(reasons.get(part), short)]
                  for part in dict.fromkeys([*parts, *reasons])],
        "reason": beginning(side.get("reason"), short),
        "clipped": None if side.get("clipped") is None else bool(side["clipped"]),
        "truthFrom": by,
        "steps": [truths.count(True), truths.count(False), truths.count(None)] if by else None,
        "firstFalse": truths.index(False) + 1 if False in truths else None,
        "shaded": bool(shades),
        "shadeProblem": problem,
        "answer": beginning(answer, short),
        "problem": beginning(parsed.problem, MAX_NAME_CHARS),
        "box": box,
        "iou": iou(gold, box) if gold and box else None,
        "group": [_rollout(one, short) for one in side.get("group") or ()],
    }
    return {key: value for key, value in made.items() if value not in (None, "")}


def _rollout(one: Mapping[str, Any], chars: int) -> dict[str, Any]:
    """Return a rollout of a group: its numbers and the beginning of its text."""
    text = str(one["text"]) if one.get("text") is not None else ""
    facts = {key: number(one.get(key)) for key in ("reward", "advantage", "tokens")}
    return facts | {"text": visible(text[:chars]), "more": max(0, len(text) - chars)}


def _box_reader(example: dict[str, Any]) -> tuple[Any, str]:
    """Return the function that reads a box of this example, and why no box can be read."""
    from vlaa_lib.rewards import GoldError, parse_box

    frame, size = str(example.get("frame") or ""), example.get("image_size")
    if not frame:
        return (lambda text: None), ""
    if size is None and frame == "pixel_original" and (image := example.get("image")) is not None:
        try:
            if isinstance(image, (str, Path)):
                image = open_image(Path(image).name, Path(image).parent)
            size = getattr(image, "size", None)
        except ValueError:  # no such picture: said below
            pass
    try:
        parse_box("", frame, size)
    except GoldError as error:
        return (lambda text: None), beginning(error, MAX_OTHER_CHARS)
    return (lambda text: parse_box(text, frame, size)), ""


# --- the body of a trace: three layers laid over each other --------------------------------------


def _shades(side: dict[str, Any], text: str) -> tuple[list[Span], str]:
    """Return the end and (log-prob, entropy) of each token, or nothing and why."""
    pieces = list(map(str, side.get("pieces") or ()))
    if not pieces:
        return [], ""
    if not "".join(pieces).startswith(text):  # tokens of the end may follow
        return [], "the tokens do not spell this text, so it is not shaded"
    values = [side.get(key) or [None] * len(pieces) for key in ("logps", "entropies")]
    if any(len(found) != len(pieces) for found in values):
        return [], f"{len(pieces)} tokens have other numbers of log-probs; not shaded"
    spans, end = [], 0
    for piece, *told in zip(pieces, *values, strict=True):
        end += len(piece)
        found = map(number, told)
        spans.append((end, [None if value is None else round(value, 2) for value in found]))
    return spans, ""


def _overlay(end: int, *layers: Sequence[Span]) -> Iterator[tuple[int, int, list[Any]]]:
    """Cut [0, end) wherever a layer of spans ends; yield start, end and each layer's value.

    >>> list(_overlay(3, [(1, "a"), (3, "b")], []))
    [(0, 1, ['a', None]), (1, 3, ['b', None])]
    """
    ends = [[stop for stop, _ in layer] for layer in layers]
    cuts = sorted({0, end}.union(*ends))
    for start, cut in pairwise(cut for cut in cuts if cut <= end):
        places = [bisect_right(stops, start) for stops in ends]
        yield start, cut, [layer[place][1] if place < len(layer) else None
                           for place, layer in zip(places, layers, strict=True)]


def _body(
    text: str, steps: list[tuple[int, int, bool | None]], shades: list[Span]
) -> list[list[Any]]:
    """Return [truth, runs] for each step and for what lies between steps.

    Truth is 1, 0, 2 (not checkable) or -1 (no step); a run is plain text, or [kind, text] and,
    where the token is known, its log-prob and entropy.
    """
    kinds, end = [], 0
    for kind, part in segments(text):
        end += len(part)
        kinds.append((end, kind))
    steps = [step for step in steps if step[0] < len(text)]  # the text may be a beginning
    held = []
    for place, (start, stop, truth) in enumerate(steps):
        held += [(start, (place, -1)), (stop, (place, 2 if truth is None else int(truth)))]
    held.append((len(text), (len(steps), -1)))

    def run(start: int, end: int, kind: str, shade: list[float | None] | None) -> str | list[Any]:
        said = visible(text[start:end])
        return said if kind == "text" and shade is None else [kind, said, *(shade or ())]

    cuts = _overlay(len(text), kinds, held, shades)
    return [
        [truth, [run(start, end, kind, shade) for start, end, (kind, _, shade) in runs]]
        for (_place, truth), runs in groupby(cuts, key=lambda cut: cut[2][1])
    ]
