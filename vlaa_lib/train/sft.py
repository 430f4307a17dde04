"""Supervised fine-tuning on traces: TRL's SFTTrainer, loss on the completion only."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from vlaa_lib import models
from vlaa_lib.profiles import Settings
from vlaa_lib.records import Record

from . import checkpoints
from .callbacks import complete
from .common import identity, policy_and_rows, supervised_args


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
    return complete(trainer, out, resume)


def sft_config(cfg: Settings, out: str | Path) -> Any:
    """Return TRL's `SFTConfig` of a profile; the batch arithmetic is that of all processes."""
    from trl import SFTConfig

    # TRL's default length of 1024 cuts traces, or images, without an error
    return SFTConfig(**supervised_args(cfg, cfg.sft, out), max_length=None)
