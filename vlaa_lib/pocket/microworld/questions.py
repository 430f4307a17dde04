"""Questions: their wordings, how one is asked of a scene, and how it is read back."""

from __future__ import annotations

import random
import re

from vlaa_lib.prompts import lettered

from . import facts, solve, truth
from .facts import Question
from .scenes import COLORS, SHAPES
from .solve import CannotAnswer

WORDINGS = {
    "count": ["How many {things} are there?", "Count the {things}. How many do you find?",
              "What is the number of {things} in the image?", "How many {things} can you see?"],
    "subtract": ["Subtract all {things}. How many objects are left?",
                 "If you remove all {things}, how many objects remain?",
                 "Take away the {things}. How many objects stay?",
                 "Without the {things}, how many objects would there be?"],
    "add": ["Add {n} {things}. How many objects are there in all?",
            "If {n} {things} join the scene, how many objects will it have?",
            "Put {n} more {things} into the image. What is the number of objects then?",
            "Someone brings {n} {things}. How many objects does that make?"],
    "more": ["How many more {things} than {other} are there?",
             "By how many do the {things} outnumber the {other}?",
             "What is the number of {things} minus the number of {other}?",
             "Compare the {things} with the {other}. How many more are there?"],
    "tallest": ["Which bar is the tallest?", "Which color has the highest bar?",
                "What is the color of the tallest bar?",
                "Name the color whose bar goes up the most."],
    "shortest": ["Which bar is the shortest?", "Which color has the lowest bar?",
                 "What is the color of the shortest bar?",
                 "Name the color whose bar goes up the least."],
    "value": ["What is the value of the {color} bar?", "How high is the {color} bar?",
              "Which value does the {color} bar reach?",
              "Read the {color} bar. What is its value?"],
    "peak": ["At which x is the line highest?",
             "Where does the line have its highest point? Give x.",
             "For which x does the line reach its peak?", "Which x has the greatest value?"],
    "dip": ["At which x is the line lowest?", "Where does the line have its lowest point? Give x.",
            "For which x does the line reach its bottom?", "Which x has the smallest value?"],
    "height": ["What is the value of the line at x = {v}?", "How high is the line at x = {v}?",
               "Read the line at x = {v}. Which value has it?", "Which value belongs to x = {v}?"],
    "most": ["Which color has the most points?", "Points of which color are the most frequent?",
             "Most points have the same color. Which one?",
             "Name the color with the largest number of points."],
    "points": ["How many {color} points does the plot show?",
               "What is the number of {color} points?",
               "Count the points in {color}. How many are they?",
               "How often does a {color} point occur?"],
    "equation": ["What is the equation of the {color} graph?",
                 "Which function is drawn in {color}? Give y in terms of x.",
                 "Find the expression of the {color} curve.",
                 "Write the {color} graph as y = f(x)."],
    "angle": ["How large is the {color} angle?",
              "What is the size of the {color} angle in degrees?", "Find the {color} angle.",
              "How many degrees has the {color} angle?"],
    "length": ["What is the {length} of the figure?", "How long is the {length}?",
               "Find the {length}.", "Which number gives the {length}?"],
    "perimeter": ["What is the perimeter of the rectangle?",
                  "How long is the way around the rectangle?", "Find the perimeter.",
                  "Add up all four sides. What do you get?"],
    "surface": ["What is the area of the rectangle?", "How many unit squares fill the rectangle?",
                "Find the area.", "Which area does the rectangle cover?"],
    "field": ["What is the {key} on the slip?", "Read the {key}.", "Which {key} is written here?",
              "What does the slip say for the {key}?"],
    "what": ["What is this?", "Can you tell me what I am holding?", "What does the picture show?",
             "Please tell me what is in front of me."],
    "hue": ["What color is this?", "Which color does the thing have?",
            "Can you tell me the color of this?", "Please name the color of what I am holding."],
    "locate": ["Where is the {thing}? Give its box.", "Find the {thing} and give its box.",
               "Locate the {thing} with a box.", "Draw a box around the {thing}."],
    "relation": ["Where is the {thing} {rel} the {other}? Give its box.",
                 "Find the {thing} {rel} the {other} and give its box.",
                 "Locate the {thing} {rel} the {other} with a box.",
                 "Draw a box around the {thing} {rel} the {other}."],
    "describe": ["Describe the image.", "What does the image show?", "Tell me what you see here.",
                 "Give a description of this scene."],
}  # fmt: skip
# micro source -> scene kind -> question kinds
KINDS = {
    "solids": {"objects": ("count", "subtract", "add", "more")},
    "figure": {
        "triangle": ("angle",),
        "circle": ("length",),
        "rectangle": ("length", "perimeter", "surface"),
    },
    "plot": {"function": ("equation",)},
    "panel": {
        "bars": ("tallest", "shortest", "value"),
        "line": ("peak", "dip", "height"),
        "scatter": ("most", "points"),
    },
    "slip": {"slip": ("field",)},
    "closeup": {"closeup": ("what", "hue")},
    "describe": {"objects": ("describe",)},
    "locate": {"objects": ("locate",)},
    "relation": {"objects": ("relation",)},
}
CHOICE_SOURCES = ("figure", "panel")
_CHOICE = re.compile(r"^([A-D]): (.+)$", re.MULTILINE)


