"""GRPO with the mixed reward: a profile turned into TRL's settings, and run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

from vlaa_lib import models, rewards, traces
from vlaa_lib.profiles import Settings
from vlaa_lib.records import Record
from vlaa_lib.rewards import open_ended, reward_models
from vlaa_lib.rewards.signs import Watch

from . import checkpoints
from .callbacks import complete
from .common import accumulation, identity, policy_and_rows, trainer_args
from .kl import AdaptiveKL
from .sampler import sampler_args
from .trainer import DeadReward, trainer_class

__all__ = ["DeadReward", "grpo", "grpo_config"]


def grpo(
    cfg: Settings,
    records: list[Record],
    images: str | Path,
    out: str | Path,
    start: str | Path | None = None,
    reward_model: rewards.RewardModel | None = None,
    overlap: bool = True,
    process_reward: Callable[..., list[float]] | None = None,
    token_logps: bool = False,
) -> list[dict[str, Any]]:
    """Train a policy with GRPO and the mixed reward and save it in `out` (paper §4).

    The reference is the start checkpoint. Rollouts go to `out/traces`, under the name of the folder
    `out`, their signs of reward hacking to `out/watch.csv`. A run that was cut off goes on from its
    last checkpoint in `out`.

    Args:
        start: checkpoint to start from; by default the profile's policy.
        reward_model: for open answers; default: the one that `grpo.reward_model` names.
        overlap: check mathematics while the reference model runs (ours; same rewards).
        process_reward: a second reward, of a completion's steps; it counts `grpo.process_weight`.
        token_logps: keep the log-prob and entropy of every token in the trace store.
    Returns:
        The training log, one dict an optimizer step.
    Raises:
        DeadReward: no group's rewards differed for `grpo.dead_rounds` sampling rounds.
    """
    from .callbacks import watchers

    g = cfg.grpo
    if reward_model is None and "open" in g.parts and any(r.reward == "open" for r in records):
        given = g.trust_remote_code, g.endpoints or None
        reward_model = reward_models.by_name(g.reward_model, images, out, *given)
    # the name of a judge stands for its model, settings and prompt
    judged = {"reward model": reward_model.name if reward_model else ""}
    resume = checkpoints.begin(out, identity(cfg, "grpo", records, start) | judged)
    wanted = list(_scored(records, g.parts, reward_model))
    policy, rows = policy_and_rows(
        cfg, g.mode, wanted, images, out, start, g.max_prompt_tokens, with_trace=False
    )
    if len(rows) < g.rollout_prompts:
        raise ValueError(
            f"{len(rows)} records are fewer than one sampling round's {g.rollout_prompts}; lower "
            "grpo.rollout_prompts"
        )
    if bool(g.process_weight) != bool(process_reward):
        raise ValueError("a process reward and grpo.process_weight above 0 go together; give both")
    reward = partial(rewards.mixed_reward, reward_model=reward_model)
    # TRL names a reward by its __name__
    parts = [update_wrapper(reward, rewards.mixed_reward), *filter(None, [process_reward])]
    trainer = trainer_class()(
        model=policy.model,
        args=grpo_config(cfg, out, policy),
        train_dataset=rows,
        reward_funcs=parts,
        processing_class=policy.processor,
        peft_config=models.adapter(g.mode),
        callbacks=watchers(out),
    )
    if g.kl == "adaptive":
        trainer.controller = AdaptiveKL(g.beta, g.kl_target, g.kl_horizon)
    trainer.stamp = {"model": Path(out).resolve().name, "profile": cfg.profile, "seed": cfg.seed}
    trainer.dead_rounds, trainer.token_logps = g.dead_rounds, token_logps
    trainer.overlap, trainer.fast = overlap, g.fast
    trainer.store, trainer.watch = _records_of(trainer, out, checkpoints.step_of(resume))
    return complete(trainer, out, resume)


def _scored(
    records: list[Record], parts: list[str], model: rewards.RewardModel | None
) -> Iterator[Record]:
    """Yield the records of these reward parts; name those that the reward model cannot score."""
    for record in records:
        if record.reward not in parts:
            continue
        scorer = model or open_ended.default_model()
        problem = open_ended.problem_of(scorer, record) if record.reward == "open" else ""
        if problem:
            print(f"left out: {record.id}: {problem}")
        else:
            yield record


def _records_of(trainer: Any, out: str | Path, step: int) -> tuple[traces.TraceStore, Watch]:
    """Open the trace store and the watch as they were at an optimizer step."""
    store = traces.TraceStore(Path(out) / "traces")
    store.forget(step, trainer.accelerator.process_index)
    trainer.accelerator.wait_for_everyone()
    path = Path(out) / "watch.csv" if trainer.is_world_process_zero() else None
    return store, Watch(path, step)


def grpo_config(cfg: Settings, out: str | Path, policy: models.Policy) -> Any:
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
        **sampler_args(cfg, policy),
        beta=0.0 if g.kl == "off" else g.beta,
        use_bias_correction_kl=False,  # the plain k3 estimator, as in the paper's framework
        epsilon=g.epsilon,
        loss_type=g.loss_type,
        scale_rewards=g.scale_rewards,
        reward_weights=[1.0, g.process_weight] if g.process_weight else None,
        learning_rate=g.learning_rate,
        warmup_steps=g.warmup,  # a value below 1 is a share of all steps (transformers 5)
        lr_scheduler_type="cosine_with_min_lr",  # paper table 6
        # as a rate: DeepSpeed's optimizers do not tell their own
        lr_scheduler_kwargs={"min_lr_rate": g.min_learning_rate / g.learning_rate},
        adam_beta2=0.95,  # OpenRLHF default
        logging_steps=1,  # the KL controller reads each step's divergence
    )
