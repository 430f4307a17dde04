"""GRPO with the fast paths beside TRL's own trainer: samples a second and memory."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from vlaa_lib import models, profiles, rewards
from vlaa_lib.pocket import microworld

from .timing import OURS, TRL, afresh, compared, device, in_turn, peak

COMPARED = ("loss", "grad_norm", "kl", "reward")


def grpo(
    generations: list[int] = [4, 8],  # noqa: B006
    sides: list[int] = [112, 224],  # noqa: B006
    steps: list[int] = [1, 2],  # noqa: B006
    prompts: int = 16,
    rounds: int = 2,
    repeats: int = 3,
    tokens: int = 176,
    mode: str = "full",
    model: str = "data/pocket/instruct",
    fast: list[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a few sampling rounds with our trainer and with TRL's, in turn, on the same data.

    Same weights, seed, rewards and arithmetic; micro-batches are the laptop profile's. That makes
    one optimizer step a round, where TRL needs no pass for old log-probs. The paper's recipe makes
    eight (512 prompts of 4 completions a round, 256 completions a step), where all passes run, as
    they do with two. TRL gets paths instead of pictures too, which is more than its users give it.
    Every training has a process of its own; what that does once, such as imports, and loading a
    model are not timed. On a machine that has other work, only the ratios say something.

    Args:
        generations: G, completions a prompt; a run for each with each of `sides` and `steps`.
        sides: pictures are enlarged to this many pixels a side.
        steps: optimizer steps a sampling round.
        prompts: of a sampling round. rounds: sampling rounds of a run.
        tokens: of a completion at most. By default both are the laptop profile's.
        mode: full or lora. model: checkpoint.
        fast: the paths of `train/fast.py` that ours takes; by default the profile's.
    Returns:
        `speed`: a row for each G, side and steps; `same completions`: share that both sampled
            alike; `difference`: the largest of `COMPARED` over all steps, where all are the same.
    """
    speed = []
    with tempfile.TemporaryDirectory() as folder:
        sources = list(microworld.SOURCES)
        made = microworld.write_split(folder, sources, "train", -(-prompts * rounds // 9), seed)
        for g, side, many in itertools.product(generations, sides, steps):
            cfg = _settings(g, side, many, prompts, rounds, tokens, mode, model, seed, fast)
            given = cfg, made, Path(folder), cfg.grpo.fast
            runs = in_turn(lambda who, given=given: afresh(_measured, who, *given), repeats)
            case = {"G": g, "side px": side, "steps a round": many}
            speed.append(case | _compare(runs, cfg.grpo.rollouts * rounds))
    return {
        "benchmark": "grpo", "peer": "TRL GRPOTrainer", "model": model, "mode": mode, "seed": seed,
        "repeats": repeats, "prompts": prompts, "rounds": rounds, "completion tokens": tokens,
        "cores": os.cpu_count(), "device": device(), "speed": speed,
    }  # fmt: skip


def brevity(completions: list, **columns: Any) -> list[float]:
    """Reward short completions, so that every group has a spread and no loss compared is 0."""
    return [1 / (1 + len(said[0]["content"])) for said in completions]


def _settings(
    g: int, side: int, steps: int, prompts: int, rounds: int, tokens: int, mode: str, model: str,
    seed: int, fast: list[str] | None = None,
) -> profiles.Settings:  # fmt: skip
    batch, laptop = prompts * g // steps, profiles.load("laptop")
    values = {
        "model": {"policy": model, "min_pixels": side * side, "max_pixels": side * side},
        "grpo": {
            "mode": mode, "num_generations": g, "rollout_prompts": prompts, "train_batch": batch,
            "per_device_batch": math.gcd(batch, laptop.grpo.per_device_batch),
            "max_steps": steps * rounds, "max_completion_tokens": tokens,
            "kl": "fixed", "save_rounds": 0, "warmup": 0.0,  # the first step moves the policy
            "fast": laptop.grpo.fast if fast is None else fast,
        },
    }  # fmt: skip
    return profiles.load("laptop", seed=seed, **values)


def _measured(
    who: str, cfg: profiles.Settings, made: list, folder: Path, paths: list[str]
) -> dict[str, Any]:
    """Train once, after a training so short that what a process does once is all it shows."""
    m, g = cfg.model, cfg.grpo
    side = math.isqrt(m.min_pixels)
    _run(who, _settings(2, side, 1, 2, 1, 4, g.mode, m.policy, cfg.seed), made, folder, paths)
    return _run(who, cfg, made, folder, paths)


def _run(
    who: str, cfg: profiles.Settings, made: list, folder: Path, paths: list[str]
) -> dict[str, Any]:
    """Train once; return seconds, peak memory, the log, completions and all tokens."""
    import torch
    from trl import GRPOTrainer

    from vlaa_lib.train import data
    from vlaa_lib.train.grpo import grpo_config
    from vlaa_lib.train.trainer import TracingGRPOTrainer

    m, mode = cfg.model, cfg.grpo.mode
    policy = models.load_policy(m.policy, mode, m.max_pixels, m.min_pixels, "float32")
    rows, _ = data.rows(made, folder / "images", folder / "fitted", with_trace=False)
    trainer = (TracingGRPOTrainer if who == OURS else GRPOTrainer)(
        model=policy.model,
        args=grpo_config(cfg, folder / "out", policy),
        train_dataset=data.table(rows),
        reward_funcs=[rewards.mixed_reward, brevity],
        processing_class=policy.processor,
        peft_config=models.adapter(mode),
    )
    trainer.fast = paths
    said: list[list[int]] = []
    turn = trainer._generate_single_turn

    def sampled(*args: Any, **kwargs: Any) -> Any:
        found = turn(*args, **kwargs)
        said.extend(found[0])
        return found

    trainer._generate_single_turn = sampled
    with peak() as memory:
        start = time.perf_counter()
        trainer.train()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    log = [row for row in trainer.state.log_history if "loss" in row]
    tokens = max(row.get("num_tokens", 0) for row in log)  # of prompts and completions
    return {"seconds": seconds, "memory": memory, "log": log, "said": said, "tokens": tokens}


def _compare(runs: dict[str, list[dict]], samples: int) -> dict[str, Any]:
    """Return one row: samples a second and memory of both, and how equal the trainings were."""
    one, two = runs[OURS][0], runs[TRL][0]
    same = [a == b for a, b in zip(one["said"], two["said"], strict=True)]
    difference = max(
        abs(a[key] - b[key])
        for a, b in zip(one["log"], two["log"], strict=True)
        for key in COMPARED
        if key in a and key in b
    )
    row = compared(
        samples,
        {who: [run["seconds"] for run in found] for who, found in runs.items()},
        {who: [run["memory"]["mib"] for run in found] for who, found in runs.items()},
    )
    row["ours tokens a second"] = round(two["tokens"] / samples * row["ours a second"])
    row["same completions"] = round(statistics.mean(same), 4)
    row["difference"] = float(f"{difference:.1e}")
    return row

