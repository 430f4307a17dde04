"""Boxes: how people and detectors write them, and their overlap with the gold (paper §4)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from vlaa_lib.records import Record

from .verifiers import GoldError, Score, bare, excerpt, gold_text, scored

Box = tuple[float, float, float, float]

BRACKETS = re.compile(r"\[([^\[\]]{1,200})\]")
_COORDINATE = re.compile(r"[+-]?(?:\d{1,20}\.?\d{0,20}|\.\d{1,20})(?:[eE][+-]?\d{1,3})?", re.ASCII)


# how corners are named, in the box's order; one way for all four
_CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"),
            ("left", "top", "right", "bottom"))  # fmt: skip
_NAMED = re.compile(
    r"\b([xy]_?(?:[12]|min|max)|left|top|right|bottom)\b[\"']?\s{0,3}[:=]\s{0,3}"
    rf"({_COORDINATE.pattern})(?![\w.])", re.ASCII | re.IGNORECASE,
)
_POINTS = re.compile(r"\b(?:(?:top|upper)[- ]left|(?:bottom|lower)[- ]right)\b(?: corner)?\W{0,3}"
                     r"(?=[(\[])", re.IGNORECASE)  # fmt: skip
# `"label": "dog [left]"` says nothing of the box; a box may stand in quotes itself
_LABEL = re.compile(r"([\"'])\w{1,40}\1\s{0,3}:\s{0,3}([\"'])"
                    r"(?!\[[\d\s.,eE+-]{1,200}\]\2)[^\"'\n]{0,200}\2")  # fmt: skip
_PLAIN = str.maketrans("，、；;：（）［］【】", ",,,,:()[][]")


def _coordinates(text: str) -> list[str]:
    """Return the four numbers of the one box in a text, or nothing."""
    text = _LABEL.sub(" ", text.translate(_PLAIN))
    if pairs := _NAMED.findall(text):
        named = {name.lower().replace("_", ""): number for name, number in pairs}
        is_all = len(pairs) == 4 and not re.search(r"\d", _NAMED.sub("", text))
        found = [names for names in _CORNERS if is_all and named.keys() == set(names)]
        return [named[name] for name in found[0]] if found else []
    text = _POINTS.sub("", text)
    groups = [group for group in BRACKETS.findall(text) if re.search(r"\d", group)]
    if not re.search(r"[\[\]]", text) and len(text) <= 200:  # (x1, y1, x2, y2), (x1, y1), (x2, y2)
        groups = [re.sub(r"[()]", " ", bare(text)).replace(" ,", ",")]
    fields = [re.split(r"\s*,\s*|\s+", group.strip()) for group in groups]
    is_one = len(fields) == 1 and len(fields[0]) == 4
    return fields[0] if is_one and all(map(_COORDINATE.fullmatch, fields[0])) else []


def parse_box(
    text: str, frame: str = "norm01", size: Sequence[float] | None = None
) -> Box | None:
    """Read the one box `[x1, y1, x2, y2]` in a text, with words or JSON around it.

    Args:
        frame: coordinates of the text, one of `records.FRAMES`.
        size: (width, height) in px of the picture that pixel coordinates count in.
    Returns:
        Ordered corners clipped to [0, 1]; None for no box, several, or one without area.

    >>> parse_box('{"bbox_2d": [500, 500, 250, 1200]}', "norm1000")
    (0.25, 0.5, 0.5, 1.0)
    """
    width, height = _full_size(frame, size)
    if not (found := _coordinates(text.strip())):
        return None
    x1, y1, x2, y2 = map(float, found)
    if not all(map(math.isfinite, (x1, y1, x2, y2))):  # 1e999 reads as infinity
        return None
    left, right = (min(max(x / width, 0.0), 1.0) for x in sorted((x1, x2)))
    top, bottom = (min(max(y / height, 0.0), 1.0) for y in sorted((y1, y2)))
    return (left, top, right, bottom) if left < right and top < bottom else None


def _full_size(frame: str, size: Sequence[float] | None) -> tuple[float, float]:
    """Return the picture's width and height in a frame's coordinates."""
    if frame in ("norm01", "norm1000"):
        return (1.0, 1.0) if frame == "norm01" else (1000.0, 1000.0)
    if not frame.startswith("pixel_"):
        raise GoldError(f"iou: unknown frame {frame!r}; see records.FRAMES")
    numbers = isinstance(size, (list, tuple)) and all(type(v) in (int, float) for v in size)
    if not numbers or len(size) != 2 or not all(math.isfinite(v) and v > 0 for v in size):
        raise GoldError(
            f"iou: frame {frame} needs meta.image_size = [width, height], the size in px of the "
            "picture that the box counts in"
        )
    return size[0], size[1]


def box(record: Record, answer: str) -> Score:
    """Score the intersection over union with the gold box, both in the record's frame."""
    frame, size = record.frame or "norm01", record.meta.get("image_size")
    gold = parse_box(gold_text(record), frame, size)
    if gold is None:
        raise GoldError(
            f"iou: gold {excerpt(gold_text(record))} is not one box [x1, y1, x2, y2] with an area "
            f"in frame {frame}; correct 'gt' or 'frame'"
        )
    found = parse_box(answer, frame, size)
    if found is None:
        return scored("iou", 0.0, f"{excerpt(answer)} is not one box with an area in frame {frame}")
    overlap = min(1.0, iou(gold, found))  # areas in floats may overshoot by a rounding
    return scored("iou", overlap, f"{overlap:.3f}")


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes, areas continuous (no +1).

    >>> iou((0, 0, 0.5, 1), (0, 0, 1, 1))
    0.5
    """
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    inner = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    return inner / union if union > 0 else 0.0
