"""What every training takes from a profile: the Trainer's arguments, the start, the identity."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlaa_lib import models
from vlaa_lib.profiles import Settings, Sft, accumulation
from vlaa_lib.records import Record


def trainer_args(cfg: Settings, out: str | Path, save_steps: int) -> dict[str, Any]:
    """Return the arguments of all trainers; `save_steps` (optimizer steps) of 0 keeps nothing."""
    import torch

    # TRL 1.16 itself still says `gradient_checkpointing`, and Python 3.10's transformers only that
    warnings.filterwarnings("ignore", ".*gradient_checkpointing. is deprecated", FutureWarning)
    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(out),
        "seed": cfg.seed,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "use_cpu": not gpu,
        "gradient_checkpointing": gpu,  # saves memory there; on a CPU it only costs time
        "save_strategy": "steps" if save_steps else "no",
        "save_steps": save_steps or 500,
        "save_total_limit": None,  # `Resumable` deletes old checkpoints once the new one is whole
        "logging_first_step": True,
        "report_to": cfg.report_to,
        "dataloader_pin_memory": gpu,
    }


def supervised_args(cfg: Settings, s: Sft, out: str | Path) -> dict[str, Any]:
    """Return the arguments of SFT, and of what is trained with the same settings."""
    return trainer_args(cfg, out, s.save_steps) | {
        "num_train_epochs": s.epochs,
        "max_steps": s.max_steps,
        "per_device_train_batch_size": s.per_device_batch,
        "gradient_accumulation_steps": accumulation(
            s.global_batch, s.per_device_batch, num_processes()
        ),
        "learning_rate": s.learning_rate,
        "warmup_steps": s.warmup,  # a value below 1 is a share of all steps (transformers 5)
        "lr_scheduler_type": "cosine",  # the papers name no schedule: ours
        "logging_steps": s.logging_steps,
    }


def num_processes() -> int:
    """Return how many processes a launcher has started for this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def identity(
    cfg: Settings, method: str, records: list[Record], start: str | Path | None
) -> dict[str, Any]:
    """Return what must be the same for a run to be resumed."""
    ids = hashlib.sha256("\n".join(record.id for record in records).encode())
    sections = {"model": asdict(cfg.model), method: asdict(getattr(cfg, method))}
    return {
        "method": method,
        "seed": cfg.seed,
        **{f"{name}.{k}": v for name, section in sections.items() for k, v in section.items()},
        "start": str(start or cfg.model.policy),
        "records": f"{len(records)} {ids.hexdigest()[:16]}",
    }


def starting_policy(
    cfg: Settings, mode: str, out: str | Path, start: str | Path | None, kind: Any = None
) -> models.Policy:
    """Load the policy that a training starts from, an adapter merged into `out/start`.

    Args:
        kind: see `models.load_policy`.
    """
    m = cfg.model
    whole = models.whole(start or m.policy, Path(out) / "start")
    # AdamW would lose small updates in bf16 weights: all that is trained is fp32, under autocast
    dtype = "float32" if mode == "full" else None
    return models.load_policy(whole, mode, m.max_pixels, m.min_pixels, dtype, kind)
