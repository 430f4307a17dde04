"""Best-of-N: how often the candidate that a scorer likes best is right, as N grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlaa_lib.evaluate import bootstrap

from .aggregate import AGGREGATORS, Aggregator, choose
from .pools import LINES, SIZES, Pool
from .scorers import Scores

AVERAGE = "average"  # the generator column of what is averaged over all of them


@dataclass
class Line:
    """What one way of choosing is worth at one N, question by question, of one generator.

    Attributes:
        worth: expected accuracy by record id.
        counts: see `table`.
    """

    worth: dict[str, float]
    counts: dict[str, float] = field(default_factory=dict)


def select(pool: Pool, scores: Scores, aggregator: Aggregator) -> Line:
    """Choose a candidate of each question by its aggregated step scores.

    Raises:
        ValueError: a candidate was never scored; NaN is what says that scoring it failed.
    """
    worth, ties, mixed, unscored, lost_steps = {}, 0, 0, 0, 0
    for record_id, rows in pool.candidates.items():
        values = []
        for row in rows:
            key = pool.generator, record_id, row["sample"]
            if key not in scores:
                raise ValueError(f"{key}: not in the scores; score the whole pool first")
            values.append(aggregator(scores[key]))
            lost_steps += sum(map(math.isnan, scores[key]))
        choice = choose(values, [row["correct"] for row in rows])
        worth[record_id] = choice.accuracy
        ties, mixed = ties + (choice.tied > 1), mixed + choice.is_mixed
        unscored += choice.unscored
    total = max(1, len(worth))
    return Line(
        worth,
        {
            "tie_rate": ties / total,
            "mixed_tie_rate": mixed / total,
            "unscored": unscored,
            "unscored_steps": lost_steps,
        },
    )


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

    Rows of the generator `average` are over all the generators and the questions that all of them
    have, and only at an N that each of them reaches: the set never changes along a curve, as it
    does in the paper's table (o1 leaves it after N = 4).

    Args:
        pools: one a generator.
        scores: by scorer, as `scorers.score_pool` returns them, of all generators together.
        resamples: of the bootstrap.
        against: lines, or scorers at the same aggregator, that each row is held against.
    Raises:
        ValueError: no pool, two pools of one generator, or candidates that were never scored.
    """
    names = [pool.generator for pool in pools]
    if not pools or len(set(names)) < len(names) or AVERAGE in names:
        raise ValueError(f"one pool of each generator (none named {AVERAGE!r}), not {names}")
    rows = []
    for n in sizes:
        reaching = [pool.first(n) for pool in pools if pool.reach >= n]
        found = {pool.generator: _lines(pool, scores, aggregators) for pool in reaching}
        given = against, resamples
        for pool in reaching:
            rows += _rows(pool.generator, n, found[pool.generator], *given, _state(pool, n))
        if len(reaching) == len(pools) > 1:
            rows += _rows(AVERAGE, n, _averaged(list(found.values())), *given, {})
    return rows


_Key = tuple[str, str]  # scorer or line, aggregator


def _lines(
    pool: Pool, scores: Mapping[str, Scores], aggregators: Mapping[str, Aggregator]
) -> dict[_Key, Line]:
    lines = {("greedy", ""): Line({i: float(r["correct"]) for i, r in pool.greedy.items()})}
    for name, worth in LINES.items():
        lines[name, ""] = Line({i: worth(rows) for i, rows in pool.candidates.items()})
    for scorer, known in scores.items():
        for name, aggregator in aggregators.items():
            lines[scorer, name] = select(pool, known, aggregator)
    return lines


def _state(pool: Pool, n: int) -> dict[str, int]:
    """Count questions that are not as they should be."""
    found = list(pool.candidates.values())
    return {
        "short": sum(0 < len(rows) < n for rows in found),
        "empty": sum(not rows for rows in found),
        "no_correct": sum(not any(row["correct"] for row in rows) for rows in found),
    }


def _averaged(found: list[dict[_Key, Line]]) -> dict[_Key, Line]:
    """Average each line over generators, on the questions that all of them have."""
    lines = {}
    for key in found[0]:
        worths = [lines_of[key].worth for lines_of in found]
        shared = [i for i in worths[0] if all(i in worth for worth in worths)]
        lines[key] = Line({i: sum(w[i] for w in worths) / len(worths) for i in shared})
    return lines


def _rows(
    generator: str,
    n: int,
    lines: dict[_Key, Line],
    against: Sequence[str],
    resamples: int,
    state: dict[str, int],
) -> list[dict[str, Any]]:
    rows = []
    for (scorer, aggregator), line in lines.items():
        if not line.worth:
            continue  # no greedy answers were stored
        row = {"generator": generator, "scorer": scorer, "aggregator": aggregator, "n": n}
        row |= {"questions": len(line.worth)} | _interval("accuracy", line.worth, resamples)
        for other in against:
            # a line without an aggregator has nothing to be held against a scorer's
            there = (lines.get((other, "")) or lines.get((other, aggregator), Line({}))).worth
            gain = {i: worth - there[i] for i, worth in line.worth.items() if i in there}
            row |= _interval(f"over_{other}", gain, resamples)
        rows.append(row | line.counts | state)
    return rows


def _interval(name: str, values: Mapping[str, float], resamples: int) -> dict[str, float | None]:
    """Average over questions, with a bootstrap interval; a difference of each one is paired."""
    prefix = "" if name == "accuracy" else f"{name}_"
    if not values:
        return {name: None, f"{prefix}low": None, f"{prefix}high": None}
    low, high = bootstrap(values.values(), resamples)
    return {name: sum(values.values()) / len(values), f"{prefix}low": low, f"{prefix}high": high}


def merged(parts: Sequence[Mapping[str, Scores]]) -> dict[str, Scores]:
    """Join scores of several pools or files into one table's, by scorer.

    Raises:
        ValueError: one candidate is scored twice by one scorer.
    """
    found: dict[str, Scores] = {}
    for part in parts:
        for scorer, scores in part.items():
            mine = found.setdefault(scorer, {})
            if twice := mine.keys() & scores.keys():
                raise ValueError(f"{scorer}: {min(twice)} is scored in two places; keep one")
            mine.update(scores)
    return found
