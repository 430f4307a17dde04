"""Open answers by the facts of their scene: a reward model, and answers of known truth for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vlaa_lib.records import Record
from vlaa_lib.rewards.open_ended import BETA
from vlaa_lib.rewards.verifiers import GoldError, excerpt, gold_text

from .microworld import facts, questions, truth

# says nothing about any scene; about a hundred characters each
_BEFORE = "I look at the whole picture first, slowly and with care, before I say anything of it. "
_AFTER = " I went over it once more and I stay with what I said, since nothing speaks against it."


class SceneFacts:
    """Score answers by the scene's facts: distinct true ones minus false ones (ours)."""

    name = "scene facts"

    def __init__(self, beta: float = BETA) -> None:
        self.beta = beta

    def problem(self, record: Record) -> str:
        """Say why facts cannot be held against this record's scene, or its gold against them."""
        try:
            _scene_score(record, gold_text(record))
        except GoldError as error:
            return str(error)
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
    except (KeyError, TypeError, IndexError) as error:
        raise GoldError(f"open: meta.scene is incomplete ({error!r}); write it again") from None


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
    stated = facts.extract(answer)
    if stated or asked is None:
        return stated, 1.0
    # golds of DocVQA and VizWiz are bare; what the reward asks for beyond is the whole sentence
    return facts.extract(questions.as_sentence(asked, answer)), 0.5


def _count_facts(
    answer: str, scene: dict, asked: questions.Question | None, needed: facts.Fact | None
) -> float:
    """Count distinct true statements minus false ones, each subject once for each truth value."""
    told, is_answered = {}, needed is None
    stated, worth = _stated(answer, asked)
    for fact in stated:
        held = truth.holds(fact, scene)
        # said without looking: sums hold anywhere, and the list of what is absent is endless
        is_free = fact.kind == "sum" or (held and fact.kind == "count" and fact.args[0] == 0)
        if held is not None and not is_free:
            # slightly shifted boxes of one thing are one fact, as is a thing named again in part
            subject = {"place": fact.args[:2], "thing": ()}.get(fact.kind, fact.args)
            told[fact.kind, subject, held] = worth if held else -worth
        is_answered = is_answered or bool(held and facts.covers(fact, needed))
    value = float(sum(told.values()))
    return value if is_answered else min(0.0, value)  # without the fact that was asked for


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
