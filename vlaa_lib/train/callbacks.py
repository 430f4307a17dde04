"""What watches over a training: progress, the log as a file, the frozen tower, loss spikes."""

from __future__ import annotations

import math
import os
import statistics
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from vlaa_lib import Halted, folders
from vlaa_lib.progress import progress_bar

from . import rank_setup

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


class CsvLog(TrainerCallback):
    """Keep the Trainer's whole log as `training_log.csv`; a resumed run goes on with its rows."""

    def __init__(self, out: str | Path):
        self.path = Path(out) / "training_log.csv"

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folders.write_csv(self.path, steps_of(state.log_history))


class FrozenVision(TrainerCallback):
    """Make sure at the first step that no gradient reaches the vision tower (paper §3)."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            return
        named = list(kwargs["model"].named_parameters())
        moved = [n for n, p in named if ".visual." in f".{n}" and p.grad is not None]
        if moved:
            raise Halted(
                f"the vision tower is to rest, and {moved[0]} has a gradient: load the model with "
                "models.load_policy, which freezes it"
            )


class SpikeWatch(TrainerCallback):
    """Say when the loss leaves its recent range, and stop when it is no number any more."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        if not losses or "loss" not in state.log_history[-1]:
            return
        *before, last = losses[-WINDOW - 1 :]
        if not math.isfinite(last):
            raise Halted(
                f"step {state.global_step}: the loss is {last}; lower the learning rate, or look "
                "for a broken record among the last batches"
            )
        if "reward" in state.log_history[-1]:  # GRPO's loss is near zero by construction
            return
        usual = statistics.median(before) if len(before) >= 2 else math.inf
        if last > SPIKE * usual and state.is_world_process_zero:
            print(f"step {state.global_step}: loss spike, {last:.3f} after a usual {usual:.3f}")


class Events(TrainerCallback):
    """Tell the launcher of the start, each log, each checkpoint and the end; rank 0 only."""

    def _say(self, event: str, state: Any, **values: Any) -> None:
        if state.is_world_process_zero:
            rank_setup.emit(event, step=state.global_step, of=state.max_steps, **values)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._say("start", state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        self._say("step", state, **(logs or {}))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._say("save", state, folder=f"{args.output_dir}/checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._say("end", state)


def watchers(out: str | Path) -> list[TrainerCallback]:
    """Return the callbacks of every training, with the launcher's events where it listens."""
    events = [Events()] if os.environ.get(rank_setup.EVENTS) else []
    return [CsvLog(out), FrozenVision(), SpikeWatch(), *events]


def steps_of(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a log without the Trainer's closing summary."""
    return [row for row in history if "train_runtime" not in row]


def complete(trainer: Any, out: str | Path, resume: str | None) -> list[dict[str, Any]]:
    """Train to the end and save model and processor; return the log without its summary.

    Args:
        resume: checkpoint to go on from.
    """
    # the Trainer's own progress is, in a notebook, a growing table
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)
    trainer.add_callback(OneBar())
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(out))
    return steps_of(trainer.state.log_history)
