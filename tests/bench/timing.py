"""Timing works in turn, so that what else the machine does falls on all of them; and memory."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

OURS, TRL = "ours", "TRL"  # the two trainers of a benchmark


def interleaved(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Time each work in turn, `repeats` times; return the median seconds of each."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for found, work in zip(seconds, works, strict=True):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in seconds]


def afresh(work: Callable[..., Any], *args: Any) -> Any:
    """Call `work` in a new process: it can reuse no memory that an earlier call has kept."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def device() -> str:
    """Return the name of the GPU, or cpu."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def in_turn(train: Callable[[str], dict], repeats: int) -> dict[str, list[dict]]:
    """Call `train` with each of the two trainers `repeats` times, the first one changing."""
    runs: dict[str, list[dict]] = {OURS: [], TRL: []}
    for turn in range(repeats):
        for who in (OURS, TRL) if turn % 2 else (TRL, OURS):
            runs[who].append(train(who))
    return runs


def compared(
    samples: int, seconds: dict[str, list[float]], mib: dict[str, list[float | None]]
) -> dict[str, Any]:
    """Return both trainers' samples a second, their ratio and peak memory: medians of all runs."""
    mine, theirs = (statistics.median(seconds[who]) for who in (OURS, TRL))
    known = None not in mib[OURS] + mib[TRL]
    return {
        "samples": samples,
        "ours a second": round(samples / mine, 2),
        "TRL a second": round(samples / theirs, 2),
        "times faster": round(theirs / mine, 2),
        "ours peak MiB": round(statistics.median(mib[OURS])) if known else None,
        "TRL peak MiB": round(statistics.median(mib[TRL])) if known else None,
    }


@contextlib.contextmanager
def peak() -> Iterator[dict[str, float | None]]:
    """Measure the most memory above the start (MiB): of the GPU, else resident, on Linux.

    Resident memory that an earlier work has freed is used again and not seen: call it `afresh`.
    """
    gc.collect()  # an earlier model would be part of the start
    found: dict[str, float | None] = {"mib": None}
    before = begin_peak()
    yield found
    if before is not None:
        found["mib"] = (most_bytes() - before) / 2**20


def begin_peak() -> int | None:
    """Let the peak begin at what is held now; return that (bytes), or None if it is not known."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return most_bytes()
    return None


def most_bytes() -> int:
    """Return the most that this process has held since `begin_peak`: of the GPU, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024  # it says kB
