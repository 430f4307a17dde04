"""Checkpoints: written whole or not at all, and resumed with the weights that they hold."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlaa_lib import Halted, VlaaError, folders, models
from vlaa_lib.escape import say
from vlaa_lib.profiles import Settings

from . import rank_setup

STAGING = "checkpoint.writing"  # a checkpoint stands here until it is whole
STATE = "vlaa_state.json"  # what our trainers keep beside the Trainer's own state; written last
FILES = "files"  # in it: the size (bytes) of each file of the checkpoint
BROKEN = "delete it: the same command goes on from the one before"
KEPT = 2  # ours: the newest may be of an optimizer that has just diverged


class Resumable:
    """Mixin in front of a trainer: safe checkpoints, and a resume that loads the weights.

    transformers 5.23 saves Qwen2.5-VL under the hub's names and resumes by those in memory, with
    `strict=False`: nothing is loaded (huggingface/transformers#43701).
    """

    _is_writing = False

    def own_state(self) -> dict[str, Any]:
        """Return what a resumed run needs beyond the Trainer's state; JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `own_state` returned."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers 5.23 looks whether it is done after a step only, and resumes the last
        # checkpoint of a run with one step too many
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / STAGING) if self._is_writing else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        from transformers.trainer_utils import rotate_checkpoints

        out, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        staged = out / STAGING / name
        self._is_writing = True
        try:
            # several machines share the folder: one process of all deletes and renames
            with _written(out, f"step {self.state.global_step}: the checkpoint"):
                if self.accelerator.is_main_process:
                    shutil.rmtree(out / STAGING, ignore_errors=True)  # of a run that was killed
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # the files of all are there
                if self.accelerator.is_main_process:
                    state = self.own_state() | {FILES: sizes(staged)}
                    folders.write_text(staged / STATE, json.dumps(state) + "\n")
        finally:
            self._is_writing = False
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(out / name, ignore_errors=True)  # half of one, from elsewhere
            staged.replace(out / name)
            shutil.rmtree(out / STAGING, ignore_errors=True)
            rotate_checkpoints(output_dir=str(out), save_total_limit=KEPT)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from peft import PeftModel

        model = model or self.model
        if isinstance(model, PeftModel) or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            before = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
            with models.readable(resume_from_checkpoint, BROKEN):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
                if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
                    models.check_adapter(model, resume_from_checkpoint)
            for name, parameter in model.named_parameters():
                if name in before:  # PEFT loads fp32, where TRL had made a 4-bit adapter bf16
                    parameter.data = parameter.data.to(before[name])
            return
        with models.readable(resume_from_checkpoint, BROKEN):
            saved, found = type(model).from_pretrained(
                resume_from_checkpoint, dtype=model.dtype, output_loading_info=True, **models.SAFE
            )
            keys = found["missing_keys"], found["unexpected_keys"]
            models.check_keys(resume_from_checkpoint, *keys)
            model.load_state_dict(saved.state_dict(), strict=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with models.readable(checkpoint, BROKEN):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.restore(folders.read_json(Path(checkpoint) / STATE))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with models.readable(checkpoint, BROKEN):
            super()._load_rng_state(checkpoint)


def alone(train: Callable[..., Any]) -> Callable[..., Any]:
    """Let a training hold its folder `out` while it runs: two would spoil each other's files."""

    @functools.wraps(train)
    def held(*args: Any, **kwargs: Any) -> Any:
        out = inspect.signature(train).bind(*args, **kwargs).arguments["out"]
        with contextlib.nullcontext() if rank_setup.rank() else folders.lock(out):
            return train(*args, **kwargs)

    return held


@contextlib.contextmanager
def _written(out: str | Path, what: str) -> Iterator[None]:
    """Say of what cannot be written, as on a full disk, where the run will go on."""
    from safetensors import SafetensorError

    try:
        yield
    except Halted:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        last = latest(out)
        raise Halted(
            f"{what} could not be written below {out} ({models.said(error)}); make room and start "
            f"the same command again: it goes on from {last.name if last else 'the start'}"
        ) from error


def save(trainer: Any, out: str | Path) -> None:
    """Save a trained model with its processor in its run folder: its files come there whole."""
    made, wait = Path(out) / STAGING / "model", trainer.accelerator.wait_for_everyone
    with _written(out, "the trained model"):
        trainer.save_model(str(made))
        wait()
        if trainer.args.should_save:
            for path in made.iterdir():
                if path.is_dir():
                    shutil.rmtree(Path(out) / path.name, ignore_errors=True)
                path.replace(Path(out) / path.name)
            shutil.rmtree(Path(out) / STAGING)
        wait()


def sizes(folder: Path) -> dict[str, int]:
    """Return the size of each file below a checkpoint's folder, but of the list itself."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != STATE)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files
            if not path.name.startswith(".")}  # fmt: skip


def step_of(checkpoint: str | Path | None) -> int:
    """Return the optimizer step that a checkpoint was written after; 0 for none."""
    return int(Path(checkpoint).name.removeprefix("checkpoint-")) if checkpoint else 0


def checkpoints(out: str | Path) -> list[Path]:
    """Return the checkpoints of a run folder, whole or not."""
    found = Path(out).glob("checkpoint-*")
    return sorted(p for p in found if p.name.removeprefix("checkpoint-").isdigit())


def latest(out: str | Path) -> Path | None:
    """Return the newest whole checkpoint of a run folder; others are named and passed over."""
    whole = []
    for folder in checkpoints(out):
        if problem := _problem_of(folder):
            say(f"passing over {folder}: not whole, {problem}")
        else:
            whole.append(folder)
    return max(whole, key=step_of, default=None)


def _problem_of(folder: Path) -> str:
    """Say which part a checkpoint lacks; it is whole with every file that was written, no less.

    Without its optimizer, schedule or random state the Trainer goes on, to other weights.
    """
    try:
        state = folders.read_json(folder / STATE)
        folders.read_json(folder / "trainer_state.json")
        files = dict(state[FILES])
    except KeyError:
        return f"{STATE} lists no files, as an older release wrote it"
    except (OSError, ValueError, TypeError):
        return f"{STATE} or trainer_state.json is missing or broken"
    held = sizes(folder)
    lacking = [name for name, size in files.items() if held.get(name) != size]
    return f"{', '.join(lacking)} missing or cut short" if lacking else ""


def _check_empty(out: Path) -> None:
    """Refuse a folder with checkpoints or weights that a training from the start would replace."""
    if left := checkpoints(out):
        names = ", ".join(folder.name for folder in left)
        raise VlaaError(
            f"{out}: none of its checkpoints ({names}) is whole, or of this release; delete them "
            "to start anew, or give another folder"
        )
    if any(out.glob("*.safetensors")) and not (out / "settings.json").is_file():
        raise VlaaError(f"{out}: holds a model that was not trained there; give another folder")


def begin(
    cfg: Settings, method: str, records: Iterable[Any], out: str | Path,
    start: str | Path | None = None, **more: Any,
) -> str | None:  # fmt: skip
    """Claim a run folder for what must be the same in a resumed run; return its last checkpoint.

    Args:
        records: what is trained on; anything with an `id`.
        more: what else decides the run's numbers.
    """
    ids = [record.id for record in records]
    sections = {"model": asdict(cfg.model), method: asdict(getattr(cfg, method))}
    settings = {
        "method": method,
        "seed": cfg.seed,
        **{f"{name}.{k}": v for name, section in sections.items() for k, v in section.items()},
        "start": str(start or cfg.model.policy),
        "records": f"{len(ids)} {hashlib.sha256(chr(10).join(ids).encode()).hexdigest()[:16]}",
        **more,
    }
    last = latest(out)
    if last is None:  # nothing is lost when the folder is taken for other settings
        _check_empty(Path(out))
        folders.write_json(Path(out) / "settings.json", settings)
        return None
    folders.claim(out, settings)
    return str(last)
