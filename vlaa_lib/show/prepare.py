"""What the viewer draws, worked out in Python and tested there: runs of text, steps, boxes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib.images import open_image
from vlaa_lib.prompts import AHA_KEYWORDS, ANSWER_CLOSE, ANSWER_OPEN, TAGS, split_think_answer
from vlaa_lib.tables import known, number

from .given import MAX_NAME_CHARS, beginning, checked, visible
from .style import style_of

if TYPE_CHECKING:
    from PIL import Image

Span = tuple[int, Any]  # (end, value): a layer of spans covers a text from its start

MAX_CHARS = 20_000  # ours, of one trace: five times the longest completion of the paper's settings
MAX_OTHER_CHARS = 2000  # ours, of any other text: a question, a reason, one rollout of a group
MIN_CHARS = 50  # ours: a shorter beginning of a text shows nothing
MAX_BYTES = 5_000_000  # ours: more is slow to open, and a notebook that keeps it is no longer shown
RIGHT_FROM = 0.5  # ours: a reward from here on counts as right where `correct` is not given

_PARTS = re.compile(
    f"(?P<tag>{'|'.join(map(re.escape, TAGS))})"
    # longest first: "double-check" is one word, not its parts
    f"|(?P<aha>{'|'.join(map(re.escape, sorted(AHA_KEYWORDS, key=len, reverse=True)))})",
    re.IGNORECASE,
)


def segments(text: str) -> Iterator[tuple[str, str]]:
    """Cut a trace into (kind, text), kind being tag, aha, answer or text; nothing is lost.

    >>> list(segments("Wait, 3.<answer>3"))
    [('aha', 'Wait'), ('text', ', 3.'), ('tag', '<answer>'), ('answer', '3')]
    """
    kind, end = "text", 0
    for match in _PARTS.finditer(text):
        if match.start() > end:
            yield kind, text[end : match.start()]
        yield match.lastgroup or "text", match[0]
        if match["tag"]:
            opens = match["tag"].lower() == ANSWER_OPEN
            closes = match["tag"].lower() == ANSWER_CLOSE
            kind = "answer" if opens else "text" if closes else kind
        end = match.end()
    if end < len(text):
        yield kind, text[end:]


def thumbnail(image: Image.Image | str | Path, side_px: int = 192) -> str:
    """Return an image as a small JPEG data URL.

    Raises:
        ValueError: no such file, or not a picture.
    """
    if isinstance(image, (str, Path)):
        image = open_image(Path(image).name, Path(image).parent)
    if not hasattr(image, "convert"):
        raise ValueError(f"{type(image).__name__} is neither a path nor a PIL image")
    small = image.convert("RGB")
    small.thumbnail((side_px, side_px))
    stream = BytesIO()
    small.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def picture(example: dict[str, Any], side_px: int) -> str:
    """Return an example's picture as a data URL, or in its place the words why there is none."""
    if (image := known(example.get("image"))) is None:
        return "no picture"
    try:
        return thumbnail(image, side_px)
    except ValueError as error:  # ImageError is one; a path may also hold a NUL
        return beginning(f"no picture: {error}", MAX_NAME_CHARS)


