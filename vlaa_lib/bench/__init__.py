"""Benchmarks: ours beside a named peer, in one run, as medians and ratios."""

from collections.abc import Callable
from typing import Any

from .construct import construct
from .rewards import rewards

BENCHMARKS: dict[str, Callable[..., dict[str, Any]]] = {"construct": construct, "rewards": rewards}

__all__ = ["BENCHMARKS", "construct", "rewards"]
