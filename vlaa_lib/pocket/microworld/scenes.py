"""Scenes: small worlds whose every fact is known, and the split each of them belongs to."""

from __future__ import annotations

import hashlib
import json
import random

from vlaa_lib import VlaaError

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
SIZES_PX = {"big": 26, "small": 20}  # height of an object, inside its 28 px cell
GRID = 4  # cells along a side
AXIS = 5  # function plots show -5..5
LEVELS = (1, 2, 3)  # how much there is to see, or to work out
FIELDS = {  # what may be written on a slip
    "name": ("Ada", "Ben", "Eve", "Ian", "Kim", "Leo", "Mia", "Tom"),
    "day": ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
    "item": ("tea", "soup", "cake", "milk", "rice", "fish"),
    "room": tuple(map(str, range(1, 10))),
    "total": tuple(map(str, range(10, 100))),
}

# Each scene falls into one of 16 buckets by its content, each bucket belongs to one split: no
# scene can be in two splits, whatever seed or index drew it.
SPLITS = {
    "pretrain": range(0, 10),
    "train": range(10, 13),
    "dev": range(13, 14),
    "test": range(14, 15),
    "bench": range(15, 16),
}


def content(scene: dict) -> str:
    """Return what a scene shows, as text: two scenes are the same when these are equal.

    Neither its style nor its level: circles of the levels 1 and 2 differ by the question alone.
    """
    shown = {key: value for key, value in scene.items() if key not in ("style", "level")}
    return json.dumps(shown, sort_keys=True)


def bucket(scene: dict) -> int:
    """Return the scene's bucket (0-15), from what it shows and not from how it is painted."""
    return hashlib.sha256(content(scene).encode()).digest()[0] % 16


def draw(kind: str, split: str, rng: random.Random, level: int | None = None) -> dict:
    """Draw a scene of a kind (see `KINDS`) that belongs to a split, at a level or at any."""
    for name, value, known in (("split", split, SPLITS), ("scene kind", kind, KINDS)):
        if value not in known:
            raise VlaaError(f"unknown {name} {value!r}; use one of {', '.join(known)}")
    if level not in (None, *LEVELS):
        raise VlaaError(f"unknown level {level!r}; use one of {LEVELS}")
    while True:
        chosen = level or rng.choice(LEVELS)
        scene = {"kind": kind, "level": chosen} | KINDS[kind](rng, chosen)
        if bucket(scene) in SPLITS[split]:
            return scene


