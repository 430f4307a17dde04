"""Scorers of steps: what one is, how it scores a pool, its scores in a file, and step truth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vlaa_lib import evaluate, traces
from vlaa_lib.folders import write_lines
from vlaa_lib.records import Record, RecordError, iter_json

from . import steps
from .pools import Pool

# records and the steps of a solution to each -> a score for each step, NaN where there is none;
# the record has question and image. Higher is better; in [0, 1] where a product is to be taken.
Scorer = Callable[[Sequence[Record], Sequence[list[str]]], list[list[float]]]
# (generator, record id, sample) -> a score for each step
Scores = dict[tuple[str, str, int], list[float]]


def score_pool(scorer: Scorer, pool: Pool, records: Iterable[Record]) -> Scores:
    """Score the steps of every candidate of a pool, in one call of the scorer.

    Raises:
        RecordError: a question of the pool has no record.
        ValueError: the scorer did not give one number for each step.
    """
    by_id = {record.id: record for record in records}
    if missing := [i for i in pool.candidates if i not in by_id]:
        raise RecordError(
            f"{pool.generator}: no record of question {missing[0]!r} (and {len(missing) - 1} "
            "more); give the records that the pool was sampled for"
        )
    keys, solutions = [], []
    for record_id, rows in pool.candidates.items():
        keys += [(pool.generator, record_id, row["sample"]) for row in rows]
        solutions += [steps.split(row["completion"]) for row in rows]
    found = scorer([by_id[key[1]] for key in keys], solutions) if keys else []
    if len(found) != len(keys):
        raise ValueError(f"the scorer gave {len(found)} lists for {len(keys)} solutions")
    for key, solution, scores in zip(keys, solutions, found, strict=True):
        if len(scores) != len(solution) or any(map(math.isinf, scores)):
            raise ValueError(
                f"record {key[1]}, sample {key[2]}: scores {scores[:8]} for {len(solution)} "
                "steps; a scorer must give one number, or NaN, for each step"
            )
    return dict(zip(keys, found, strict=True))


def step_truth(
    records: Sequence[Record], solutions: Sequence[list[str]], with_answer: bool = False
) -> list[list[float]]:
    """Score steps by the scene: the share of a step's checkable sentences that are true (ours).

    It stands for a perfect process reward model; a step with nothing to check has no score.

    Args:
        with_answer: the last step is true only if the final answer is right as well, which a
            perfect model would know of a step that states it.
    Raises:
        RecordError: a record without a scene.

    >>> scene = {"kind": "bars", "bars": [{"color": "red", "value": 3}]}
    >>> made = Record("r", "a.png", "How high?", "3", reward="digit", meta={"scene": scene})
    >>> step_truth([made], [["The red bar reaches 4.", "Hm.", "The red bar reaches 3."]])
    [[0.0, nan, 1.0]]
    >>> step_truth([made], [["The red bar reaches 4.", "The answer is 3."]], with_answer=True)
    [[0.0, 1.0]]
    """
    found = []
    for record, solution in zip(records, solutions, strict=True):
        if not (scene := record.meta.get("scene")):
            raise RecordError(f"record {record.id}: no scene to hold steps against; use a judge")
        found.append([_truth(step, scene) for step in solution])
    if with_answer:
        texts = [" ".join(solution) for solution in solutions]
        rows = evaluate.score_rows(list(records), texts)
        for scores, row in zip(found, rows, strict=True):
            if scores:
                known = 1.0 if math.isnan(scores[-1]) else scores[-1]
                scores[-1] = min(known, float(row["correct"]))
    return found


def _truth(step: str, scene: dict[str, Any]) -> float:
    held = [part.truth for part in traces.check_steps(step, scene) if part.truth is not None]
    return sum(held) / len(held) if held else math.nan


def write(path: str | Path, scorer: str, scores: Scores) -> None:
    """Write scores as JSON Lines, atomically; NaN becomes null."""
    names = ("generator", "record_id", "sample")
    write_lines(
        path,
        (
            json.dumps(
                {"scorer": scorer}
                | dict(zip(names, key, strict=True))
                | {"scores": [None if math.isnan(score) else score for score in values]}
            )
            + "\n"
            for key, values in scores.items()
        ),
    )


def read(path: str | Path) -> dict[str, Scores]:
    """Read what `write` wrote, from one file or several joined: scores by scorer.

    Raises:
        RecordError: the file is missing, or a line is not of that shape; file and line are named.
    """
    found: dict[str, Scores] = {}
    if not Path(path).is_file():
        raise RecordError(f"{path}: no such file; `python -m vlaa_lib process judge` writes one")
    with Path(path).open(encoding="utf-8") as stream:
        for line, row in iter_json(stream):
            place = f"{path}:{line}"
            if isinstance(row, RecordError):
                raise RecordError(f"{place}: {row}")
            try:
                key = str(row["generator"]), str(row["record_id"]), int(row["sample"])
                values = [math.nan if score is None else float(score) for score in row["scores"]]
                mine = found.setdefault(str(row["scorer"]), {})
            except (KeyError, TypeError, ValueError):
                raise RecordError(
                    f"{place}: expected scorer, generator, record_id, sample and scores"
                ) from None
            if key in mine or any(map(math.isinf, values)):
                said = "scored above" if key in mine else "a score is infinite"
                raise RecordError(f"{place}: {' '.join(map(str, key))}: {said}; delete this line")
            mine[key] = values
    return found
