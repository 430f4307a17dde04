"""Plan a training before it starts: memory, batches, steps, tokens, hours, disk."""

from __future__ import annotations

import json
import math
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from itertools import combinations
from typing import Any

from vlaa_lib import ROOT, folders, profiles, records
from vlaa_lib.profiles import Settings
from vlaa_lib.sources import fetch

from .memory import GB, SHARDINGS, Setup, memory, problems, states
from .shapes import shape_of, visual_tokens

CARD_GB = {"full": 80, "lora": 24, "4bit": 16}  # ours: the cards that the profiles are made for
# ours: sizes of CLEVR, COCO and a scanned page, three of the paper's sources
PICTURES = ((480, 320), (640, 480), (1700, 2200))
TEXT_TOKENS = 150  # ours: the system prompt and a question, without the picture
COMPLETION_SHARE = 0.5  # ours, assumed until measured: the mean length over the longest allowed
PEAK_FLOPS = 989e12  # one H100 SXM, bf16 without sparsity, the paper's card
SAMPLING_SLOWDOWN = 10  # ours, assumed: sampling waits for memory, not for arithmetic
SMALLEST_FOR_FLOPS = 0.3e9  # below, overheads and not arithmetic take the time
PAPER_RECORDS = {"sft": 126_413, "grpo": 25_195}  # paper table 1


class PlanError(ValueError):
    """A plan whose numbers cannot work together; the message names numbers that do."""


