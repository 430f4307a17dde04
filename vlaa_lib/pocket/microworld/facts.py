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

from .phrases import COMPARED, HEARD, PHRASES, PLAIN
from .scenes import COLORS, FIELDS

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