def _objects(rng: random.Random, level: int) -> dict:
    """Put 2 to 7 objects, from a few repeated kinds, into separate cells."""
    kinds = [(rng.choice(list(COLORS)), rng.choice(SHAPES)) for _ in range(rng.randint(2, 4))]
    cells = rng.sample(range(GRID * GRID), 2 * level + rng.randint(0, 1))
    objects = []
    for cell in sorted(cells):
        color, shape = rng.choice(kinds)
        size = rng.choice(list(SIZES_PX))
        side, room = SIZES_PX[size], SIDE_PX // GRID - SIZES_PX[size]
        x = cell % GRID * (SIDE_PX // GRID) + rng.randint(0, room)
        y = cell // GRID * (SIDE_PX // GRID) + rng.randint(0, room)
        box = [round(v / SIDE_PX, 2) for v in (x, y, x + side, y + side)]
        objects.append({"color": color, "shape": shape, "size": size, "box": box})
    return {"objects": objects, "style": {"ground": rng.randint(222, 248)}}


def _bars(rng: random.Random, level: int) -> dict:
    """Draw two to four bars of different colours and different heights."""
    count = level + 1
    colors, values = rng.sample(list(COLORS), count), rng.sample(range(1, 10), count)
    bars = [{"color": c, "value": v} for c, v in zip(colors, values, strict=True)]
    return {"bars": bars, "style": {"ground": rng.randint(240, 255)}}


def _line(rng: random.Random, level: int) -> dict:
    """Join two to four points, at x = 1, 2, ..., of different heights."""
    values = rng.sample(range(1, 10), level + 1)
    return {"values": values, "style": {"color": rng.choice(list(COLORS))}}


def _scatter(rng: random.Random, level: int) -> dict:
    """Scatter points of two or three colours, a different number of each, over free places."""
    colors = rng.sample(list(COLORS), 2 if level == 1 else 3)
    counts = rng.sample(range(1, 5 if level < 3 else 6), len(colors))
    named = [c for c, n in zip(colors, counts, strict=True) for _ in range(n)]
    cells = rng.sample(range(49), len(named))  # 7 x 7 places of 16 px
    points = [
        {"color": c, "shape": "point", "x": cell % 7, "y": cell // 7}
        for c, cell in zip(named, cells, strict=True)
    ]
    # one order, or one picture is many scenes, with a split each
    points.sort(key=lambda point: (point["color"], point["y"], point["x"]))
    return {"objects": points, "style": {"ground": rng.randint(240, 255)}}


def _function(rng: random.Random, level: int) -> dict:
    """Draw one curve (a line at level 1), at level 3 a second one that only distracts."""
    colors = rng.sample(list(COLORS), 2)
    families = ("line",) if level == 1 else ("line", "absolute", "parabola", "sine")
    curve = _curve(rng.choice(families[level == 2 :]), rng)
    curves = [curve | {"color": colors[0]}]
    if level == 3:
        while (other := _curve("line", rng)) == curve:
            pass  # the one would hide the other
        curves.append(other | {"color": colors[1]})
        curves.sort(key=lambda curve: curve["color"])  # one order, as of points
    return {"curves": curves, "style": {}}


def _curve(family: str, rng: random.Random) -> dict:
    """Choose y = a f(x - h) + k: f is x, |x|, x^2 or sin x (then h = 0)."""
    steep = {"line": (-3, -2, -1, 1, 2, 3), "absolute": (-2, -1, 1, 2), "sine": (-3, -2, 2, 3)}
    a = rng.choice(steep.get(family, (-1, 1)))
    h = rng.randint(-3, 3) if family in ("absolute", "parabola") else 0
    k = rng.randint(-2, 2) if family == "sine" else rng.randint(-4, 4)
    return {"family": family, "a": a, "h": h, "k": k}


def _triangle(rng: random.Random, level: int) -> dict:
    """Draw a triangle with coloured angles: all marked, two marked, or equal sides and one."""
    while True:
        first, second = (rng.randrange(30, 110, 10) for _ in range(2))
        angles = [first, second, 180 - first - second]
        if level == 3:
            angles = [first, (180 - first) // 2, (180 - first) // 2]
        if min(angles) >= 30 and len(set(angles)) == (2 if level == 3 else 3):
            break
    colors = rng.sample(("red", "green", "blue", "yellow", "purple"), 3)
    marked = {1: 3, 2: 2, 3: 1}[level]
    corners = [
        {"color": c, "angle": a, "marked": i < marked}
        for i, (c, a) in enumerate(zip(colors, angles, strict=True))
    ]
    equal = [colors[1], colors[2]] if level == 3 else []
    turn = rng.randrange(0, 360, 45)
    return {"corners": corners, "equal": equal, "turn": turn, "style": {}}


def _circle(rng: random.Random, level: int) -> dict:
    """Draw a circle with its radius or its diameter marked, at level 3 with a chord beside it."""
    return {
        "marked": rng.choice(("radius", "diameter")),
        "radius": rng.randint(2, 9),
        "chord": level == 3,
        "turn": rng.randrange(0, 360, 45),
        "center": [rng.randint(53, 59), rng.randint(53, 59)],  # px
        "style": {"radius_px": rng.randint(28, 40), "color": rng.choice(list(COLORS))},
    }


def _rectangle(rng: random.Random, level: int) -> dict:
    """Draw a rectangle with width and height marked, at level 3 with its diagonal."""
    width, height = rng.sample(range(2, 10), 2)
    return {
        "width": width,
        "height": height,
        "diagonal": level == 3,
        "longest_px": rng.randint(58, 78),
        "style": {"color": rng.choice(list(COLORS))},
    }


def _slip(rng: random.Random, level: int) -> dict:
    """Write two to four fields on a slip."""
    fields = {key: rng.choice(FIELDS[key]) for key in rng.sample(list(FIELDS), level + 1)}
    return {"fields": fields, "style": {"ground": rng.randint(235, 255)}}


def _closeup(rng: random.Random, level: int) -> dict:
    """Show one thing tilted and blurred, at level 3 sometimes beyond recognition."""
    clear = level < 3 or rng.random() < 0.5
    return {
        "color": rng.choice(list(COLORS)),
        "shape": rng.choice(SHAPES),
        "clear": clear,
        "tilt": rng.randint(-12 * level, 12 * level),
        "box": [rng.randint(0, 20), rng.randint(0, 20), rng.randint(66, 92)],  # x, y, side in px
        "style": {"blur": (level - 0.5) if clear else 16, "ground": rng.randint(205, 245)},
    }


KINDS = {"objects": _objects, "bars": _bars, "line": _line, "scatter": _scatter,
         "function": _function, "triangle": _triangle, "circle": _circle,
         "rectangle": _rectangle, "slip": _slip, "closeup": _closeup}  # fmt: skip


def expression(curve: dict) -> str:
    r"""Write a curve as `y = ...` in LaTeX.

    >>> expression({"family": "line", "a": -1, "h": 0, "k": 2})
    'y = -x + 2'
    >>> expression({"family": "parabola", "a": 1, "h": -3, "k": 0})
    'y = (x + 3)^2'
    >>> expression({"family": "sine", "a": 2, "h": 0, "k": 1})
    'y = 2\\sin(x) + 1'
    """
    a, h, k = curve["a"], curve["h"], curve["k"]
    lead = {1: "", -1: "-"}.get(a, str(a))
    inner = "x" if h == 0 else f"x {'-' if h > 0 else '+'} {abs(h)}"
    if curve["family"] == "absolute":
        inner = f"|{inner}|"
    elif curve["family"] == "parabola":
        inner = f"({inner})^2" if h else "x^2"
    elif curve["family"] == "sine":
        inner = "\\sin(x)"
    tail = "" if k == 0 else f" {'+' if k > 0 else '-'} {abs(k)}"
    return f"y = {lead}{inner}{tail}"