def batches(s: Setup) -> dict[str, int]:
    """Return the batch triple.

    Raises:
        PlanError: it does not divide; the message names GPUs and batch sizes that do.
    """
    each, key = s.section.per_device_batch, "global_batch" if s.method == "sft" else "train_batch"
    whole = getattr(s.section, key)
    if whole % (each * s.gpus) == 0:
        accumulation = whole // (each * s.gpus)
        return {"per_device": each, "accumulation": accumulation, "gpus": s.gpus, "batch": whole}
    fewer = max(n for n in range(1, s.gpus) if whole % (each * n) == 0)  # 1 always does
    more = next((n for n in range(s.gpus, whole + 1) if whole % (each * n) == 0), None)
    remedies = [f"--gpus {fewer}" + (f" or {more}" if more else "")]
    if sizes := [str(b) for b in range(1, each) if whole % (b * s.gpus) == 0]:
        remedies.append(f"{s.method}.per_device_batch={' or '.join(sizes)}")
    step = each * s.gpus
    around = {whole // step * step, (whole // step + 1) * step} - {0}
    if s.method == "grpo":
        around = {n for n in around if s.cfg.grpo.rollouts % n == 0}
    remedies += [f"{s.method}.{key}={n}" for n in sorted(around)]
    raise PlanError(
        f"{s.method}.{key}: {whole} is not per_device_batch {each} x accumulation x {s.gpus} GPUs; "
        f"these work: {'; '.join(remedies)}"
    )


def advice(s: Setup, most: int = 3) -> list[str]:
    """Return changes after which everything fits, each tried by the same arithmetic."""
    changes = list(_changes(s))
    for count in (1, 2, 3):
        found = []
        for chosen in combinations(changes, count):
            changed = s
            for _, _, change in chosen:
                changed = change(changed)
            # two of a kind undo each other
            if len({kind for _, kind, _ in chosen}) == count and _is_possible(changed):
                found.append(" and ".join(text for text, _, _ in chosen))
        if found:
            return found[:most]
    return []


def _is_possible(s: Setup) -> bool:
    try:
        check(s)
        return not problems(s)
    except PlanError:
        return False


def _changes(s: Setup) -> Iterator[tuple[str, str, Callable[[Setup], Setup]]]:
    """Yield (what to do, kind, how), the least harmful first."""

    def setting(**values: Any) -> Callable[[Setup], Setup]:
        def change(t: Setup) -> Setup:
            section = replace(t.section, **values)
            return replace(t, cfg=replace(t.cfg, **{t.method: section}))

        return change

    if s.reward_model == "on":
        yield "--reward-model parked", "reward", lambda t: replace(t, reward_model="parked")
    if s.reward_model != "none":
        text = "--reward-model none (score open answers elsewhere, or take them off grpo.parts)"
        yield text, "reward", lambda t: replace(t, reward_model="none")
    if s.gpus > 1 and s.shards == 1 and s.mode != "4bit":
        for name in ("fsdp2", "zero3"):
            yield f"--sharding {name}", "sharding", lambda t, n=name: replace(t, sharding=n)
    each = s.section.per_device_batch
    for batch in [n for n in range(each // 2, 0, -1) if each % n == 0]:
        change = setting(per_device_batch=batch)
        yield f"lower {s.method}.per_device_batch to {batch}", "batch", change
    if s.method == "grpo":
        if s.cfg.grpo.sampler == "vllm-colocate":
            change = setting(sampler="vllm-server")
            yield "grpo.sampler vllm-server, on other GPUs", "sampler", change
        prompts = s.cfg.grpo.rollout_prompts
        for less in (prompts // 2, prompts // 4, prompts // 8):
            change = setting(rollout_prompts=less)
            yield f"lower grpo.rollout_prompts to {less}", "round", change
    for mode in profiles.MODES[profiles.MODES.index(s.mode) + 1 :]:
        if mode == "lora" or s.sharding == "ddp":
            yield f"{s.method}.mode {mode}", "mode", setting(mode=mode)
    sharding = "ddp" if s.mode == "4bit" else "fsdp2" if s.shards == 1 else s.sharding
    for gpus in (s.gpus * 2, s.gpus * 4, s.gpus * 8):
        text = f"--gpus {gpus}" + (f" --sharding {sharding}" if sharding != s.sharding else "")
        yield text, "gpus", lambda t, n=gpus: replace(t, gpus=n, sharding=sharding)


def check(s: Setup) -> None:
    """Refuse what cannot run at all.

    Raises:
        PlanError: batches that do not divide, too few records, 4 bit with sharded weights.
    """
    for name, value in (("gpus", s.gpus), ("records", s.records), ("card-gb", s.card_gb)):
        if not value > 0:
            raise PlanError(f"--{name}: {value} must be above 0")
    if s.sharding not in SHARDINGS:
        raise PlanError(f"sharding {s.sharding!r}; use one of {', '.join(SHARDINGS)}")
    batches(s)
    if s.mode == "4bit" and s.sharding != "ddp":
        raise PlanError(f"--sharding {s.sharding}: 4-bit weights are not sharded; use ddp")
    g = s.cfg.grpo
    if s.method == "grpo":
        if not g.rollouts or g.rollouts % g.train_batch:
            raise PlanError(f"grpo.train_batch: {g.rollouts} completions a round are no multiple")
        if s.records < g.rollout_prompts:
            raise PlanError(
                f"{s.records} records are fewer than one sampling round's {g.rollout_prompts} "
                f"prompts; lower grpo.rollout_prompts, or take --records {g.rollout_prompts}"
            )


def workload(s: Setup, prompt_tokens: int) -> dict[str, int]:
    """Return sampling rounds, optimizer steps and tokens of the whole run."""
    g, mean = s.cfg.grpo, round(COMPLETION_SHARE * s.cfg.grpo.max_completion_tokens)
    if s.method == "sft":
        steps = math.ceil(math.ceil(s.records / s.cfg.sft.global_batch) * s.cfg.sft.epochs)
        rows = math.ceil(s.records * s.cfg.sft.epochs)
        if s.cfg.sft.max_steps > 0:
            steps, rows = s.cfg.sft.max_steps, s.cfg.sft.max_steps * s.cfg.sft.global_batch
        return {"optimizer steps": steps, "tokens trained": rows * (prompt_tokens + mean)}
    # TRL drops an epoch's last, partial round
    steps = math.ceil(g.epochs * (s.records // g.rollout_prompts) * g.steps_per_round)
    steps = g.max_steps if g.max_steps > 0 else steps
    rounds = math.ceil(steps / g.steps_per_round)
    return {
        "sampling rounds": rounds,
        "optimizer steps": steps,
        "tokens generated": rounds * g.rollouts * mean,
        "tokens trained": steps * g.train_batch * (prompt_tokens + mean),
    }


def hours(s: Setup, work: dict[str, int], tokens_per_second: float | None, mfu: float) -> str:
    """Say how long the run takes, and what that rests on."""
    trained, made = work["tokens trained"], work.get("tokens generated", 0)
    if tokens_per_second:
        found = trained / tokens_per_second / 3600
        return f"{found:.2f} hours at the stated {tokens_per_second:g} trained tokens a second"
    if s.shape.total < SMALLEST_FOR_FLOPS:
        return "hours: the policy is too small for an estimate; measure --tokens-per-second"
    passes = 1 + (2 if s.mode == "full" else 1) + s.checkpointing
    if s.method == "grpo":  # log-probabilities of the reference, and of the old policy
        passes += (s.cfg.grpo.kl != "off") + (s.cfg.grpo.steps_per_round > 1)
    flops = 2 * s.shape.total * (trained * passes + made * SAMPLING_SLOWDOWN)
    found = flops / (mfu * PEAK_FLOPS * s.gpus) / 3600
    return (
        f"{found:.1f} hours, an estimate: {mfu:.0%} of an H100's arithmetic in training and a "
        "tenth of that in sampling, rewards not counted; measured ones by --tokens-per-second"
    )


def disk(s: Setup, steps: int) -> dict[str, float]:
    """Return bytes of one checkpoint (weights and optimizer) and of all that are kept."""
    unsharded = states(replace(s, gpus=1))
    weights = s.trained * 4.0 if s.mode != "full" else unsharded["weights"]
    if s.sharding == "fsdp2":
        weights *= 2  # model.safetensors and pytorch_model_fsdp.bin
    one = weights + unsharded["optimizer"]
    every = s.cfg.sft.save_steps
    if s.method == "grpo":
        every = s.cfg.grpo.save_rounds * s.cfg.grpo.steps_per_round
    kept = min(s.keep, steps // every) if every else 0
    return {"one": one, "number": kept, "kept": one * kept}


def plan(
    s: Setup,
    pictures: Iterable[tuple[int, int]] = PICTURES,
    tokens_per_second: float | None = None,
    mfu: float = 0.3,
) -> dict[str, Any]:
    """Plan a training; everything in it can be written as JSON, bytes as numbers.

    Args:
        pictures: sizes (px) of the pictures to expect.
        tokens_per_second: measured, trained tokens on all GPUs, sampling and scoring included.
        mfu: share of the card's arithmetic that training reaches, if nothing was measured.
    Raises:
        PlanError: numbers that cannot work together.
    """
    check(s)
    m = s.cfg.model
    seen = visual_tokens(pictures, m.min_pixels, m.max_pixels, s.shape.pixels_per_token)
    prompt = min(TEXT_TOKENS + seen["median"], s.cfg.grpo.max_prompt_tokens)
    work = workload(s, prompt)
    phases, wrong = memory(s), problems(s)
    tried = advice(s) if wrong else []
    if TEXT_TOKENS + seen["max"] > s.cfg.grpo.max_prompt_tokens:
        wrong.append(
            f"prompts of about {TEXT_TOKENS + seen['max']} tokens pass grpo.max_prompt_tokens "
            f"{s.cfg.grpo.max_prompt_tokens}; such records are left out, or lower model.max_pixels"
        )
    return {
        "shape": asdict(s.shape),
        "method": s.method,
        "mode": s.mode,
        "sharding": s.sharding,
        "card_gb": s.card_gb,
        "records": s.records,
        "trained_parameters": s.trained,
        "visual_tokens": seen,
        "prompt_tokens": prompt,
        "longest_sequence": s.sequence,
        "batches": batches(s),
        "work": work,
        "memory_bytes": phases,
        "peak_bytes": {phase: sum(parts.values()) for phase, parts in phases.items()},
        "disk_bytes": disk(s, work["optimizer steps"]),
        "hours": hours(s, work, tokens_per_second, mfu),
        "problems": wrong,
        "advice": tried,
    }


def number_of_records(cfg: Settings, method: str) -> tuple[int, str]:
    """Count the records that a profile trains on, and say how that is known."""
    if not cfg.data.folder:
        each = cfg.data.construct_per_source if method == "sft" else cfg.data.rl_per_source
        return each * len(cfg.data.sources), "of the micro-world, as the profile says"
    file = fetch.split_file(ROOT / cfg.data.folder, "sft" if method == "sft" else "rl")
    if file.is_file():
        with file.open(encoding="utf-8") as stream:
            return sum(1 for _ in records.iter_json(stream)), f"in {file}"
    return PAPER_RECORDS[method], f"in the paper's table 1: there is no {file} yet"


def main(args: Namespace, show: Callable[[list[dict[str, Any]]], None]) -> int:
    """Run `python -m vlaa_lib plan`; 1 where something does not fit."""
    cfg = args.cfg
    mode = (cfg.sft if args.method == "sft" else cfg.grpo).mode
    known = number_of_records(cfg, args.method)
    # paper C.1: on the CPU between scorings; facts and judges take no room here
    is_scored_here = cfg.grpo.reward_model == "xcomposer" and "open" in cfg.grpo.parts
    is_scored_here = is_scored_here and args.method == "grpo"
    s = Setup(
        cfg=cfg,
        method=args.method,
        shape=shape_of(args.model or cfg.model.policy),
        gpus=args.gpus,
        sharding=args.sharding or ("fsdp2" if mode == "full" and args.gpus > 1 else "ddp"),
        card_gb=CARD_GB[mode] if args.card_gb is None else args.card_gb,
        records=known[0] if args.records is None else args.records,
        reward_model=args.reward_model or ("parked" if is_scored_here else "none"),
        keep=args.keep,
    )
    sizes = [_size(text) for text in args.pictures] or PICTURES
    made = plan(s, sizes, args.tokens_per_second, args.mfu)
    made["records_from"] = "as stated" if args.records else known[1]
    if args.json:
        folders.write_text(args.json, json.dumps(made, indent=1) + "\n")
    _print(s, made, show)
    return 1 if made["problems"] else 0


def _size(text: str) -> tuple[int, int]:
    if match := re.fullmatch(r"(\d+)x(\d+)", text):
        return int(match[1]), int(match[2])
    raise ValueError(f"--pictures: {text!r}; write width x height in pixels, e.g. 640x480")


def _print(s: Setup, made: dict[str, Any], show: Callable[[list[dict[str, Any]]], None]) -> None:
    """Print a plan as tables and sentences."""
    shape, batch, seen, saved = s.shape, made["batches"], made["visual_tokens"], made["disk_bytes"]
    parts = {
        "total": shape.total,
        "vision tower, frozen": shape.vision,
        "language linears": shape.linears,
        "embeddings and head": shape.embeddings,
        f"trained ({s.mode})": s.trained,
    }
    print(f"{shape.name}, {s.method}, {s.gpus} x {s.card_gb:g} GB, sharding {s.sharding}")
    print(f"parameters from {shape.origin}; all below is arithmetic, an estimate\n")
    show([{"parameters": name, "millions": round(n / 1e6, 2)} for name, n in parts.items()])
    names = dict.fromkeys(name for own in made["memory_bytes"].values() for name in own)
    rows = [
        {"GB a GPU": name}
        | {phase: round(own.get(name, 0) / GB, 3) for phase, own in made["memory_bytes"].items()}
        for name in names
    ]
    peaks = {phase: round(n / GB, 3) for phase, n in made["peak_bytes"].items()}
    print()
    show([*rows, {"GB a GPU": "peak"} | peaks])
    print(
        f"\nrows of {s.sequence} tokens at most; a picture takes {seen['min']} to {seen['max']} "
        f"tokens, median {seen['median']}; a prompt about {made['prompt_tokens']}"
        f"\nbatch {batch['batch']} = {batch['per_device']} a GPU x {batch['accumulation']} "
        f"accumulated x {batch['gpus']} GPUs"
        f"\n{s.records:,} records ({made['records_from']}): "
        + ", ".join(f"{n:,} {name}" for name, n in made["work"].items())
        + f" (completions taken as {COMPLETION_SHARE:.0%} of the longest)"
        f"\n{made['hours']}"
        f"\ncheckpoints: {saved['one'] / GB:.2f} GB each, {saved['number']} kept, "
        f"{saved['kept'] / GB:.2f} GB of disk"
    )
    for problem in made["problems"]:
        print(f"does not fit: {problem}")
    for remedy in made["advice"]:
        print(f"would fit: {remedy}")
    if s.reward_model == "none" and s.method == "grpo" and "open" in s.cfg.grpo.parts:
        print("no reward model is counted for open answers; the paper's: --reward-model parked")
    if not made["problems"]:
        print("verdict: fits")
    elif not made["advice"]:
        print("nothing that was tried makes it fit: take a smaller policy or larger cards")
