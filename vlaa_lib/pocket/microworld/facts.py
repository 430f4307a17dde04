"""The grammar of facts: write a fact as a sentence, read it back, hold it against a scene.

One table of phrases serves the narrator (which writes), the text-only teacher (which reads
captions) and the step checker (which reads anybody's trace), so they cannot drift apart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

from vlaa_lib.prompts import sentences

from .scenes import COLORS, FIELDS

# What plain traces say instead, since a small model finds again what follows a word, not what
# precedes it, and the nearer the better: a count after its name; and where numbers are compared the
# number first, with its name two or three tokens behind.
PLAIN = {"count": "the number of {many} is {v}"}
COMPARED = {"bar": "height {v} for {color}", "point": "height {w} at {v}"}
# kind -> phrases; the first is the usual one, the rest are variety
PHRASES = {
    "count": ["there {be} {n} {things}", "i see {n} {things}", "i count {n} {things}",
              "in view {be} {n} {things}", "{n} {things} can be seen", "i find {n} {things}",
              "the number of {many} is {v}", "{n} {things}"],
    # the v-th of its kind in reading order: what counting aloud says
    "seen": ["here is {thing} {v}", "i see {thing} {v}", "{thing} {v}"],
    "place": ["the {thing} spans {box}", "the {thing} lies in {box}", "{box} holds the {thing}",
              "the box of the {thing} is {box}", "the {thing} is inside {box}"],
    "area": ["the {thing} is at the {area}", "at the {area} is the {thing}",
             "the {thing} sits at the {area}", "i find the {thing} at the {area}"],
    "relation": ["the {thing} is {rel} the {other}", "{rel} the {other} is the {thing}",
                 "the {thing} lies {rel} the {other}",
                 "the {thing} can be found {rel} the {other}"],
    "bar": ["the {color} bar reaches {v}", "the {color} bar has the value {v}",
            "the value of the {color} bar is {v}", "the {color} bar stands at {v}",
            "the {color} bar goes up to {v}", COMPARED["bar"]],
    "tallest": ["the tallest bar is {color}", "the {color} bar is the tallest",
                "no bar is taller than the {color} one"],
    "shortest": ["the shortest bar is {color}", "the {color} bar is the shortest",
                 "no bar is shorter than the {color} one"],
    "point": ["at x = {v} the line is at {w}", "the line has the value {w} at x = {v}",
              "for x = {v} the height is {w}", "the point at x = {v} has height {w}",
              COMPARED["point"]],
    "peak": ["the line is highest at x = {v}", "the highest point is at x = {v}",
             "the peak is at x = {v}"],
    "dip": ["the line is lowest at x = {v}", "the lowest point is at x = {v}",
            "the dip is at x = {v}"],
    "most": ["most points are {color}", "{color} has the most points",
             "no color has more points than {color}"],
    "family": ["the {color} graph is a {family}", "the {color} curve is a {family}",
               "the {color} graph looks like a {family}",
               "the shape of the {color} graph is a {family}"],
    "slope": ["the {color} graph has the slope {v}", "the slope of the {color} graph is {v}",
              "the {color} line has the slope {v}"],
    "crossing": ["the {color} graph meets the y axis at {v}",
                 "the {color} line crosses the y axis at {v}",
                 "the y axis is met by the {color} graph at {v}"],
    "vertex": ["the {color} graph has its vertex at ({v}, {w})",
               "the vertex of the {color} graph is ({v}, {w})",
               "the {color} curve turns at ({v}, {w})"],
    "factor": ["the {color} graph has the factor {v}", "the {color} curve is stretched by {v}",
               "the factor of the {color} graph is {v}"],
    "middle": ["the {color} graph swings about y = {v}",
               "the middle of the {color} graph is y = {v}",
               "the {color} curve goes up and down around y = {v}"],
    "angle": ["the {color} angle is {v} degrees", "the {color} angle measures {v} degrees",
              "the size of the {color} angle is {v} degrees", "{v} degrees is the {color} angle"],
    "equal": ["the {color} and {color2} angles are equal",
              "the {color} angle equals the {color2} angle",
              "the {color} angle is as large as the {color2} angle"],
    "length": ["the {length} is {v}", "the {length} measures {v}", "{v} is the {length}",
               "the {length} of the figure is {v}"],
    "field": ["the {key} is {value}", "the {key} reads {value}", "next to {key} stands {value}",
              "the slip gives {value} as the {key}", "the slip says {value} for the {key}"],
    "thing": ["it is a {thing}", "this is a {thing}", "this looks like a {thing}",
              "the picture shows a {thing}", "it must be a {thing}"],
    "unclear": ["it is too blurred to tell", "the picture is too blurred to tell",
                "nobody could tell what it is", "it cannot be made out"],
    "sum": ["{sum} = {v}", "{sum} makes {v}", "{sum} is {v}", "{sum} equals {v}"],
}  # fmt: skip
# other people's wordings: read, never written
HEARD = {
    "count": ["there {be} exactly {n} {things}", "there {be} only {n} {things}",
              "we (?:see|have|count) {n} {things}",
              "the (?:image|picture|scene|plot) (?:shows|has|contains) {n} {things}",
              "{n} {things} {be} (?:visible|shown|present)", "the (?:count|total) of {many} is {v}",
              "{n} of the objects {be} {things}"],
    "place": ["the {thing} is at {box}", "the {thing} is in the box {box}"],
    "area": ["the {thing} is (?:in|on|near) the {area}", "the {thing} is located at the {area}"],
    "bar": ["the {color} bar is (?:at )?{v}", "the {color} bar's (?:value|height) is {v}",
            "the height of the {color} bar is {v}",
            "the {color} bar has a (?:value|height) of {v}"],
    "tallest": ["the {color} bar is (?:the )?highest", "{color} is the tallest(?: bar)?"],
    "shortest": ["the {color} bar is (?:the )?lowest", "{color} is the shortest(?: bar)?"],
    "point": ["at x = {v},? the value is {w}", "the line is at {w} (?:when|for) x = {v}"],
    "most": ["{color} points are the most frequent", "there are mostly {color} points"],
    "family": ["the {color} (?:line|function) is a {family}"],
    "slope": ["the slope of the {color} line is {v}", "the {color} graph has a slope of {v}"],
    "crossing": ["the {color} graph crosses the y[- ]axis at {v}"],
    "vertex": ["the vertex is at \\({v}, {w}\\) for the {color} graph"],
    "angle": ["the {color} angle (?:is|equals|measures) {v}(?:°| deg| degrees)?"],
    "length": ["the {length} (?:equals|is equal to|is marked as) {v}"],
    "field": ["the {key} on the slip is {value}", "{key}: {value}"],
    "thing": ["(?:it|this|that) (?:is|seems to be|appears to be) (?:a|the) {thing}"],
    "sum": ["{sum} gives {v}", "{sum} equals to {v}"],
}  # fmt: skip

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOUNS = {"cube": "cube", "block": "cube", "ball": "ball", "sphere": "ball", "cone": "cone",
         "cylinder": "cylinder", "point": "point", "dot": "point", "object": "", "thing": ""}
PLURALS = {noun + "s": shape for noun, shape in NOUNS.items()} | NOUNS
AREAS = tuple(
    f"{row} {column}".strip() if row + column else "center"
    for row in ("top", "", "bottom")
    for column in ("left", "", "right")
)
RELATIONS = ("left of", "right of", "above", "below")
FAMILIES = {"straight line": "line", "V shape": "absolute", "parabola": "parabola",
            "sine wave": "sine"}  # fmt: skip
_FAMILIES = {name.lower(): family for name, family in FAMILIES.items()}
_FAMILY_NAMES = {family: name for name, family in FAMILIES.items()}
LENGTHS = ("radius", "diameter", "width", "height")

_VALUES = "|".join(v for values in FIELDS.values() for v in values if not v.isdigit())
_CANONICAL = {v.lower(): v for values in FIELDS.values() for v in values}
_COLOR = "|".join(COLORS)
_NOUN = "|".join(sorted(PLURALS, key=len, reverse=True))
_THINGS = rf"(?:(?:{_COLOR}) )?(?:{_NOUN})"
SLOTS = {
    "n": rf"\d{{1,4}}|{'|'.join(NUMBER_WORDS)}|an?",
    "be": "is|are",
    **dict.fromkeys(("things", "thing", "many", "other"), _THINGS),
    **dict.fromkeys(("color", "color2"), _COLOR),
    **dict.fromkeys(("v", "w"), r"-?\d{1,6}"),
    "box": r"\[[\d., ]{1,60}\]",
    "area": "|".join(sorted(AREAS, key=len, reverse=True)),
    "rel": "|".join(RELATIONS),
    "family": "|".join(FAMILIES),
    "length": "|".join(LENGTHS),
    "key": "|".join(FIELDS),
    "value": rf"{_VALUES}|\d{{1,4}}",
    "sum": r"\d{1,6}(?: [+*/-] \d{1,6}){1,12}",
}
# the order of a fact's arguments, where it is not that of the slots in its first phrase
_ORDER = {"count": ("n", "things"), "field": ("key", "value"), "point": ("v", "w")}
THING_SLOTS = ("things", "thing", "other")
# words that may stand before a fact without changing it
_LEAD = re.compile(
    r"^(?:(?:so|and|okay|ok|yes|wait|hmm|well|now|first|then|next(?! to)|also|still|in total|again|"
    r"actually|indeed|no(?=,)|therefore|thus|together|that means|this means|as far as i see|"
    r"looking closer|i think(?: that)?|i notice(?: that)?|(?:i|we) (?:can )?see that|"
    r"(?:i|we) know(?: that)?|(?:in|from) the (?:image|picture)|hence|clearly|here|"
    r"the (?:caption|description|text|image) (?:says|shows|tells me|mentions)(?: that)?|"
    r"according to the (?:caption|description|text|image)|it seems(?: that)?)[,:]?\s+)+",
    re.IGNORECASE,
)
_JOINTS = re.compile(r",? and (?=\S)|, (?:so|then|but|while|which means) |, |: ", re.IGNORECASE)


@dataclass(frozen=True)
class Fact:
    """One statement about a scene, e.g. Fact("count", (2, "red", "cube"))."""

    kind: str
    args: tuple


@cache
def pattern(phrase: str, is_regex: bool = False) -> re.Pattern:
    """Turn a phrase with slots into the regular expression that reads it."""
    pieces = re.split(r"\{(\w+)\}", phrase)
    plain = str if is_regex else re.escape
    texts = [plain(p) if i % 2 == 0 else f"(?P<{p}>{SLOTS[p]})" for i, p in enumerate(pieces)]
    return re.compile("".join(texts), re.IGNORECASE)


@cache
def _readers() -> tuple[tuple[str, re.Pattern], ...]:
    """Return (kind, pattern) of every wording, the narrator's own before the others."""
    own = [(kind, pattern(p)) for kind, phrases in PHRASES.items() for p in phrases]
    return (*own, *((kind, pattern(p, True)) for kind, ps in HEARD.items() for p in ps))


