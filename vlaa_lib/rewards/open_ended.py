"""Open-ended answers: the paper's formula on a reward model's scores of answer and reference."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Protocol

from ..microworld import facts
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
    return [_count_facts(answer, scene) for answer in answers]


def _count_facts(answer: str, scene: dict) -> float:
    """Count distinct true statements minus false ones, each subject once for each truth value.

    What can be said without looking earns nothing: sums hold anywhere, and the list of things that
    are absent is endless. Nor do slightly shifted boxes of one thing count as several facts.
    """
    told = set()
    for fact in facts.extract(answer):
        try:
            truth = facts.holds(fact, scene)
        except (KeyError, TypeError, IndexError) as error:
            raise GoldError(f"open: meta.scene is incomplete ({error!r}); write it again") from None
        is_free = fact.kind == "sum" or (truth and fact.kind == "count" and fact.args[0] == 0)
        if truth is not None and not is_free:
            told.add((fact.kind, fact.args[:2] if fact.kind == "place" else fact.args, truth))
    return float(sum(1 if truth else -1 for *_, truth in told))


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
    if model is None and all(
        facts.holds(fact, record.meta["scene"]) is None for fact in facts.extract(gold)
    ):
        raise GoldError(
            f"open: gold {excerpt(gold)} states no fact of the scene; state one, or pass "
            "reward_model="
        )
    return value


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
