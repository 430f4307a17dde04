"""Truth: which facts describe a scene, and whether a stated fact holds in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from statistics import mode
from typing import Any

from vlaa_lib.rewards.boxes import iou

from .facts import AREAS, Fact
from .scenes import GRID


def of_scene(scene: dict) -> list[Fact]:
    """Return the facts that describe a scene completely, the way a perfect caption would."""
    return _DESCRIBE[scene["kind"]](scene)


def knowledge(scene: dict) -> list[Fact]:
    """Return everything a solver may need to know of a scene: its facts and every box."""
    return of_scene(scene) + (places(scene) if scene["kind"] == "objects" else [])


def groups(scene: dict) -> list[Fact]:
    """Return one count fact for each (colour, shape) present, in reading order."""
    kinds = dict.fromkeys((o["color"], o["shape"]) for o in scene["objects"])
    return [Fact("count", (count(scene, *kind), *kind)) for kind in kinds]


def places(scene: dict) -> list[Fact]:
    """Return the box of every object, in reading order."""
    return [Fact("place", (o["color"], o["shape"], tuple(o["box"]))) for o in scene["objects"]]


def seen(scene: dict) -> list[Fact]:
    """Count aloud: every object in reading order, with its number among those of its kind."""
    found, numbers = [], Counter()
    for item in sorted(scene["objects"], key=_row_and_column):
        kind = item["color"], item["shape"]
        numbers[kind] += 1
        found.append(Fact("seen", (*kind, numbers[kind])))
    return found


def _row_and_column(item: dict) -> tuple[float, float]:
    """Return where reading order meets an object or a point: row first."""
    if "box" not in item:
        return item["y"], item["x"]
    x, y = item["box"][:2]
    return int(y * GRID), int(x * GRID)


def count(scene: dict, color: str = "", shape: str = "") -> int:
    """Count the objects of a colour and shape; an empty string stands for any."""
    return len(_named(scene, color, shape))


def area(box: Iterable[float]) -> str:
    """Name the ninth of the picture that holds the centre of a box."""
    x0, y0, x1, y1 = box
    row, column = (min(2, max(0, int(v * 1.5))) for v in (y0 + y1, x0 + x1))
    return AREAS[row * 3 + column]


def related(box: Iterable[float], relation: str, anchor: Iterable[float]) -> bool:
    """Say whether a box lies left of, right of, above or below another, by their centres.

    Centres closer than an eighth of the picture are neither (ours: half a cell).
    """
    (x0, y0, x1, y1), (ax0, ay0, ax1, ay1) = box, anchor
    right, down = (x0 + x1 - ax0 - ax1) / 2, (y0 + y1 - ay0 - ay1) / 2
    gap = {"left of": -right, "right of": right, "above": -down, "below": down}[relation]
    return gap >= 0.125


MALFORMED = (LookupError, TypeError, AttributeError, ValueError)  # what a broken scene raises


def problem_of(scene: Any) -> str:
    """Say why something is no scene of the micro-world; empty text where it is one."""
    try:
        knowledge(scene)
    except MALFORMED as error:
        return repr(error)
    return ""


def holds(fact: Fact, scene: dict) -> bool | None:
    """Say whether a fact is true of a scene; None where the scene cannot tell.

    A box counts as true from an intersection over union of 0.5 (ours: the usual threshold).
    """
    if fact.kind == "sum":
        return evaluate(fact.args[0]) == fact.args[1]
    check = _CHECK[scene["kind"]].get(fact.kind)
    return check(scene, *fact.args) if check else None


def evaluate(sum_text: str) -> float:
    """Work out `2 + 1 - 1` or `4 * 3` from left to right, without eval.

    >>> evaluate("180 - 50 - 60"), evaluate("130 / 2")
    (70, 65.0)
    """
    first, *rest = sum_text.split(" ")
    value: float = int(first)
    for sign, text in zip(rest[::2], rest[1::2], strict=True):
        if sign == "/":
            value = value / int(text) if int(text) else float("nan")
        else:
            value = {"+": value + int(text), "-": value - int(text), "*": value * int(text)}[sign]
    return value


def angle_of(scene: dict, color: str) -> int | None:
    """Return the angle of the corner marked with a colour."""
    return next((c["angle"] for c in scene["corners"] if c["color"] == color), None)


def length(scene: dict, name: str) -> int | None:
    """Return a length that the figure has, marked or not."""
    if scene["kind"] == "circle":
        return {"radius": scene["radius"], "diameter": 2 * scene["radius"]}.get(name)
    return {"width": scene["width"], "height": scene["height"]}.get(name)


def curve(scene: dict, color: str) -> dict:
    """Return the curve of a colour, or an empty one."""
    return next((c for c in scene["curves"] if c["color"] == color), {})


# family -> what is said of such a curve: kinds of facts, and the numbers that each of them states
_CURVES = {
    "line": {"slope": "a", "crossing": "k"},
    "sine": {"middle": "k", "factor": "a"},
    "absolute": {"vertex": "hk", "factor": "a"},
    "parabola": {"vertex": "hk", "factor": "a"},
}


def _describe_curves(scene: dict) -> list[Fact]:
    told = []
    for c in scene["curves"]:
        told.append(Fact("family", (c["color"], c["family"])))
        read = _CURVES[c["family"]].items()
        told += [Fact(kind, (c["color"], *(c[name] for name in names))) for kind, names in read]
    return told


def _describe_triangle(scene: dict) -> list[Fact]:
    told = [Fact("angle", (c["color"], c["angle"])) for c in scene["corners"] if c["marked"]]
    return told + ([Fact("equal", tuple(scene["equal"]))] if scene["equal"] else [])


_DESCRIBE = {
    "objects": groups,
    "scatter": groups,
    "bars": lambda s: [Fact("bar", (bar["color"], bar["value"])) for bar in s["bars"]],
    "line": lambda s: [Fact("point", (x, y)) for x, y in enumerate(s["values"], 1)],
    "function": _describe_curves,
    "triangle": _describe_triangle,
    "circle": lambda s: [Fact("length", (s["marked"], length(s, s["marked"])))],
    "rectangle": lambda s: [Fact("length", (k, s[k])) for k in ("width", "height")],
    "slip": lambda s: [Fact("field", item) for item in s["fields"].items()],
    "closeup": lambda s: [Fact("thing", (s["color"], s["shape"])) if s["clear"]
                          else Fact("unclear", ())],
}  # fmt: skip


def _named(scene: dict, color: str, shape: str) -> list[dict]:
    return [o for o in scene["objects"] if color in ("", o["color"]) and shape in ("", o["shape"])]


def _is_related(s: dict, color: str, shape: str, relation: str, *other: str) -> bool:
    return any(
        related(o["box"], relation, anchor["box"])
        for o in _named(s, color, shape)
        for anchor in _named(s, *other)
    )


def _extreme(scene: dict, pick: Callable) -> str:
    return pick(scene["bars"], key=lambda bar: bar["value"])["color"]


def _told(kind: str) -> Callable[..., bool]:
    return lambda s, *args: Fact(kind, args) in of_scene(s)


_COUNT = {
    "count": lambda s, n, color, shape: count(s, color, shape) == n,
    "seen": lambda s, color, shape, v: 1 <= v <= count(s, color, shape),
}
_CHECK = {
    "objects": {
        **_COUNT,
        "place": lambda s, c, k, box: any(iou(o["box"], box) >= 0.5 for o in _named(s, c, k)),
        "area": lambda s, c, k, where: any(area(o["box"]) == where for o in _named(s, c, k)),
        "relation": _is_related,
    },
    "scatter": {**_COUNT, "most": lambda s, color: mode(o["color"] for o in s["objects"]) == color},
    "bars": {
        "bar": lambda s, color, v: {"color": color, "value": v} in s["bars"],
        "tallest": lambda s, color: _extreme(s, max) == color,
        "shortest": lambda s, color: _extreme(s, min) == color,
    },
    "line": {
        "point": lambda s, x, y: s["values"][x - 1 : x] == [y] if x > 0 else False,
        "peak": lambda s, x: s["values"].index(max(s["values"])) + 1 == x,
        "dip": lambda s, x: s["values"].index(min(s["values"])) + 1 == x,
    },
    "function": {
        **{kind: _told(kind) for kind in ("family", "slope", "crossing", "vertex", "middle")},
        "factor": lambda s, color, v: curve(s, color).get("a") == v,  # of a line, its slope as well
    },
    "triangle": {
        "angle": lambda s, color, v: angle_of(s, color) == v,
        "equal": lambda s, a, b: angle_of(s, a) == angle_of(s, b) is not None,
    },
    "circle": {"length": lambda s, name, v: length(s, name) == v},
    "rectangle": {"length": lambda s, name, v: length(s, name) == v},
    "slip": {"field": lambda s, key, value: s["fields"].get(key, "").lower() == value.lower()},
    "closeup": {
        "thing": lambda s, color, shape: (
            color in ("", s["color"]) and (not shape or (s["clear"] and shape == s["shape"]))
        ),
        "unclear": lambda s: not s["clear"],
    },
}