def number(text: str) -> int:
    """Read `3`, `three` or `a`.

    >>> number("three"), number("12"), number("a")
    (3, 12, 1)
    """
    text = text.lower()
    if text in NUMBER_WORDS:
        return NUMBER_WORDS.index(text)
    return 1 if text in ("a", "an") else int(text)


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


def box_text(box: Iterable[float]) -> str:
    """Write a box as `[x1, y1, x2, y2]` with two decimals."""
    return f"[{', '.join(f'{v:.2f}' for v in box)}]"


def order(kind: str) -> tuple[str, ...]:
    """Return the slots behind a fact's arguments; a slot of things takes two of them."""
    return _ORDER.get(kind) or tuple(re.findall(r"\{(\w+)\}", PHRASES[kind][0]))


def say_plainly(fact: Fact, compared: bool = False) -> str:
    """Write a fact as plain traces do, `compared` where it is held against others of its kind.

    >>> say_plainly(Fact("bar", ("red", 3))), say_plainly(Fact("bar", ("red", 3)), compared=True)
    ('The red bar reaches 3.', 'Height 3 for red.')
    """
    return say(fact, phrase=(COMPARED if compared else PLAIN).get(fact.kind))


def say(fact: Fact, rng: random.Random | None = None, phrase: str | None = None) -> str:
    """Write a fact as a sentence with its full stop; without `rng` in the usual wording."""
    phrases = PHRASES[fact.kind]
    phrase = phrase or phrases[0]
    if rng:  # a bare list item ("2 cubes") is read but never written as a sentence
        phrase = rng.choice([p for p in phrases if p not in ("{n} {things}", "{thing} {v}")])
    text = phrase.format(**_slots(fact, rng))
    return text[0].upper() + text[1:] + "."


