"""The grammar of facts: write a fact as a sentence, read it back, hold it against a scene.

One table of phrases serves the narrator (which writes), the text-only teacher (which reads
captions) and the step checker (which reads anybody's trace), so they cannot drift apart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from .scenes import COLORS

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOUNS = {
    "cube": "cube",
    "block": "cube",
    "ball": "ball",
    "sphere": "ball",
    "cone": "cone",
    "cylinder": "cylinder",
    "object": "",
    "thing": "",
}
PLURALS = {noun + "s": shape for noun, shape in NOUNS.items()} | NOUNS
AREAS = tuple(
    f"{row} {column}".strip() if row + column else "center"
    for row in ("top", "", "bottom")
    for column in ("left", "", "right")
)

_COLOR = "|".join(COLORS)
_NOUN = "|".join(sorted(PLURALS, key=len, reverse=True))
SLOTS = {
    "n": rf"\d+|{'|'.join(NUMBER_WORDS)}",
    "be": "is|are",
    "things": rf"(?:(?:{_COLOR}) )?(?:{_NOUN})",
    "other": rf"(?:(?:{_COLOR}) )?(?:{_NOUN})",
    "color": _COLOR,
    "v": r"-?\d+",
    "w": r"-?\d+",
    "box": r"\[[\d., ]*\]",
    "area": "|".join(sorted(AREAS, key=len, reverse=True)),
    "family": "straight line|V shape|parabola",
    "way": "upward|downward",
    "sum": r"\d+(?: [+-] \d+)+",
}
FAMILIES = {"straight line": "line", "V shape": "absolute", "parabola": "parabola"}

# kind -> phrases; the first is the plain one, the rest are the teacher's variety
PHRASES = {
    "count": [
        "there {be} {n} {things}",
        "i see {n} {things}",
        "i count {n} {things}",
        "in view {be} {n} {things}",
        "{n} {things} can be seen",
    ],
    "place": ["the {things} spans {box}", "the {things} lies in {box}", "{box} holds the {things}"],
    "area": ["the {things} is at the {area}", "at the {area} is the {things}"],
    "bar": [
        "the {color} bar reaches {v}",
        "the {color} bar has the value {v}",
        "the value of the {color} bar is {v}",
    ],
    "tallest": ["the tallest bar is {color}", "the {color} bar is the tallest"],
    "shortest": ["the shortest bar is {color}", "the {color} bar is the shortest"],
    "family": ["the graph is a {family}", "the curve is a {family}", "it looks like a {family}"],
    "slope": ["the slope is {v}", "the line has slope {v}"],
    "crossing": ["it meets the y axis at {v}", "the y axis is crossed at {v}"],
    "vertex": ["the vertex is at ({v}, {w})", "its vertex sits at ({v}, {w})"],
    "opens": ["it opens {way}", "the graph opens {way}"],
    "sum": ["{sum} = {v}", "{sum} makes {v}"],
}
# words that may stand before a fact without changing it
_LEAD = re.compile(
    r"^(?:(?:so|and|okay|ok|yes|wait|hmm|well|now|first|then|also|still|in total|again|actually|"
    r"no(?=,)|indeed|the caption says(?: that)?|the description says(?: that)?|"
    r"according to the (?:caption|description)|the image shows(?: that)?|"
    r"it seems(?: that)?)[,:]?\s+)+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fact:
    """One statement about a scene, e.g. Fact("count", (2, "red", "cube"))."""

    kind: str
    args: tuple


@cache
def pattern(phrase: str) -> re.Pattern:
    """Turn a phrase with slots into the regular expression that reads it."""
    pieces = re.split(r"\{(\w+)\}", phrase)
    texts = [re.escape(p) if i % 2 == 0 else f"(?P<{p}>{SLOTS[p]})" for i, p in enumerate(pieces)]
    return re.compile("".join(texts), re.IGNORECASE)


def number(text: str) -> int:
    """Read `3` or `three`.

    >>> number("three"), number("12")
    (3, 12)
    """
    return NUMBER_WORDS.index(text.lower()) if text.lower() in NUMBER_WORDS else int(text)


def split_things(text: str) -> tuple[str, str]:
    """Read `red blocks` as (colour, shape); an empty string stands for any.

    >>> split_things("red blocks"), split_things("objects")
    (('red', 'cube'), ('', ''))
    """
    *color, noun = text.lower().split(" ")
    return (color[0] if color else ""), PLURALS[noun]


def things(color: str, shape: str, n: int = 2) -> str:
    """Write (colour, shape) as a noun phrase for n of them."""
    return f"{color} {shape or 'object'}{'' if n == 1 else 's'}".strip()


def say(fact: Fact, rng: random.Random | None = None) -> str:
    """Write a fact as a sentence with its full stop; without `rng` in the plain wording."""
    phrases = PHRASES[fact.kind]
    phrase = rng.choice(phrases) if rng else phrases[0]
    text = phrase.format(**_slots(fact, rng))
    return text[0].upper() + text[1:] + "."


def _slots(fact: Fact, rng: random.Random | None) -> dict[str, str]:
    if fact.kind == "count":
        n, color, shape = fact.args
        word = NUMBER_WORDS[n] if n == 0 or (rng and n < 10 and rng.random() < 0.3) else str(n)
        return {"n": word, "things": things(color, shape, n), "be": "is" if n == 1 else "are"}
    if fact.kind in ("place", "area"):
        color, shape, where = fact.args
        return {"things": things(color, shape, 1), "area": where, "box": box_text(where)}
    names = {
        "bar": ("color", "v"),
        "vertex": ("v", "w"),
        "sum": ("sum", "v"),
        "opens": ("way",),
        "family": ("family",),
        "tallest": ("color",),
        "shortest": ("color",),
    }
    values = dict(zip(names.get(fact.kind, ("v",)), map(str, fact.args), strict=True))
    if fact.kind == "family":
        values["family"] = {v: k for k, v in FAMILIES.items()}[fact.args[0]]
    return values


def box_text(box: object) -> str:
    """Write a box as `[x1, y1, x2, y2]` with two decimals."""
    return f"[{', '.join(f'{v:.2f}' for v in box)}]" if isinstance(box, (tuple, list)) else ""


def sentences(text: str) -> list[str]:
    """Split text at full stops, question marks and line breaks, not inside decimals.

    >>> sentences("One. Two at [0.25, 0.5]!\\nThree")
    ['One', 'Two at [0.25, 0.5]', 'Three']
    """
    return [s.strip() for s in re.split(r"[.!?;]+(?=\s|$)|\n", text) if s.strip()]


def read(sentence: str) -> Fact | None:
    """Read one sentence as a fact, or None where it states none that the grammar knows."""
    bare = _LEAD.sub("", sentence[:300].strip()).rstrip(" .!?;")
    for candidate in dict.fromkeys((bare, sentence[:300].strip().rstrip(" .!?;"))):
        for kind, phrases in PHRASES.items():
            for phrase in phrases:
                if match := pattern(phrase).fullmatch(candidate):
                    return _fact(kind, match.groupdict())
    return None


def _fact(kind: str, slots: dict[str, str]) -> Fact | None:
    slots = {k: v.strip() for k, v in slots.items()}
    if kind == "count":
        return Fact("count", (number(slots["n"]), *split_things(slots["things"])))
    if kind == "place":
        try:
            box = tuple(float(v) for v in slots["box"].strip("[]").split(","))
        except ValueError:
            return None
        return Fact("place", (*split_things(slots["things"]), box)) if len(box) == 4 else None
    if kind == "area":
        return Fact("area", (*split_things(slots["things"]), slots["area"].lower()))
    if kind == "family":
        name = next(k for k in FAMILIES if k.lower() == slots["family"].lower())
        return Fact("family", (FAMILIES[name],))
    order = [k for k in ("sum", "color", "way", "v", "w") if k in slots]
    return Fact(kind, tuple(int(slots[k]) if k in "vw" else slots[k].lower() for k in order))


def extract(text: str) -> list[Fact]:
    """Return the facts that a text states, in order, sentence by sentence."""
    return [fact for fact in map(read, sentences(text)) if fact is not None]


def of_scene(scene: dict) -> list[Fact]:
    """Return the facts that describe a scene completely, the way a perfect caption would."""
    if scene["kind"] == "bars":
        return [Fact("bar", (bar["color"], bar["value"])) for bar in scene["bars"]]
    if scene["kind"] == "function":
        shape = Fact("family", (scene["family"],))
        if scene["family"] == "line":
            return [shape, Fact("slope", (scene["a"],)), Fact("crossing", (scene["k"],))]
        way = "upward" if scene["a"] > 0 else "downward"
        return [shape, Fact("opens", (way,)), Fact("vertex", (scene["h"], scene["k"]))]
    return groups(scene)


def groups(scene: dict) -> list[Fact]:
    """Return one count fact for each (colour, shape) present, in reading order."""
    kinds = dict.fromkeys((o["color"], o["shape"]) for o in scene["objects"])
    return [Fact("count", (count(scene, *kind), *kind)) for kind in kinds]


def places(scene: dict) -> list[Fact]:
    """Return the box of every object that its colour and shape name uniquely."""
    return [
        Fact("place", (o["color"], o["shape"], tuple(o["box"])))
        for o in scene["objects"]
        if count(scene, o["color"], o["shape"]) == 1
    ]


def count(scene: dict, color: str = "", shape: str = "") -> int:
    """Count the objects of a colour and shape; an empty string stands for any."""
    return sum(color in ("", o["color"]) and shape in ("", o["shape"]) for o in scene["objects"])


def area(box: Iterable[float]) -> str:
    """Name the ninth of the picture that holds the centre of a box."""
    x0, y0, x1, y1 = box
    return AREAS[min(2, int((y0 + y1) * 1.5)) * 3 + min(2, int((x0 + x1) * 1.5))]


def holds(fact: Fact, scene: dict) -> bool | None:
    """Say whether a fact is true of a scene; None where the scene cannot tell.

    A box counts as true from an intersection over union of 0.5 (ours: the usual threshold).
    """
    if fact.kind == "sum":
        return _evaluate(fact.args[0]) == fact.args[1]
    if fact.kind in _CHECK[scene["kind"]]:
        return _CHECK[scene["kind"]][fact.kind](fact, scene)
    return None


def _evaluate(sum_text: str) -> int:
    """Add up `2 + 1 - 1` from left to right, without eval."""
    first, *rest = sum_text.split(" ")
    signs = {"+": 1, "-": -1}
    return int(first) + sum(signs[s] * int(v) for s, v in zip(rest[::2], rest[1::2], strict=True))


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes, areas continuous (no +1).

    >>> iou((0, 0, 0.5, 1), (0, 0, 1, 1))
    0.5
    """
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    inner = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    return inner / union if union > 0 else 0.0


