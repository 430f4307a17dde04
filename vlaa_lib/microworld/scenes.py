"""Scenes: small worlds whose every fact is known, and the split each of them belongs to."""

from __future__ import annotations

import hashlib
import json
import random

SIDE_PX = 112  # ours: 16 visual tokens of 28 px, the cheapest picture a person can still read
COLORS = {
    "red": (214, 45, 45),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "yellow": (235, 190, 20),
    "purple": (150, 60, 190),
    "gray": (110, 110, 110),
}
SHAPES = ("cube", "ball", "cone", "cylinder")
SIZES_PX = {"big": 22, "small": 15}  # height of an object, inside its 28 px cell
GRID = 4  # cells along a side
AXIS = 5  # function plots show -5..5

# Each scene falls into one of 16 buckets by its content, each bucket belongs to one split: no
# scene can be in two splits, whatever seed or index drew it.
SPLITS = {
    "pretrain": range(0, 10),
    "train": range(10, 13),
    "dev": range(13, 14),
    "test": range(14, 16),
}


def bucket(scene: dict) -> int:
    """Return the scene's bucket (0-15), from what it shows and not from how it is painted."""
    content = {k: v for k, v in scene.items() if k != "style"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    return digest[0] % 16


def draw(kind: str, split: str, rng: random.Random) -> dict:
    """Draw a scene of a kind (objects, bars, function) that belongs to a split.

    Raises:
        ValueError: unknown kind or split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    if kind not in _DRAW:
        raise ValueError(f"unknown scene kind {kind!r}; use one of {', '.join(_DRAW)}")
    while True:
        scene = _DRAW[kind](rng)
        if bucket(scene) in SPLITS[split]:
            return scene


def _objects(rng: random.Random) -> dict:
    """Put 2 to 6 objects, from a few repeated kinds, into separate cells."""
    kinds = [(rng.choice(list(COLORS)), rng.choice(SHAPES)) for _ in range(rng.randint(2, 4))]
    cells = rng.sample(range(GRID * GRID), rng.randint(2, 6))
    objects = []
    for cell in sorted(cells):
        color, shape = rng.choice(kinds)
        size = rng.choice(list(SIZES_PX))
        side, room = SIZES_PX[size], SIDE_PX // GRID - SIZES_PX[size]
        x = cell % GRID * (SIDE_PX // GRID) + rng.randint(0, room)
        y = cell // GRID * (SIDE_PX // GRID) + rng.randint(0, room)
        box = [round(v / SIDE_PX, 2) for v in (x, y, x + side, y + side)]
        objects.append({"color": color, "shape": shape, "size": size, "box": box})
    return {"kind": "objects", "objects": objects, "style": {"ground": rng.randint(222, 248)}}


def _bars(rng: random.Random) -> dict:
    """Draw four bars of different colours and different heights."""
    colors, values = rng.sample(list(COLORS), GRID), rng.sample(range(1, 10), GRID)
    bars = [{"color": c, "value": v} for c, v in zip(colors, values, strict=True)]
    return {"kind": "bars", "bars": bars, "style": {"ground": rng.randint(240, 255)}}


def _function(rng: random.Random) -> dict:
    """Draw a line a x + k, or a V or parabola a f(x - h) + k with a = 1 or -1."""
    family = rng.choice(("line", "absolute", "parabola"))
    a = rng.choice((-3, -2, -1, 1, 2, 3) if family == "line" else (-1, 1))
    h = 0 if family == "line" else rng.randint(-3, 3)
    scene = {"kind": "function", "family": family, "a": a, "h": h, "k": rng.randint(-4, 4)}
    return scene | {"style": {"color": rng.choice(list(COLORS))}}


_DRAW = {"objects": _objects, "bars": _bars, "function": _function}


def expression(scene: dict) -> str:
    """Write a function scene as `y = ...` in LaTeX.

    >>> expression({"family": "line", "a": -1, "h": 0, "k": 2})
    'y = -x + 2'
    >>> expression({"family": "parabola", "a": 1, "h": -3, "k": 0})
    'y = (x + 3)^2'
    """
    a, h, k = scene["a"], scene["h"], scene["k"]
    lead = {1: "", -1: "-"}.get(a, str(a))
    inner = "x" if h == 0 else f"x {'-' if h > 0 else '+'} {abs(h)}"
    if scene["family"] == "absolute":
        inner = f"|{inner}|"
    elif scene["family"] == "parabola":
        inner = f"({inner})^2" if h else "x^2"
    tail = "" if k == 0 else f" {'+' if k > 0 else '-'} {abs(k)}"
    return f"y = {lead}{inner}{tail}"
