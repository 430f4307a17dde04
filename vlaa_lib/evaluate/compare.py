"""Compare two models on the same rows: paired bootstrap, and McNemar's exact test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .files import family
from .metrics import HEADLINES, Row, Rows, measure

Values = dict[str, float]  # what each row, seed or problem earned, by its id


def mcnemar(only_first: int, only_second: int) -> float:
    """Return McNemar's exact two-sided p-value from the rows on which two models differ.

    >>> mcnemar(0, 5), mcnemar(3, 3), mcnemar(0, 0)
    (0.0625, 1.0, 1.0)
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def paired_bootstrap(
    first: Sequence[Values],
    second: Sequence[Values],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a percentile interval of mean(second) - mean(first) over the units that all share.

    Each resample draws units once for both models, so that their difficulty cancels out, and of
    each model's runs (training seeds) as many as there are; a single run gives no spread of its
    own.

    Args:
        first, second: what each run earned, by unit.
    Raises:
        ValueError: no runs, or no unit in common.

    >>> paired_bootstrap([{"1": 0.0, "2": 1.0}], [{"1": 0.0, "2": 1.0}])
    (0.0, 0.0)
    """
    import numpy

    if not first or not second:
        raise ValueError("a model without runs cannot be compared")
    rows = paired([*first, *second])
    if not rows.size:
        raise ValueError("the runs have no row in common; are they of the same benchmark?")
    runs = rows[: len(first)], rows[len(first) :]
    rng, found = numpy.random.default_rng(seed), []
    for _ in range(resamples):
        units = rng.integers(0, rows.shape[1], rows.shape[1])
        # [runs drawn, units drawn] of each model
        means = [model[rng.integers(0, len(model), len(model))][:, units].mean() for model in runs]
        found.append(means[1] - means[0])
    return quantiles(found, level)


def paired(runs: Sequence[Values]) -> Any:
    """Return [runs, units]: what each run earned on the units that all share."""
    import numpy

    return numpy.asarray([[run[unit] for unit in _shared(*runs)] for run in runs])


def resampled(earned: Any, resamples: int = 1000, seed: int = 0) -> Any:
    """Return [runs, resamples]: each run's mean over units that are drawn once for all runs."""
    import numpy

    units = earned.shape[1]
    return earned[:, numpy.random.default_rng(seed).integers(0, units, (resamples, units))].mean(2)


def quantiles(draws: Any, level: float = 0.95) -> tuple[float, float]:
    """Return the bounds between which the middle share of draws lies."""
    import numpy

    tail = (1 - level) / 2
    low, high = numpy.quantile(draws, (tail, 1 - tail))
    return float(low), float(high)


def _shared(*runs: Values) -> list[str]:
    return [unit for unit in runs[0] if all(unit in run for run in runs[1:])]


def compare(
    benchmark: str,
    first: Sequence[Rows],
    second: Sequence[Rows],
    metric: str = "",
    resamples: int = 1000,
) -> Row:
    """Compare two models on the rows, seeds or problems that all their runs share.

    Args:
        first, second: scored rows of each run of a model (one for each training seed).
        metric: default: the benchmark's headline, see `metrics.HEADLINES`.
    Returns:
        benchmark, metric, n (units shared), unshared (units that some run lacks), first, second
        (means), difference, low, high; only_first, only_second and p_mcnemar where each model has
        one run and every unit is right or wrong, else None.
    Raises:
        ValueError: unknown benchmark or metric, or nothing in common.
    """
    metric = metric or HEADLINES[family(benchmark)]
    models = [[_values(benchmark, rows, metric) for rows in model] for model in (first, second)]
    low, high = paired_bootstrap(*models, resamples)
    runs = [run for model in models for run in model]
    shared = _shared(*runs)
    means = [sum(run[u] for run in model for u in shared) / len(model) / len(shared)
             for model in models]  # fmt: skip
    table = {
        "benchmark": benchmark, "metric": metric, "n": len(shared),
        "unshared": len(set().union(*runs)) - len(shared),
        "first": means[0], "second": means[1], "difference": means[1] - means[0],
        "low": low, "high": high, "only_first": None, "only_second": None, "p_mcnemar": None,
    }  # fmt: skip
    if len(runs) == 2 and {run[u] for run in runs for u in shared} <= {0.0, 1.0}:
        pairs = [(runs[0][u], runs[1][u]) for u in shared]
        flips = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
        table |= dict(zip(("only_first", "only_second"), flips, strict=True))
        table["p_mcnemar"] = mcnemar(*flips)
    return table


def _values(benchmark: str, rows: Rows, metric: str) -> Values:
    parts = measure(benchmark, rows).parts
    if metric not in parts:
        raise ValueError(f"{benchmark} has no metric {metric!r}; use one of {', '.join(parts)}")
    return parts[metric]