def read(text: str) -> Question:
    """Read a question in any of its wordings; CannotAnswer where none fits."""
    stem = _CHOICE.sub("", text).replace("Choices:", "").strip()
    for kind, wordings in WORDINGS.items():
        for wording in wordings:
            if match := facts.pattern(wording).fullmatch(stem):
                return Question(kind, match.groupdict(), read_choices(text))
    raise CannotAnswer(f"no known question in {text[:80]!r}")


def read_choices(text: str) -> dict[str, str]:
    """Return the choices of a question by letter."""
    return dict(_CHOICE.findall(text))


def as_sentence(question: Question, answer: str) -> str:
    """Put a bare answer ("Ada", "red") into the sentence that its question asks for.

    >>> as_sentence(read("What color is this?"), "red"), as_sentence(read("Read the day."), "Mon")
    ('It is a red object.', 'The day is Mon.')
    """
    bare = answer.strip().rstrip(".")
    if bare == solve.UNANSWERABLE:
        return facts.say(facts.Fact("unclear", ()))
    if question.kind == "field":
        return f"The {question.slots['key']} is {bare}."
    if question.kind in ("what", "hue"):
        return f"It is a {bare}{' object' if bare.lower() in COLORS else ''}."
    return answer


def ask(source: str, scene: dict, rng: random.Random) -> tuple[str, str] | None:
    """Ask a question of the source; return (question, gold), None where the scene suits none."""
    kind = rng.choice(KINDS[source][scene["kind"]])
    slots = _slots(kind, scene, rng)
    if slots is None:
        return None
    text = rng.choice(WORDINGS[kind]).format(**slots)
    if kind == "describe":  # about half of what is there: a careful reader can beat this gold
        known = truth.groups(scene)
        return text, " ".join(map(facts.say, known[: max(1, len(known) // 2)]))
    known = truth.knowledge(scene)
    if source not in CHOICE_SOURCES:
        return text, solve.solve(read(text), known).answer
    right = solve.found(read(text), known)[1]
    text += choices_text(right, rivals(kind, right, scene, rng), rng)
    return text, solve.solve(read(text), known).answer


def _slots(kind: str, scene: dict, rng: random.Random) -> dict[str, str] | None:
    """Choose what the question is about, or None where this scene does not suit the kind."""
    if kind in ("count", "subtract", "add", "more"):
        return _sum_slots(kind, scene, rng)
    if kind in ("locate", "relation"):
        named = [f.args[:2] for f in truth.places(scene)]
        unique = [name for name in named if named.count(name) == 1]
        if not unique:
            return None
        chosen = rng.choice(unique)
        if kind == "locate":
            return {"thing": facts.things(*chosen, 1)}
        return _relation_slots(scene, chosen, rng)
    if kind == "value":
        return {"color": rng.choice(scene["bars"])["color"]}
    if kind == "points":
        return {"color": rng.choice(scene["objects"])["color"]}
    if kind == "height":
        return {"v": str(rng.randint(1, len(scene["values"])))}
    if kind == "equation":
        return {"color": rng.choice(scene["curves"])["color"]}
    if kind == "angle":
        open_ones = [c for c in scene["corners"] if not c["marked"]] or scene["corners"]
        return {"color": rng.choice(open_ones)["color"]}
    if kind == "hue" and not scene["clear"]:
        return None
    if kind == "length":
        pair = ("radius", "diameter") if scene["kind"] == "circle" else ("width", "height")
        return {"length": rng.choice(pair)}
    return {"key": rng.choice(list(scene["fields"]))} if kind == "field" else {}


def _sum_slots(kind: str, scene: dict, rng: random.Random) -> dict[str, str] | None:
    named = rng.choice(scene["objects"])
    color = rng.choice((named["color"], named["color"], "", rng.choice(list(COLORS))))
    shape = rng.choice((named["shape"], named["shape"] if not color else "", rng.choice(SHAPES)))
    if not (color or shape):
        return None
    slots = {"things": facts.things(color, shape), "n": str(rng.randint(2, 4))}
    if kind != "more":
        return slots
    other = rng.choice(scene["objects"])
    pair = [(color, shape), rng.choice(((other["color"], ""), ("", other["shape"])))]
    pair.sort(key=lambda thing: -truth.count(scene, *thing))
    return {"things": facts.things(*pair[0]), "other": facts.things(*pair[1])}


def _relation_slots(
    scene: dict, anchor: tuple[str, str], rng: random.Random
) -> dict[str, str] | None:
    """Name one thing by its shape and its side of the anchor, where that names only one."""
    other = next(o for o in scene["objects"] if (o["color"], o["shape"]) == anchor)
    fitting = []
    for relation in facts.RELATIONS:
        side = [o["shape"] for o in scene["objects"]
                if o is not other and truth.related(o["box"], relation, other["box"])]  # fmt: skip
        fitting += [(shape, relation) for shape in SHAPES if side.count(shape) == 1]
    if not fitting:
        return None
    shape, relation = rng.choice(fitting)
    return {"thing": shape, "rel": relation, "other": facts.things(*anchor, 1)}


def rivals(kind: str, right: str, scene: dict, rng: random.Random) -> list[str]:
    """Return three wrong options that somebody who looked carelessly might choose."""
    if right in COLORS:
        shown = {item["color"] for item in scene.get("bars") or scene["objects"]}
        near = sorted(shown - {right})
        rest = sorted(set(COLORS) - shown)
    else:
        value, step = int(right), 10 if kind == "angle" else 1
        # a gold of any rank: always in the middle, a guess would be right every other time
        below = rng.randint(0, min(3, value // step))
        near = [str(value + d * step) for d in range(-below, 4 - below)]
        if kind in ("perimeter", "surface"):  # the other of the two, and a side forgotten
            width, height = scene["width"], scene["height"]
            near = [str(v) for v in {2 * (width + height), width * height, width + height}]
        near = [v for v in near if v != right]
        rest = [str(value + d * step) for d in (3, 4, 5)]
    picked = rng.sample(near, min(3, len(near)))
    return picked + rng.sample([v for v in rest if v not in picked], 3 - len(picked))


def choices_text(right: str, wrong: list[str], rng: random.Random) -> str:
    """Write the right and the wrong options, shuffled, as lettered lines."""
    options = [right, *wrong]
    rng.shuffle(options)
    return lettered(options)
