"""Open-ended answers: the paper's formula on a reward model's scores of answer and reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..microworld import facts, questions, truth
from ..records import Record
from .answers import GoldError, Score, excerpt, gold_text
from .reward_models import BETA, RewardModel, problem_of, scores_of

NO_SCORE = "open: judge gave no score"  # other reward models always give one


class SceneFacts:
    """Score answers by the scene's facts: distinct true ones minus false ones (ours).

    The default, for micro-world records; the paper's reward model is `xcomposer.XComposerReward`.
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
        stated, _ = _stated(gold_text(record), _asked(record)[0])
        if any(truth.holds(fact, record.meta["scene"]) is not None for fact in stated):
            return ""
        return (
            f"open: gold {excerpt(gold_text(record))} states no fact of the scene; state one, or "
            "pass reward_model="
        )

    def score(self, records: Sequence[Record], answers: Sequence[str]) -> list[float | None]:
        """Score each answer with its own record.

        Raises:
            GoldError: a record has no scene that facts can be held against.
        """
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
    """Return the facts of an answer and what each is worth: a bare one ("Ada") half (ours).

    Golds of DocVQA and VizWiz are bare words; the open reward asks for more than its gold, and
    that more is the whole sentence.
    """
    stated = facts.extract(answer)
    if stated or asked is None:
        return stated, 1.0
    return facts.extract(questions.as_sentence(asked, answer)), 0.5


def _count_facts(
    answer: str, scene: dict, asked: questions.Question | None, needed: facts.Fact | None
) -> float:
    """Count distinct true statements minus false ones, each subject once for each truth value.

    Where the question asks for one fact, an answer that lacks it scores 0 at most. What can be
    said without looking earns nothing: sums hold anywhere, and the list of things that are absent
    is endless. Nor do slightly shifted boxes of one thing count as several facts, or one thing
    named twice, once in full and once in part.
    """
    told, is_answered = {}, needed is None
    stated, worth = _stated(answer, asked)
    for fact in stated:
        held = truth.holds(fact, scene)
        is_free = fact.kind == "sum" or (held and fact.kind == "count" and fact.args[0] == 0)
        if held is not None and not is_free:
            subject = {"place": fact.args[:2], "thing": ()}.get(fact.kind, fact.args)
            told[fact.kind, subject, held] = worth if held else -worth
        is_answered = is_answered or bool(held and facts.covers(fact, needed))
    value = float(sum(told.values()))
    return value if is_answered else min(0.0, value)


def relative(sampled: float, reference: float, beta: float = BETA) -> float:
    """Map a reward model's scores to [0, 1) (paper §4): 1 - exp(-beta (S(y') - S(y))), else 0.

    >>> relative(1.0, 1.0), round(relative(2.0, 1.0), 3)
    (0.0, 0.632)
    """
    return 1.0 - math.exp(-beta * (sampled - reference)) if sampled > reference else 0.0


def is_as_good(record: Record, answer: str) -> bool:
    """Say whether an answer scores at least its record's gold, by the scene's facts (ours).

    The reward asks for more than the gold; accuracy is content with as much.

    Raises:
        GoldError: the record's scene or gold cannot be used.
    """
    if problem := problem_of(SCENE_FACTS, record):
        raise GoldError(problem)
    score, gold = scores_of(SCENE_FACTS, [record] * 2, [answer, gold_text(record)])
    return score >= gold


def score_open(
    records: Sequence[Record], answers: Sequence[str], model: RewardModel | None = None
) -> list[Score | GoldError]:
    """Score answers against their records' golds (paper §4); the default model reads scenes.

    One call of the model for all answers and references that it has not scored before.

    Returns:
        A score each, or the error of a record that this reward model cannot score.
    """
    model = model or SCENE_FACTS
    distinct = {id(record): record for record in records}
    problems = {i: problem_of(model, record) for i, record in distinct.items()}
    usable = [record for i, record in distinct.items() if not problems[i]]
    rows = [(r, a) for r, a in zip(records, answers, strict=True) if not problems[id(r)]]
    texts = [gold_text(record) for record in usable] + [answer for _, answer in rows]
    found = scores_of(model, usable + [r for r, _ in rows], texts)
    references = dict(zip(map(id, usable), found[: len(usable)], strict=True))
    sampled = iter(found[len(usable) :])
    return [
        GoldError(problems[id(r)])
        if problems[id(r)]
        else _reward(next(sampled), references[id(r)], model.beta)
        for r in records
    ]


def _reward(sampled: float | None, reference: float | None, beta: float) -> Score:
    if reference is None:
        return Score(0.0, f"{NO_SCORE} to the reference")
    if sampled is None:
        return Score(0.0, NO_SCORE)
    value = relative(sampled, reference, beta)
    return Score(value, f"open: score {sampled:g}, reference {reference:g}")
