"""Timing works in turn, so that what else the machine does falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def interleaved(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Time each work in turn, `repeats` times; return the median seconds of each."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for found, work in zip(seconds, works, strict=True):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in seconds]


def device() -> str:
    """Return the name of the GPU, or cpu."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
