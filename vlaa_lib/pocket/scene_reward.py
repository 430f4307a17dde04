"""Open answers by the facts of their scene: a reward model, and answers of known truth for it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from vlaa_lib.prompts import sentences
from vlaa_lib.records import Record
from vlaa_lib.rewards.open_ended import BETA
from vlaa_lib.rewards.verifiers import GoldError, excerpt, gold_text

from .microworld import facts, questions, scenes, truth

SCENES = 1024  # ours: scenes of a kind that say how common a fact is, to about one hundredth
RARE = 1 / 5  # ours: one of six colours tells something, one of four shapes alone does not
NEW = 1 / 4  # ours: of the scenes that share another fact; wider, as those are few
_TURNED = {"right of": "left of", "below": "above"}
_UNSURE = re.compile(r"\b(?:or|either|maybe|perhaps|possibly|might|if|unless)\b", re.IGNORECASE)

# says nothing about any scene; about a hundred characters each
_BEFORE = "I look at the whole picture first, slowly and with care, before I say anything of it. "
_AFTER = " I went over it once more and I stay with what I said, since nothing speaks against it."


class SceneFacts:
    """Score answers by the scene's facts: true ones that tell something minus false ones (ours).

    A true fact counts, as one, when it tells this scene from others of its kind: at most one in
    `RARITY` of them has it, and as few of those that share any fact counted before. So whatever
    follows from another fact, a fact said twice or turned round ("A is left of B, B is right of
    A"), what holds nearly everywhere (sums, what is absent, "there is a cube") and facts of "the
    object" earn nothing. A false fact costs one: of two that contradict each other nothing is left.
    Unsure sentences ("or", "maybe") state nothing. Two facts that beat a gold of one by chance are
    right together in at most 1 of `RARITY` squared scenes: no constant text earns 0.05.
    """

    name = "scene facts"

    def __init__(self, beta: float = BETA) -> None:
        self.beta = beta

    def problem(self, record: Record) -> str:
        """Say why facts cannot be held against this record's scene, or its gold against them."""
        try:
            _scene_score(record, gold_text(record))
        except GoldError as error:
            return str(error)
        if problem := truth.problem_of(record.meta["scene"]):  # else an answer meets it in a run
            return str(_incomplete(problem))
        stated, _ = _stated(gold_text(record), _asked(record)[0])
        if any(truth.holds(fact, record.meta["scene"]) is not None for fact in stated):
            return ""
        return (
            f"open: gold {excerpt(gold_text(record))} states no fact of the scene; state one, or "
            "pass reward_model="
        )

    def score(self, records: Sequence[Record], answers: Sequence[str]) -> list[float | None]:
        scores: list[float | None] = []
        for record, answer in zip(records, answers, strict=True):
            try:
                scores.append(_scene_score(record, answer))
            except GoldError as error:
                raise GoldError(f"record {record.id}: {error}") from None
        return scores


SCENE_FACTS = SceneFacts()


def _scene_score(record: Record, answer: str) -> float:
    scene = record.meta.get("scene")
    if not isinstance(scene, dict) or "kind" not in scene:
        raise GoldError(
            "open: no meta.scene and no reward model; add the scene, pass reward_model=, or leave "
            "the record out"
        )
    try:
        return _count_facts(answer, scene, *_asked(record))
    except truth.MALFORMED as error:
        raise _incomplete(repr(error)) from None


def _incomplete(problem: str) -> GoldError:
    return GoldError(f"open: meta.scene is incomplete ({problem}); write it again")


def _asked(record: Record) -> tuple[questions.Question | None, facts.Fact | None]:
    """Return the question and the one fact that it asks for; a description asks for none."""
    try:
        asked = questions.read(record.question)
    except questions.CannotAnswer:
        return None, None
    gold, _ = _stated(gold_text(record), asked)
    return asked, gold[0] if gold and asked.kind != "describe" else None


def _stated(answer: str, asked: questions.Question | None) -> tuple[list[facts.Fact], float]:
    """Return the facts of an answer and what each is worth: a bare one ("Ada") half (ours)."""
    sure = [sentence for sentence in sentences(answer) if not _UNSURE.search(sentence)]
    stated = [fact for sentence in sure for fact in facts.read_all(sentence)]
    if stated or asked is None:
        return stated, 1.0
    # golds of DocVQA and VizWiz are bare; what the reward asks for beyond is the whole sentence
    bare = facts.read(questions.as_sentence(asked, answer))  # one value: a list has not decided
    return [bare] if bare else [], 0.5


def _count_facts(
    answer: str, scene: dict, asked: questions.Question | None, needed: facts.Fact | None
) -> float:
    """Count what the answer says of the scene as `SceneFacts` does."""
    true, false, is_answered = set(), set(), needed is None
    stated, worth = _stated(answer, asked)
    for fact in stated:
        if fact.kind == "relation" and fact.args[2] in _TURNED:
            fact = _swapped(fact, _TURNED[fact.args[2]])
        if held := truth.holds(fact, scene):
            true.add(fact)
            is_answered = is_answered or facts.covers(fact, needed)
        elif held is False:
            false.add(_about(fact))
    value = worth * (_telling(true, scene["kind"]) - len(false))
    return value if is_answered else min(0.0, value)  # without the fact that was asked for


def _about(fact: facts.Fact) -> tuple:
    """Return what a fact is about: shifted boxes of one thing, and a thing's parts, are one."""
    return fact.kind, *{"place": fact.args[:2], "thing": ()}.get(fact.kind, fact.args)


def _swapped(fact: facts.Fact, relation: str) -> facts.Fact:
    return facts.Fact(fact.kind, (*fact.args[3:], relation, *fact.args[:2]))


def _telling(true: set[facts.Fact], kind: str) -> int:
    """Count the true facts that rule out most of what could be; the rarest says it first."""
    where, counted = {fact: _where(fact, kind) for fact in true}, {}
    for fact in sorted(true, key=lambda fact: (where[fact].bit_count(), repr(fact))):
        is_unnamed = ("", "") in (fact.args[:2], fact.args[3:])  # "the object"
        is_taken_back = fact.kind == "relation" and _swapped(fact, fact.args[2]) in true
        if is_unnamed or is_taken_back or where[fact].bit_count() > RARE * SCENES:
            continue
        if all((where[fact] & of).bit_count() <= NEW * of.bit_count() for of in counted.values()):
            counted.setdefault(_about(fact), where[fact])
    return len(counted)


@lru_cache(maxsize=1 << 14)
def _where(fact: facts.Fact, kind: str) -> int:
    """Return in which of the kind's reference scenes a fact holds, a bit for each."""
    return sum(1 << i for i, s in enumerate(_reference(kind)) if truth.holds(fact, s))


@cache
def _reference(kind: str) -> list[dict]:
    rng = random.Random(f"scene facts/{kind}")
    return [scenes.draw(kind, "pretrain", rng) for _ in range(SCENES)]


class Candidate(NamedTuple):
    """An answer whose truth is known."""

    answer: str
    kind: str  # how it was made
    is_right: bool


def scene_candidates(records: Sequence[Record]) -> list[list[Candidate]]:
    """Make answers of known truth to open micro-world records, from the golds of all of them.

    Kinds that a record has no material for are left out.
    """
    asked = [questions.read(record.question) for record in records]
    golds = [gold_text(record) for record in records]
    made = []
    for record, question, gold in zip(records, asked, golds, strict=True):
        scene, told = record.meta["scene"], questions.as_sentence(question, gold)
        mine = [Candidate(gold, "right", True)]
        if told != gold:
            mine.append(Candidate(told, "right, a sentence", True))
        mine.append(Candidate(_BEFORE + told + _AFTER, "right, verbose", True))
        others = [
            questions.as_sentence(question, other)
            for other, theirs in zip(golds, asked, strict=True)
            if (theirs.kind, theirs.slots) == (question.kind, question.slots)
        ]
        # the gold of another record, false here
        if near := next((text for text in others if _truths(text, scene) == {False}), None):
            mine.append(Candidate(near, "near miss", False))
            mine.append(Candidate(_BEFORE + near + _AFTER, "near miss, verbose", False))
        # of which the scene says nothing
        if off := next((g for g in golds if _truths(g, scene) == {None}), None):
            mine.append(Candidate(off, "off topic", False))
        made.append(mine)
    return made


def _truths(text: str, scene: dict) -> set[bool | None]:
    return {truth.holds(fact, scene) for fact in facts.extract(text)}
