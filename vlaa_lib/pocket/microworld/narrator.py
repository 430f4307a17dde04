"""The narrator: lossy captions of a scene, and a text-only teacher that reasons from them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from . import facts, questions, truth
from .facts import Fact
from .scenes import COLORS, FIELDS, SHAPES
from .solve import CannotAnswer as CannotAnswer
from .solve import solve


@dataclass(frozen=True)
class Rates:
    """How often the caption and the teacher go wrong; each in [0, 1]. Ours: set to be visible."""

    omit: float = 0.10  # a fact is left out of the caption
    confuse: float = 0.06  # an attribute is swapped: a colour, a shape, a word, or a box is moved
    miscount: float = 0.06  # a number is off by one (an angle by ten degrees)
    hesitate: float = 0.4  # the teacher doubts itself aloud; harder scenes raise it
    waver: float = 0.3  # a doubting teacher first says a fact wrongly, then takes it back


@dataclass(frozen=True)
class Told:
    """One sentence of a trace and the facts that it was made from."""

    text: str
    facts: tuple[Fact, ...] = ()


_OPEN = [
    "Okay, let me look at the picture.",
    "Let me see what the image holds.",
    "First I go through the scene.",
    "I need to find out what is asked.",
    "Let me think about this step by step.",
    "The question is clear, so I look closely.",
    "Let me gather what I can see.",
]
_DOUBT = [
    "Wait, let me double-check that.",
    "Hmm, I should look again.",
    "Wait, maybe I made a mistake.",
    "Alternatively, I could go about it in another order.",
    "Let me check this once more.",
    "Hmm, am I sure about this?",
]
_SETTLE = ["That seems right.", "Yes, that fits.", "So that is what I see.", "Good, it agrees."]
_SOURCE = ["", "", "", "The caption says ", "According to the description, ", "It seems that "]
_LINK = ["", "", "", "So ", "Then ", "Also, ", "I notice that "]


def caption(scene: dict, rates: Rates, rng: random.Random) -> str:
    """Describe a scene as a careless captioner does: facts lost or wrong at the given rates."""
    told = []
    for fact in truth.knowledge(scene):
        if rng.random() < rates.omit:
            continue
        if rng.random() < rates.confuse:
            fact = _confuse(fact, rng)
        if rng.random() < rates.miscount:
            fact = _miscount(fact, rng)
        told.append(fact)
    return " ".join(t.text for t in _join(told, rng)) or "The image is hard to make out."


def _join(told: list[Fact], rng: random.Random) -> list[Told]:
    """Say facts one by one or, now and then, two counts in one sentence."""
    said, rest = [], list(told)
    while rest:
        if [fact.kind for fact in rest[:2]] == ["count"] * 2 and rng.random() < 0.3:
            pair, rest = rest[:2], rest[2:]
            first, second = map(facts.say, pair)
            listed = " ".join(second.split()[2:])  # without "There are"
            said.append(Told(f"{first[:-1]} and {listed}", tuple(pair)))
        else:
            fact = rest.pop(0)
            said.append(Told(facts.say(fact, rng), (fact,)))
    return said


def _confuse(fact: Fact, rng: random.Random) -> Fact:
    """Swap one attribute of a fact for another of its kind; numbers stay."""
    args, at, spots = list(fact.args), 0, []
    for slot in facts.order(fact.kind):
        if slot in facts.THING_SLOTS:
            spots += [(at, COLORS)] * bool(args[at]) + [(at + 1, SHAPES)] * (args[at + 1] in SHAPES)
            at += 1
        elif slot == "value":
            spots.append((at, FIELDS[args[0]]))
        elif known := _NAMES.get(slot):
            spots.append((at, known))
        elif slot == "box":
            spots += [(at, None)] * 2  # as often moved as misnamed
        at += 1
    if spots:
        at, known = rng.choice(spots)
        swapped = [v for v in known if v != args[at]] if known else [_move(args[at], rng)]
        args[at] = rng.choice(swapped)
    return Fact(fact.kind, tuple(args))


def _move(box: tuple[float, ...], rng: random.Random) -> tuple[float, ...]:
    """Shift a box by about a cell, inside the picture."""
    dx, dy = (rng.choice((-1, 1)) * rng.uniform(0.15, 0.35) for _ in "xy")
    moved = (v + d for v, d in zip(box, (dx, dy, dx, dy), strict=True))
    return tuple(round(min(1.0, max(0.0, v)), 2) for v in moved)


_NAMES = {"color": tuple(COLORS), "family": tuple(facts.FAMILIES.values()), "length": facts.LENGTHS}


def _miscount(fact: Fact, rng: random.Random) -> Fact:
    """Move one number of a fact by one, an angle by ten degrees."""
    spots = [i for i, v in enumerate(fact.args) if isinstance(v, int)]
    if not spots or fact.kind == "sum":
        return fact
    args, at = list(fact.args), rng.choice(spots)
    step = rng.choice((-1, 1)) * (10 if fact.kind == "angle" else 1)
    if fact.kind in ("count", "bar", "point", "length", "angle") and args[at] + step < 1:
        step = -step  # none of these can be none
    args[at] += step
    return Fact(fact.kind, tuple(args))


def reason(caption_text: str, question: str, rates: Rates, rng: random.Random) -> tuple[str, str]:
    """Reason about a question from a caption alone, R1 style; return (think, answer).

    Raises:
        CannotAnswer: the question is not understood or the caption lacks what it needs.
    """
    told, answer = tell(caption_text, question, rates, rng)
    return " ".join(sentence.text for sentence in told), answer


def tell(
    caption_text: str, question: str, rates: Rates, rng: random.Random
) -> tuple[list[Told], str]:
    """Do what `reason` does, sentence by sentence, each with the facts that it states."""
    asked = questions.read(question)
    known = facts.extract(caption_text)
    solution = solve(asked, known)
    said = [Told(rng.choice(_OPEN))]
    said += [_attribute(sentence, rng) for sentence in _join(list(solution.steps), rng)]
    # harder scenes (more facts to keep in mind) make the teacher hesitate more
    if rng.random() < rates.hesitate * min(1.5, 0.5 + len(known) / 8):
        said += _hesitate(solution.steps, rates, rng)
    else:
        said.append(Told(rng.choice(_SETTLE)))
    return [*said, *_conclusion(asked, solution.answer)], solution.answer


def _hesitate(steps: tuple[Fact, ...], rates: Rates, rng: random.Random) -> list[Told]:
    """Doubt, say a step or two again, perhaps one of them wrongly first, and settle."""
    said = [Told(rng.choice(_DOUBT))]
    for step in rng.sample(steps, min(2, len(steps))):
        if rng.random() < rates.waver:
            slip = rng.choice((_confuse, _miscount))(step, rng)
            said += [Told(facts.say(slip, rng), (slip,)), Told(rng.choice(_DOUBT))]
        said.append(Told(facts.say(step, rng), (step,)))
    return [*said, Told(rng.choice(_SETTLE))]


def _attribute(sentence: Told, rng: random.Random) -> Told:
    """Put a link before a sentence, or give the text away as its source: the rewrite's work."""
    lead = rng.choice((rng.choice(_SOURCE), rng.choice(_LINK)))
    text = sentence.text
    if lead and not text.startswith("I "):
        text = text[0].lower() + text[1:]
    return Told(lead + text, sentence.facts)


