"""Supervised fine-tuning on traces: TRL's SFTTrainer, loss on the completion only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlaa_lib import models
from vlaa_lib.profiles import Settings
from vlaa_lib.records import Record

from . import checkpoints, data
from .settings import identity, starting_policy, supervised_args


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
    from .callbacks import complete, watchers
    from .trainer import SupervisedTrainer  # importing TRL takes seconds

    s = cfg.sft
    resume = checkpoints.begin(out, identity(cfg, "sft", records, start))
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
        callbacks=watchers(out),
    )
    return complete(trainer, out, resume)


def sft_config(cfg: Settings, out: str | Path) -> Any:
    """Return TRL's `SFTConfig` of a profile; the batch arithmetic is that of all processes."""
    from trl import SFTConfig

    # TRL's default length of 1024 cuts traces, or images, without an error
    return SFTConfig(**supervised_args(cfg, cfg.sft, out), max_length=None)