def _slots(fact: Fact, rng: random.Random | None) -> dict[str, str]:
    rest, slots = list(fact.args), {}
    for slot in order(fact.kind):
        if slot in THING_SLOTS:
            n = fact.args[0] if slot == "things" else 1
            color, shape, rest = rest[0], rest[1], rest[2:]
            slots[slot] = things(color, shape, n)
            slots["many"] = things(color, shape)
        else:
            value, rest = rest[0], rest[1:]
            slots[slot] = {"box": box_text, "family": _FAMILY_NAMES.get}.get(slot, str)(value)
    if fact.kind == "count":
        n = fact.args[0]
        slots |= {"v": str(n), "be": "is" if n == 1 else "are"}
        if n == 0 or (rng and n < 10 and rng.random() < 0.3):
            slots["n"] = NUMBER_WORDS[n]
        elif rng and n == 1 and rng.random() < 0.3:
            slots["n"] = "an" if slots["things"][0] in "aeiou" else "a"
    return slots


@dataclass(frozen=True)
class Question:
    """A question read back from its text: kind, slots, and choices by letter (mcq only)."""

    kind: str
    slots: dict[str, str]
    choices: dict[str, str]


@lru_cache(maxsize=1 << 14)  # traces repeat their sentences, and a reading tries every phrase
def read(sentence: str) -> Fact | None:
    """Read one sentence as a fact, or None where it states none that the grammar knows."""
    bare = " ".join(sentence[:300].split()).rstrip(" .!?;,")
    for candidate in dict.fromkeys((_LEAD.sub("", bare), bare)):
        for kind, reader in _readers():
            if match := reader.fullmatch(candidate):
                return _fact(kind, match.groupdict())
    return None


