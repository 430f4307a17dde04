"""Numbers over scored rows with their intervals, and models set side by side.

Intervals are percentile bootstraps over rows (seeds, problems); two models are compared on the rows
that both have, drawn anew for both at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from vlaa_lib import VlaaError

from .benchmarks import LAYOUTS, Row, family
from .metrics import HEADLINES, Measured, Rows, Values, measure
from .scoring import score_all

AVERAGE = "average"  # table 4's last column: the plain mean of its benchmarks
RULES = ("ours", "strict", "kit-2025-04", "kit-2026-08")

# --- intervals ------------------------------------------------------------------------------------


def bootstrap(
    values: Iterable[float], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return a percentile bootstrap interval of the mean over rows.

    >>> bootstrap([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    import numpy

    data = numpy.asarray(list(values), dtype=float)
    if not len(data):
        return float("nan"), float("nan")
    draws = numpy.random.default_rng(seed).integers(0, len(data), (resamples, len(data)))
    return _quantiles(data[draws].mean(axis=1), level)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return McNemar's exact two-sided p-value from the rows on which two models differ.

    >>> mcnemar(0, 5), mcnemar(3, 3), mcnemar(0, 0)
    (0.0625, 1.0, 1.0)
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def paired_bootstrap(
    first: Sequence[Values], second: Sequence[Values], resamples: int = 1000
) -> tuple[float, float]:
    """Return a percentile interval of mean(second) - mean(first), models of one or more runs.

    >>> paired_bootstrap([{"1": 0.0, "2": 1.0}], [{"1": 0.0, "2": 1.0}])
    (0.0, 0.0)
    """
    import numpy

    if not first or not second:
        raise VlaaError("a model without runs cannot be compared")
    rows = _paired([*first, *second])  # [runs, units]
    if not rows.size:
        raise VlaaError("the runs have no row in common; are they of the same benchmark?")
    runs = rows[: len(first)], rows[len(first) :]
    rng, found = numpy.random.default_rng(0), []
    for _ in range(resamples):
        # once for both models: the difficulty of units cancels out
        units = rng.integers(0, rows.shape[1], rows.shape[1])
        # [runs drawn, units drawn] of each model; runs are training seeds
        means = [model[rng.integers(0, len(model), len(model))][:, units].mean() for model in runs]
        found.append(means[1] - means[0])
    return _quantiles(found)


def _paired(runs: Sequence[Values]) -> Any:
    """Return [runs, units]: what each run earned on the units that all share."""
    import numpy

    shared = [unit for unit in runs[0] if all(unit in run for run in runs[1:])]
    return numpy.asarray([[run[unit] for unit in shared] for run in runs])


def _resampled(earned: Any, resamples: int) -> Any:
    """Return [runs, resamples]: each run's mean over units that are drawn once for all runs."""
    import numpy

    units = earned.shape[1]
    return earned[:, numpy.random.default_rng(0).integers(0, units, (resamples, units))].mean(2)


def _quantiles(draws: Any, level: float = 0.95) -> tuple[float, float]:
    """Return the bounds between which the middle share of draws lies."""
    import numpy

    tail = (1 - level) / 2
    low, high = numpy.quantile(draws, (tail, 1 - tail))
    return float(low), float(high)


# --- one model ------------------------------------------------------------------------------------


def summary(rows: Rows, resamples: int = 1000) -> Rows:
    """Average rows of records by model and source (`all` too), blank pictures (or None) beside."""
    table = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        for source in (*dict.fromkeys(row["source"] for row in mine), "all"):
            chosen = [row for row in mine if source in ("all", row["source"])]
            seen = [row for row in chosen if not row["blank"]]
            low, high = bootstrap((row["correct"] for row in seen), resamples)
            table.append({
                "model": model, "source": source, "n": len(seen),
                "accuracy": _mean([float(row["correct"]) for row in seen]),
                "low": low, "high": high,
                "blank_accuracy": _mean([float(row["correct"]) for row in chosen if row["blank"]]),
                "reward": _mean([float(row["reward"]) for row in seen]),
                "format_rate": _mean([row["path"].startswith("tags") for row in seen]) or 0.0,
            })  # fmt: skip
    return table


