"""Reward models: the protocol of what scores open answers, and the memory of their scores."""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from vlaa_lib.images import ImageError, open_image
from vlaa_lib.records import Record

BETA = 1.0  # ours: the paper does not state it (appendix C.1); one point more earns 0.63
REMEMBERED = 1 << 16  # ours: all of the paper's 5,000 open RL records with 12 answers each; 15 MB


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


_MEMORY: WeakKeyDictionary[Any, OrderedDict[bytes, Any]] = WeakKeyDictionary()


def scores_of(
    model: RewardModel, records: Sequence[Record], answers: Sequence[str]
) -> list[float | None]:
    """Score answers in one call of the model, each (record, answer) once while it is remembered.

    A missing score is not remembered: the next batch asks for it again.

    Raises:
        ValueError: the model did not give one finite number, or None, for each answer.
    """
    memory = _MEMORY.setdefault(model, OrderedDict())
    keys = [hashlib.sha256(text.encode()).digest() for text in _texts(records, answers)]
    found = {key: memory[key] for key in keys if key in memory}
    new = {key: i for i, key in enumerate(keys) if key not in found}
    if new:
        asked = [records[i] for i in new.values()], [answers[i] for i in new.values()]
        scores = list(model.score(*asked))
        if len(scores) != len(new) or not all(s is None or math.isfinite(s) for s in scores):
            raise ValueError(
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


def picture_problem(record: Record, images: str | Path) -> str:
    """Say what is wrong with a record's picture, for models that look at it; empty when nothing."""
    try:
        open_image(record.image, images)
    except ImageError as error:
        return f"open: {error}"
    return ""


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
        self.name, self.beta = model.name, model.beta

    def problem(self, record: Record) -> str:
        """Say why no answer to this record can be scored."""
        return self.model.problem(record)

    def score(self, records: Sequence[Record], answers: Sequence[str]) -> list[float | None]:
        """Return kept scores, and score and keep the others.

        Raises:
            VlaaError: the file cannot be used.
        """
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
