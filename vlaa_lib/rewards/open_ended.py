"""Open answers: the paper's formula on a reward model's scores of answer and reference.

Whatever scores answers is a `RewardModel`: the facts of a known world (the default where one is
installed), or one of `reward_models`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from vlaa_lib import VlaaError, worlds
from vlaa_lib.records import Record

from .verifiers import GoldError, Score, gold_text, scored

BETA = 1.0  # ours: the paper does not state it (appendix C.1); one point more earns 0.63
REMEMBERED = 1 << 16  # ours: all of the paper's 5,000 open RL records with 12 answers each; 15 MB


# --- the formula ---------------------------------------------------------------------------------


def relative(sampled: float, reference: float, beta: float = BETA) -> float:
    """Map a reward model's scores to [0, 1) (paper §4): 1 - exp(-beta (S(y') - S(y))), else 0.

    >>> relative(1.0, 1.0), round(relative(2.0, 1.0), 3)
    (0.0, 0.632)
    """
    return 1.0 - math.exp(-beta * (sampled - reference)) if sampled > reference else 0.0


def score_open(
    records: Sequence[Record], answers: Sequence[str], model: RewardModel | None = None
) -> list[Score | GoldError]:
    """Score answers against their records' golds, or say why this model cannot score a record.

    One call of the model for all answers and references that it has not scored before.
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
    said = f"score {sampled:g}, reference {reference:g}"
    return scored("open", relative(sampled, reference, beta), said)


def is_as_good(record: Record, answer: str) -> bool:
    """Say whether an answer scores at least its record's gold, by the scene's facts (ours).

    The reward asks for more than the gold; accuracy is content with as much.
    """
    model = default_model()
    if problem := problem_of(model, record):
        raise GoldError(problem)
    score, gold = scores_of(model, [record] * 2, [answer, gold_text(record)])
    return score >= gold


# --- reward models -------------------------------------------------------------------------------


class RewardModel(Protocol):
    """Anything that scores answers to records' questions; higher is better, in any range.

    Attributes:
        name: who scores, at which revision and settings; names its scores where they are kept.
        beta: of the open formula (paper §4); it has to fit the range of the scores.
    """

    name: str
    beta: float

    def problem(self, record: Record) -> str:
        """Say why no answer to this record can be scored, and the remedy; empty when it can."""
        ...

    def score(
        self, records: Sequence[Record], answers: Sequence[str]
    ) -> Sequence[float | None]:
        """Return a finite score for each answer, or None where the model gave none."""
        ...


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


# --- the memory of scores ------------------------------------------------------------------------

_MEMORY: WeakKeyDictionary[Any, OrderedDict[bytes, Any]] = WeakKeyDictionary()


def scores_of(
    model: RewardModel, records: Sequence[Record], answers: Sequence[str]
) -> list[float | None]:
    """Score answers in one call of the model, each (record, answer) once while it is remembered.

    A missing score is not remembered: the next batch asks for it again.

    Raises:
        VlaaError: the model did not give one finite number, or None, for each answer.
    """
    memory = _MEMORY.setdefault(model, OrderedDict())
    keys = [hashlib.sha256(text.encode()).digest() for text in _texts(records, answers)]
    found = {key: memory[key] for key in keys if key in memory}
    new = {key: i for i, key in enumerate(keys) if key not in found}
    if new:
        asked = [records[i] for i in new.values()], [answers[i] for i in new.values()]
        scores = list(model.score(*asked))
        if len(scores) != len(new) or not all(s is None or math.isfinite(s) for s in scores):
            raise VlaaError(
                f"{model.name} gave {scores[:8]} for {len(new)} answers, the first of them to "
                f"record {asked[0][0].id}; it must give one finite number (or None) each"
            )
        found.update(zip(new, scores, strict=True))
    _remember(memory, {key: value for key, value in found.items() if value is not None})
    return [found[key] for key in keys]


def problem_of(model: RewardModel, record: Record) -> str:
    """Return what `model.problem` says, asked once a record while nothing is wrong with it."""
    memory, (text,) = _MEMORY.setdefault(model, OrderedDict()), _texts([record], [None])
    key = hashlib.sha256(text.encode()).digest()
    said = "" if key in memory else model.problem(record)
    if not said:
        _remember(memory, {key: ""})
    return said


def _remember(memory: OrderedDict[bytes, Any], found: dict[bytes, Any]) -> None:
    """Put what was used last at the end and forget what was used longest ago."""
    for key, value in found.items():
        memory[key] = value
        memory.move_to_end(key)
    while len(memory) > REMEMBERED:
        memory.popitem(last=False)


def _texts(records: Sequence[Record], answers: Sequence[str | None]) -> list[str]:
    """Return what names each record and answer; a record is written out once, it may be long."""
    distinct = {id(record): record for record in records}
    rows = {i: json.dumps(r.to_json(), sort_keys=True) for i, r in distinct.items()}
    pairs = zip(records, answers, strict=True)
    return [f"{rows[id(record)]}\n{json.dumps(answer)}" for record, answer in pairs]


class Kept:
    """A reward model whose scores stay in a ledger file (SQLite), for the next run (ours).

    The key is the model's name, the record and the answer, not the picture's bytes: give a
    picture that changed under its path another file.
    """

    def __init__(self, model: RewardModel, path: str | Path) -> None:
        self.model, self.path = model, Path(path)
        self.name, self.beta, self.problem = model.name, model.beta, model.problem

    def score(self, records: Sequence[Record], answers: Sequence[str]) -> list[float | None]:
        """Return kept scores, and score and keep the others."""
        from vlaa_lib.llm import Ledger, Reply, call_key

        keys = [call_key("score", self.name, {}, text) for text in _texts(records, answers)]
        with Ledger(self.path) as ledger:
            kept = [ledger.get(key) for key in keys]
            found = [float(reply.text) if reply else None for reply in kept]
            new = [i for i, reply in enumerate(kept) if reply is None]
            asked = [records[i] for i in new], [answers[i] for i in new]
            scores = self.model.score(*asked) if new else []
            for i, score in zip(new, scores, strict=True):
                found[i] = score
                if score is not None:
                    ledger.put(keys[i], "score", Reply(repr(float(score)), self.name))
        return found
