"""Best-of-N: how often the candidate that a scorer likes best is right, as N grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from vlaa_lib import VlaaError
from vlaa_lib.evaluate import bootstrap

from .aggregate import AGGREGATORS, Aggregator, Choice, choose
from .pools import LINES, SIZES, Pool
from .scorers import Scores, scores_of

if TYPE_CHECKING:
    from pandas import DataFrame

AVERAGE = "average"  # the generator column of what is averaged over all of them


def table(
    pools: Sequence[Pool],
    scores: Mapping[str, Scores],
    sizes: Sequence[int] = SIZES,
    aggregators: Mapping[str, Aggregator] = AGGREGATORS,
    resamples: int = 1000,
    against: Sequence[str] = ("random", "greedy"),
) -> list[dict[str, Any]]:
    """Return the worth of every way of choosing, by generator, scorer, aggregator and N.

    Columns: `accuracy` with `low` and `high` over questions; `over_random` and `over_greedy`, the
    paired difference on the same questions, with intervals; `tie_rate`, the share of questions
    where several candidates have the highest score, and `mixed_tie_rate`, where the draw decides;
    `unscored` candidates and `unscored_steps`; `short`, questions with fewer than N candidates
    (chosen among what is there); `empty`, with none (worth 0); `no_correct`, with none right.

    Args:
        scores: by scorer, as `scorers.score_pools` returns them, of all generators together.
        against: lines, or scorers at the same aggregator, that each row is held against.
    """
    names = [pool.generator for pool in pools]
    if not pools or len(set(names)) < len(names) or AVERAGE in names:
        raise VlaaError(f"one pool of each generator (none named {AVERAGE!r}), not {names}")
    rows = []
    for n in sizes:
        worths = []
        for pool in (pool.first(n) for pool in pools if pool.reach >= n):
            worth, counts = _worth(pool, scores, aggregators)
            found = pool.candidates.values()
            state = {
                "short": sum(0 < len(mine) < n for mine in found),
                "empty": sum(not mine for mine in found),
                "no_correct": sum(not any(row["correct"] for row in mine) for mine in found),
            }
            worths.append(worth)
            for row in _measured(pool.generator, n, worth, against, resamples):
                rows.append(row | counts.get((row["scorer"], row["aggregator"]), {}) | state)
        # only where every generator reaches N and has the question (NaN in the sum otherwise): the
        # set never changes along a curve, as in the paper's table, which o1 leaves after N = 4
        if len(worths) == len(pools) > 1:
            whole = reduce(lambda one, other: one + other.reindex(one.index), worths) / len(worths)
            rows += _measured(AVERAGE, n, whole, against, resamples)
    return rows


def _worth(
    pool: Pool, scores: Mapping[str, Scores], aggregators: Mapping[str, Aggregator]
) -> tuple[DataFrame, dict[tuple[str, str], dict[str, float]]]:
    """Return what each way (scorer or line, aggregator) is worth by question, and counts of it."""
    import pandas

    greedy = {i: float(row["correct"]) for i, row in pool.greedy.items()}
    worth = {("greedy", ""): {i: greedy.get(i, math.nan) for i in pool.candidates}}
    for line, worth_of in LINES.items():
        worth[line, ""] = {i: worth_of(rows) for i, rows in pool.candidates.items()}
    counts = {}
    for scorer, known in scores.items():
        steps = {i: [scores_of(known, pool.generator, i, row["sample"]) for row in rows]
                 for i, rows in pool.candidates.items()}  # fmt: skip
        lost = sum(math.isnan(s) for rows in steps.values() for row in rows for s in row)
        for name, aggregator in aggregators.items():
            choices = pandas.DataFrame(
                [choose(list(map(aggregator, steps[i])), [row["correct"] for row in rows])
                 for i, rows in pool.candidates.items()],
                list(pool.candidates), Choice._fields,
            )  # fmt: skip
            worth[scorer, name] = choices["accuracy"]
            counts[scorer, name] = {
                "tie_rate": float((choices["tied"] > 1).mean()),
                "mixed_tie_rate": float(choices["is_mixed"].mean()),
                "unscored": int(choices["unscored"].sum()),
                "unscored_steps": lost,
            }
    return pandas.DataFrame(worth, list(pool.candidates)), counts


def _measured(
    generator: str, n: int, worth: DataFrame, against: Sequence[str], resamples: int
) -> list[dict[str, Any]]:
    """Average each way of choosing over questions, and hold it against others."""
    rows = []
    for (scorer, aggregator), mine in worth.items():
        if not mine.count():
            continue  # no greedy answers were stored
        row = {"generator": generator, "scorer": scorer, "aggregator": aggregator, "n": n,
               "questions": int(mine.count())}  # fmt: skip
        told = {"": mine}
        for other in against:
            # a line without an aggregator has nothing to be held against a scorer's
            ways = [way for way in ((other, ""), (other, aggregator)) if way in worth]
            told[f"over_{other}"] = mine - worth[ways[0]] if ways else mine[:0]
        for name, values in told.items():
            values, prefix = values.dropna().tolist(), name and f"{name}_"
            row[name or "accuracy"] = sum(values) / len(values) if values else None
            interval = bootstrap(values, resamples) if values else (None, None)
            row[f"{prefix}low"], row[f"{prefix}high"] = interval
        rows.append(row)
    return rows
