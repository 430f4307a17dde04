"""What a process does at its start when a launcher started it: leash, shims, its own obituary.

The shims are here and nowhere else. Both serve tests on machines without a GPU.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from . import events, leash


@contextmanager
def joined() -> Iterator[None]:
    """Run the body as one of a launch's processes; outside a launch, just run it."""
    leash.hold_to_launcher()
    if _wants("FSDP") and not _has_gpu():
        _shard_on_cpu()
    if _wants("DEEPSPEED") and not _has_gpu():
        _connect_deepspeed_on_cpu()
    try:
        yield
    except Exception as error:
        events.emit(
            "error",
            rank=rank(),
            type=type(error).__name__,
            message=str(error),
            traceback=traceback.format_exc(),
        )
        raise


def rank() -> int:
    """Return this process's number in its launch; 0 outside one."""
    return int(os.environ.get("RANK", "0"))


def _wants(what: str) -> bool:
    """Say whether accelerate's launcher was given a file for FSDP or DEEPSPEED."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "").lower() == "true"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@cache
def _shard_on_cpu() -> None:
    """Let accelerate 1.15 apply FSDP on a CPU; it drops the plugin silently and trains with DDP.

    Only the kind MULTI_GPU and its like reach the FSDP branch of its state.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    start = PartialState.__init__

    def start_and_rename(self, *args, **kwargs) -> None:
        start(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = start_and_rename


@cache
def _connect_deepspeed_on_cpu() -> None:
    """Connect the processes before ZeRO-3 builds a model: else each believes to be the only one."""
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
