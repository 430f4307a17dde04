"""Best-of-N: how often the candidate that a scorer likes best is right, as N grows.

At the end the benchmark's filter, and what choosing questions by an outcome does to that outcome.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from vlaa_lib import VlaaError
from vlaa_lib.evaluate import bootstrap

from .aggregate import AGGREGATORS, Aggregator, Choice, choose, last, mean
from .pools import LINES, SIZES, Pool
from .scorers import Scores

if TYPE_CHECKING:
    from pandas import DataFrame

AVERAGE = "average"  # the generator column of what is averaged over all of them


def select(pool: Pool, scores: Scores, aggregator: Aggregator) -> DataFrame:
    """Choose a candidate of each question: the fields of `aggregate.Choice`, by record id."""
    import pandas

    choices, lost_steps = [], []
    for record_id, rows in pool.candidates.items():
        keys = [(pool.generator, record_id, row["sample"]) for row in rows]
        if missing := [key for key in keys if key not in scores]:  # what failed is there as NaN
            raise VlaaError(f"{missing[0]}: not in the scores; score the whole pool first")
        values = [aggregator(scores[key]) for key in keys]
        choices.append(choose(values, [row["correct"] for row in rows]))
        lost_steps.append(sum(math.isnan(score) for key in keys for score in scores[key]))
    found = pandas.DataFrame(choices, list(pool.candidates), Choice._fields)
    return found.assign(unscored_steps=lost_steps)


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
        scores: by scorer, as `scorers.score_pool` returns them, of all generators together.
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
        for name, aggregator in aggregators.items():
            choices = select(pool, known, aggregator)
            worth[scorer, name] = choices["accuracy"]
            counts[scorer, name] = {
                "tie_rate": float((choices["tied"] > 1).mean()),
                "mixed_tie_rate": float(choices["is_mixed"].mean()),
                "unscored": int(choices["unscored"].sum()),
                "unscored_steps": int(choices["unscored_steps"].sum()),
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
        row = {"generator": generator, "scorer": scorer, "aggregator": aggregator, "n": n}
        row |= {"questions": int(mine.count())}
        row |= _interval(mine.dropna().tolist(), resamples, "accuracy")
        for other in against:
            # a line without an aggregator has nothing to be held against a scorer's
            ways = [way for way in ((other, ""), (other, aggregator)) if way in worth]
            over = (mine - worth[ways[0]]).dropna().tolist() if ways else []
            row |= _interval(over, resamples, f"over_{other}", f"over_{other}_")
        rows.append(row)
    return rows


def _interval(
    values: list[float], resamples: int, name: str, prefix: str = ""
) -> dict[str, float | None]:
    """Average over questions, with a bootstrap interval."""
    average = sum(values) / len(values) if values else None
    low, high = bootstrap(values, resamples) if values else (None, None)
    return {name: average, f"{prefix}low": low, f"{prefix}high": high}


# --- the benchmark's filter: questions that a judge answers better as PRM than as ORM ------------

# page: 600 of 5,848 questions on which six models do better as process than as outcome reward
# models, so many of each source (`data/paper`). The formula is not known; ours is `preference`.


def preference(pools: Sequence[Pool], scores: Mapping[str, Scores]) -> dict[str, float]:
    """Return each question's expected accuracy by mean minus that by the last step (ours).

    Averaged over scorers and generators; a question that one of them lacks is left out.
    """
    gains: dict[str, list[float]] = {}
    for pool in pools:
        asked = pool.of(i for i, rows in pool.candidates.items() if rows)
        for known in scores.values():
            by_mean, by_last = (select(asked, known, way)["accuracy"] for way in (mean, last))
            for record_id, gain in (by_mean - by_last).items():
                gains.setdefault(record_id, []).append(gain)
    complete = len(pools) * len(scores)
    return {i: sum(found) / complete for i, found in gains.items() if len(found) == complete}


def top_k(
    indicator: Mapping[str, float],
    sources: Mapping[str, str],
    quotas: Mapping[str, int],
    seed: int = 0,
) -> list[str]:
    """Keep the questions of each source with the highest indicator; equal ones in drawn order."""
    kept = []
    for source, quota in quotas.items():
        mine = sorted(i for i in indicator if sources[i] == source)
        random.Random(f"{source}/{seed}").shuffle(mine)
        kept += sorted(mine, key=lambda i: -indicator[i])[:quota]
    return kept


def selection_bias(
    pools: Sequence[Pool],
    scores: Mapping[str, Scores],
    sources: Mapping[str, str],
    quotas: Mapping[str, int],
    held_out: Mapping[str, Scores] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Choose questions on one half of the candidates; measure PRM minus ORM on either half.

    Where "same" (the half that chose) is above "disjoint" the difference is the choice itself.

    Args:
        held_out: scorers of the disjoint half; by default the same, on other candidates.
    Raises:
        VlaaError: a held-out scorer is also among those that choose.
    """
    if shared := set(scores) & set(held_out or ()):
        raise VlaaError(f"scorer {min(shared)!r} chose the questions; measure with another")
    same, other = zip(*(pool.halves() for pool in pools), strict=True)
    disjoint = preference(other, scores if held_out is None else held_out)
    chosen_by = {i: v for i, v in preference(same, scores).items() if i in disjoint}
    rows = []
    for questions, ids in (("all", chosen_by), ("chosen", top_k(chosen_by, sources, quotas, seed))):
        for half, indicator in (("same", chosen_by), ("disjoint", disjoint)):
            values = [indicator[i] for i in ids]
            row = {"questions": questions, "measured_on": half, "n": len(values)}
            rows.append(row | _interval(values, resamples, "advantage"))
    return rows
