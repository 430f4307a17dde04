"""The narrator: lossy captions of a scene, and a text-only teacher that reasons from them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from . import facts, questions
from .facts import Fact
from .questions import CannotAnswer
from .scenes import COLORS

__all__ = ["CannotAnswer", "Rates", "caption", "plain_trace", "reason"]


@dataclass(frozen=True)
class Rates:
    """How often the caption and the teacher go wrong; each in [0, 1]. Ours: set to be visible.

    Attributes:
        omit: a fact is left out of the caption.
        confuse: a colour is swapped, a direction reversed or a box moved.
        miscount: a number is off by one.
        hesitate: the teacher doubts itself aloud; harder scenes raise it.
    """

    omit: float = 0.10
    confuse: float = 0.06
    miscount: float = 0.06
    hesitate: float = 0.4


_OPEN = [
    "Okay, let me look at the picture.",
    "Let me see what the image holds.",
    "First I go through the scene.",
    "I need to find out what is asked.",
    "Let me think about this step by step.",
]
_DOUBT = [
    "Wait, let me double-check that.",
    "Hmm, I should look again.",
    "Wait, maybe I made a mistake.",
    "Alternatively, I could count in another order.",
    "Let me check this once more.",
]
_SETTLE = ["That seems right.", "Yes, that fits.", "So that is what I see."]
_SOURCE = ["", "", "", "The caption says ", "According to the description, "]


def caption(scene: dict, rates: Rates, rng: random.Random) -> str:
    """Describe a scene as a careless captioner does: facts lost or wrong at the given rates."""
    told = []
    for fact in questions.knowledge(scene):
        if rng.random() < rates.omit:
            continue
        if rng.random() < rates.confuse:
            fact = _confuse(fact, rng)
        if rng.random() < rates.miscount:
            fact = _miscount(fact, rng)
        told.append(facts.say(fact, rng))
    return " ".join(told) or "The image is hard to make out."


def _confuse(fact: Fact, rng: random.Random) -> Fact:
    def other(color: str) -> str:
        return rng.choice([c for c in COLORS if c != color])

    args = fact.args
    if fact.kind == "count":
        return Fact("count", (args[0], other(args[1]), args[2]))
    if fact.kind == "bar":
        return Fact("bar", (other(args[0]), args[1]))
    if fact.kind == "opens":
        return Fact("opens", ("downward" if args == ("upward",) else "upward",))
    if fact.kind == "place":
        dx, dy = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
        moved = (v + d for v, d in zip(args[2], (dx, dy, dx, dy), strict=True))
        return Fact("place", (*args[:2], tuple(round(min(1.0, max(0.0, v)), 2) for v in moved)))
    return fact


def _miscount(fact: Fact, rng: random.Random) -> Fact:
    step = rng.choice((-1, 1))
    if fact.kind in ("count", "slope", "crossing", "vertex"):
        return Fact(fact.kind, (fact.args[0] + (1 if fact.args[0] == 0 else step), *fact.args[1:]))
    if fact.kind == "bar":
        return Fact("bar", (fact.args[0], max(1, fact.args[1] + step)))
    return fact


def reason(caption_text: str, question: str, rates: Rates, rng: random.Random) -> tuple[str, str]:
    """Reason about a question from a caption alone, R1 style; return (think, answer).

    Raises:
        CannotAnswer: the question is not understood or the caption lacks what it needs.
    """
    asked = questions.read(question)
    known = facts.extract(caption_text)
    solution = questions.solve(asked, known)
    said = [rng.choice(_OPEN)]
    said += [_attribute(step, rng) for step in solution.steps]
    # harder scenes (more facts to keep in mind) make the teacher hesitate more
    hesitant = rng.random() < rates.hesitate * min(1.5, 0.5 + len(known) / 8)
    if hesitant:
        repeated = rng.sample(solution.steps, min(2, len(solution.steps)))
        doubts = [rng.choice(_DOUBT), *(facts.say(step, rng) for step in repeated)]
        said += [*doubts, rng.choice(_DOUBT), rng.choice(_SETTLE)]
    else:
        said.append(rng.choice(_SETTLE))
    return " ".join([*said, _conclusion(asked, solution.answer)]), solution.answer


def _attribute(fact: Fact, rng: random.Random) -> str:
    """State a fact, sometimes giving the text away as its source: the rewrite step's work."""
    source = rng.choice(_SOURCE)
    if not source:
        return facts.say(fact, rng)
    sentence = facts.say(fact)
    return source + sentence[0].lower() + sentence[1:]


def _conclusion(asked: questions.Question, answer: str) -> str:
    if asked.choices:
        return f"The choice {answer} says {asked.choices[answer]}."
    return "" if asked.kind in ("describe", "locate") else f"So the answer is {answer}."


def plain_trace(scene: dict, question: str) -> tuple[str, str]:
    """Return (think, answer) in few plain words, from the scene itself: nobody's mistakes.

    It is what the pocket `instruct` model is taught; the teacher's traces are `reason`'s.
    """
    asked = questions.read(question)
    solution = questions.solve(asked, questions.knowledge(scene))
    said = [facts.say(step) for step in solution.steps]
    if asked.choices:
        said.append(_conclusion(asked, solution.answer))
    return " ".join(said), solution.answer
