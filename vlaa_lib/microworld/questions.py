"""Questions: wordings, how to read one back, and how to work out its answer from facts.

The same solver serves the generator (on the scene's own facts) and the text-only teacher (on
the facts it read in a caption), so a teacher's mistake is the caption's, never the arithmetic's.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from . import facts
from .facts import Fact
from .scenes import COLORS, SHAPES, expression

WORDINGS = {
    "count": [
        "How many {things} are there?",
        "Count the {things}. How many do you find?",
        "What is the number of {things} in the image?",
    ],
    "subtract": [
        "Subtract all {things}. How many objects are left?",
        "If you remove all {things}, how many objects remain?",
        "Take away the {things}. How many objects stay?",
    ],
    "add": [
        "Add {n} {things}. How many objects are there in all?",
        "If {n} {things} join the scene, how many objects will it have?",
        "Put {n} more {things} into the image. What is the number of objects then?",
    ],
    "more": [
        "How many more {things} than {other} are there?",
        "By how many do the {things} outnumber the {other}?",
        "What is the number of {things} minus the number of {other}?",
    ],
    "tallest": [
        "Which bar is the tallest?",
        "Which color has the highest bar?",
        "What is the color of the tallest bar?",
    ],
    "shortest": [
        "Which bar is the shortest?",
        "Which color has the lowest bar?",
        "What is the color of the shortest bar?",
    ],
    "value": [
        "What is the value of the {color} bar?",
        "How high is the {color} bar?",
        "Which value does the {color} bar reach?",
    ],
    "equation": [
        "What is the equation of the graph?",
        "Which function is drawn? Give y in terms of x.",
        "Find the expression of the curve in the figure.",
    ],
    "locate": [
        "Where is the {things}? Give its box.",
        "Find the {things} and give its box.",
        "Locate the {things} with a box.",
    ],
    "describe": ["Describe the image.", "What does the image show?", "Tell me what you see here."],
}
# micro source -> question kinds; the scene kind and reward of each source are in __init__.py
KINDS = {
    "solids": ("count", "subtract", "add", "more"),
    "panel": ("tallest", "shortest", "value"),
    "plot": ("equation",),
    "locate": ("locate",),
    "describe": ("describe",),
}
_CHOICE = re.compile(r"^([A-D]): (.+)$", re.MULTILINE)


class CannotAnswer(ValueError):
    """The question, or the facts it needs, are not there."""


@dataclass(frozen=True)
class Question:
    """A question read back from its text: kind, slots, and choices by letter (mcq only)."""

    kind: str
    slots: dict[str, str]
    choices: dict[str, str]


@dataclass(frozen=True)
class Solution:
    """A short chain of facts that leads to the answer."""

    steps: tuple[Fact, ...]
    answer: str


def read(text: str) -> Question:
    """Read a question in any of its wordings.

    Raises:
        CannotAnswer: no wording fits.
    """
    stem = _CHOICE.sub("", text).replace("Choices:", "").strip()
    for kind, wordings in WORDINGS.items():
        for wording in wordings:
            if match := facts.pattern(wording).fullmatch(stem):
                return Question(kind, match.groupdict(), dict(_CHOICE.findall(text)))
    raise CannotAnswer(f"no known question in {text[:80]!r}")


def ask(source: str, scene: dict, rng: random.Random) -> tuple[str, str]:
    """Ask a question that the scene can answer; return (question, gold)."""
    while True:
        kind = rng.choice(KINDS[source])
        slots = _slots(kind, scene, rng)
        if slots is None:
            continue
        text = rng.choice(WORDINGS[kind]).format(**slots)
        if kind in ("tallest", "shortest", "value"):
            text += _choices(kind, slots, scene, rng)
        if kind == "describe":
            return text, _short_description(scene, rng)
        return text, solve(read(text), knowledge(scene)).answer


def _slots(kind: str, scene: dict, rng: random.Random) -> dict[str, str] | None:
    """Choose what the question is about, or None where this scene does not suit the kind."""
    if kind == "value":
        return {"color": rng.choice(scene["bars"])["color"]}
    if kind == "locate":
        unique = facts.places(scene)
        return {"things": facts.things(*rng.choice(unique).args[:2], 1)} if unique else None
    if kind not in ("count", "subtract", "add", "more"):
        return {}
    named = rng.choice(scene["objects"])
    color = rng.choice((named["color"], named["color"], "", rng.choice(list(COLORS))))
    shape = rng.choice((named["shape"], named["shape"] if not color else "", rng.choice(SHAPES)))
    if not (color or shape):
        return None
    slots = {"things": facts.things(color, shape), "n": str(rng.randint(1, 3))}
    if kind != "more":
        return slots
    other = rng.choice(scene["objects"])
    pair = [(color, shape), rng.choice(((other["color"], ""), ("", other["shape"])))]
    pair.sort(key=lambda thing: -facts.count(scene, *thing))
    return {"things": facts.things(*pair[0]), "other": facts.things(*pair[1])}


def _choices(kind: str, slots: dict, scene: dict, rng: random.Random) -> str:
    if kind == "value":
        right = next(b["value"] for b in scene["bars"] if b["color"] == slots["color"])
        wrong = rng.sample([v for v in range(1, 10) if v != right], 3)
        options = [str(v) for v in (right, *wrong)]
    else:
        options = [bar["color"] for bar in scene["bars"]]
    rng.shuffle(options)
    return "\nChoices:" + "".join(f"\n{c}: {o}" for c, o in zip("ABCD", options, strict=True))


def _short_description(scene: dict, rng: random.Random) -> str:
    """Describe about half of what is there: a reference that a careful reader can beat."""
    known = facts.groups(scene)
    return " ".join(map(facts.say, known[: max(1, len(known) // 2)]))


def knowledge(scene: dict) -> list[Fact]:
    """Return everything a solver may need to know of a scene."""
    return facts.of_scene(scene) + (facts.places(scene) if scene["kind"] == "objects" else [])


def solve(question: Question, known: list[Fact]) -> Solution:
    """Work out the answer from facts alone.

    Raises:
        CannotAnswer: a fact that the question needs is missing.
    """
    steps, answer = _SOLVE[question.kind](question, known)
    return Solution(tuple(steps), answer)


def _of_kind(known: list[Fact], *kinds: str) -> list[Fact]:
    return [fact for fact in known if fact.kind in kinds]


def _matching(known: list[Fact], words: str) -> list[Fact]:
    color, shape = facts.split_things(words)
    return [
        f for f in _of_kind(known, "count") if color in ("", f.args[1]) and shape in ("", f.args[2])
    ]


def _total(groups: list[Fact]) -> int:
    return sum(f.args[0] for f in groups)


def _tally(groups: list[Fact], words: str) -> list[Fact]:
    """List the groups, their sum where there are several, and what it counts."""
    steps = list(groups) if len(groups) > 1 else []
    if len(groups) > 1:
        steps.append(Fact("sum", (" + ".join(str(f.args[0]) for f in groups), _total(groups))))
    return [*steps, Fact("count", (_total(groups), *facts.split_things(words)))]


def _solve_count(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    words = question.slots["things"]
    groups = _matching(known, words)
    return _tally(groups, words), str(_total(groups))


def _solve_sum(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    """Solve subtract and add: the number of objects, then plus or minus."""
    words, everything = question.slots["things"], _of_kind(known, "count")
    steps = _tally(everything, "objects")
    if question.kind == "subtract":
        sign, other = "-", _total(_matching(known, words))
        steps.append(Fact("count", (other, *facts.split_things(words))))
    else:
        sign, other = "+", facts.number(question.slots["n"])
    left, total = _total(everything), _total(everything) + (other if sign == "+" else -other)
    return [*steps, Fact("sum", (f"{left} {sign} {other}", total))], str(total)


def _solve_more(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    words = question.slots["things"], question.slots["other"]
    a, b = (_total(_matching(known, w)) for w in words)
    steps = [Fact("count", (n, *facts.split_things(w))) for n, w in zip((a, b), words, strict=True)]
    return [*steps, Fact("sum", (f"{a} - {b}", a - b))], str(a - b)


def _solve_bars(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    bars = _of_kind(known, "bar")
    if question.kind == "value":
        steps = [f for f in bars if f.args[0] == question.slots["color"].lower()]
        found = str(steps[0].args[1]) if steps else ""
    else:
        if not bars:
            raise CannotAnswer("no bar is described")
        pick = max if question.kind == "tallest" else min
        found = pick(bars, key=lambda f: f.args[1]).args[0]
        steps = [*bars, Fact(question.kind, (found,))]
    letters = [letter for letter, text in question.choices.items() if text == found]
    if not letters:
        raise CannotAnswer(f"none of the choices is {found!r}")
    return steps, letters[0]


def _solve_equation(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    have = {f.kind: f.args for f in known}
    if have.get("family") == ("line",) and {"slope", "crossing"} <= have.keys():
        scene = {"family": "line", "a": have["slope"][0], "h": 0, "k": have["crossing"][0]}
    elif {"family", "opens", "vertex"} <= have.keys():
        h, k = have["vertex"]
        a = 1 if have["opens"] == ("upward",) else -1
        scene = {"family": have["family"][0], "a": a, "h": h, "k": k}
    else:
        raise CannotAnswer("the curve is not described well enough")
    return _of_kind(known, "family", "slope", "crossing", "opens", "vertex"), expression(scene)


def _solve_locate(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    wanted = facts.split_things(question.slots["things"])
    found = [f for f in _of_kind(known, "place") if f.args[:2] == wanted]
    if not found:
        raise CannotAnswer(f"no {question.slots['things']} is described")
    where = Fact("area", (*wanted, facts.area(found[0].args[2])))
    return [where], facts.box_text(found[0].args[2])


def _solve_describe(question: Question, known: list[Fact]) -> tuple[list[Fact], str]:
    groups = _of_kind(known, "count")
    if not groups:
        raise CannotAnswer("nothing is described")
    total = Fact("count", (_total(groups), "", ""))
    return [total], " ".join(map(facts.say, groups))


_SOLVE = {
    "count": _solve_count,
    "subtract": _solve_sum,
    "add": _solve_sum,
    "more": _solve_more,
    "tallest": _solve_bars,
    "shortest": _solve_bars,
    "value": _solve_bars,
    "equation": _solve_equation,
    "locate": _solve_locate,
    "describe": _solve_describe,
}
