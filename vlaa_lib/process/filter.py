"""The benchmark's filter: questions that a judge answers better as PRM than as ORM, by source.

The paper kept 600 of 5,848 questions on which six models do well as process reward models but worse
as outcome reward models, and then measured such models on them. Its formula is not known; ours is
`preference`, and top-k per source follows the quotas. What is chosen on an outcome shows that
outcome: `selection_bias` says how much of it is left on candidates that had no part in the choice.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlaa_lib.evaluate import bootstrap

from . import aggregate
from .best_of_n import select
from .pools import Pool
from .scorers import Scores

# page: questions kept of each source
QUOTAS = {
    "MMStar": 150, "MathVista": 150, "MathVerse": 100, "MMMU Pro": 100, "RealWorldQA": 100
}  # fmt: skip


def preference(pools: Sequence[Pool], scores: Mapping[str, Scores]) -> dict[str, float]:
    """Return each question's PRM-preference indicator, in [-1, 1] (ours).

    It is the expected accuracy of the candidate chosen by the mean of its step scores minus that
    of the one chosen by its last step's, averaged over scorers and generators. Questions that a
    generator lacks, or has no candidate for, are left out.
    """
    gains: dict[str, list[float]] = {}
    for pool in pools:
        for known in scores.values():
            prm = select(pool, known, aggregate.mean).worth
            orm = select(pool, known, aggregate.last).worth
            for record_id in prm:
                if pool.candidates[record_id]:
                    gains.setdefault(record_id, []).append(prm[record_id] - orm[record_id])
    complete = len(pools) * len(scores)
    return {i: sum(found) / complete for i, found in gains.items() if len(found) == complete}


def top_k(
    indicator: Mapping[str, float],
    sources: Mapping[str, str],
    quotas: Mapping[str, int],
    seed: int = 0,
) -> tuple[list[str], list[dict[str, Any]]]:
    """Keep the questions of each source with the highest indicator; equal ones in drawn order.

    Args:
        sources: of each question, by record id.
        quotas: how many to keep, by source; other sources are not kept.
    Returns:
        record ids, and a row a source: `asked` for, `there`, `kept`, and of the kept those that do
        not prefer the PRM at all (`not_above_0`): a quota that is too large fills up with them.
    """
    kept, rows = [], []
    for source, quota in quotas.items():
        mine = sorted(i for i in indicator if sources[i] == source)
        random.Random(f"{source}/{seed}").shuffle(mine)
        chosen = sorted(mine, key=lambda i: -indicator[i])[:quota]
        kept += chosen
        rows.append(
            {
                "source": source,
                "asked": quota,
                "there": len(mine),
                "kept": len(chosen),
                "not_above_0": sum(indicator[i] <= 0 for i in chosen),
            }
        )
    return kept, rows


def check_disjoint(
    chosen_on: tuple[Sequence[Pool], Iterable[str]],
    measured_on: tuple[Sequence[Pool], Iterable[str]],
) -> None:
    """Refuse to measure on what the questions were chosen with.

    Args:
        chosen_on, measured_on: pools and the names of the scorers.
    Raises:
        ValueError: they share a scorer or a candidate.
    """
    if shared := set(chosen_on[1]) & set(measured_on[1]):
        raise ValueError(f"scorer {min(shared)!r} chose the questions; measure with another")
    both = _candidates(chosen_on[0]) & _candidates(measured_on[0])
    if both:
        raise ValueError(
            f"candidate {min(both)} is in both pools, so its luck was chosen as well; measure on "
            "other candidates, such as the other of Pool.halves()"
        )


def _candidates(pools: Iterable[Pool]) -> set[tuple[str, str, int]]:
    return {
        (pool.generator, record_id, row["sample"])
        for pool in pools
        for record_id, rows in pool.candidates.items()
        for row in rows
    }


def selection_bias(
    pools: Sequence[Pool],
    scores: Mapping[str, Scores],
    sources: Mapping[str, str],
    quotas: Mapping[str, int],
    held_out: Mapping[str, Scores] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Choose questions on one half of the candidates and measure PRM minus ORM on either half.

    Rows: all questions and the chosen ones, measured with the candidates and scorers that chose
    them ("same") and with the other half ("disjoint"); `advantage` is the mean indicator with its
    bootstrap interval over questions. Where "same" is above "disjoint" the difference is the choice
    itself.

    Args:
        held_out: scorers of the disjoint half; by default the same scorers, so that only the
            candidates are disjoint.
    Raises:
        ValueError: a held-out scorer is also among those that choose.
    """
    same, other = zip(*(pool.halves() for pool in pools), strict=True)
    if held_out is not None:
        check_disjoint((same, scores), (other, held_out))
    measured = {
        "same": preference(same, scores),
        "disjoint": preference(other, scores if held_out is None else held_out),
    }
    shared = {i: v for i, v in measured["same"].items() if i in measured["disjoint"]}
    kept, _ = top_k(shared, sources, quotas, seed)
    rows = []
    for questions, ids in (("all", list(shared)), ("chosen", kept)):
        for half, indicator in measured.items():
            values = [indicator[i] for i in ids]
            low, high = bootstrap(values, resamples)
            mean = sum(values) / len(values) if values else None
            rows.append(
                {"questions": questions, "measured_on": half, "n": len(values)}
                | {"advantage": mean, "low": low, "high": high}
            )
    return rows
