"""Open-ended answers: the paper's formula on a reward model's scores of answer and reference."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Protocol

from ..microworld import facts, questions, truth
from ..records import Record, from_json
from .answers import GoldError, Score, excerpt, gold_text

BETA = 1.0  # ours: the paper does not state it (appendix C.1); one fact more earns 0.63


class RewardModel(Protocol):
    """Anything hashable that scores answers to a record's question; higher is better, any range."""

    def __call__(self, record: Record, answers: list[str]) -> list[float]:
        """Return one finite score for each answer."""
        ...


def scene_facts(record: Record, answers: list[str]) -> list[float]:
    """Score answers by the scene's facts: distinct true ones minus false ones (ours).

    Raises:
        GoldError: the record has no scene that facts can be held against.
    """
    scene = record.meta.get("scene")
    if not isinstance(scene, dict) or "kind" not in scene:
        raise GoldError(
            "open: no meta.scene and no reward model; add the scene, pass reward_model=, or leave "
            "the record out"
        )
    asked = _asked(record)
    try:
        return [_count_facts(answer, scene, *asked) for answer in answers]
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


def _scores(model: RewardModel, record: Record, answers: list[str]) -> list[float]:
    scores = list(model(record, answers))
    if len(scores) != len(answers) or not all(map(math.isfinite, scores)):
        raise ValueError(
            f"the reward model gave {scores} for {len(answers)} answers to record {record.id}; it "
            "must give one finite number each"
        )
    return scores


@lru_cache(maxsize=1 << 14)  # ours: half of the paper's RL set; a key is one record's JSON
def _reference(model: RewardModel | None, row: str) -> float:
    """Return S(y), the score of the gold: once a record, however many completions it meets.

    Raises:
        GoldError: the gold cannot be scored, or says nothing that the scene can confirm.
    """
    record = from_json(json.loads(row))
    gold = gold_text(record)
    value = _scores(model or scene_facts, record, [gold])[0]
    stated = [] if model else _stated(gold, _asked(record)[0])[0]
    if model is None and all(truth.holds(fact, record.meta["scene"]) is None for fact in stated):
        raise GoldError(
            f"open: gold {excerpt(gold)} states no fact of the scene; state one, or pass "
            "reward_model="
        )
    return value


def is_as_good(record: Record, answer: str) -> bool:
    """Say whether an answer scores at least its record's gold, by the scene's facts (ours).

    The reward asks for more than the gold; accuracy is content with as much.
    """
    gold = _reference(None, json.dumps(record.to_json(), sort_keys=True))
    return scene_facts(record, [answer])[0] >= gold


def score_open(
    record: Record, answers: list[str], model: RewardModel | None = None, beta: float = BETA
) -> list[Score]:
    """Score answers of one record against its gold (paper §4); the default model reads scenes.

    Raises:
        GoldError: the record cannot be scored with this reward model.
    """
    base = _reference(model, json.dumps(record.to_json(), sort_keys=True))
    return [
        Score(relative(s, base, beta), f"open: score {s:g}, reference {base:g}")
        for s in _scores(model or scene_facts, record, answers)
    ]