def _conclusion(asked: questions.Question, answer: str) -> list[Told]:
    if asked.choices:
        return [Told(sentence) for sentence in pick(asked.choices, answer)]
    if asked.kind in ("describe", "locate", "relation", "field", "what", "hue"):
        return []
    return [Told(f"So the answer is {answer}.")]


def pick(choices: dict[str, str], answer: str) -> list[str]:
    """Say which letter each choice has, then that of the right one.

    The value before the letter: a small model finds again what follows a word, not what precedes.
    """
    listed = ", ".join(f"{text} is {letter}" for letter, text in choices.items())
    return [f"Of the choices, {listed}.", f"So {choices[answer]} is {answer}."]


def plain_trace(scene: dict, question: str) -> tuple[str, str]:
    """Return (think, answer) in few plain words, from the scene itself: nobody's mistakes."""
    think, answer = plain_steps(scene, question)
    return " ".join([*map(facts.say_plainly, read_aloud(scene, question)), *think]), answer


def read_aloud(scene: dict, question: str) -> list[Fact]:
    """Name object after object, as far as a question needs it: what a small model can learn."""
    asked = questions.read(question)
    if asked.kind in ("locate", "relation"):
        told = truth.places(scene)
        # the box that is asked for is answered when it is come to, not looked for afterwards
        return told[: told.index(solve(asked, told).steps[-1])] if asked.kind == "locate" else told
    return truth.seen(scene) if "objects" in scene and asked.kind != "describe" else []


def plain_steps(scene: dict, question: str) -> tuple[list[str], str]:
    """Return the sentences that lead from what was read to the answer, and the answer."""
    asked = questions.read(question)
    solution = solve(asked, truth.knowledge(scene))
    compared = asked.kind in ("tallest", "shortest", "peak", "dip")
    said = [facts.say_plainly(step, compared) for step in solution.steps]
    return said + (pick(asked.choices, solution.answer) if asked.choices else []), solution.answer
