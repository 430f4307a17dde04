"""Supervised fine-tuning on traces: TRL's SFTTrainer, loss on the completion only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import models
from ..profiles import Settings
from ..records import Record
from . import data, events
from .common import accumulation, finish, trainer_args


def sft(
    cfg: Settings,
    records: list[Record],
    images: str | Path,
    out: str | Path,
    start: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Fine-tune a policy on the records' traces and save it in `out` (paper §3).

    Args:
        start: checkpoint to start from; by default the profile's policy.
    Returns:
        The training log, one dict a logging step.
    """
    from trl import SFTConfig, SFTTrainer

    policy = models.load_policy(
        start or cfg.model.policy, cfg.sft.mode, cfg.model.max_pixels, cfg.model.min_pixels
    )
    budget = {"max_pixels": cfg.model.max_pixels}
    rows = data.dataset(records, images, Path(out) / "images", with_trace=True, **budget)
    args = SFTConfig(
        **trainer_args(cfg, out, cfg.sft.learning_rate, cfg.sft.warmup),
        num_train_epochs=cfg.sft.epochs,
        max_steps=cfg.sft.max_steps,
        per_device_train_batch_size=cfg.sft.per_device_batch,
        gradient_accumulation_steps=accumulation(cfg.sft.global_batch, cfg.sft.per_device_batch),
        lr_scheduler_type="cosine",  # the paper names no SFT schedule: ours
        max_length=None,  # TRL's default of 1024 cuts traces, or images, without an error
        logging_steps=cfg.sft.logging_steps,
    )
    trainer = SFTTrainer(
        model=policy.model,
        args=args,
        train_dataset=rows,
        processing_class=policy.processor,
        peft_config=models.adapter(cfg.sft.mode),
        callbacks=events.callbacks(),
    )
    trainer.train()
    return finish(trainer, out)