def _named(fact: Fact, scene: dict) -> list[dict]:
    color, shape, _ = fact.args
    return [o for o in scene["objects"] if color in ("", o["color"]) and shape in ("", o["shape"])]


def _extreme(scene: dict, pick) -> str:
    return pick(scene["bars"], key=lambda bar: bar["value"])["color"]


_CHECK = {
    "objects": {
        "count": lambda f, s: count(s, *f.args[1:]) == f.args[0],
        "place": lambda f, s: any(iou(o["box"], f.args[2]) >= 0.5 for o in _named(f, s)),
        "area": lambda f, s: any(area(o["box"]) == f.args[2] for o in _named(f, s)),
    },
    "bars": {
        "bar": lambda f, s: {"color": f.args[0], "value": f.args[1]} in s["bars"],
        "tallest": lambda f, s: _extreme(s, max) == f.args[0],
        "shortest": lambda f, s: _extreme(s, min) == f.args[0],
    },
    "function": {
        "family": lambda f, s: s["family"] == f.args[0],
        "slope": lambda f, s: s["family"] == "line" and s["a"] == f.args[0],
        "crossing": lambda f, s: s["family"] == "line" and s["k"] == f.args[0],
        "vertex": lambda f, s: s["family"] != "line" and (s["h"], s["k"]) == f.args,
        "opens": lambda f, s: s["family"] != "line" and (s["a"] > 0) == (f.args[0] == "upward"),
    },
}
