"""GRPO with the mixed reward: a thin subclass of TRL's GRPOTrainer that keeps every rollout."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from .. import models, rewards
from ..profiles import Settings
from ..records import Record
from ..traces import TraceStore
from . import data, events
from .common import accumulation, finish, trainer_args
from .sampler import sampler_args


@cache
def trainer_class() -> type:
    """Return the GRPOTrainer subclass; made on first use, since importing TRL takes seconds."""
    from trl import GRPOTrainer

    class TracingGRPOTrainer(GRPOTrainer):
        """GRPOTrainer that appends each sampled and scored completion to a trace store."""

        store: TraceStore | None = None
        run_name = "grpo"

        def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
            output = super()._generate_and_score_completions(inputs)
            if self.store is not None:
                self.store.append(self._trace_rows(inputs, output), self.accelerator.process_index)
            return output

        def _trace_rows(self, inputs: list[dict], output: dict[str, Any]) -> list[dict[str, Any]]:
            """One row a rollout of this process: who, what, how scored; never pixels."""
            rank, n = self.accelerator.process_index, len(inputs)
            world = self.accelerator.num_processes

            def local(gathered: Any) -> list:  # TRL's logs hold the rows of all processes
                return list(gathered)[-n * world :][rank * n : (rank + 1) * n]

            stops = self.model.generation_config.eos_token_id
            stops = set(stops if isinstance(stops, list) else [stops])
            columns = zip(
                inputs,
                output["completion_ids"].tolist(),
                output["completion_mask"].sum(1).tolist(),
                output["advantages"].tolist(),
                local(self._logs["rewards"]["mixed_reward"]),
                local(self._logs["extra"]["reason"]),
                strict=True,
            )
            return [
                self._trace_row(example, ids[:length], stops)
                | {"advantage": advantage, "reward": reward, "reason": reason}
                for example, ids, length, advantage, reward, reason in columns
            ]

        def _trace_row(self, example: dict, ids: list[int], stops: set[int]) -> dict[str, Any]:
            record = json.loads(example["record"])
            return {
                "run": self.run_name,
                "optimizer_step": self.state.global_step,
                "record_id": record["id"],
                "source": record["source"],
                "part": record["reward"],
                "image": example["image"],
                "completion": self.processing_class.decode(ids, skip_special_tokens=True),
                "completion_tokens": len(ids),
                "clipped": not ids or ids[-1] not in stops,
            }

    return TracingGRPOTrainer


def grpo(
    cfg: Settings,
    records: list[Record],
    images: str | Path,
    out: str | Path,
    start: str | Path | None = None,
    name: str = "grpo",
) -> list[dict[str, Any]]:
    """Train a policy with GRPO and the mixed reward and save it in `out` (paper §4).

    The reference is the start checkpoint. Rollouts go to `out/traces`.

    Args:
        start: checkpoint to start from; by default the profile's policy.
        name: the run's name in the trace store.
    Returns:
        The training log, one dict an optimizer step.
    """
    from trl import GRPOConfig

    g = cfg.grpo
    policy = models.load_policy(
        start or cfg.model.policy, g.mode, cfg.model.max_pixels, cfg.model.min_pixels
    )
    budget = {"max_pixels": cfg.model.max_pixels}
    rows = data.dataset(records, images, Path(out) / "images", with_trace=False, **budget)
    if len(rows) < g.rollout_prompts:
        raise ValueError(
            f"{len(rows)} records are fewer than one sampling round's "
            f"{g.rollout_prompts}; lower grpo.rollout_prompts"
        )
    args = GRPOConfig(
        **trainer_args(cfg, out, g.learning_rate, g.warmup),
        max_steps=g.max_steps,
        per_device_train_batch_size=g.per_device_batch,
        gradient_accumulation_steps=accumulation(g.train_batch, g.per_device_batch),
        generation_batch_size=g.rollouts,
        num_generations=g.num_generations,
        **sampler_args(cfg, policy),
        beta=g.beta,
        use_bias_correction_kl=False,  # the plain k3 estimator, as in the paper's framework
        epsilon=g.epsilon,
        loss_type=g.loss_type,
        scale_rewards="group",
        lr_scheduler_type="cosine_with_min_lr",  # paper table 6
        lr_scheduler_kwargs={"min_lr": g.min_learning_rate},
        logging_steps=1,
    )
    trainer = trainer_class()(
        model=policy.model,
        args=args,
        train_dataset=rows,
        reward_funcs=rewards.mixed_reward,
        processing_class=policy.processor,
        peft_config=models.adapter(g.mode),
        callbacks=events.callbacks(),
    )
    trainer.store, trainer.run_name = TraceStore(Path(out) / "traces"), name
    trainer.train()
    return finish(trainer, out)
