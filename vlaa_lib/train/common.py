"""What SFT and GRPO share: trainer arguments, batch arithmetic, saving with the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import records
from ..profiles import Settings


def trainer_args(
    cfg: Settings, out: str | Path, learning_rate: float, warmup: float
) -> dict[str, Any]:
    """Return the arguments that both trainers get from a profile."""
    import warnings

    import torch

    # TRL 1.16 itself still says `gradient_checkpointing`, and Python 3.10's transformers only that
    warnings.filterwarnings("ignore", ".*gradient_checkpointing. is deprecated", FutureWarning)
    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(out),
        "seed": cfg.seed,
        "learning_rate": learning_rate,
        "warmup_steps": warmup,  # a value below 1 is a share of all steps (transformers 5)
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "use_cpu": not gpu,
        "gradient_checkpointing": gpu,  # saves memory there; on a CPU it only costs time
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": False,
        "dataloader_pin_memory": gpu,
    }


def accumulation(global_batch: int, per_device_batch: int) -> int:
    """Return gradient accumulation steps for a global batch over all processes.

    Raises:
        ValueError: the numbers do not divide.
    """
    import os

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if global_batch % (per_device_batch * processes):
        raise ValueError(
            f"global batch {global_batch} is not a multiple of per_device_batch "
            f"{per_device_batch} x {processes} processes; change one of them"
        )
    return global_batch // (per_device_batch * processes)


def finish(trainer: Any, out: str | Path) -> list[dict[str, Any]]:
    """Save model, processor and log; return the log without the closing summary."""
    trainer.save_model(str(out))
    log = [row for row in trainer.state.log_history if "train_runtime" not in row]
    if trainer.is_world_process_zero():
        lines = (json.dumps(row) + "\n" for row in log)
        records.write_lines(Path(out) / "training_log.jsonl", lines)
    return log
