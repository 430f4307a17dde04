"""GRPO with the mixed reward: a profile turned into TRL's settings, and run (paper §4).

1. `grpo` loads policy and records, and gives TRL's trainer the reward functions.
2. `grpo_config` are the numbers, `sampler_args` who samples.
3. `trainer.py` is the loop, `objective.py` its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, update_wrapper
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlaa_lib import VlaaError, models, rewards, traces
from vlaa_lib.escape import say
from vlaa_lib.llm.transport import keep_from_proxy
from vlaa_lib.profiles import Grpo, Settings, accumulation
from vlaa_lib.records import Record
from vlaa_lib.rewards import open_ended, reward_models
from vlaa_lib.rewards.signs import Watch

from . import checkpoints, data
from .fast import COMPARED
from .sft import num_processes, starting_policy, trainer_args

MEMORY_SHARE = 0.3  # TRL default: of a GPU, for a colocated vLLM's weights and KV cache


@checkpoints.alone
def grpo(
    cfg: Settings,
    records: list[Record],
    images: str | Path,
    out: str | Path,
    start: str | Path | None = None,
    process_reward: Callable[..., list[float]] | None = None,
    held_out: Callable[..., list[dict[str, Any]]] | None = None,
    token_logps: bool = False,
) -> list[dict[str, Any]]:
    """Train a policy with GRPO and the mixed reward and save it in `out` (paper §4).

    The reference is the start checkpoint. Rollouts go to `out/traces`, under the name of the folder
    `out`, their signs of reward hacking to `out/watch.csv`. A run that was cut off goes on from its
    last checkpoint in `out`.

    Args:
        start: checkpoint to start from; by default the profile's policy.
        process_reward: a second reward, of a completion's steps; it counts `grpo.process_weight`.
        held_out: of `evaluate.held_out_asker`; asked every `grpo.held_out_rounds` sampling rounds.
        token_logps: keep the log-prob and entropy of every token in the trace store.
    Returns:
        The training log, one dict an optimizer step.
    Raises:
        Halted: no group's rewards differed for `grpo.dead_rounds` sampling rounds.
    """
    from .callbacks import Guard, HeldOut, complete
    from .trainer import AdaptiveKL, TracingGRPOTrainer  # importing TRL takes seconds

    g = cfg.grpo
    if bool(g.process_weight) != bool(process_reward):
        raise VlaaError("a process reward and grpo.process_weight above 0 go together; give both")
    # --- what is trained on: records that can be scored, pictures that open, prompts that fit
    reward_model = None
    if "open" in g.parts and any(r.reward == "open" for r in records):
        given = g.trust_remote_code, g.endpoints or None
        reward_model = reward_models.by_name(g.reward_model, images, out, *given)
    # the name of a judge stands for its model, settings and prompt
    judged = {"reward model": reward_model.name if reward_model else ""}
    resume = checkpoints.begin(cfg, "grpo", records, out, start, **judged)
    wanted = list(_scored(records, g.parts, reward_model))
    _check_enough(g, len(wanted))
    if g.redraws and g.rollouts // num_processes() % g.num_generations:
        raise VlaaError(
            f"grpo.redraws: {num_processes()} processes split the groups of "
            f"{g.rollout_prompts} prompts; make grpo.rollout_prompts a multiple of the processes"
        )
    policy = starting_policy(cfg, g.mode, out, start)
    rows = data.dataset(
        wanted, policy, images, out, cfg.model.max_pixels, g.max_prompt_tokens, with_trace=False
    )
    _check_enough(g, len(rows))
    # --- the trainer; TRL names a reward by its __name__
    mixed = partial(rewards.mixed_reward, reward_model=reward_model)
    update_wrapper(mixed, rewards.mixed_reward)
    trainer = TracingGRPOTrainer(
        model=policy.model,
        args=grpo_config(cfg, out, policy),
        train_dataset=rows,
        reward_funcs=[mixed, process_reward] if process_reward else [mixed],
        processing_class=policy.processor,
        peft_config=models.adapter(g.mode),
        callbacks=[Guard(out)],
    )
    if g.kl == "adaptive":
        trainer.controller = AdaptiveKL(g.beta, g.kl_target, g.kl_horizon)
    trainer.stamp = {"model": Path(out).resolve().name, "profile": cfg.profile, "seed": cfg.seed}
    trainer.dead_rounds, trainer.redraws = g.dead_rounds, g.redraws
    trainer.token_logps, trainer.fast = token_logps, g.fast
    trainer.untested = sorted(g.extra.keys() - COMPARED)
    if held_out and g.held_out_rounds:
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            say("grpo.held_out_rounds: not asked, since no process has the whole weights")
        else:
            every = g.held_out_rounds * g.steps_per_round
            trainer.add_callback(HeldOut(trainer, policy, held_out, every))
    # what was kept is as it was at the checkpoint's optimizer step
    step = checkpoints.step_of(resume)
    trainer.store = traces.TraceStore(Path(out) / "traces")
    trainer.store.forget(step, trainer.accelerator.process_index)
    trainer.accelerator.wait_for_everyone()
    is_first = trainer.is_world_process_zero()
    trainer.watch = Watch(Path(out) / "watch.csv" if is_first else None, step)
    # --- the loop: `TracingGRPOTrainer`, from top to bottom
    return complete(trainer, out, resume)


def _check_enough(g: Grpo, records: int) -> None:
    """Refuse fewer records than a sampling round takes, and say which batches they would fill."""
    if records >= g.rollout_prompts:
        return
    processes = num_processes()
    for prompts in range(records, 0, -1):
        rollouts = prompts * g.num_generations
        whole = [n for n in range(1, g.train_batch + 1) if rollouts % n == 0 and n % processes == 0]
        if not whole:
            continue
        each = whole[-1] // processes  # a process's share of the largest batch that fits
        size = max(n for n in range(1, g.per_device_batch + 1) if each % n == 0)
        raise VlaaError(
            f"{records} records are fewer than one sampling round's {g.rollout_prompts}; lower "
            f"grpo.rollout_prompts, and what hangs on it: --set grpo.rollout_prompts={prompts} "
            f"grpo.train_batch={whole[-1]} grpo.per_device_batch={size} fits"
        )
    raise VlaaError(
        f"{records} records are fewer than one sampling round's {g.rollout_prompts}, and fill no "
        f"batch of {processes} processes; give more records, or fewer processes"
    )


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
            say(f"left out: {record.id}: {problem}")
        else:
            yield record


def grpo_config(cfg: Settings, out: str | Path, policy: models.Policy) -> Any:
    """Return TRL's `GRPOConfig` of a profile; the batch arithmetic is that of all processes."""
    from trl import GRPOConfig

    g = cfg.grpo
    given = dict(
        **trainer_args(cfg, out, g.save_rounds * g.steps_per_round),
        num_train_epochs=g.epochs,
        max_steps=g.max_steps,
        per_device_train_batch_size=g.per_device_batch,
        gradient_accumulation_steps=accumulation(
            g.train_batch, g.per_device_batch, num_processes(), "grpo.train_batch", g.rollouts
        ),
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
    for name in g.extra:
        if name in given or name not in GRPOConfig.__dataclass_fields__:
            why = "a profile decides it" if name in given else "TRL has no such setting"
            raise VlaaError(f"grpo.extra.{name}: {why}; take it out")
    return GRPOConfig(**given, **g.extra)


def sampler_args(cfg: Settings, policy: models.Policy) -> dict[str, Any]:
    """Return the arguments of `GRPOConfig` for `grpo.sampler`, with what must never go wrong.

    vLLM samples from its own copy of the weights, which TRL renews after every optimizer step
    that a sampling round follows; adapters are merged into that copy.
    """
    import torch

    g, processor = cfg.grpo, policy.processor
    # a sampled one would ask for image features that are not there
    banned = [processor.image_token_id, processor.video_token_id]
    banned = [token for token in banned if token is not None]
    args = {
        "temperature": g.temperature,
        "top_p": 1.0,  # TRL default, said aloud: sample from the whole distribution
        "top_k": 0,  # TRL default
        "max_completion_length": g.max_completion_tokens,
        "generation_kwargs": {"suppress_tokens": banned},
    }
    if g.sampler == "transformers":
        return args
    if find_spec("vllm") is None:  # a server's client needs it too, to send the weights
        raise VlaaError(
            f"grpo.sampler: {g.sampler} needs vLLM, which is not installed; "
            "pip install 'vlaa_lib[vllm]', or set grpo.sampler: transformers"
        )
    args |= {
        "use_vllm": True,
        "vllm_mode": g.sampler.removeprefix("vllm-"),
        # vLLM has no `suppress_tokens`; -100 is the lowest bias that it takes
        "generation_kwargs": {"logit_bias": dict.fromkeys(banned, -100.0)},
        # TRL default: weights a completion by how far vLLM's probabilities are from the trainer's,
        # and logs the distance (sampling/...)
        "vllm_importance_sampling_correction": True,
    }
    if g.sampler == "vllm-server":
        keep_from_proxy(g.sampler_url)
        return args | {"vllm_server_base_url": g.sampler_url}
    return args | {
        "vllm_gpu_memory_utilization": MEMORY_SHARE,
        "vllm_max_model_length": g.max_prompt_tokens + g.max_completion_tokens,
        # between rounds the memory is the trainer's; vLLM on a CPU refuses
        "vllm_enable_sleep_mode": g.sampler_sleep and torch.cuda.is_available(),
    }
