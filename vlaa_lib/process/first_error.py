"""Who finds the first false step? A micro-ProcessBench, whose labels are the scenes' truth.

ProcessBench (arXiv 2412.06559) asks for the first wrong step of a solution, or says that none is;
people labelled it. Its measure is the harmonic mean of two accuracies: on solutions with a wrong
step, and on those without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import harmonic_mean
from typing import Any

from .scorers import Scores, scores_of

TRUE = 1.0  # what `scorers.step_truth` gives a step of which all is true


def first_below(scores: Sequence[float], threshold: float) -> int | None:
    """Return the place of the first step that scores below a threshold; steps without one pass.

    >>> first_below([0.9, math.nan, 0.2, 0.1], 0.5), first_below([0.9], 0.5)
    (2, None)
    """
    return next((at for at, score in enumerate(scores) if score < threshold), None)


def table(known: Mapping[str, Scores], truth: Scores) -> list[dict[str, Any]]:
    """Measure how well scorers find the first step that is not true, by generator.

    Columns: `wrong` and `right`, solutions with and without such a step; `found` and `spared`, the
    shares of them whose first error is named, or of which none is; `f1`, their harmonic mean. The
    threshold is the one of the highest F1 on the other half of the questions (ours, as ProcessBench
    takes other questions for it), so scores need no scale.

    Args:
        known: by scorer, as `scorers.score_pools` returns them.
        truth: of the same candidates, by `scorers.step_truth`.
    """
    rows = []
    for scorer, scores in known.items():
        for generator in dict.fromkeys(key[0] for key in truth):
            keys = [key for key in truth if key[0] == generator]
            questions = list(dict.fromkeys(key[1] for key in keys))
            halves = [set(questions[::2]), set(questions[1::2])]
            parts = [[(scores_of(scores, *key), first_below(truth[key], TRUE)) for key in keys
                      if key[1] in half] for half in halves]  # fmt: skip
            chosen = [_best(part) for part in reversed(parts)]
            told = [(at, first_below(mine, threshold))
                    for part, threshold in zip(parts, chosen, strict=True)
                    for mine, at in part]  # fmt: skip
            rows.append({"generator": generator, "scorer": scorer, **_measured(told)})
    return rows


def _best(part: list[tuple[list[float], int | None]]) -> float:
    """Return the threshold of the highest F1; of several the lowest, which finds the fewest."""
    # above none of a hundred evenly spread scores, or above all
    every = sorted({score for scores, _ in part for score in scores if not math.isnan(score)})
    tried = [*every[:: max(1, len(every) // 100)], math.inf]
    return max(tried, key=lambda t: _measured([(at, first_below(s, t)) for s, at in part])["f1"])


def _measured(told: list[tuple[int | None, int | None]]) -> dict[str, Any]:
    """Measure (first error, first named) pairs."""
    hits = {kind: [at == named for at, named in told if (at is None) == kind]
            for kind in (False, True)}  # fmt: skip
    found, spared = (sum(hits[kind]) / max(1, len(hits[kind])) for kind in (False, True))
    return {"wrong": len(hits[False]), "right": len(hits[True]), "found": found,
            "spared": spared, "f1": harmonic_mean([found, spared])}  # fmt: skip
