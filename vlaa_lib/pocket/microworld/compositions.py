"""Compositions: problems that join several facts of a scene, none of them asked in training.

Their golds come straight from the scene, not from `solve`, which has no rule for any of them. At
the end lists of statements to be judged, which training never asks for either.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

from . import facts, scenes, truth
from .facts import Fact
from .scenes import AXIS, SHAPES


@dataclass(frozen=True)
class Problem:
    """A question without its choices, and the answer itself."""

    text: str
    right: str
    kind: str = ""  # the question's kind; `questions.rivals` chooses wrong options by it
    reward: str = "digit"  # or math, by what a free answer is; empty: only choices make sense
    topic: str = ""  # the category, concept or task that the problem belongs to
    level: int = 0  # how hard it is, 1 to 3; 0 where nobody asks
    wrong: tuple[str, ...] = ()  # wrong options, where `questions.rivals` has none to offer


# what a composition returns: the words of its question's slots, then the answer; None where the
# scene does not suit
Found = tuple | None


def _present(scene: dict, rng: random.Random) -> tuple[str, str]:
    """Choose a colour and, from another object if it may be, a shape that the scene shows."""
    one, other = rng.sample(scene["objects"], 2)
    return one["color"], other["shape"]


def _union(scene: dict, rng: random.Random) -> Found:
    color, shape = _present(scene, rng)
    fitting = sum(o["color"] == color or o["shape"] == shape for o in scene["objects"])
    return color, shape, fitting


def _neither(scene: dict, rng: random.Random) -> Found:
    color, shape = _present(scene, rng)
    fitting = sum(o["color"] != color and o["shape"] != shape for o in scene["objects"])
    return color, shape, fitting


def _remove_add(scene: dict, rng: random.Random) -> Found:
    gone, new = rng.choice(scene["objects"])["color"], rng.choice(SHAPES)
    n = rng.randint(2, 4)
    return gone, n, new, n + sum(o["color"] != gone for o in scene["objects"])


def _three_counts(scene: dict, rng: random.Random) -> Found:
    chosen = rng.sample(SHAPES, 3)
    fitting = [o["shape"] for o in scene["objects"] if o["shape"] in chosen]
    return (*chosen, len(fitting)) if len(set(fitting)) > 1 else None


def _beside(scene: dict, rng: random.Random) -> Found:
    named = [(o["color"], o["shape"]) for o in scene["objects"]]
    unique = [o for o, name in zip(scene["objects"], named, strict=True) if named.count(name) == 1]
    if not unique:
        return None
    anchor, relation = rng.choice(unique), rng.choice(facts.RELATIONS)
    fitting = sum(truth.related(o["box"], relation, anchor["box"]) for o in scene["objects"])
    return relation, anchor["color"], anchor["shape"], fitting


def _bar_sum(scene: dict, rng: random.Random) -> Found:
    a, b = rng.sample(scene["bars"], 2)
    return a["color"], b["color"], a["value"] + b["value"]


def _bar_difference(scene: dict, rng: random.Random) -> Found:
    a, b = sorted(rng.sample(scene["bars"], 2), key=lambda bar: -bar["value"])
    return a["color"], b["color"], a["value"] - b["value"]


def _bar_total(scene: dict, _: random.Random) -> Found:
    values = [bar["value"] for bar in scene["bars"]]
    return (sum(values),) if len(values) > 2 else None


def _line_change(scene: dict, rng: random.Random) -> Found:
    a, b = sorted(rng.sample(range(1, len(scene["values"]) + 1), 2))
    return a, b, abs(scene["values"][a - 1] - scene["values"][b - 1])


def _y(curve: dict, x: int) -> int | None:
    """Return y of a curve at a whole x; None for a sine, whose y is not whole."""
    shift = x - curve["h"]
    shape = {"line": shift, "absolute": abs(shift), "parabola": shift * shift}
    if curve["family"] not in shape:
        return None
    return curve["a"] * shape[curve["family"]] + curve["k"]


def _y_at(scene: dict, rng: random.Random) -> Found:
    curve, x = rng.choice(scene["curves"]), rng.randint(-AXIS, AXIS)
    y = _y(curve, x)
    if y is None or abs(y) > AXIS or x == 0:  # at x = 0 a line's fact would do
        return None
    return curve["color"], x, y


def _y_beyond(scene: dict, rng: random.Random) -> Found:
    curve, x = rng.choice(scene["curves"]), rng.randint(AXIS + 1, 9)
    return (curve["color"], x, _y(curve, x)) if curve["family"] == "line" else None


def _root(scene: dict, rng: random.Random) -> Found:
    curve = rng.choice(scene["curves"])
    roots = [x for x in range(-AXIS, AXIS + 1) if _y(curve, x) == 0]
    return (curve["color"], roots[0]) if len(roots) == 1 else None


def _exterior(scene: dict, rng: random.Random) -> Found:
    corner = rng.choice(scene["corners"])
    return corner["color"], 180 - corner["angle"]


def _angle_range(scene: dict, _: random.Random) -> Found:
    angles = [c["angle"] for c in scene["corners"]]
    return (max(angles) - min(angles),)


# scene kind, category, level, composition, question;
# level 1 joins two readings, 2 works on, 3 needs what is not drawn
SINGLE: tuple[tuple[str, str, int, Callable[[dict, random.Random], Found], str], ...] = (
    ("objects", "counting", 1, _union, "How many objects are {}, or {}s, or both?"),
    ("bars", "statistics", 1, _bar_sum, "What is the sum of the {} bar and the {} bar?"),
    ("triangle", "angle", 2, _exterior,
     "One side is drawn out past the {} corner. How large is the exterior angle there?"),
    ("function", "algebra", 2, _y_at, "Which y does the {} graph have at x = {}?"),
    ("circle", "length", 2, lambda s, _: (f"{2 * s['radius']}\\pi",),
     "What is the circumference of the circle, as a multiple of pi?"),
    ("objects", "arithmetic", 2, _remove_add,
     "Take away the {} objects, then add {} {}s. How many objects are there then?"),
    ("bars", "statistics", 1, _bar_difference,
     "How much higher is the {} bar than the {} bar?"),
    ("rectangle", "area", 3, lambda s, _: (2 * s["width"] * s["height"],),
     "The rectangle is made twice as wide. What is its area then?"),
    ("objects", "counting", 2, _neither, "How many objects are neither {} nor {}s?"),
    ("function", "algebra", 2, _root, "At which x does the {} graph meet the x axis?"),
    ("line", "statistics", 1, _line_change,
     "By how much do the values of the line at x = {} and at x = {} differ?"),
    ("triangle", "angle", 3, _angle_range,
     "How many degrees larger is the largest angle than the smallest?"),
    ("objects", "counting", 1, _three_counts, "How many {}s, {}s and {}s are there together?"),
    ("circle", "area", 2, lambda s, _: (f"{s['radius'] ** 2}\\pi",),
     "Which area does the circle have, as a multiple of pi?"),
    ("bars", "statistics", 2, _bar_total, "What do all bars together add up to?"),
    ("function", "algebra", 3, _y_beyond,
     "The {} line goes on beyond the picture. Which y does it have at x = {}?"),
    ("objects", "counting", 2, _beside, "How many objects are {} the {} {}?"),
    ("rectangle", "length", 3, lambda s, _: (2 * (2 * s["width"] + s["height"]),),
     "Two such rectangles are put side by side. What is the perimeter of the whole?"),
)  # fmt: skip


def single(number: int, scene: dict, rng: random.Random) -> Problem | None:
    """Pose composition `number` of `SINGLE` on a scene, or None where it does not suit."""
    _, topic, level, compose, question = SINGLE[number]
    if (found := compose(scene, rng)) is None:
        return None
    *slots, right = found
    kind = "angle" if topic == "angle" else ""
    reward = "math" if isinstance(right, str) else "digit"
    return Problem(question.format(*slots), str(right), kind, reward, topic, level)


# --- problems in several steps: sub-steps, then the question that needs them all ------------------


def _step(text: str, right: object, topic: str, kind: str = "") -> Problem:
    return Problem(text, str(right), kind, "digit", topic)


def _value(bar: dict) -> Problem:
    return _step(f"What is the value of the {bar['color']} bar?", bar["value"], "reading a chart")


def _two_bars(scene: dict, rng: random.Random) -> list[Problem]:
    a, b = rng.sample(scene["bars"], 2)
    text = f"The {a['color']} bar is put on top of the {b['color']} bar. Which value is reached?"
    return [_value(a), _value(b), _step(text, a["value"] + b["value"], "addition")]


def _outside(scene: dict, rng: random.Random) -> list[Problem]:
    corner, topic = rng.choice(scene["corners"]), "angles on a line"
    color, angle = corner["color"], corner["angle"]
    beside = f"Two angles make a straight line. One is {angle} degrees. How large is the other?"
    text = "How large is the angle outside the triangle that makes a straight line with"
    return [
        _step(f"How large is the {color} angle?", angle, "angles of a triangle", "angle"),
        _step(beside, 180 - angle, topic, "angle"),
        _step(f"{text} the {color} angle?", 180 - angle, topic, "angle"),
    ]


def _square_around(scene: dict, _: random.Random) -> list[Problem]:
    d = 2 * scene["radius"]
    around = f"What is the perimeter of a square with sides of {d}?"
    text = "A square fits exactly around the circle. What is the perimeter of the square?"
    return [
        _step("Find the diameter.", d, "circles"),
        _step(around, 4 * d, "perimeter"),
        _step(text, 4 * d, "perimeter"),
    ]


def _half_rectangle(scene: dict, _: random.Random) -> list[Problem] | None:
    area = scene["width"] * scene["height"]
    if area % 2:
        return None
    half = f"A diagonal cuts a rectangle of area {area} into two triangles. How large is one?"
    text = "A diagonal cuts this rectangle into two triangles. What is the area of one triangle?"
    return [
        _step("What is the area of the rectangle?", area, "area"),
        _step(half, area // 2, "halving"),
        _step(text, area // 2, "area"),
    ]


def _pairs(scene: dict, rng: random.Random) -> list[Problem] | None:
    shapes = sorted({o["shape"] for o in scene["objects"]})
    if len(shapes) < 2:
        return None
    a, b = rng.sample(shapes, 2)
    m, n = truth.count(scene, "", a), truth.count(scene, "", b)
    text = f"In how many ways can you choose one {a} and one {b}?"
    product = f"You choose one of {m} things and one of {n} others. In how many ways can you?"
    return [
        _step(f"How many {a}s are there?", m, "counting"),
        _step(f"How many {b}s are there?", n, "counting"),
        _step(product, m * n, "multiplication"),
        _step(text, m * n, "multiplication"),
    ]


def _bar_range(scene: dict, _: random.Random) -> list[Problem]:
    top, low = (pick(scene["bars"], key=lambda bar: bar["value"]) for pick in (max, min))
    gap = top["value"] - low["value"]
    text = "How far is it from the top of the shortest bar up to the top of the tallest bar?"
    return [
        _step("Which bar is the tallest?", top["color"], "comparing bars"),
        _step("Which bar is the shortest?", low["color"], "comparing bars"),
        _step(f"What is {top['value']} minus {low['value']}?", gap, "subtraction"),
        _step(text, gap, "subtraction"),
    ]


def _peak_to_dip(scene: dict, _: random.Random) -> list[Problem]:
    values = scene["values"]
    a, b = (values.index(pick(values)) + 1 for pick in (max, min))
    text = "How far apart along x are the highest and the lowest point of the line?"
    return [
        _step("At which x is the line highest?", a, "reading a graph"),
        _step("At which x is the line lowest?", b, "reading a graph"),
        _step(f"How far apart are x = {a} and x = {b}?", abs(a - b), "distance"),
        _step(text, abs(a - b), "distance"),
    ]


def _bisector(scene: dict, rng: random.Random) -> list[Problem] | None:
    hidden = [c for c in scene["corners"] if not c["marked"]]
    if len(hidden) != 1:
        return None
    color, angle = hidden[0]["color"], hidden[0]["angle"]
    text = f"A line cuts the {color} angle into two equal parts. How large is one part?"
    return [
        _step("What do the two numbers in the figure add up to?", 180 - angle, "addition", "angle"),
        _step(f"How large is the {color} angle?", angle, "angles of a triangle", "angle"),
        _step(f"What is half of {angle}?", angle // 2, "halving", "angle"),
        _step(text, angle // 2, "angles of a triangle", "angle"),
    ]


# scene kind, template; two steps and three steps in turn
MULTI: tuple[tuple[str, Callable[[dict, random.Random], list[Problem] | None]], ...] = (
    ("bars", _two_bars),
    ("objects", _pairs),
    ("triangle", _outside),
    ("bars", _bar_range),
    ("circle", _square_around),
    ("line", _peak_to_dip),
    ("rectangle", _half_rectangle),
    ("triangle", _bisector),
)

# --- statements about a scene, some true and some false: the answer is a set of letters -----------

# scene kind, skill in LogicVista's words; nothing in the micro-world is mechanical
SKILLS = (
    ("objects", "numerical"), ("objects", "spatial"), ("function", "inductive"),
    ("triangle", "deductive"), ("bars", "numerical"), ("line", "numerical"),
    ("circle", "deductive"), ("scatter", "numerical"),
)  # fmt: skip


def draw_statements(index: int, rng: random.Random) -> tuple[dict, str, list[Fact]]:
    """Return a scene of the split `bench`, a skill, and four or five statements, 1 to 3 true."""
    kind, skill = SKILLS[index % len(SKILLS)]
    while True:
        scene = scenes.draw(kind, "bench", rng)
        pool = list(dict.fromkeys(_candidates(scene, skill)))
        true = [fact for fact in pool if truth.holds(fact, scene)]
        false = [fact for fact in pool if truth.holds(fact, scene) is False]
        total, right = rng.choice((4, 5)), rng.randint(1, 3)
        if len(true) >= right and len(false) >= total - right:
            chosen = rng.sample(true, right) + rng.sample(false, total - right)
            rng.shuffle(chosen)
            return scene, skill, chosen


def _candidates(scene: dict, skill: str) -> list[Fact]:
    """List statements about a scene that somebody may hold for true, right ones among them."""
    kind = scene["kind"]
    if skill == "spatial":
        return _places(scene)
    told = truth.of_scene(scene)
    if kind == "objects":
        named = [(o["color"], "") for o in scene["objects"]]
        named += [("", o["shape"]) for o in scene["objects"]]
        told = told + [Fact("count", (truth.count(scene, *name), *name)) for name in named]
    elif kind == "triangle":
        colors = [corner["color"] for corner in scene["corners"]]
        told = [Fact("angle", (color, truth.angle_of(scene, color))) for color in colors]
        told += [Fact("equal", pair) for pair in permutations(colors, 2) if pair[0] < pair[1]]
    elif kind == "circle":
        told = [Fact("length", (k, truth.length(scene, k))) for k in ("radius", "diameter")]
    extremes = {"bars": ("tallest", "shortest"), "scatter": ("most",), "line": ("peak", "dip")}
    subjects = [item["color"] for item in scene.get("bars") or scene.get("objects", [])]
    subjects = subjects or list(range(1, len(scene.get("values", [])) + 1))
    wide = [Fact(k, (subject,)) for k in extremes.get(kind, ()) for subject in subjects]
    step = 10 if kind == "triangle" else 1
    return told + wide + [other for fact in told for other in _varied(fact, step)]


def _varied(fact: Fact, step: int) -> list[Fact]:
    """Move a fact's last number a step up and down, or name every other family."""
    if fact.kind == "family":
        return [Fact("family", (fact.args[0], name)) for name in facts.FAMILIES.values()]
    spots = [at for at, value in enumerate(fact.args) if isinstance(value, int)]
    moved = []
    for by in (-step, step) if spots else ():
        args = list(fact.args)
        args[spots[-1]] += by
        if args[spots[-1]] or fact.kind != "length":  # no figure has a length of 0
            moved.append(Fact(fact.kind, tuple(args)))
    return moved


def _places(scene: dict) -> list[Fact]:
    """List where the things with a name of their own are, and how they stand to each other."""
    named = [(o["color"], o["shape"]) for o in scene["objects"]]
    unique = [name for name in named if named.count(name) == 1]
    made = [Fact("area", (*name, area)) for name in unique for area in facts.AREAS]
    opposite = dict(zip(facts.RELATIONS, ("right of", "left of", "below", "above"), strict=True))
    for one, other in permutations(unique, 2):
        for relation, back in opposite.items():
            stated = Fact("relation", (*one, relation, *other))
            mirrored = Fact("relation", (*one, back, *other))
            if truth.holds(stated, scene) or truth.holds(mirrored, scene):  # else it is unclear
                made.append(stated)
    return made