def summarise(benchmark: str, rows: Rows, resamples: int = 0) -> Rows:
    """Return a benchmark's metrics for the scored rows of one model, the headline first.

    Each over n rows, seeds or problems: points (what they earned), value (points / n, None over
    nothing), a 95 % interval where `resamples` is not 0, and what was lacking.

    >>> rows = [{"index": 1, "hit": True}, {"index": 2, "hit": None}]
    >>> [(r["metric"], r["value"], r["undecided"]) for r in summarise("LogicVista", rows)]
    [('overall', 0.5, 1)]
    """
    parts, *counts = measure(benchmark, rows)
    lacking: Row = dict(zip(Measured._fields[1:], counts, strict=True))
    lacking["full_rows"] = LAYOUTS[benchmark].num_rows
    table = []
    for metric, values in parts.items():
        low, high = bootstrap(values.values(), resamples) if values and resamples else (None, None)
        points, n = sum(values.values()), len(values)
        table.append({
            "benchmark": benchmark, "metric": metric, "n": n, "points": points,
            "value": points / n if n else None, "low": low, "high": high, **lacking,
        })  # fmt: skip
    return table


def by_metric(rows: Rows, resamples: int = 1000) -> Rows:
    """Return `summarise` of each model and benchmark, each value beside that of blank pictures."""
    table = []
    for (model, name), mine in _runs(rows).items():
        twin = {row["metric"]: row["value"]
                for row in summarise(name, [row for row in mine if row["blank"]])}  # fmt: skip
        for row in summarise(name, [row for row in mine if not row["blank"]], resamples):
            table.append({"model": model, **row, "blank_value": twin.get(row["metric"])})
    return table


# --- models side by side --------------------------------------------------------------------------


def table4(rows: Rows, resamples: int = 1000) -> Rows:
    """Return the paper's table 4: each model's headlines, last their mean (None if one is None)."""
    heads = [r for r in by_metric(rows, resamples) if r["metric"] == _headline(r["benchmark"])]
    table = []
    for model, found in _headlines(rows).items():
        mine = [row for row in heads if row["model"] == model]
        earned = [_paired([values]) for values in found.values()]
        low, high = None, None
        if resamples and all(one.size for one in earned):
            drawn = sum(_resampled(one, resamples)[0] for one in earned)
            low, high = _quantiles(drawn / len(earned))
        means = {key: _mean([row[key] for row in mine]) for key in ("value", "blank_value")}
        average = dict.fromkeys(mine[0]) | {"model": model, "benchmark": AVERAGE, "metric": AVERAGE}
        table += [*mine, average | {"n": len(mine), **means, "low": low, "high": high}]
    return table


def relative_change(rows: Rows, baseline: str, resamples: int = 1000) -> Rows:
    """Return how far each model's headlines are from a baseline's, as a share (paper figure 3)."""
    found = _headlines(rows)
    if baseline not in found:
        raise VlaaError(f"no rows of {baseline!r}; there are {', '.join(found)}")
    table = []
    for model in [model for model in found if model != baseline]:
        pairs = {
            name: _paired([values, found[model][name]])  # [2, units]
            for name, values in found[baseline].items() if name in found[model]
        }  # fmt: skip
        groups = {name: (pair.shape[1], [pair]) for name, pair in pairs.items()}
        groups[AVERAGE] = len(pairs), list(pairs.values())
        for name, (n, group) in groups.items():
            named = {"model": model, "baseline": baseline, "benchmark": name, "n": n}
            table.append(named | _change(group, resamples))
    return table


def _change(pairs: list[Any], resamples: int) -> Row:
    """Return the relative change of the mean over benchmarks; None where nothing is to lose."""
    if not all(pair.size for pair in pairs):
        return dict.fromkeys(("change", "low", "high"))
    before, after = sum(pair.mean(axis=1) for pair in pairs)
    drawn = sum(_resampled(pair, resamples) for pair in pairs)
    low, high = _quantiles(drawn[1] / drawn[0] - 1) if drawn[0].all() else (None, None)
    return {"change": float(after / before - 1) if before else None, "low": low, "high": high}


