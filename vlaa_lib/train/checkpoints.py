"""Checkpoints: written whole or not at all, and resumed with the weights that they hold."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlaa_lib import Halted, folders, models
from vlaa_lib.escape import say
from vlaa_lib.profiles import Settings

STAGING = "checkpoint.writing"  # a checkpoint stands here until it is whole
STATE = "vlaa_state.json"  # what our trainers keep beside the Trainer's own state
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

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / STAGING) if self._is_writing else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        from safetensors import SafetensorError
        from transformers.trainer_utils import rotate_checkpoints

        out, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        staged = out / STAGING / name
        self._is_writing = True
        try:
            # several machines share the folder: one process of all deletes and renames
            if self.accelerator.is_main_process:
                shutil.rmtree(out / STAGING, ignore_errors=True)  # of a run that was killed
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            if self.accelerator.is_main_process:
                folders.write_text(staged / STATE, json.dumps(self.own_state()) + "\n")
        except (OSError, RuntimeError, SafetensorError) as error:
            last = latest(out)
            raise Halted(
                f"step {self.state.global_step}: the checkpoint could not be written below {out} "
                f"({error}); make room and start the same command again: it goes on from "
                f"{last.name if last else 'the start'}"
            ) from error
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
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            for name, parameter in model.named_parameters():
                if name in before:  # PEFT loads fp32, where TRL had made a 4-bit adapter bf16
                    parameter.data = parameter.data.to(before[name])
            return
        with models.readable(resume_from_checkpoint):
            saved, found = type(model).from_pretrained(
                resume_from_checkpoint, dtype=model.dtype, output_loading_info=True, **models.SAFE
            )
            keys = found["missing_keys"], found["unexpected_keys"]
            models.check_keys(resume_from_checkpoint, *keys)
            model.load_state_dict(saved.state_dict(), strict=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.restore(folders.read_json(Path(checkpoint) / STATE))


def step_of(checkpoint: str | Path | None) -> int:
    """Return the optimizer step that a checkpoint was written after; 0 for none."""
    return int(Path(checkpoint).name.removeprefix("checkpoint-")) if checkpoint else 0


def latest(out: str | Path) -> Path | None:
    """Return the newest whole checkpoint of a run folder; others are named and passed over."""
    whole = []
    for folder in Path(out).glob("checkpoint-*"):
        if not folder.name.removeprefix("checkpoint-").isdigit():
            continue
        problem = ""
        for name in ("trainer_state.json", STATE):
            try:
                folders.read_json(folder / name)
            except (OSError, ValueError):
                problem = f"{name} is missing or broken"
        weights = ("*.safetensors", "pytorch_model*", "global_step*")
        if not any(path.stat().st_size for pattern in weights for path in folder.glob(pattern)):
            problem = "it holds no weights"
        if problem:
            say(f"passing over {folder}: half-written, {problem}")
        else:
            whole.append(folder)
    return max(whole, key=step_of, default=None)


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
        folders.write_json(Path(out) / "settings.json", settings)
        return None
    folders.claim(out, settings)
    return str(last)
