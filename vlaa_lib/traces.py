"""Traces: the append-only store of rollouts, and what can be measured in a trace."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from . import microworld
from .construct import rules
from .construct.split import AHA_KEYWORDS, has_aha
from .microworld import facts, narrator, truth
from .microworld.narrator import Rates
from .prompts import TAGS, split_think_answer
from .records import Record

__all__ = [
    "AHA_KEYWORDS",
    "FIGURE7_PHRASES",
    "Step",
    "TraceStore",
    "check_steps",
    "checker_quality",
    "false_steps_by_noise",
    "has_aha",
    "load",
    "measure",
    "pair",
    "summarise",
]

FIGURE7_PHRASES = ("alternatively", "double-check", "i should check", "wait")  # paper figure 7
_ANY_TAG = re.compile("|".join(map(re.escape, TAGS)))


@dataclass(frozen=True)
class Step:
    """One sentence of a trace: True or False against the scene, None where it cannot be checked."""

    text: str
    truth: bool | None


def check_steps(trace: str, scene: dict) -> list[Step]:
    """Split a trace into sentences and hold each against the scene; False if any part is false.

    >>> scene = {"kind": "bars", "bars": [{"color": "red", "value": 3}]}
    >>> [s.truth for s in check_steps("The red bar reaches 3. It reaches 4. Hmm.", scene)]
    [True, None, None]
    """
    steps = []
    for part in facts.sentences(_ANY_TAG.sub("\n", trace)):
        held = [truth.holds(fact, scene) for fact in facts.read_all(part)]
        told = [value for value in held if value is not None]
        steps.append(Step(part, all(told) if told else None))
    return steps


def measure(trace: str, scene: dict | None = None) -> dict[str, Any]:
    """Measure one trace: aha, words, figure-7 phrases and, where a scene is known, step truth.

    `false_steps` counts the sentences that the scene contradicts, out of `checked_steps`.
    """
    text = trace.lower()
    row: dict[str, Any] = {"aha": has_aha(trace), "words": len(trace.split())}
    row |= {phrase: text.count(phrase) for phrase in FIGURE7_PHRASES}
    row["format"] = split_think_answer(trace).problem is None
    if scene:
        truths = [step.truth for step in check_steps(trace, scene)]
        row |= {
            "steps": len(truths),
            "false_steps": truths.count(False),
            "checked_steps": len(truths) - truths.count(None),
        }
    return row


def summarise(traces: Iterable[tuple[str, dict | None]]) -> dict[str, Any]:
    """Sum phrases and average the rest over traces given as (text, scene or None)."""
    rows = [measure(*trace) for trace in traces]
    if not rows:
        return {"n": 0}
    checked = sum(row.get("checked_steps", 0) for row in rows)
    wrong = sum(row.get("false_steps", 0) for row in rows)
    return {
        "n": len(rows),
        "aha_rate": sum(row["aha"] for row in rows) / len(rows),
        "format_rate": sum(row["format"] for row in rows) / len(rows),
        "mean_words": sum(row["words"] for row in rows) / len(rows),
        "checked_steps": checked,
        "false_step_rate": wrong / checked if checked else None,
        **{phrase: sum(row[phrase] for row in rows) for phrase in FIGURE7_PHRASES},
    }


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
        told = [trial for i in range(n) if (trial := _teach(source, i, seed, noisy))[0]]
        is_false = [measure(_text(said), r.meta["scene"])["false_steps"] > 0 for said, _, r in told]
        is_right = [rules.agrees(record.gt, answer) for _, answer, record in told]
        kept = [false for false, right in zip(is_false, is_right, strict=True) if right]
        table.append(
            {
                "source": source,
                "noise": factor,
                "answered": len(told),
                "verified": len(kept) / max(1, len(told)),
                "false_all": sum(is_false) / max(1, len(told)),
                "false_verified": sum(kept) / max(1, len(kept)),
            }
        )
    return table


def checker_quality(
    sources: Iterable[str], rates: Rates, n: int = 60, seed: int = 0
) -> dict[str, float]:
    """Hold `check_steps` against what the teacher meant to say, sentence by sentence (ours).

    The teacher knows the facts that it put into a sentence, the checker only has the words. Over
    `n` scenes a source: sentences, how many are false, and precision and recall of finding those.
    """
    meant, marked = [], []
    for source, index in product(sources, range(n)):
        told, _answer, record = _teach(source, index, seed, rates)
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


def _text(told: list[narrator.Told]) -> str:
    return " ".join(sentence.text for sentence in told)


def _teach(
    source: str, index: int, seed: int, rates: Rates
) -> tuple[list[narrator.Told], str, Record]:
    """Return one teacher trace, its answer and its record; no sentences without an answer."""
    record = microworld.record(source, "dev", index, seed)
    rng = random.Random(f"{source}/{index}/{seed}")
    caption = narrator.caption(record.meta["scene"], rates, rng)
    try:
        return *narrator.tell(caption, record.question, rates, rng), record
    except narrator.CannotAnswer:
        return [], "", record


class TraceStore:
    """An append-only folder of parquet parts, one a sampling round; image paths, never pixels."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def forget(self, step: int, rank: int = 0) -> None:
        """Delete this process's parts from optimizer step `step` on: a resumed run makes them."""
        import pyarrow.parquet

        for path in self.folder.glob(f"part-*-{rank}.parquet"):
            rows = pyarrow.parquet.read_table(path, columns=["optimizer_step"])
            if rows.num_rows and rows["optimizer_step"][0].as_py() >= step:
                path.unlink()

    def append(self, rows: list[dict[str, Any]], rank: int = 0) -> Path:
        """Write one part; it appears whole or not at all. Each process writes parts of its own."""
        import pyarrow
        import pyarrow.parquet

        number = len(list(self.folder.glob(f"part-*-{rank}.parquet")))
        path = self.folder / f"part-{number:06d}-{rank}.parquet"
        temporary = path.with_suffix(".tmp")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)
        return temporary.replace(path)


def load(folder: str | Path) -> list[dict[str, Any]]:
    """Read every row of a trace store, oldest first.

    Raises:
        FileNotFoundError: no part in the folder, with what to run.
    """
    import pyarrow.parquet

    parts = sorted(Path(folder).glob("part-*.parquet"))
    if not parts:
        raise FileNotFoundError(f"{folder}: no traces; train or evaluate first")
    return [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]


def pair(*runs: list[dict[str, Any]]) -> list[tuple[dict[str, Any], ...]]:
    """Line up rows of several runs by record id; records that one of them lacks are left out."""
    by_id = [{row["record_id"]: row for row in run} for run in runs]
    return [tuple(rows[i] for rows in by_id) for i in by_id[0] if all(i in rows for rows in by_id)]
