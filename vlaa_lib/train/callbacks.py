"""What watches over a training: its bar, its log as a file, the frozen tower, the loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from vlaa_lib import Halted, folders
from vlaa_lib.escape import say
from vlaa_lib.progress import progress_bar

from . import checkpoints, rank_setup

SPIKE = 2.0  # ours: times the median of the last losses
WINDOW = 20  # ours: losses that the median is taken of


class OneBar(ProgressCallback):
    """One bar with the last loss and reward; the Trainer's own adds a line for every log."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.current_step = 0
        if state.is_world_process_zero:
            self.training_bar = progress_bar(total=state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None:
            shown = {key: f"{logs[key]:.3g}" for key in ("loss", "reward") if key in logs}
            self.training_bar.set_postfix(shown, refresh=False)


class Guard(TrainerCallback):
    """Keep the log as `training_log.csv`, tell the launcher, and stop what cannot go well."""

    def __init__(self, out: str | Path):
        self.path = Path(out) / "training_log.csv"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            rank_setup.emit("step", step=state.global_step, of=state.max_steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make sure at the first step that no gradient reaches the vision tower (paper §3)."""
        if state.global_step:
            return
        named = kwargs["model"].named_parameters()
        moved = [n for n, p in named if ".visual." in f".{n}" and p.grad is not None]
        if moved:
            raise Halted(
                f"the vision tower is to rest, and {moved[0]} has a gradient: load the model with "
                "models.load_policy, which freezes it"
            )

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, logs = state.global_step, state.log_history[-1]
        if state.is_world_process_zero:
            folders.write_csv(self.path, steps_of(state.log_history))  # with a resumed run's rows
            rank_setup.emit("step", of=state.max_steps, **logs)
        if "loss" not in logs:
            return
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        *before, last = losses[-WINDOW - 1 :]
        if not math.isfinite(last):
            raise Halted(
                f"step {step}: the loss is {last}; lower the learning rate, or look for a broken "
                "record among the last batches"
            )
        # GRPO's loss is near zero by construction; of one loss there is no usual one yet
        usual = math.inf if "reward" in logs or len(before) < 2 else statistics.median(before)
        if last > SPIKE * usual and state.is_world_process_zero:
            say(f"step {step}: loss spike, {last:.3f} after a usual {usual:.3f}")


class HeldOut(TrainerCallback):
    """Ask the policy what training never asks, every so many optimizer steps; log the shares.

    Args:
        ask: `evaluate.held_out_asker`'s; each process asks its share of the records.
        policy: whose model the trainer may have wrapped.
        every: optimizer steps.
    """

    def __init__(self, trainer: Any, policy: Any, ask: Callable[..., list[dict]], every: int):
        self.trainer, self.policy, self.ask, self.every = trainer, policy, ask, every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        at = self.trainer.accelerator
        model = at.unwrap_model(self.trainer.model)
        rows = self.ask(replace(self.policy, model=model), at.process_index, at.num_processes)
        self.trainer.model.train()  # answering leaves it in evaluation mode
        metrics = self.trainer._metrics["train"]
        rows = gather_object(rows)
        for name, column, blank in (
            ("accuracy", "correct", False), ("blank_accuracy", "correct", True),
            ("reward", "reward", False),
        ):  # fmt: skip
            share = statistics.mean(row[column] for row in rows if row["blank"] is blank)
            metrics[f"held_out/{name}"].append(share)


def steps_of(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a log without the Trainer's closing summary."""
    return [row for row in history if "train_runtime" not in row]


def complete(trainer: Any, out: str | Path, resume: str | None) -> list[dict[str, Any]]:
    """Train to the end, from the checkpoint `resume` on; save model and processor; return the log.

    The log is one dict a logging step, without the Trainer's closing summary.
    """
    # the Trainer's own progress is, in a notebook, a growing table
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)
    trainer.add_callback(OneBar())
    trainer.train(resume_from_checkpoint=resume)
    checkpoints.save(trainer, out)
    return steps_of(trainer.state.log_history)