def compare(
    benchmark: str,
    first: Sequence[Rows],
    second: Sequence[Rows],
    metric: str = "",
    resamples: int = 1000,
) -> Row:
    """Compare two models, each of one or more runs, on the n rows, seeds or problems all share.

    By default under the benchmark's headline. McNemar's test needs one run each, and units that
    are right or wrong.
    """
    metric = metric or _headline(benchmark)
    parts = [measure(benchmark, rows).parts for rows in (*first, *second)]
    if unknown := [one for one in parts if metric not in one]:
        raise VlaaError(f"{benchmark} has no metric {metric!r}; use one of {', '.join(unknown[0])}")
    runs = [one[metric] for one in parts]
    low, high = paired_bootstrap(runs[: len(first)], runs[len(first) :], resamples)
    rows = _paired(runs)  # [runs, units]
    n, parts = rows.shape[1], (rows[: len(first)], rows[len(first) :])
    means = [float(part.sum() / len(part) / n) for part in parts]
    only_first = only_second = p = None
    if len(runs) == 2 and ((rows == 0) | (rows == 1)).all():
        only_first, only_second = int((rows[0] > rows[1]).sum()), int((rows[0] < rows[1]).sum())
        p = mcnemar(only_first, only_second)
    return {
        "benchmark": benchmark, "metric": metric, "n": n,
        "unshared": len(set().union(*runs)) - n,  # units that some run lacks
        "first": means[0], "second": means[1], "difference": means[1] - means[0],
        "low": low, "high": high,
        "only_first": only_first, "only_second": only_second, "p_mcnemar": p,
    }  # fmt: skip


def flips(rows: Rows, first: str, second: str) -> Rows:
    """Return the rows that one of two models has right and the other has not, pictures shown."""
    seen = {(row["model"], row["benchmark"], row["index"]): row
            for row in rows if not row["blank"]}  # fmt: skip
    table = []
    for (model, *key), row in seen.items():
        other = seen.get((second, *key)) if model == first else None
        if other is None or None in (row["hit"], other["hit"]) or row["hit"] == other["hit"]:
            continue
        shown = {k: row[k] for k in ("benchmark", "index", "question", "images", "gold")}
        table.append(shown | {
            "gained": other["hit"],
            "first": row["prediction"], "first_answer": row["extracted"],
            "second": other["prediction"], "second_answer": other["extracted"],
        })  # fmt: skip
    return table


def moved(before: Rows, after: Rows) -> Rows:
    """Return by model how many of the same replies two versions of the reader judge otherwise.

    `before` may come from the file of an older run; `after` is the same replies scored again.

    >>> row = {"model": "m", "blank": False, "record_id": "r", "correct": False, "completion": "3"}
    >>> moved([row], [row | {"correct": True}])[0]
    {'model': 'm', 'n': 1, 'to_right': 1, 'to_wrong': 0, 'share': 1.0}
    """
    def replies(rows: Rows) -> dict[tuple, bool]:
        names = ("model", "blank", "benchmark", "index", "record_id", "prediction", "completion")
        return {tuple(row.get(name) for name in names): bool(row.get("hit", row.get("correct")))
                for row in rows}  # fmt: skip

    was, now = replies(before), replies(after)
    table = []
    for model in dict.fromkeys(key[0] for key in was if key in now):
        pairs = [(was[key], now[key]) for key in was if key[0] == model and key in now]
        right, wrong = pairs.count((False, True)), pairs.count((True, False))
        table.append({"model": model, "n": len(pairs), "to_right": right, "to_wrong": wrong,
                      "share": (right + wrong) / len(pairs)})  # fmt: skip
    return table


def by_rule(rows: Rows, rules: Sequence[str] = RULES, resamples: int = 1000) -> Rows:
    """Score the same completions once more under several extraction rules: table 4 of each rule."""
    table = []
    for rule in rules:  # where the kit would ask its judge a row is `undecided`, so wrong
        scored = []
        for (_, name), mine in _runs([row for row in rows if not row["blank"]]).items():
            scored += score_all(name, mine, [row["prediction"] for row in mine], rule)
        table += [{"rule": rule, **row} for row in table4(scored, resamples)]
    return table


def _runs(rows: Rows) -> dict[tuple[str, str], Rows]:
    """Group rows by model and benchmark, in the order in which they come."""
    found: dict[tuple[str, str], Rows] = {}
    for row in rows:
        found.setdefault((row["model"], row["benchmark"]), []).append(row)
    return found


def _headline(benchmark: str) -> str:
    return HEADLINES[family(benchmark)]


def _headlines(rows: Rows) -> dict[str, dict[str, Values]]:
    """Return what each model earned in each benchmark's headline."""
    found: dict[str, dict[str, Values]] = {}
    for (model, name), mine in _runs([row for row in rows if not row["blank"]]).items():
        found.setdefault(model, {})[name] = measure(name, mine).parts[_headline(name)]
    return found


def _mean(values: list[float | None]) -> float | None:
    return None if None in values or not values else sum(values) / len(values)
