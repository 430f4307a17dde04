"""Supervised fine-tuning on traces: TRL's SFTTrainer, loss on the completion only.

Below it what every training takes from a profile: the policy it starts from, the Trainer's numbers.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from vlaa_lib import models
from vlaa_lib.profiles import Settings, Sft, accumulation
from vlaa_lib.records import Record

from . import checkpoints, data


@checkpoints.alone
def sft(
    cfg: Settings,
    records: list[Record],
    images: str | Path,
    out: str | Path,
    start: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Fine-tune a policy on the records' traces and save it in `out` (paper §3).

    A run that was cut off goes on from its last checkpoint in `out`.

    Args:
        start: checkpoint to start from; by default the profile's policy.
    Returns:
        The training log, one dict a logging step.
    """
    from .callbacks import Guard, complete
    from .trainer import SupervisedTrainer  # importing TRL takes seconds

    s = cfg.sft
    resume = checkpoints.begin(cfg, "sft", records, out, start)
    policy = starting_policy(cfg, s.mode, out, start)
    rows = data.dataset(
        records, policy, images, out, cfg.model.max_pixels, s.max_tokens, with_trace=True
    )
    trainer = SupervisedTrainer(
        model=policy.model,
        args=sft_config(cfg, out),
        train_dataset=rows,
        processing_class=policy.processor,
        peft_config=models.adapter(s.mode),
        callbacks=[Guard(out)],
    )
    return complete(trainer, out, resume)


def sft_config(cfg: Settings, out: str | Path) -> Any:
    """Return TRL's `SFTConfig` of a profile; the batch arithmetic is that of all processes."""
    from trl import SFTConfig

    # TRL's default length of 1024 cuts traces, or images, without an error
    return SFTConfig(**supervised_args(cfg, cfg.sft, out), max_length=None)


# --- shared with GRPO and ViLPRM -----------------------------------------------------------------


def starting_policy(
    cfg: Settings, mode: str, out: str | Path, start: str | Path | None, kind: Any = None,
    new: tuple[str, ...] = (),
) -> models.Policy:  # fmt: skip
    """Load the policy that a training starts from, an adapter merged into `out/start`.

    kind, new: of `models.load_policy`.
    """
    m = cfg.model
    whole = models.whole(start or m.policy, Path(out) / "start", kind)
    # AdamW would lose small updates in bf16 weights: all that is trained is fp32, under autocast
    dtype = "float32" if mode == "full" else m.dtype
    return models.load_policy(whole, mode, m.max_pixels, m.min_pixels, dtype, kind, new=new)


def num_processes() -> int:
    """Return how many processes a launcher has started for this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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
