"""Supervised fine-tuning on traces: TRL's SFTTrainer, loss on the completion only."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from .. import models
from ..profiles import Settings
from ..records import Record
from . import checkpoints
from .common import accumulation, finish, identity, policy_and_rows, trainer_args


@cache
def trainer_class() -> type:
    """Return the SFTTrainer subclass; made on first use, since importing TRL takes seconds."""
    from trl import SFTTrainer

    class ResumableSFTTrainer(checkpoints.Resumable, SFTTrainer):
        """SFTTrainer whose checkpoints are whole, and whose loss counts every token alike."""

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            # transformers 5.23 says that Qwen2.5-VL cannot divide by the tokens of the whole batch,
            # and the loss becomes a mean of micro-batches' means; TRL divides by itself, and can
            self.model_accepts_loss_kwargs = True

    return ResumableSFTTrainer


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
    from .callbacks import watchers

    s = cfg.sft
    resume = checkpoints.begin(out, identity(cfg, "sft", records, start))
    policy, rows = policy_and_rows(
        cfg, s.mode, records, images, out, start, s.max_tokens, with_trace=True
    )
    trainer = trainer_class()(
        model=policy.model,
        args=sft_config(cfg, out),
        train_dataset=rows,
        processing_class=policy.processor,
        peft_config=models.adapter(s.mode),
        callbacks=watchers(out),
    )
    trainer.train(resume_from_checkpoint=resume)
    return finish(trainer, out)


def sft_config(cfg: Settings, out: str | Path) -> Any:
    """Return TRL's `SFTConfig` of a profile; the batch arithmetic is that of all processes."""
    from trl import SFTConfig

    s = cfg.sft
    return SFTConfig(
        **trainer_args(cfg, out, s.save_steps),
        num_train_epochs=s.epochs,
        max_steps=s.max_steps,
        per_device_train_batch_size=s.per_device_batch,
        gradient_accumulation_steps=accumulation(s.global_batch, s.per_device_batch),
        learning_rate=s.learning_rate,
        warmup_steps=s.warmup,  # a value below 1 is a share of all steps (transformers 5)
        lr_scheduler_type="cosine",  # the paper names no SFT schedule: ours
        max_length=None,  # TRL's default of 1024 cuts traces, or images, without an error
        logging_steps=s.logging_steps,
    )
