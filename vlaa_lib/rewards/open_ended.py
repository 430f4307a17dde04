"""Open answers: the paper's formula on a reward model's scores of answer and reference."""

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


def relative(sampled: float, reference: float, beta: float = BETA) -> float:
    """Map a reward model's scores to [0, 1) (paper §4): 1 - exp(-beta (S(y') - S(y))), else 0.

    >>> relative(1.0, 1.0), round(relative(2.0, 1.0), 3)
    (0.0, 0.632)
    """
    return 1.0 - math.exp(-beta * (sampled - reference)) if sampled > reference else 0.0


def score_open(
    records: Sequence[Record], answers: Sequence[str], model: RewardModel | None = None
) -> list[Score | GoldError]:
    """Score answers against their records' golds, or say why this model cannot score a record."""
    model = model or default_model()
    distinct = {id(record): record for record in records}
    problems = {i: problem_of(model, record) for i, record in distinct.items()}
    rows = [(r, a) for r, a in zip(records, answers, strict=True) if not problems[id(r)]]
    found = iter(with_references(model, [r for r, _ in rows], [answer for _, answer in rows]))
    return [
        GoldError(said) if (said := problems[id(r)]) else _reward(*next(found), model.beta)
        for r in records
    ]


def _reward(sampled: float | None, reference: float | None, beta: float) -> Score:
    if sampled is None or reference is None:
        whose = " to the reference" if reference is None else ""
        return Score(0.0, f"open: judge gave no score{whose}")
    said = f"score {sampled:g}, reference {reference:g}"
    return scored("open", relative(sampled, reference, beta), said)


def is_as_good(record: Record, answer: str) -> bool:
    """Say whether an answer scores at least its gold by the scene's facts (ours): accuracy."""
    model = default_model()
    if problem := problem_of(model, record):
        raise GoldError(problem)
    ((score, gold),) = with_references(model, [record], [answer])
    return score >= gold


class RewardModel(Protocol):
    """Anything that scores answers to records' questions; higher is better, in any range."""

    name: str  # who scores, at which revision and settings; names its scores where they are kept
    beta: float  # of the open formula (paper §4); it has to fit the range of the scores

    def problem(self, record: Record) -> str:
        """Say why no answer to this record can be scored, and the remedy; empty when it can."""
        ...

    def score(
        self, records: Sequence[Record], answers: Sequence[str]
    ) -> Sequence[float | None]:
        """Return a finite score for each answer, or None where the model gave none."""
        ...


class _NoModel:
    name, beta = "no reward model", BETA

    def problem(self, record: Record) -> str:
        return "open: no reward model; pass reward_model=, or leave the record out"

    def score(self, records: Sequence[Record], answers: Sequence[str]) -> list[float | None]:
        return [None] * len(answers)


def default_model() -> RewardModel:
    """Return what scores open answers unless told otherwise: the installed world's facts."""
    return worlds.known().reward_model or _NoModel()


_MEMORY: WeakKeyDictionary[Any, OrderedDict[bytes, Any]] = WeakKeyDictionary()


def scores_of(
    model: RewardModel, records: Sequence[Record], answers: Sequence[str]
) -> list[float | None]:
    """Score answers in one call of the model, each once while it is remembered; None is not."""
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


def with_references(
    model: RewardModel, records: Sequence[Record], answers: Sequence[str]
) -> list[tuple[float | None, float | None]]:
    """Return each answer's score and its gold's, all in one call of the model."""
    golds = [gold_text(record) for record in records]
    found = scores_of(model, [*records, *records], [*golds, *answers])
    return list(zip(found[len(golds) :], found[: len(golds)], strict=True))


def problem_of(model: RewardModel, record: Record) -> str:
    """Return what `model.problem` says, asked once a record while nothing is wrong with it."""
    memory, (text,) = _MEMORY.setdefault(model, OrderedDict()), _texts([record], [None])
    key = hashlib.sha256(text.encode()).digest()
    said = "" if key in memory else model.problem(record)
    if not said:
        _remember(memory, {key: ""})
    return said


def _remember(memory: OrderedDict[bytes, Any], found: dict[bytes, Any]) -> None:
    for key, value in found.items():
        memory[key] = value
        memory.move_to_end(key)  # what was used longest ago is forgotten
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

    A picture that changed under its path needs another file: its bytes are not in the key.
    """

    def __init__(self, model: RewardModel, path: str | Path) -> None:
        self.model, self.path = model, Path(path)
        self.name, self.beta, self.problem = model.name, model.beta, model.problem

    def score(self, records: Sequence[Record], answers: Sequence[str]) -> list[float | None]:
        from vlaa_lib.llm import Ledger, Reply, call_key

        keys = [call_key("score", self.name, {}, text) for text in _texts(records, answers)]
        with Ledger(self.path) as ledger:
            kept = [ledger.get(key) for key in keys]
            found = [float(reply.text) if reply else None for reply in kept]
            new = [i for i, reply in enumerate(kept) if reply is None]
            asked = [records[i] for i in new], [answers[i] for i in new]
            scores = self.model.score(*asked) if new else []
            with ledger.together():
                for i, score in zip(new, scores, strict=True):
                    found[i] = score
                    if score is not None:
                        ledger.put(keys[i], "score", Reply(repr(float(score)), self.name))
        return found
