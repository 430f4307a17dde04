"""Statements about a scene, some true and some false, for questions with a set of letters."""

from __future__ import annotations

import random
from itertools import permutations

from . import facts, scenes, truth
from .facts import Fact

# scene kind, skill in LogicVista's words; nothing in the micro-world is mechanical
SKILLS = (
    ("objects", "numerical"),
    ("objects", "spatial"),
    ("function", "inductive"),
    ("triangle", "deductive"),
    ("bars", "numerical"),
    ("line", "numerical"),
    ("circle", "deductive"),
    ("scatter", "numerical"),
)


def draw(index: int, rng: random.Random) -> tuple[dict, str, list[Fact]]:
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
