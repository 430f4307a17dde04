"""What SFT and GRPO share: trainer arguments, batch arithmetic, rows, saving with the log."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from vlaa_lib import models
from vlaa_lib.profiles import Settings, Sft
from vlaa_lib.records import Record, RecordError

from . import data


def trainer_args(cfg: Settings, out: str | Path, save_steps: int) -> dict[str, Any]:
    """Return the arguments that both trainers get from a profile.

    Args:
        save_steps: optimizer steps between two checkpoints; 0 for none.
    """
    import warnings

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


def num_processes() -> int:
    """Return how many processes a launcher has started for this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def accumulation(global_batch: int, per_device_batch: int) -> int:
    """Return gradient accumulation steps for a global batch over all processes.

    Raises:
        ValueError: the numbers do not divide; the message names batches that do.
    """
    processes = num_processes()
    per_pass = per_device_batch * processes
    if global_batch % per_pass:
        below = global_batch // per_pass * per_pass
        near = " or ".join(str(b) for b in (below, below + per_pass) if b)
        fitting = [b for b in range(1, global_batch + 1) if not global_batch % (b * processes)]
        other = f", or a per_device_batch of {', '.join(map(str, fitting))}" if fitting else ""
        raise ValueError(
            f"global batch {global_batch} is not a multiple of per_device_batch "
            f"{per_device_batch} x {processes} processes; a batch of {near} would be{other}"
        )
    return global_batch // per_pass


def identity(
    cfg: Settings, method: str, records: list[Record], start: str | Path | None
) -> dict[str, Any]:
    """Return what must be the same for a run to be resumed."""
    from dataclasses import asdict

    ids = hashlib.sha256("\n".join(record.id for record in records).encode())
    return {
        "method": method,
        "seed": cfg.seed,
        "model": asdict(cfg.model),
        method: asdict(getattr(cfg, method)),
        "start": str(start or cfg.model.policy),
        "records": f"{len(records)} {ids.hexdigest()[:16]}",
    }


def supervised_args(cfg: Settings, s: Sft, out: str | Path) -> dict[str, Any]:
    """Return the Trainer's arguments of SFT, and of what is trained with the same settings."""
    return trainer_args(cfg, out, s.save_steps) | {
        "num_train_epochs": s.epochs,
        "max_steps": s.max_steps,
        "per_device_train_batch_size": s.per_device_batch,
        "gradient_accumulation_steps": accumulation(s.global_batch, s.per_device_batch),
        "learning_rate": s.learning_rate,
        "warmup_steps": s.warmup,  # a value below 1 is a share of all steps (transformers 5)
        "lr_scheduler_type": "cosine",  # the papers name no schedule: ours
        "logging_steps": s.logging_steps,
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


def policy_and_rows(
    cfg: Settings,
    mode: str,
    records: list[Record],
    images: str | Path,
    out: str | Path,
    start: str | Path | None,
    max_tokens: int,
    with_trace: bool,
) -> tuple[models.Policy, Any]:
    """Load a policy and the dataset rows that fit it, both checked against each other.

    Raises:
        RecordError: no record is left; VlaaError: policy and rows do not fit.
    """
    policy = starting_policy(cfg, mode, out, start)
    cache = Path(out) / "images"
    rows, rejects = data.rows(records, images, cache, with_trace, max_pixels=cfg.model.max_pixels)
    rows, too_long = data.within(rows, policy.processor, max_tokens)
    for reject in (*rejects, *too_long):
        print(f"left out: {reject}")
    if not rows:
        raise RecordError(f"none of the {len(records)} records can be trained on; see above")
    if len(rows) < len(records):
        print(f"training on {len(rows)} of {len(records)} records; the others are named above")
    data.preflight(rows, policy.processor, policy.model)
    return policy, data.dataset(rows)


