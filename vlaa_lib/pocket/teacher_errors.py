"""The text-only teacher under measurement: its false steps by noise, and the step checker's eye."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from vlaa_lib import rewards
from vlaa_lib.prompts import join_think_answer
from vlaa_lib.records import Record
from vlaa_lib.traces.measures import measure
from vlaa_lib.traces.steps import check_steps

from . import microworld
from .microworld import narrator, truth
from .microworld.narrator import Rates
from .teacher import agrees


def false_steps_by_noise(
    sources: Iterable[str],
    rates: Rates,
    factors: Iterable[float] = (0.0, 0.5, 1.0, 2.0),
    n: int = 60,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Let the text-only teacher answer from captions of several noise levels (ours).

    One row a source and factor, over `n` scenes of the `dev` split: how many traces answered, the
    share of answers that verification accepts, and the share of traces with a false step among
    all of them (`false_all`) and among the verified ones (`false_verified`).

    Args:
        rates: omission, confusion and miscount are multiplied by each factor, at most to 1.
    """
    table = []
    for source, factor in product(sources, factors):
        caught = ("omit", "confuse", "miscount")
        noisy = replace(rates, **{k: min(1.0, getattr(rates, k) * factor) for k in caught})
        told = [trial for trial in _trials(source, n, seed, noisy) if trial[1]]
        is_false = [measure(_text(said), r.meta["scene"])["false_steps"] > 0 for r, said, _ in told]
        is_right = [agrees(record.gt, answer) for record, _, answer in told]
        kept = [false for false, right in zip(is_false, is_right, strict=True) if right]
        table.append({
            "source": source, "noise": factor, "answered": len(told),
            "verified": len(kept) / max(1, len(told)),
            "false_all": sum(is_false) / max(1, len(told)),
            "false_verified": sum(kept) / max(1, len(kept)),
        })  # fmt: skip
    return table


def checker_quality(
    sources: Iterable[str], rates: Rates, n: int = 60, seed: int = 0
) -> dict[str, float]:
    """Hold `check_steps` against what the teacher meant to say, sentence by sentence (ours).

    The teacher knows the facts that it put into a sentence, the checker only has the words. Over
    `n` scenes a source: sentences, how many are false, and precision and recall of finding those.
    """
    meant, marked = [], []
    for source in sources:
        for record, told, _ in _trials(source, n, seed, rates):
            scene = record.meta["scene"]
            meant += [any(truth.holds(fact, scene) is False for fact in t.facts) for t in told]
            marked += [s.truth is False for s in check_steps(_text(told), scene)]
    both = sum(a and b for a, b in zip(meant, marked, strict=True))
    return {
        "sentences": len(meant),
        "false": sum(meant),
        "precision": both / max(1, sum(marked)),
        "recall": both / max(1, sum(meant)),
    }


def taught(records: Sequence[Record], rates: Rates) -> list[dict[str, Any]]:
    """Return the teacher's trace of each record as scored rows of a store.

    That is the record's own trace, or for a scene without one what the narrator says of a caption
    at these rates; records whose question the caption does not answer have no row.
    """
    texts = {record.id: record.answer for record in records}
    for record in records:
        if not record.answer and record.meta.get("scene"):
            told, answer = _told(record, record.id, rates)
            texts[record.id] = join_think_answer(_text(told), answer) if told else ""
    known = [record for record in records if texts[record.id]]
    scores = rewards.score_all(known, [texts[record.id] for record in known])
    return [
        {
            "record_id": record.id, "source": record.source, "part": record.reward,
            "image": record.image, "model": "teacher", "completion": texts[record.id],
            "reward": score.value, "reason": score.reason,
        }
        for record, score in zip(known, scores, strict=True)
    ]  # fmt: skip


def _trials(
    source: str, n: int, seed: int, rates: Rates
) -> Iterator[tuple[Record, list[narrator.Told], str]]:
    """Yield records of the `dev` split, each with the teacher's sentences and its answer."""
    for index in range(n):
        record = microworld.record(source, "dev", index, seed)
        yield record, *_told(record, f"{source}/{index}/{seed}", rates)


def _told(record: Record, seed: str, rates: Rates) -> tuple[list[narrator.Told], str]:
    """Return what the teacher says of a scene's caption; no sentences without an answer."""
    rng = random.Random(seed)
    caption = narrator.caption(record.meta["scene"], rates, rng)
    try:
        return narrator.tell(caption, record.question, rates, rng)
    except narrator.CannotAnswer:
        return [], ""


def _text(told: list[narrator.Told]) -> str:
    return " ".join(sentence.text for sentence in told)
