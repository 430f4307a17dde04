"""The reward doctor: is there anything to learn from, before a training starts?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from ..records import Record
from .answers import Score
from .mixed import audit, score_all
from .reward_models import RewardModel

HIT = 0.5  # ours: the usual box threshold; digit, mcq and math score 0 or 1


def doctor(
    records: Sequence[Record],
    completions: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    reward_model: RewardModel | None = None,
) -> list[dict[str, Any]]:
    """Score sampled completions and sum up each reward part, and all of them (`all`).

    Args:
        records: one a completion.
        groups: group id of each completion; default: the record's id.
    Returns:
        Rows of `part, n, hit_rate, format_rate, mean, low, high, zero_variance, bad_golds`:
        shares in [0, 1]; `low, high` the extreme rewards; `zero_variance` the share of groups of
        two or more whose rewards are all equal (None without such groups); `bad_golds` a count of
        records, whose completions are left out of all the rest.
    """
    ids = list(groups) if groups is not None else [record.id for record in records]
    rows = list(zip(records, completions, ids, strict=True))
    distinct = list({record.id: record for record in records}.values())
    bad = {reject.id for reject in audit(distinct, reward_model=reward_model)}
    usable = [row for row in rows if row[0].id not in bad]
    scores = score_all([r for r, *_ in usable], [text for _, text, _ in usable], reward_model)
    table = []
    for part in (*dict.fromkeys(record.reward for record in records), "all"):
        mine = [
            (group, s) for (record, _, group), s in zip(usable, scores, strict=True)
            if part in (record.reward, "all")
        ]
        bad_golds = sum(r.id in bad and part in (r.reward, "all") for r in distinct)
        table.append({"part": part, **_summary(mine), "bad_golds": bad_golds})
    return table


def _summary(scored: list[tuple[Hashable, Score]]) -> dict[str, Any]:
    values = [score.value for _, score in scored]
    formatted = [not score.reason.startswith("format:") for _, score in scored]
    groups: dict[Hashable, list[float]] = {}
    for group, score in scored:
        groups.setdefault(group, []).append(score.value)
    return {
        "n": len(values),
        "hit_rate": _mean([value >= HIT for value in values]),
        "format_rate": _mean(formatted),
        "mean": _mean(values),
        "low": min(values, default=None),
        "high": max(values, default=None),
        "zero_variance": _mean([len(set(g)) == 1 for g in groups.values() if len(g) > 1]),
    }


def _mean(values: list) -> float | None:
    return sum(values) / len(values) if values else None


def dead(table: list[dict[str, Any]]) -> str | None:
    """Say why a `doctor` table means that nothing can be learnt, or None when something can.

    >>> dead(doctor([], []))
    'no completion could be scored: sample some, and see the golds that fail the audit'
    """
    row = next(row for row in table if row["part"] == "all")
    if not row["n"]:
        return "no completion could be scored: sample some, and see the golds that fail the audit"
    if row["high"] == 0:
        return (
            f"every reward is 0 (format right in {row['format_rate']:.0%}): train the format with "
            "SFT first, or look at the completions' reasons"
        )
    if row["low"] == row["high"]:
        return f"every reward is {row['high']:g}: nothing left to learn from these records"
    if row["zero_variance"] == 1:
        return "in every group all rewards are equal: no advantage; sample hotter or more"
    return None
