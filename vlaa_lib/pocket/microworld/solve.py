"""Answers worked out from facts alone.

The same solver serves the generator (on the scene's own facts) and the text-only teacher (on
the facts it read in a caption), so a teacher's mistake is the caption's, never the arithmetic's.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import facts, truth
from .facts import Fact, Question
from .scenes import expression

UNANSWERABLE = "unanswerable"  # VizWiz's word for a picture that shows too little


class CannotAnswer(ValueError):
    """The question, or the facts it needs, are not there."""


@dataclass(frozen=True)
class Solution:
    """A short chain of facts that leads to the answer."""

    steps: tuple[Fact, ...]
    answer: str


def solve(question: Question, known: list[Fact]) -> Solution:
    """Work out the answer from facts alone; of a question with choices, the letter."""
    steps, answer = found(question, known)
    if question.choices:
        letters = [letter for letter, text in question.choices.items() if text == answer]
        if not letters:
            raise CannotAnswer(f"none of the choices is {answer!r}")
        answer = letters[0]
    return Solution(tuple(steps), answer)


def found(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    """Return the steps and the answer itself, before it is turned into a letter."""
    return _SOLVE[question.kind](question, known)


def _of_kind(known: list[Fact], *kinds: str) -> list[Fact]:
    return [fact for fact in known if fact.kind in kinds]


def _need(known: list[Fact], what: str) -> list[Fact]:
    if not known:
        raise CannotAnswer(f"no {what} is described")
    return known


def _matching(known: list[Fact], words: str) -> list[Fact]:
    wanted = Fact("count", ("", *facts.split_things(words)))
    return [fact for fact in known if facts.covers(fact, wanted)]


def _total(groups: list[Fact]) -> int:
    return sum(f.args[0] for f in groups)


def _sum(sign: str, *terms: int) -> Fact:
    text = f" {sign} ".join(map(str, terms))
    value = truth.evaluate(text)
    if value != int(value):
        raise CannotAnswer(f"{text} is no whole number: something was misread")
    return Fact("sum", (text, int(value)))


def _tally(groups: list[Fact], words: str) -> list[Fact]:
    """List the groups, their sum where there are several, and what it counts."""
    steps = [*groups, _sum("+", *(f.args[0] for f in groups))] if len(groups) > 1 else []
    return [*steps, Fact("count", (_total(groups), *facts.split_things(words)))]


def _count(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    words = question.slots["things"]
    groups = _matching(known, words)
    return _tally(groups, words), str(_total(groups))


def _add(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    everything = _of_kind(known, "count")
    last = _sum("+", _total(everything), facts.number(question.slots["n"]))
    return [*_tally(everything, "objects"), last], str(last.args[1])


def _subtract(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    words, everything = question.slots["things"], _of_kind(known, "count")
    taken = Fact("count", (_total(_matching(known, words)), *facts.split_things(words)))
    last = _sum("-", _total(everything), taken.args[0])
    return [*_tally(everything, "objects"), taken, last], str(last.args[1])


def _more(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    words = question.slots["things"], question.slots["other"]
    a, b = (_total(_matching(known, w)) for w in words)
    steps = [Fact("count", (n, *facts.split_things(w))) for n, w in zip((a, b), words, strict=True)]
    return [*steps, _sum("-", a, b)], str(a - b)


_EXTREMES = {"tallest": max, "shortest": min, "peak": max, "dip": min}


def _chart(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    """Read off one bar or one point of a line, or find the highest or lowest of them."""
    kind = "bar" if question.kind in ("tallest", "shortest", "value") else "point"
    items = _need(_of_kind(known, kind), kind)
    if pick := _EXTREMES.get(question.kind):
        best = pick(items, key=lambda f: f.args[1])
        return [*items, best, Fact(question.kind, best.args[:1])], str(best.args[0])
    name = question.slots["color"].lower() if kind == "bar" else int(question.slots["v"])
    what = f"{name} bar" if kind == "bar" else f"point at x = {name}"
    step = _need([f for f in items if f.args[0] == name], what)[0]
    return [step], str(step.args[1])


def _scatter(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    groups = _need(_of_kind(known, "count"), "point")
    if question.kind == "points":
        color = question.slots["color"].lower()
        steps = _need([f for f in groups if f.args[1] == color], f"{color} point")
        return steps[:1], str(steps[0].args[0])
    color = max(groups, key=lambda f: f.args[0]).args[1]
    return [*groups, Fact("most", (color,))], color


def _equation(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    color = question.slots["color"].lower()
    kinds = ("family", "slope", "crossing", "vertex", "factor", "middle")
    steps = [f for f in _of_kind(known, *kinds) if f.args[0] == color]
    have = {f.kind: f.args[1:] for f in steps}
    family = have.get("family", ("",))[0]
    needed = {"line": ("slope", "crossing"), "sine": ("factor", "middle")}
    lacking = [k for k in needed.get(family, ("factor", "vertex")) if k not in have]
    if not family or lacking:
        raise CannotAnswer(f"the {color} graph is not described well enough")
    a = have["slope" if family == "line" else "factor"][0]
    h, k = have["vertex"] if "vertex" in have and family not in needed else (0, None)
    k = have["crossing" if family == "line" else "middle"][0] if k is None else k
    return steps, expression({"family": family, "a": a, "h": h, "k": k})


def _angle(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    """Read the angle, or take the marked ones from 180 degrees, halved where two are equal."""
    color = question.slots["color"].lower()
    angles, equal = _of_kind(known, "angle"), _of_kind(known, "equal")
    for fact in angles:
        if fact.args[0] == color:
            return [fact], str(fact.args[1])
    others = [f.args[1] for f in angles]
    if len(others) == 2:
        steps = [*angles, _sum("-", 180, *others)]
    elif len(others) == 1 and equal:
        rest = _sum("-", 180, *others)
        steps = [*angles, equal[0], rest, _sum("/", rest.args[1], 2)]
    else:
        raise CannotAnswer("too few angles are described")
    value = steps[-1].args[1]
    return [*steps, Fact("angle", (color, value))], str(value)


def _length(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    """Read a length, or get the diameter from the radius and the other way round."""
    have = {f.args[0]: f for f in _need(_of_kind(known, "length"), "length")}
    name = question.slots["length"].lower()
    if name in have:
        return [have[name]], str(have[name].args[1])
    if name == "diameter" and "radius" in have:
        steps = [have["radius"], _sum("*", 2, have["radius"].args[1])]
    elif name == "radius" and "diameter" in have:
        steps = [have["diameter"], _sum("/", have["diameter"].args[1], 2)]
    else:
        raise CannotAnswer(f"no {name} is described")
    value = steps[-1].args[1]
    return [*steps, Fact("length", (name, value))], str(value)


def _rectangle(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    have = {f.args[0]: f for f in _of_kind(known, "length")}
    if not {"width", "height"} <= have.keys():
        raise CannotAnswer("a side is missing")
    sides = [have["width"], have["height"]]
    if question.kind == "surface":
        last = [_sum("*", *(f.args[1] for f in sides))]
    else:
        half = _sum("+", *(f.args[1] for f in sides))
        last = [half, _sum("*", 2, half.args[1])]
    return [*sides, *last], str(last[-1].args[1])


def _field(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    key = question.slots["key"].lower()
    steps = _need([f for f in _of_kind(known, "field") if f.args[0] == key], key)[:1]
    return steps, steps[0].args[1]


def _closeup(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    steps = _need(_of_kind(known, "thing", "unclear"), "thing")[:1]
    if steps[0].kind == "unclear":
        return steps, UNANSWERABLE
    color, shape = steps[0].args
    return steps, facts.things(color, shape, 1) if question.kind == "what" else color


def _locate(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    wanted = facts.split_things(question.slots["thing"])
    places = [f for f in _of_kind(known, "place") if f.args[:2] == wanted]
    place = _need(places, question.slots["thing"])[0]
    return [place], facts.box_text(place.args[2])


def _relation(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    places, slots = _of_kind(known, "place"), question.slots
    anchors = [f for f in places if f.args[:2] == facts.split_things(slots["other"])]
    anchor = _need(anchors, slots["other"])[0]
    shape, relation = facts.split_things(slots["thing"])[1], slots["rel"].lower()
    others = [f for f in places if f.args[1] == shape and f is not anchor]
    fitting = [f for f in others if truth.related(f.args[2], relation, anchor.args[2])]
    place = _need(fitting, f"{slots['thing']} {relation} the {slots['other']}")[0]
    named = Fact("relation", (place.args[0], shape, relation, *anchor.args[:2]))
    return [named, place], facts.box_text(place.args[2])


def _describe(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    groups = _need(_of_kind(known, "count"), "thing")
    return [Fact("count", (_total(groups), "", ""))], " ".join(map(facts.say, groups))


_SOLVE = {
    "count": _count,
    "subtract": _subtract,
    "add": _add,
    "more": _more,
    **dict.fromkeys((*_EXTREMES, "value", "height"), _chart),
    **dict.fromkeys(("most", "points"), _scatter),
    "equation": _equation,
    "angle": _angle,
    "length": _length,
    **dict.fromkeys(("perimeter", "surface"), _rectangle),
    "field": _field,
    **dict.fromkeys(("what", "hue"), _closeup),
    "locate": _locate,
    "relation": _relation,
    "describe": _describe,
}
