"""Open-ended answers: the paper's formula on a reward model's scores of answer and reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlaa_lib import worlds
from vlaa_lib.records import Record

from .answers import GoldError, Score, gold_text, scored
from .reward_models import BETA, RewardModel, problem_of, scores_of


class _NoModel:
    """What stands where no world is installed: it scores nothing and says why."""

    name, beta = "no reward model", BETA

    def problem(self, record: Record) -> str:
        return "open: no reward model; pass reward_model=, or leave the record out"

    def score(self, records: Sequence[Record], answers: Sequence[str]) -> list[float | None]:
        return [None] * len(answers)


_NO_MODEL = _NoModel()


def default_model() -> RewardModel:
    """Return what scores open answers unless told otherwise: the installed world's facts."""
    return worlds.known().reward_model or _NO_MODEL


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
    model = default_model()
    if problem := problem_of(model, record):
        raise GoldError(problem)
    score, gold = scores_of(model, [record] * 2, [answer, gold_text(record)])
    return score >= gold


def score_open(
    records: Sequence[Record], answers: Sequence[str], model: RewardModel | None = None
) -> list[Score | GoldError]:
    """Score answers against their records' golds (paper §4); the default model reads scenes.

    One call of the model for all answers and references that it has not scored before.

    Returns:
        A score each, or the error of a record that this reward model cannot score.
    """
    model = model or default_model()
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
        return Score(0.0, "open: judge gave no score to the reference")
    if sampled is None:
        return Score(0.0, "open: judge gave no score")
    return scored("open", relative(sampled, reference, beta),
                  f"score {sampled:g}, reference {reference:g}")  # fmt: skip