def read_all(sentence: str) -> list[Fact]:
    """Read every fact of a sentence, also where it joins several.

    >>> [f.args for f in read_all("There are 2 red cubes, a ball and 3 gray cones")]
    [(2, 'red', 'cube'), (1, '', 'ball'), (3, 'gray', 'cone')]
    """
    if whole := read(sentence):
        return [whole]
    return [fact for part in _JOINTS.split(sentence[:300]) if (fact := read(part))]


def _fact(kind: str, slots: dict[str, str]) -> Fact | None:
    if kind == "count":
        things_text = slots.get("things") or slots["many"]
        return Fact("count", (number(slots.get("n") or slots["v"]), *split_things(things_text)))
    args: list = []
    for slot in order(kind):
        text = slots[slot].strip()
        if slot in THING_SLOTS:
            args += split_things(text)
        elif slot in ("v", "w"):
            args.append(int(text))
        elif slot == "box":
            try:
                box = tuple(float(v) for v in text.strip("[]").split(","))
            except ValueError:
                return None
            if len(box) != 4:
                return None
            args.append(box)
        elif slot == "family":
            args.append(_FAMILIES[text.lower()])
        else:
            args.append(_CANONICAL.get(text.lower(), text.lower()))
    return Fact(kind, tuple(args))


def extract(text: str) -> list[Fact]:
    """Return the facts that a text states, in order, sentence by sentence."""
    return [fact for sentence in sentences(text) for fact in read_all(sentence)]


def covers(fact: Fact, needed: Fact) -> bool:
    """Say whether a fact states all that another does; an empty argument asks for nothing.

    >>> covers(Fact("thing", ("red", "cube")), Fact("thing", ("red", "")))
    True
    """
    pairs = zip(fact.args, needed.args, strict=False)
    return fact.kind == needed.kind and all(want in ("", have) for have, want in pairs)
