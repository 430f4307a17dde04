"""Calibration: does a reward model rank right answers above wrong ones, or just long ones (ours)?

The paper trains on its reward model's scores without a report of this kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlaa_lib.folders import write_csv
from vlaa_lib.records import Record

from .answers import gold_text
from .open_ended import relative
from .reward_models import RewardModel, problem_of, scores_of


class Candidate(NamedTuple):
    """An answer whose truth is known; `kind` names how it was made."""

    answer: str
    kind: str
    is_right: bool


@dataclass(frozen=True)
class Calibration:
    """A reward model's report: one row a scored answer, one a kind, and the agreement.

    Attributes:
        rows: `record_id, kind, is_right, length_chars, score, reference, reward, problem`.
        kinds: `kind, is_right, n, unscored, mean, sd, low, median, high, reward`: low and high
            are the 5th and 95th percentile, reward the mean of the open formula.
        agreement: `n, unscored, auc, auc_within, length_rho, length_rho_right`. AUC: chance that
            a right answer scores above a wrong one, ties half (within: of the same record, mean
            over records). Rho: Spearman's, of score and length. None where there is no spread.
    """

    rows: list[dict[str, Any]]
    kinds: list[dict[str, Any]]
    agreement: dict[str, Any]

    def write(self, folder: str | Path) -> None:
        """Write `scores.csv`, `kinds.csv` and `agreement.csv`."""
        for name, rows in (
            ("scores", self.rows), ("kinds", self.kinds), ("agreement", [self.agreement])
        ):  # fmt: skip
            write_csv(Path(folder) / f"{name}.csv", rows)


def calibration(
    model: RewardModel, records: Sequence[Record], candidates: Sequence[Sequence[Candidate]]
) -> Calibration:
    """Score candidates of known truth, and say how the scores agree with truth and length.

    Args:
        candidates: of each record. Records that the model cannot score stay in, unscored, with
            the `problem`.
    """
    problems = [problem_of(model, record) for record in records]
    made = [
        (record, candidate, problem)
        for record, mine, problem in zip(records, candidates, problems, strict=True)
        for candidate in mine
    ]
    asked = [(r, c) for r, c, problem in made if not problem]
    texts = [c.answer for _, c in asked] + [gold_text(r) for r, _ in asked]
    found = scores_of(model, [r for r, _ in asked] * 2, texts)
    scores = iter(zip(found[: len(asked)], found[len(asked) :], strict=True))
    rows = []
    for record, candidate, problem in made:
        score, reference = (None, None) if problem else next(scores)
        is_known = score is not None and reference is not None
        rows.append({
            "record_id": record.id, "kind": candidate.kind, "is_right": candidate.is_right,
            "length_chars": len(candidate.answer), "score": score, "reference": reference,
            "reward": relative(score, reference, model.beta) if is_known else None,
            "problem": problem or ("" if is_known else "no score"),
        })  # fmt: skip
    kinds = dict.fromkeys((row["kind"], row["is_right"]) for row in rows)
    table = [
        {"kind": kind, "is_right": right}
        | _distribution([r for r in rows if (r["kind"], r["is_right"]) == (kind, right)])
        for kind, right in kinds
    ]
    return Calibration(rows, table, _agreement(rows))


def _distribution(rows: list[dict[str, Any]]) -> dict[str, Any]:
    import numpy as np

    scores = [row["score"] for row in rows if row["score"] is not None]
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    names = ("mean", "sd", "low", "median", "high")
    values: Sequence[float | None] = [None] * len(names)
    if scores:
        low, median, high = np.percentile(scores, [5, 50, 95])
        values = [float(v) for v in (np.mean(scores), np.std(scores), low, median, high)]
    found = dict(zip(names, values, strict=True))
    reward = float(np.mean(rewards)) if rewards else None
    return {"n": len(rows), "unscored": len(rows) - len(scores), **found, "reward": reward}


def _agreement(rows: list[dict[str, Any]]) -> dict[str, Any]:
    known = [row for row in rows if row["score"] is not None]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in known:
        groups.setdefault(row["record_id"], []).append(row)
    within = [value for mine in groups.values() if (value := _auc(mine)) is not None]
    return {
        "n": len(rows),
        "unscored": len(rows) - len(known),
        "auc": _auc(known),
        "auc_within": sum(within) / len(within) if within else None,
        "length_rho": _rho(known),
        "length_rho_right": _rho([row for row in known if row["is_right"]]),
    }


def ranks(values: Sequence[float]) -> Any:
    """Return ranks from 1; equal values share the mean of theirs.

    >>> ranks([3.0, 1.0, 3.0]).tolist()
    [2.5, 1.0, 2.5]
    """
    import numpy as np

    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _auc(rows: list[dict[str, Any]]) -> float | None:
    """Return the area under the ROC curve, by rank sums (Mann and Whitney)."""
    right = [row["is_right"] for row in rows]
    num_right, num_wrong = sum(right), len(right) - sum(right)
    if not num_right or not num_wrong:
        return None
    total = float(ranks([row["score"] for row in rows])[right].sum())
    return (total - num_right * (num_right + 1) / 2) / (num_right * num_wrong)


def _rho(rows: list[dict[str, Any]]) -> float | None:
    """Return Spearman's correlation of score and length."""
    import numpy as np

    pair = [[row[key] for row in rows] for key in ("score", "length_chars")]
    if any(len(set(values)) < 2 for values in pair):
        return None
    return float(np.corrcoef(ranks(pair[0]), ranks(pair[1]))[0, 1])
