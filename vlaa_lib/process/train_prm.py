"""Train ViLPRM on scored processes: transformers' Trainer around `prm.StepScorer`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from vlaa_lib import folders, models
from vlaa_lib.models import Policy
from vlaa_lib.profiles import Settings
from vlaa_lib.records import RecordError
from vlaa_lib.train import checkpoints
from vlaa_lib.train.callbacks import complete, watchers
from vlaa_lib.train.common import identity, starting_policy, supervised_args

from . import prm
from .released import Process


class PrmTrainer(checkpoints.Resumable, Trainer):
    """Trainer whose checkpoints are whole, and resumed with the weights that they hold."""


def train(
    cfg: Settings,
    rows: Sequence[Process],
    images: str | Path,
    out: str | Path,
    start: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Train a ViLPRM and save it in `out`; measure it on the questions that were held out.

    A run that was cut off goes on from its last checkpoint in `out`. The measures go to
    `out/held_out.csv`, the calibration table to `out/calibration.csv`.

    Args:
        start: checkpoint to start from; by default the profile's policy.
    Returns:
        The training log, one dict a logging step.
    Raises:
        RecordError: no row is left to train on.
    """
    s = cfg.prm
    trained, held_out = prm.parted(rows, s.held_out)
    made = prm.solutions(trained)
    if not made:
        raise RecordError(f"none of {len(rows)} rows to train on; search more questions")
    resume = checkpoints.begin(out, identity(cfg, "prm", made, start))
    policy = begin(cfg, start, out)
    made = within(policy, made, s.max_tokens)
    trainer = PrmTrainer(
        model=policy.model,
        args=arguments(cfg, out),
        train_dataset=made,
        data_collator=partial(prm.encode, policy, images),
        processing_class=policy.processor,
        callbacks=watchers(out),
    )
    log = complete(trainer, out, resume)
    if trainer.is_world_process_zero():
        _measure(cfg, policy, images, Path(out), held_out, len(trained))
    return log


def begin(cfg: Settings, start: str | Path | None, out: str | Path) -> Policy:
    """Load the policy that training starts from, with a new head, and an adapter by the mode."""
    mode = cfg.prm.mode
    torch.manual_seed(cfg.seed)  # of the head's first weights
    policy = starting_policy(cfg, mode, out, start, prm.StepScorer)
    model = policy.model
    model.config.step_loss = cfg.prm.loss
    model.step_head.float()
    if model.lm_head.weight is not model.get_input_embeddings().weight:
        model.lm_head.requires_grad_(False)  # not read; DDP would wait for its gradient
    if mode != "full":
        policy.model = _adapted(model, mode)
    return policy


def _adapted(model: Any, mode: str) -> Any:
    from peft import get_peft_model, prepare_model_for_kbit_training

    if mode == "4bit":
        gpu = torch.cuda.is_available()
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=gpu)
    config = models.adapter(mode)
    config.task_type, config.modules_to_save = None, ["step_head"]
    return get_peft_model(model, config)


def within(policy: Policy, made: Sequence[prm.Solution], limit: int) -> list[prm.Solution]:
    """Keep solutions of at most `limit` tokens of text, and name the others; none is cut."""
    kept = []
    for solution in made:
        texts = solution.question, *solution.steps
        tokens = sum(len(prm.step_ids(policy.processor, text)) for text in texts)
        if tokens <= limit:
            kept.append(solution)
        else:
            print(f"left out: {solution.image}: {tokens} tokens of text, the limit is {limit}")
    if not kept:
        raise RecordError(f"all {len(made)} solutions are too long; raise prm.max_tokens")
    return kept


def arguments(cfg: Settings, out: str | Path) -> TrainingArguments:
    """Return the Trainer's settings of a profile; the batch arithmetic is that of all processes."""
    # rows are solutions, the collator reads them
    return TrainingArguments(**supervised_args(cfg, cfg.prm, out), remove_unused_columns=False)


def _measure(
    cfg: Settings, policy: Policy, images: str | Path, out: Path, held_out: list[Process], n: int
) -> None:
    """Write the measures on held-out rows, and the card that makes the folder a ViLPRM."""
    policy.model.eval()
    found, table = prm.report(policy, images, held_out, cfg.evaluate.batch)
    folders.write_csv(out / "held_out.csv", [found])
    folders.write_csv(out / "calibration.csv", table)
    card = {"rows": n, "held_out": found, "loss": cfg.prm.loss, "mode": cfg.prm.mode}
    folders.write_text(out / prm.CARD, json.dumps(card, indent=1) + "\n")
