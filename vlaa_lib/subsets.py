"""The small SFT subsets: the most surprising traces, and traces with an aha word (paper §2)."""

from __future__ import annotations

import math
import random
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlaa_lib import folders

from . import records
from .prompts import has_aha
from .records import Loaded, Record, RecordError, Reject

PolicyScores = Mapping[str, Mapping[str, Mapping[str, Any]]]  # policy -> `perplexity.load`


def average(
    records: list[Record], scores: PolicyScores
) -> tuple[list[dict[str, Any]], list[Reject]]:
    """Average the perplexity of each record over policies (paper §2), arithmetically.

    Returns:
        One row a record: id, source, one column a policy, and their mean as `perplexity`; and a
        reject for each record that a policy could not score.
    Raises:
        RecordError: records without a score, naming how many lack it from which policy.
    """
    lacking = {name: sum(r.id not in rows for r in records) for name, rows in scores.items()}
    if said := ", ".join(f"{n:,} from {name}" for name, n in lacking.items() if n):
        raise RecordError(
            f"of {len(records):,} records some have no score: {said}; "
            "let every shard finish, or score them now"
        )
    if not scores:
        raise RecordError("no policy has scored the records; name at least one")
    table, rejects = [], []
    for record in records:
        mine = {name: rows[record.id] for name, rows in scores.items()}
        if bad := [f"{name}: {why}" for name, row in mine.items() if (why := _problem(row))]:
            rejects.append(Reject("", 0, record.id, "; ".join(bad)))
            continue
        values = {name: row["perplexity"] for name, row in mine.items()}
        mean = sum(values.values()) / len(values)
        table.append({"id": record.id, "source": record.source, **values, "perplexity": mean})
    return table, rejects


def select(
    records: list[Record], scores: PolicyScores, top_k: int, keep: str = "highest"
) -> Loaded:
    """Keep the `top_k` records of the highest perplexity, averaged over policies (paper §2).

    Ties go to the lower id, so that smaller subsets lie inside larger ones.

    Args:
        keep: `highest`, as in the paper, or `lowest`, to compare with.
    Returns:
        The records kept, in their order, and the rejects of `average`.
    Raises:
        RecordError: scores are missing, or fewer than `top_k` records are usable.
    """
    if keep not in ("highest", "lowest"):
        raise ValueError(f"unknown keep {keep!r}; use highest or lowest")
    table, rejects = average(records, scores)
    _enough(len(table), top_k, "records have a perplexity")
    sign = -1 if keep == "highest" else 1
    ranked = sorted(table, key=lambda row: (sign * row["perplexity"], row["id"]))
    kept = {row["id"] for row in ranked[:top_k]}
    return Loaded([record for record in records if record.id in kept], rejects)


def aha(records: list[Record], count: int, seed: int = 0) -> list[Record]:
    """Draw `count` records whose trace has an aha word (paper §2, aha-55K), in their order.

    Raises:
        RecordError: there are fewer.
    """
    found = [i for i, record in enumerate(records) if has_aha(record.answer)]
    # the split sends such traces to the RL side: a plain sft.jsonl has none
    _enough(len(found), count, "records have an aha word in their trace; see rl.jsonl")
    chosen = sorted(random.Random(seed).sample(found, count))
    return [records[i] for i in chosen]


def _problem(row: Mapping[str, Any]) -> str:
    if math.isfinite(row.get("perplexity", math.nan)):
        return ""
    return row.get("problem") or f"its perplexity is {row.get('perplexity', 'missing')}"


def _enough(found: int, asked: int, what: str) -> None:
    if not 1 <= asked <= found:
        raise RecordError(f"asked for {asked:,}, but {found:,} {what}; ask for 1 to {found:,}")


def main(args: Namespace, made: list[Record]) -> int:
    """Run `python -m vlaa_lib subset`: score, and once every shard is done, choose."""
    out = Path(args.out)
    scores = {str(model): _scores(args, made, model) for model in args.perplexity}
    if args.shard != (1, 1):
        print("scored; once every shard is done, choose with the same command without --shard")
        return 0
    if scores:
        table, rejects = average(made, scores)
        folders.write_csv(out / "perplexity.csv", table)
        records.write(rejects, out / "not_scored.jsonl")
        print(f"{len(table)} records in {out}/perplexity.csv, {len(rejects)} in not_scored.jsonl")
    chosen = {f"top-{k}": select(made, scores, k).records for k in args.top}
    if args.aha:
        chosen[f"aha-{args.aha}"] = aha(made, args.aha, args.seed)
    for name, kept in chosen.items():
        records.write(kept, out / f"{name}.jsonl")
        print(f"{len(kept)} records in {out}/{name}.jsonl")
    return 0


def _scores(args: Namespace, made: list[Record], model: str) -> dict[str, Any]:
    """Score what no shard has scored; without anything left to do, load no model."""
    from . import models, perplexity

    folder = Path(args.out) / "scores" / re.sub(r"[^\w.-]+", "_", model)
    found = perplexity.load(folder, made)
    if len(found) == len(made):
        return found
    tokens = args.batch_tokens or perplexity.BATCH_TOKENS
    policy = models.load_policy(model)
    return perplexity.score(policy, made, args.images, folder, tokens, args.shard)
