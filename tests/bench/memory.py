"""The most memory that some work takes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def peak() -> Iterator[dict[str, float | None]]:
    """Measure the most memory above the start (MiB): of the GPU, else resident, on Linux.

    Resident memory that an earlier work has freed is used again and not seen: call it `afresh`.
    """
    import torch

    gc.collect()  # an earlier model would be part of the start
    found: dict[str, float | None] = {"mib": None}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found["mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return
    before = None
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is held now
        before = _resident_peak()
    yield found
    if before is not None:
        found["mib"] = (_resident_peak() - before) / 1024


def _resident_peak() -> int:
    """Return the process's largest resident size so far (kB)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
