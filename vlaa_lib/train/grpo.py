"""GRPO with the mixed reward: a thin subclass of TRL's GRPOTrainer that keeps every rollout."""

from __future__ import annotations

import json
import statistics
from functools import cache, partial, update_wrapper
from pathlib import Path
from typing import Any

from .. import models, rewards
from ..profiles import Settings
from ..records import Record, from_json
from ..traces import TraceStore, has_aha
from . import checkpoints
from .common import accumulation, finish, identity, policy_and_rows, trainer_args
from .kl import AdaptiveKL


class DeadReward(RuntimeError):
    """Nothing can be learnt from these rewards; the message holds the doctor's report."""


@cache
def trainer_class() -> type:
    """Return the GRPOTrainer subclass; made on first use, since importing TRL takes seconds."""
    import torch
    from trl import GRPOTrainer

    class TracingGRPOTrainer(checkpoints.Resumable, GRPOTrainer):
        """GRPOTrainer that keeps every rollout, steers the KL and stops on a dead reward."""

        store: TraceStore | None = None
        run_name = "grpo"
        controller: AdaptiveKL | None = None  # None: the coefficient stays
        dead_rounds = 0  # 0: go on whatever the rewards are

        def __init__(self, *args: Any, **kwargs: Any):
            self._round_kl: list[float] = []  # of the optimizer steps since the last round
            self._silent = 0  # rounds in which no group had a spread
            super().__init__(*args, **kwargs)

        def own_state(self) -> dict[str, Any]:
            return {"beta": self.beta, "round_kl": self._round_kl, "silent": self._silent}

        def restore(self, state: dict[str, Any]) -> None:
            self.beta, self._round_kl, self._silent = (
                state[key] for key in ("beta", "round_kl", "silent")
            )
            if self.controller:
                self.controller.beta = self.beta

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                logs["beta"] = self.beta
            super().log(logs, start_time)
            if logs.get("kl") is not None:
                self._round_kl.append(logs["kl"])

        def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
            if self.controller and self._round_kl:
                n = len(inputs) * self.accelerator.num_processes
                self.beta = self.controller.update(statistics.mean(self._round_kl), n)
            self._round_kl = []
            output = super()._generate_and_score_completions(inputs)
            rows = self._trace_rows(inputs, output)
            if self.store is not None:
                self.store.append(rows, self.accelerator.process_index)
            aha = torch.tensor([has_aha(row["completion"]) for row in rows], dtype=torch.float)
            aha = self.accelerator.gather(aha.to(self.accelerator.device)).mean().item()
            self._metrics["train"]["aha_rate"].append(aha)
            self._stop_without_signal(inputs, rows)
            return output

        def _stop_without_signal(self, inputs: list[dict], rows: list[dict[str, Any]]) -> None:
            """Count rounds in which no group had a spread; the metric is that of all processes."""
            without = self._metrics["train"]["frac_reward_zero_std"][-1] == 1.0
            self._silent = self._silent + 1 if without else 0
            if self.dead_rounds and self._silent >= self.dead_rounds:
                asked = [from_json(json.loads(example["record"])) for example in inputs]
                table = rewards.doctor(asked, [row["completion"] for row in rows])
                raise DeadReward(
                    f"step {self.state.global_step}: {self._silent} sampling rounds without a "
                    f"group whose rewards differ; {rewards.dead(table)}. The doctor on the last "
                    f"round:\n" + "\n".join(map(str, table))
                )

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
    reward_model: rewards.RewardModel | None = None,
) -> list[dict[str, Any]]:
    """Train a policy with GRPO and the mixed reward and save it in `out` (paper §4).

    The reference is the start checkpoint. Rollouts go to `out/traces`. A run that was cut off
    goes on from its last checkpoint in `out`.

    Args:
        start: checkpoint to start from; by default the profile's policy.
        name: the run's name in the trace store.
        reward_model: for open answers; default: facts of the micro-world's scenes.
    Returns:
        The training log, one dict an optimizer step.
    Raises:
        DeadReward: no group's rewards differed for `grpo.dead_rounds` sampling rounds.
    """
    from .callbacks import CsvLog, FrozenVision, SpikeWatch

    g = cfg.grpo
    resume = checkpoints.begin(out, identity(cfg, "grpo", records, start))
    wanted = [record for record in records if record.reward in g.parts]
    policy, rows = policy_and_rows(
        cfg, g.mode, wanted, images, out, start, g.max_prompt_tokens, with_trace=False
    )
    if len(rows) < g.rollout_prompts:
        raise ValueError(
            f"{len(rows)} records are fewer than one sampling round's {g.rollout_prompts}; lower "
            "grpo.rollout_prompts"
        )
    reward = partial(rewards.mixed_reward, reward_model=reward_model)
    trainer = trainer_class()(
        model=policy.model,
        args=grpo_config(cfg, out, policy.model.config.image_token_id),
        train_dataset=rows,
        reward_funcs=update_wrapper(reward, rewards.mixed_reward),  # TRL names it by __name__
        processing_class=policy.processor,
        peft_config=models.adapter(g.mode),
        callbacks=[CsvLog(out), FrozenVision(), SpikeWatch()],
    )
    if g.kl == "adaptive":
        trainer.controller = AdaptiveKL(g.beta, g.kl_target, g.kl_horizon)
    trainer.dead_rounds = g.dead_rounds
    trainer.store, trainer.run_name = TraceStore(Path(out) / "traces"), name
    trainer.store.forget(checkpoints.step_of(resume), trainer.accelerator.process_index)
    trainer.train(resume_from_checkpoint=resume)
    return finish(trainer, out)


def grpo_config(cfg: Settings, out: str | Path, image_token_id: int) -> Any:
    """Return TRL's `GRPOConfig` of a profile; the batch arithmetic is that of all processes."""
    from trl import GRPOConfig

    g = cfg.grpo
    return GRPOConfig(
        **trainer_args(cfg, out, g.save_rounds * g.steps_per_round),
        num_train_epochs=g.epochs,
        max_steps=g.max_steps,
        per_device_train_batch_size=g.per_device_batch,
        gradient_accumulation_steps=accumulation(g.train_batch, g.per_device_batch),
        generation_batch_size=g.rollouts,
        num_generations=g.num_generations,
        num_iterations=g.num_iterations,
        temperature=g.temperature,
        top_k=0,  # TRL default, said aloud: sample from the whole distribution
        max_completion_length=g.max_completion_tokens,
        # a sampled image token would ask for features that are not there; TRL before 1.16 lets it
        generation_kwargs={"suppress_tokens": [image_token_id]},
        beta=0.0 if g.kl == "off" else g.beta,
        use_bias_correction_kl=False,  # the plain k3 estimator, as in the paper's framework
        epsilon=g.epsilon,
        loss_type=g.loss_type,
        scale_rewards=g.scale_rewards,
        learning_rate=g.learning_rate,
        warmup_steps=g.warmup,  # a value below 1 is a share of all steps (transformers 5)
        lr_scheduler_type="cosine_with_min_lr",  # paper table 6
        lr_scheduler_kwargs={"min_lr": g.min_learning_rate},
        adam_beta2=0.95,  # OpenRLHF default
        logging_steps=1,  # the KL controller reads each step's divergence
    )
