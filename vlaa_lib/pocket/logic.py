"""How a trace hangs together: does its answer follow, and what do its doubts change?"""

from __future__ import annotations

from functools import lru_cache

from vlaa_lib.prompts import has_aha, split_think_answer
from vlaa_lib.rewards.boxes import iou, parse_box
from vlaa_lib.traces.measures import split

from .microworld import facts, questions, truth
from .microworld.facts import Fact
from .microworld.solve import UNANSWERABLE, CannotAnswer, found
from .teacher import agrees


@lru_cache(maxsize=4096)  # rollouts of a group repeat each other, and each is read several times
def facts_of(sentence: str) -> tuple[Fact, ...]:
    """Return the facts that a sentence states."""
    return tuple(facts.read_all(sentence))


def _holds(fact: Fact, scene: dict) -> bool | None:
    """As `truth.holds`; what is no scene, as a stranger's record may hold, cannot tell."""
    try:
        return truth.holds(fact, scene)
    except truth.MALFORMED:
        return None


def check(sentence: str, scene: dict) -> bool | None:
    """Say whether a sentence is true of a scene: False if any part is false, None if none tells.

    >>> check("The red bar reaches 3", {"kind": "bars", "bars": [{"color": "red", "value": 3}]})
    True
    """
    held = [_holds(fact, scene) for fact in facts_of(sentence)]
    told = [value for value in held if value is not None]
    return all(told) if told else None


# which arguments name what a fact is about; the others say something of it. Default: the first
_ABOUT = {
    "count": (1, 2),
    **dict.fromkeys(("place", "area"), (0, 1)),
    "relation": (0, 1, 3, 4),
    **dict.fromkeys(("tallest", "shortest", "peak", "dip", "most"), ()),
    **dict.fromkeys(("equal", "thing", "unclear"), ()),
}


def about(fact: Fact) -> tuple:
    """Return what a fact is about: two about the same say the same or contradict.

    >>> about(Fact("count", (2, "red", "cube"))), about(Fact("bar", ("red", 3)))
    (('count', 'red', 'cube'), ('bar', 'red'))
    """
    kind = "thing" if fact.kind == "unclear" else fact.kind
    return (kind, *(fact.args[i] for i in _ABOUT.get(fact.kind, (0,))))


def corrections(trace: str, scene: dict | None) -> dict[str, int | None]:
    """Count what is said again of the same thing after a doubt word, an aha keyword (ours).

    `helped`: false before and true now; `hurt`: true before and false now; `unchanged`: no more and
    no less true. None without a scene.

    >>> scene = {"kind": "bars", "bars": [{"color": "red", "value": 3}]}
    >>> corrections("The red bar reaches 4. Wait. The red bar reaches 3.", scene)
    {'helped': 1, 'hurt': 0, 'unchanged': 0}
    """
    counts = dict.fromkeys(("helped", "hurt", "unchanged"), 0 if scene else None)
    held: dict[tuple, bool] = {}  # of each thing: was the last statement true
    doubted: set[tuple] = set()
    for sentence in split(trace) if scene else ():
        if has_aha(sentence):
            doubted = set(held)
        for fact in facts_of(sentence):
            now, key = _holds(fact, scene), about(fact)
            if now is None:
                continue
            if key in doubted:
                name = "unchanged" if now == held[key] else "helped" if now else "hurt"
                counts[name] += 1
            doubted.discard(key)
            held[key] = now
    return counts


def follows(trace: str, question: str) -> bool | None:
    """Say whether the answer follows from what the think block states last, true or not (ours).

    It does if the last fact or the last sum gives it, or if the question solved from the stated
    facts does, the latest about each thing. None where nothing leads to an answer.

    >>> follows("<think>2 + 1 = 3.</think><answer>4</answer>", "How many cubes are there?")
    False
    """
    parsed = split_think_answer(trace)
    stated = [fact for sentence in split(parsed.think) for fact in facts_of(sentence)]
    try:
        asked = questions.read(question)
    except CannotAnswer:
        return None
    if not stated:
        return None
    if asked.kind in ("locate", "relation"):
        return _fits_place(stated[-1], parsed.answer)
    answer = asked.choices.get(parsed.answer.strip(" ().").upper(), parsed.answer)
    if asked.kind == "describe":
        answer = str(sum(f.args[0] for f in facts.extract(answer) if f.kind == "count"))
    lasts = [stated[-1], *[fact for fact in stated if fact.kind == "sum"][-1:]]
    candidates = [*(_value(fact, asked.kind) for fact in lasts), _solved(asked, stated)]
    known = [text for text in candidates if text is not None]
    return any(agrees(text, answer) for text in known) if known else None


def _value(fact: Fact, asked: str) -> str | None:
    """Return the answer that a fact alone gives; None where it takes several."""
    if fact.kind == "unclear":
        return UNANSWERABLE
    if fact.kind == "thing":
        return fact.args[0] if asked == "hue" else facts.things(*fact.args, 1)
    if fact.kind in ("count", "tallest", "shortest", "peak", "dip", "most"):
        return str(fact.args[0])
    if fact.kind in ("sum", "bar", "point", "angle", "length", "field"):
        return str(fact.args[1])
    return None


def _solved(asked: questions.Question, stated: list[Fact]) -> str | None:
    if asked.kind == "describe":
        return None  # its solution is a text; the last count is its total
    counts = asked.kind in ("count", "add", "subtract", "more")
    if counts and not any(fact.kind == "count" for fact in stated):
        return None  # nothing counted is not a count of nothing
    try:
        return found(asked, list({about(fact): fact for fact in stated}.values()))[1]
    except (CannotAnswer, ValueError, IndexError):  # facts of another kind of picture
        return None


def _fits_place(last: Fact, answer: str) -> bool | None:
    """Hold a box against the last place or area that was named."""
    if last.kind not in ("area", "place"):
        return None
    if (box := parse_box(answer)) is None:
        return False
    if last.kind == "place":
        return iou(box, last.args[2]) >= 0.5
    return truth.area(box) == last.args[2]
