"""Calibration: does a reward model rank right answers above wrong, or just long ones (ours)?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vlaa_lib.records import Record
from vlaa_lib.rewards.open_ended import RewardModel, problem_of, relative, with_references

if TYPE_CHECKING:
    import pandas as pd

ROWS = ("record_id", "kind", "is_right", "length_chars", "score", "reference", "reward", "problem")


class Calibration(NamedTuple):
    """A reward model's report.

    Attributes:
        rows: one a candidate, with the columns `ROWS`.
        kinds: low and high are the 5th and 95th percentile, reward the mean of the open formula.
        agreement: `auc`: chance that a right answer scores above a wrong one, ties half (`within`:
            of the same record, mean over records); `length_rho`: Spearman's, of score and length.
            None where there is no spread.
    """

    rows: list[dict[str, Any]]
    kinds: list[dict[str, Any]]
    agreement: dict[str, Any]


def calibration(
    model: RewardModel,
    records: Sequence[Record],
    candidates: Sequence[Sequence[tuple[str, str, bool]]],
) -> Calibration:
    """Score candidates of known truth, and say how the scores agree with truth and length.

    Args:
        candidates: (answer, how it was made, is it right) of each record, as
            `pocket.scene_candidates` makes them. What the model cannot score stays in, unscored,
            with the `problem`.
    """
    import pandas as pd

    problems = [problem_of(model, record) for record in records]
    given = list(zip(records, candidates, problems, strict=True))
    asked = [(record, answer) for record, mine, problem in given if not problem
             for answer, *_ in mine]
    scores = iter(with_references(model, [r for r, _ in asked], [a for _, a in asked]))
    rows, kinds = [], []
    for record, mine, problem in given:
        for answer, kind, is_right in mine:
            score, reference = (None, None) if problem else next(scores)
            is_known = score is not None and reference is not None
            reward = relative(score, reference, model.beta) if is_known else None
            said = problem or ("" if is_known else "no score")
            values = record.id, kind, is_right, len(answer), score, reference, reward, said
            rows.append(dict(zip(ROWS, values, strict=True)))
    types = {"score": float, "reward": float, "is_right": bool}
    frame = pd.DataFrame(rows, columns=ROWS).astype(types)
    for (kind, is_right), those in frame.groupby(["kind", "is_right"], sort=False):
        scored, rewards = those["score"].dropna(), those["reward"].dropna()
        low, median, high = scored.quantile([0.05, 0.5, 0.95])
        found = {"mean": scored.mean(), "sd": scored.std(ddof=0), "low": low, "median": median,
                 "high": high, "reward": rewards.mean()}  # fmt: skip
        kinds.append({"kind": kind, "is_right": bool(is_right), "n": len(those),
                      "unscored": len(those) - len(scored)}
                     | {k: None if v != v else float(v) for k, v in found.items()})  # fmt: skip
    known = frame[frame["score"].notna()]
    by_record = [_auc(those) for _, those in known.groupby("record_id", sort=False)]
    within = [value for value in by_record if value is not None]
    return Calibration(rows, kinds, {
        "n": len(frame), "unscored": len(frame) - len(known), "auc": _auc(known),
        "auc_within": sum(within) / len(within) if within else None,
        "length_rho": _rho(known), "length_rho_right": _rho(known[known["is_right"]]),
    })  # fmt: skip


def _auc(rows: pd.DataFrame) -> float | None:
    """Return the area under the ROC curve, by rank sums (Mann and Whitney)."""
    num_right = int(rows["is_right"].sum())
    num_wrong = len(rows) - num_right
    if not num_right or not num_wrong:
        return None
    total = float(rows["score"].rank()[rows["is_right"]].sum())
    return (total - num_right * (num_right + 1) / 2) / (num_right * num_wrong)


def _rho(rows: pd.DataFrame) -> float | None:
    import numpy as np

    if min(rows["score"].nunique(), rows["length_chars"].nunique()) < 2:
        return None
    return float(np.corrcoef(rows["score"].rank(), rows["length_chars"].rank())[0, 1])
