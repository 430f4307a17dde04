"""Candidate pools: sampled solutions of each question, stored once, scored many times."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib import evaluate, folders, prompts, traces
from vlaa_lib.records import Record, RecordError
from vlaa_lib.rewards.verifiers import bare

if TYPE_CHECKING:
    from vlaa_lib.models import Policy

SIZES = (2, 4, 8, 16)  # page, figure 1
GREEDY = -1  # the `sample` of the greedy answer


@dataclass(frozen=True)
class Pool:
    """One generator's candidates.

    Attributes:
        candidates: by record id, in the order in which they were sampled; rows of
            `evaluate.score_rows` with `generator` and `sample` beside.
        greedy: by record id, where the generator answered greedily as well.
    """

    generator: str
    candidates: dict[str, list[dict[str, Any]]]
    greedy: dict[str, dict[str, Any]]

    @property
    def reach(self) -> int:
        """The largest number of candidates of a question."""
        return max(map(len, self.candidates.values()), default=0)

    def first(self, n: int) -> Pool:
        """Return the pool of the first n candidates, so that a larger n holds every smaller one."""
        return replace(self, candidates={i: rows[:n] for i, rows in self.candidates.items()})

    def of(self, ids: Iterable[str]) -> Pool:
        """Return the pool of some questions, in their order."""
        candidates = {i: self.candidates[i] for i in ids}
        greedy = {i: self.greedy[i] for i in candidates if i in self.greedy}
        return replace(self, candidates=candidates, greedy=greedy)


def sample(
    policy: Policy,
    records: list[Record],
    images: str | Path,
    folder: str | Path,
    generator: str,
    n: int = 16,  # page: 2^4 candidates a question
    temperature: float = 0.8,
    seed: int = 0,
    questions: int = 32,
    batch: int = 64,
    max_new_tokens: int = prompts.MAX_NEW_TOKENS,
) -> Pool:
    """Sample n solutions of each record into a folder, and one greedy answer.

    Killed and started again it makes what is missing, the same as if it had never stopped:
    candidates are drawn from the seed and the questions of their part. One process at a time.

    Args:
        temperature: ours, as the paper's is not known; VLAA-Thinking §4, GRPO's rollouts.
        questions: of one part, the unit of resuming.
    """
    import torch

    from vlaa_lib.evaluate.generate import fingerprint

    settings = {"generator": generator, "n": n, "temperature": temperature, "seed": seed,
                "questions": questions, "batch": batch, "max_new_tokens": max_new_tokens,
                "records": zlib.crc32(repr([(r.id, r.question) for r in records]).encode()),
                **fingerprint(policy)}  # fmt: skip
    given = images, batch, max_new_tokens
    with folders.lock(folder):
        folders.claim(folder, settings, "pool.json", names=["policy"])
        store, done = traces.TraceStore(folder), {row["record_id"] for row in _rows(folder)}
        for start in range(0, len(records), questions):
            part = records[start : start + questions]
            if part[0].id in done:
                continue
            torch.manual_seed(seed + start)
            asked = [record for record in part for _ in range(n)]
            texts = evaluate.generate(policy, asked, *given, temperature)
            rows = evaluate.score_rows(asked, texts, model=generator)
            for i, row in enumerate(rows):
                row["sample"] = i % n
            texts = evaluate.generate(policy, part, *given)
            rows += evaluate.score_rows(part, texts, model=generator, sample=GREEDY)
            store.append(traces.from_evaluation(rows, part, seed=seed))
    return load(folder)


def _rows(folder: str | Path) -> list[dict[str, Any]]:
    try:
        return [row | {"generator": row["model"]} for row in traces.load(folder)]
    except FileNotFoundError:
        return []


def load(folder: str | Path) -> Pool:
    """Read a pool that `sample` stored."""
    if not (rows := _rows(folder)):
        raise RecordError(f"{folder}: no pool; `python -m vlaa_lib process pool` samples one")
    return collect(rows)


def collect(rows: Iterable[Mapping[str, Any]]) -> Pool:
    """Make a pool of rows with `generator`, `record_id`, `sample`, `completion` and `correct`."""
    rows = sorted(rows, key=lambda row: row["sample"])
    generators = sorted({row["generator"] for row in rows})
    if len(generators) != 1:
        said = f"rows of {', '.join(generators)}" if generators else "no rows"
        raise RecordError(f"a pool is of one generator; these are {said}: load each by itself")
    places = Counter((row["record_id"], row["sample"]) for row in rows)
    (place, count), *_ = places.most_common(1)
    if count > 1:
        raise RecordError(f"record {place[0]}: sample {place[1]} is there {count} times; keep one")
    candidates: dict[str, list] = {row["record_id"]: [] for row in rows}
    for row in rows:
        if row["sample"] != GREEDY:
            candidates[row["record_id"]].append(row)
    greedy = {row["record_id"]: row for row in rows if row["sample"] == GREEDY}
    return Pool(generators[0], candidates, greedy)


# --- lines that need no scorer --------------------------------------------------------------------


def expected_random(rows: list[dict[str, Any]]) -> float:
    """Return what a candidate drawn at random is worth, exactly."""
    return sum(bool(row["correct"]) for row in rows) / len(rows) if rows else 0.0


def majority(rows: list[dict[str, Any]]) -> float:
    """Return the share of right candidates behind the most frequent answer, over all such."""
    votes: dict[str, list[bool]] = {}
    for row in rows:
        # one answer up to case, white space and wrappers such as a box; unreadable: no vote
        if answer := " ".join(bare(row["answer"]).casefold().split()):
            votes.setdefault(answer, []).append(bool(row["correct"]))
    most = max(map(len, votes.values()), default=0)
    shares = [sum(found) / len(found) for found in votes.values() if len(found) == most]
    return sum(shares) / len(shares) if shares else 0.0


def oracle(rows: list[dict[str, Any]]) -> float:
    """Return whether any candidate is right (pass@N): no selection can do better."""
    return float(any(row["correct"] for row in rows))


LINES = {"random": expected_random, "majority": majority, "oracle": oracle}