def prepare(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Turn examples into what `viewer.js` draws: JSON without NaN, pixels or offsets.

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
        ValueError: an example is malformed or its id is used twice, says which and why; or there
            are too many for `MAX_BYTES`.
    """
    examples = checked(examples)
    sides = [side for example in examples for side in example["sides"]]
    unit = "tokens" if all(number(side.get("tokens")) is not None for side in sides) else "words"
    names = dict.fromkeys(side["name"] for side in sides)
    looks = [(name, style_of(name, index)) for index, name in enumerate(names)]
    state = {
        "names": [{"name": name, "label": look.label, "color": look.color} for name, look in looks],
        "unit": unit,
    }
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


def _example(example: dict[str, Any], chars: int, unit: str) -> dict[str, Any]:
    short = min(chars, MAX_OTHER_CHARS)
    made = {key: beginning(example.get(key), short) for key in ("question", "gold")}
    made["source"] = beginning(example.get("source"), MAX_NAME_CHARS)
    read, problem = _box_reader(example)
    gold = read(str(example.get("gold", "")))
    sides = []
    for side in example["sides"]:
        parsed = split_think_answer(side["text"])
        answer = side.get("answer")  # evaluation also reads untagged replies
        answer = parsed.answer if answer is None else str(answer)
        made_side = _side(side, chars, unit)
        made_side["answer"] = beginning(answer, short)
        made_side["problem"] = beginning(parsed.problem, MAX_NAME_CHARS)
        made_side["box"] = box = read(answer)
        made_side["iou"] = _overlap(gold, box)
        made_side["group"] = [_member(member, short) for member in side.get("group") or ()]
        sides.append({key: value for key, value in made_side.items() if value not in (None, "")})
    return made | {"id": example["id"], "box": gold, "boxProblem": problem, "sides": sides}


def _side(side: dict[str, Any], chars: int, unit: str) -> dict[str, Any]:
    """Return one trace's runs and numbers; None stands for what is not known."""
    text, steps, by = side["text"], side["steps"], side["truth_from"]
    shown, short = text[:chars], min(chars, MAX_OTHER_CHARS)
    truths = [truth for _start, _end, truth in steps]
    shades, problem = _shades(side, text)
    reward = number(side.get("reward"))
    correct = side.get("correct")
    if correct is None and reward is not None:
        correct = reward >= RIGHT_FROM
    facts = {key: number(side.get(key)) for key in ("advantage", "tokens", "mean_logp", "entropy")}
    return facts | {
        "name": side["name"],
        "body": _body(shown, steps, shades),
        "more": len(text) - len(shown),
        "length": facts["tokens"] if unit == "tokens" else len(text.split()),
        "reward": reward,
        "correct": None if correct is None else bool(correct),
        "parts": _parts(side, short),
        "reason": beginning(side.get("reason"), short),
        "clipped": None if side.get("clipped") is None else bool(side["clipped"]),
        "truthFrom": by,
        "steps": [truths.count(True), truths.count(False), truths.count(None)] if by else None,
        "firstFalse": truths.index(False) + 1 if False in truths else None,
        "shaded": bool(shades),
        "shadeProblem": problem,
    }


def _parts(side: dict[str, Any], chars: int) -> list[list[Any]]:
    """Return [name, value or None, reason] for each part of the reward."""
    parts, reasons = side.get("parts") or {}, side.get("reasons") or {}
    return [
        [beginning(name, MAX_NAME_CHARS), number(parts.get(name)),
         beginning(reasons.get(name), chars)]
        for name in dict.fromkeys([*parts, *reasons])
    ]  # fmt: skip


def _member(member: dict[str, Any], chars: int) -> dict[str, Any]:
    """Return a rollout of a group: its numbers and the beginning of its text."""
    text = str(member["text"]) if member.get("text") is not None else ""
    facts = {key: number(member.get(key)) for key in ("reward", "advantage", "tokens")}
    return facts | {"text": visible(text[:chars]), "more": max(0, len(text) - chars)}


# --- the body of a trace: three layers laid over each other --------------------------------------


def _shades(side: dict[str, Any], text: str) -> tuple[list[Span], str]:
    """Return the end and (log-prob, entropy) of each token, or nothing and why."""
    pieces = side.get("pieces")
    if not pieces:
        return [], ""
    if not "".join(map(str, pieces)).startswith(text):  # tokens of the end may follow
        return [], "the tokens do not spell this text, so it is not shaded"
    values = [list(side.get(key) or ()) for key in ("logps", "entropies")]
    if any(found and len(found) != len(pieces) for found in values):
        return [], f"{len(pieces)} tokens have other numbers of log-probs; not shaded"
    spans, end = [], 0
    for place, piece in enumerate(map(str, pieces)):
        end += len(piece)
        told = [number(found[place]) if found else None for found in values]
        spans.append((end, [None if value is None else round(value, 2) for value in told]))
    return spans, ""


def _overlay(end: int, *layers: Sequence[Span]) -> Iterator[tuple[int, int, list[Any]]]:
    """Cut [0, end) wherever a layer of spans ends; yield start, end and each layer's value.

    >>> list(_overlay(3, [(1, "a"), (3, "b")], []))
    [(0, 1, ['a', None]), (1, 3, ['b', None])]
    """
    places = [0] * len(layers)
    start = 0
    for cut in sorted({stop for layer in layers for stop, _ in layer if 0 < stop < end} | {end}):
        values = []
        for which, layer in enumerate(layers):
            while places[which] < len(layer) and layer[places[which]][0] <= start:
                places[which] += 1
            inside = places[which] < len(layer)
            values.append(layer[places[which]][1] if inside else None)
        if cut > start:
            yield start, cut, values
        start = cut


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
    cuts = _overlay(len(text), kinds, held, shades)
    return [
        [truth, [_run(visible(text[a:b]), kind, shade) for a, b, (kind, _, shade) in runs]]
        for (_place, truth), runs in groupby(cuts, key=lambda cut: cut[2][1])
    ]


def _run(text: str, kind: str, shade: list[float | None] | None) -> str | list[Any]:
    return text if kind == "text" and shade is None else [kind, text, *(shade or ())]


# --- boxes ---------------------------------------------------------------------------------------


def _box_reader(example: dict[str, Any]) -> tuple[Any, str]:
    """Return the function that reads a box of this example, and why no box can be read."""
    from vlaa_lib.rewards import (  # here: the page is also drawn where no box is
        GoldError,
        parse_box,
    )

    frame = example.get("frame")
    if not frame:
        return (lambda text: None), ""
    size = example.get("image_size")
    if size is None and frame == "pixel_original":
        size = getattr(example.get("image"), "size", None) or _size(example.get("image"))
    try:
        parse_box("", frame, size)
    except GoldError as error:
        return (lambda text: None), beginning(error, MAX_OTHER_CHARS)
    return (lambda text: parse_box(text, frame, size)), ""


def _size(image: Any) -> tuple[int, int] | None:
    try:
        return open_image(Path(image).name, Path(image).parent).size
    except (TypeError, ValueError):
        return None


def _overlap(gold: Any, box: Any) -> float | None:
    from vlaa_lib.rewards import iou

    return iou(gold, box) if gold and box else None
