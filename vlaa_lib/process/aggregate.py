"""One score for a solution from the scores of its steps, and what choosing by it is worth.

Steps without a score (NaN) are left out; a solution of which no step is left has no score either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from vlaa_lib import VlaaError

SAME = 1e-9  # ours: steps of 0.2, two or three of them, have one mean, but their floats differ


def _known(scores: Sequence[float]) -> list[float]:
    return [score for score in scores if not math.isnan(score)]


def last_n(scores: Sequence[float], n: int) -> float:
    """Average the last n steps, or all where there are fewer (the paper's "last n", n 2, 4, 8).

    That scores are averaged inside the window is the natural reading, not stated.

    >>> last_n([0.1, 0.5, 1.0], 2), last_n([0.5], 8), last_n([0.5, math.nan], 1)
    (0.75, 0.5, nan)
    """
    if n < 1:
        raise VlaaError(f"the last {n} steps: n must be at least 1")
    known = _known(scores[-n:])
    # fsum rounds once, so that the order of the steps does not matter
    return math.fsum(known) / len(known) if known else math.nan


def last(scores: Sequence[float]) -> float:
    """Take the last step's score: the model as output reward model, ORM."""
    return last_n(scores, 1)


def mean(scores: Sequence[float]) -> float:
    """Average all steps: the model as process reward model, PRM.

    >>> mean([0.25, 0.75, math.nan]), mean([])
    (0.5, nan)
    """
    return last_n(scores, max(1, len(scores)))


def minimum(scores: Sequence[float]) -> float:
    """Take the worst step (ours: a chain is as good as its weakest link)."""
    return min(_known(scores), default=math.nan)


def product(scores: Sequence[float]) -> float:
    """Multiply all steps (ours: every step has to be right); scores in [0, 1] only."""
    known = sorted(_known(scores))
    # of any others longer solutions would gain or change their sign
    if known and not 0 <= known[0] <= known[-1] <= 1:
        raise VlaaError(f"a product of scores in [0, 1] only, found {known[0]} to {known[-1]}")
    return math.prod(known) if known else math.nan


Aggregator = Callable[[Sequence[float]], float]
# in the order of the paper's axis, from ORM to PRM; the last two are ours
AGGREGATORS: dict[str, Aggregator] = {
    "last": last,
    **{f"last {n}": partial(last_n, n=n) for n in (2, 4, 8)},
    "mean": mean,
    "minimum": minimum,
    "product": product,
}


class Choice(NamedTuple):
    """What choosing the best candidate of one question is worth."""

    accuracy: float  # expected, as a candidate is drawn among those that share the highest score
    tied: int  # how many share it
    is_mixed: bool  # some of these are right and some wrong, so the draw decides
    unscored: int  # candidates without a score; they are chosen only where none has one


def choose(values: Sequence[float], correct: Sequence[bool]) -> Choice:
    """Choose the candidate of the highest value (ours: expected accuracy over ties).

    The paper does not say how it breaks ties, and integer scores tie all the time.

    >>> choose([3.0, 5.0, 5.0, math.nan], [True, True, False, True])
    Choice(accuracy=0.5, tied=2, is_mixed=True, unscored=1)
    >>> choose([math.nan] * 2, [True, False])
    Choice(accuracy=0.5, tied=2, is_mixed=True, unscored=2)
    >>> choose([], [])
    Choice(accuracy=0.0, tied=0, is_mixed=False, unscored=0)
    """
    pairs = list(zip(values, correct, strict=True))
    known = [pair for pair in pairs if not math.isnan(pair[0])]
    best = max((value for value, _ in known), default=0.0)
    tied = [right for value, right in known or pairs if not known or value >= best - SAME]
    right = sum(map(bool, tied))
    share = right / len(tied) if tied else 0.0
    return Choice(share, len(tied), 0 < right < len(tied), len(pairs) - len(known))
