"""Plan a training before it starts: memory, batches, steps, tokens, hours, disk; all arithmetic.

`tests/test_plan.py` holds weights, gradients, optimizer and activations to what the pocket VLM
really takes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from vlaa_lib import ROOT, VlaaError, models, records
from vlaa_lib.profiles import Settings, accumulation
from vlaa_lib.sources import fetch

from .checkpoints import KEPT
from .grpo import MEMORY_SHARE
from .shapes import Shape, shape_of, visual_tokens

CARD_GB = {"full": 80, "lora": 24, "4bit": 16}  # ours: the cards that the profiles are made for
GB = 1e9
USABLE = 0.95  # ours: the allocator fragments; a peak above this share of a card does not fit
RUNTIME_BYTES = 1.0 * GB  # ours: CUDA context, libraries, NCCL buffers
REWARD_MODEL_BYTES = 17 * GB  # InternLM-XComposer2.5-7B-Reward in half precision; not measured
NF4_BYTES = 0.5 + 0.127 / 8  # a weight: 4 bits, and doubly quantised constants of blocks of 64
HEAD_TOKENS, HEAD_WORDS = 4096, 32_768  # TRL 1.16: one tile of the fused head
TEXT_TOKENS = 150  # ours: the system prompt and a question, without the picture
COMPLETION_SHARE = 0.5  # ours, assumed until measured: the mean length over the longest allowed
PEAK_FLOPS = 989e12  # one H100 SXM, bf16 without sparsity, the paper's card
MFU = 0.3  # ours, assumed: share of that arithmetic which training reaches
SMALLEST_FOR_FLOPS = 0.3e9  # below, overheads and not arithmetic take the time
SAMPLING_SLOWDOWN = 10  # ours, assumed: sampling waits for memory, not for arithmetic
PAPER_RECORDS = {"sft": 126_413, "grpo": 25_195}  # paper table 1

# --- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What is to be planned: settings, machine, and what is assumed."""

    cfg: Settings
    method: str  # sft or grpo
    shape: Shape
    gpus: int
    sharding: str  # ddp, zero2, zero3 or fsdp2
    card_gb: float
    records: int
    reward_model: bool = False  # on the card while scoring
    checkpointing: bool = True  # activations recomputed: `trainer_args` does so on GPUs
    width: int = 2  # bytes of a value in computation: 2 = bf16, 4 = a CPU's fp32

    @property
    def section(self) -> Any:
        return self.cfg.sft if self.method == "sft" else self.cfg.grpo

    @property
    def mode(self) -> str:
        return self.section.mode

    @property
    def rank(self) -> int:
        return 0 if self.mode == "full" else models.adapter(self.mode).r

    @property
    def sequence(self) -> int:
        """Tokens of the longest row that memory must hold."""
        if self.method == "sft":
            return self.cfg.sft.max_tokens
        return self.cfg.grpo.max_prompt_tokens + self.cfg.grpo.max_completion_tokens

    @property
    def trained(self) -> int:
        return self.shape.trained(self.mode, self.rank)

    @property
    def shards(self) -> int:
        """Over how many GPUs the weights are spread."""
        return self.gpus if self.sharding in ("zero3", "fsdp2") else 1


def states(s: Setup) -> dict[str, float]:
    """Return bytes a GPU of weights, gradients, optimizer (AdamW) and reference."""
    fine = 2 if s.mode == "4bit" else 4  # TRL keeps a quantised model's adapter in bf16
    weight, gradient, optimizer = fine, fine, 2 * fine
    if s.sharding.startswith("zero"):  # bf16 copies; master weights count as optimizer
        weight, gradient, optimizer = 2, 2, 12
    # full training loads everything in fp32 for autocast; ZeRO's engine holds bf16 instead
    copy = 4 if s.mode == "full" and not s.sharding.startswith("zero") else s.width
    frozen = s.shape.total - (s.trained if s.mode == "full" else 0)
    nf4 = s.shape.linears if s.mode == "4bit" else 0
    base = (frozen - nf4) * copy + nf4 * NF4_BYTES
    spread = 1 if s.sharding == "ddp" else s.gpus
    # an adapter is switched off to be the reference
    has_reference = s.method == "grpo" and s.mode == "full" and s.cfg.grpo.kl != "off"
    return {
        "weights": (s.trained * weight + base) / s.shards,
        "gradients": s.trained * gradient / spread,
        "optimizer": s.trained * optimizer / spread,
        "reference": s.shape.total * copy / s.shards if has_reference else 0.0,
    }


def layer_bytes(s: Setup) -> float:
    """Return what one layer keeps for the backward pass, in bytes a token.

    Two norms (input in fp32, normalised, scaled), query, key, value, attention's output, the
    MLP's gate, its activation, up and product; with adapters their inner values instead of what
    only the norms' own gradients need.
    """
    hidden, shape = 6 if s.mode == "full" else 4, s.shape
    values = 4 * shape.mlp + hidden * shape.hidden + 2 * shape.kv_width + 7 * s.rank
    return values * s.width + 2 * shape.hidden * 4


def activations(s: Setup) -> float:
    """Return bytes a GPU for the backward pass of one micro-batch.

    With checkpointing each layer keeps its input, the last norm two values, or one where it is
    frozen, and one layer at a time is recomputed. The tower keeps none (`models.freeze_vision`).
    """
    tokens = s.section.per_device_batch * s.sequence
    if not s.checkpointing:
        return tokens * s.shape.layers * layer_bytes(s)
    kept = s.shape.layers + (2 if s.mode == "full" else 1)
    return tokens * (kept * s.shape.hidden * s.width + layer_bytes(s))


def memory(s: Setup) -> dict[str, dict[str, float]]:
    """Return bytes a GPU: phase -> part -> bytes. SFT has the one phase `training`."""
    g, shape, each = s.cfg.grpo, s.shape, s.section.per_device_batch
    held = states(s) | {"runtime": RUNTIME_BYTES}
    if s.shards > 1:  # the layer in use, the next one and the embeddings are there in whole
        held["gathered weights"] = 2 * (2 * shape.linears / shape.layers + shape.embeddings)
    # TRL's fused head: one tile of logits, and its weights' fp32 gradient
    scored = s.sequence if s.method == "sft" else g.max_completion_tokens  # tokens of a row
    tile = min(each * scored, HEAD_TOKENS) * min(shape.vocabulary, HEAD_WORDS)
    head = tile * s.width + (shape.vocabulary * shape.hidden * 4 if s.mode == "full" else 0)
    training = {"activations": activations(s), "logits": head}
    if s.method == "sft":
        return {"training": held | training}
    if g.sampler == "vllm-colocate":  # its share is TRL's, held all the time (no sleep mode)
        held["vLLM"] = MEMORY_SHARE * s.card_gb * GB
    sampling: dict[str, float] = {}
    if g.sampler == "transformers":  # all local completions in one call, logits in fp32
        if s.shards > 1:
            sampling["gathered weights"] = shape.total * 2.0
        local = math.ceil(g.rollouts / s.gpus)
        cache = local * s.sequence * shape.kv_bytes_per_token(s.width)
        sampling |= {"KV cache": cache, "logits": local * shape.vocabulary * 4.0}
    scoring = {"activations": each * s.sequence * layer_bytes(s), "logits": head}
    if s.reward_model:
        scoring["reward model"] = REWARD_MODEL_BYTES
    parts = {"sampling": sampling, "scoring": scoring, "training": training}
    return {phase: held | own for phase, own in parts.items()}


def problems(s: Setup) -> list[str]:
    """Say what does not fit on a card; nothing where all does."""
    found = []
    for phase, parts in memory(s).items():
        peak = sum(parts.values())
        if peak > USABLE * s.card_gb * GB:
            largest = sorted(parts, key=parts.__getitem__, reverse=True)[:2]
            named = ", ".join(f"{part} {parts[part] / GB:.1f}" for part in largest)
            found.append(f"{phase} takes {peak / GB:.1f} of {s.card_gb:g} GB a GPU (most: {named})")
    pool = MEMORY_SHARE * s.card_gb * GB - 2 * s.shape.total
    one = s.sequence * s.shape.kv_bytes_per_token()
    if s.method == "grpo" and s.cfg.grpo.sampler == "vllm-colocate" and pool < one + RUNTIME_BYTES:
        found.append(
            f"vLLM's share, {MEMORY_SHARE:.0%} of {s.card_gb:g} GB, cannot hold the policy "
            f"({2 * s.shape.total / GB:.1f} GB) and one sequence"
        )
    return found


# --- batches, steps, hours, disk -----------------------------------------------------------------


def batches(s: Setup) -> dict[str, int]:
    """Return the batch triple; refuse what cannot run at all, and name what would."""
    for name, value in (("gpus", s.gpus), ("records", s.records), ("card-gb", s.card_gb)):
        if not value > 0:
            raise VlaaError(f"--{name}: {value} must be above 0")
    key, rollouts, least = "sft.global_batch", 0, 1
    if s.method == "grpo":
        key, rollouts, least = "grpo.train_batch", s.cfg.grpo.rollouts, s.cfg.grpo.rollout_prompts
    each, whole = s.section.per_device_batch, getattr(s.section, key.partition(".")[2])
    steps = accumulation(whole, each, s.gpus, key, rollouts)
    if s.mode == "4bit" and s.sharding != "ddp":
        raise VlaaError(f"--sharding {s.sharding}: 4-bit weights are not sharded; use ddp")
    if s.records < least:
        raise VlaaError(
            f"{s.records} records are fewer than one sampling round's {least} prompts; lower "
            f"grpo.rollout_prompts, or take --records {least}"
        )
    return {"per_device": each, "accumulation": steps, "gpus": s.gpus, "batch": whole}


def workload(s: Setup, prompt_tokens: int) -> dict[str, int]:
    """Return sampling rounds, optimizer steps and tokens of the whole run."""
    own, g, mean = s.section, s.cfg.grpo, round(COMPLETION_SHARE * s.cfg.grpo.max_completion_tokens)
    if s.method == "sft":
        steps = math.ceil(math.ceil(s.records / own.global_batch) * own.epochs)
        rows = math.ceil(s.records * own.epochs)
        if own.max_steps > 0:
            steps, rows = own.max_steps, own.max_steps * own.global_batch
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


def hours(s: Setup, work: dict[str, int]) -> float | None:
    """Estimate the hours on H100s: arithmetic alone, at assumed shares of the peak; no rewards."""
    if s.shape.total < SMALLEST_FOR_FLOPS:
        return None
    passes = 1 + (2 if s.mode == "full" else 1) + s.checkpointing
    if s.method == "grpo":  # log-probabilities of the reference, and of the old policy
        passes += (s.cfg.grpo.kl != "off") + (s.cfg.grpo.steps_per_round > 1)
    tokens = work["tokens trained"] * passes + work.get("tokens generated", 0) * SAMPLING_SLOWDOWN
    return 2 * s.shape.total * tokens / (MFU * PEAK_FLOPS * s.gpus) / 3600


def disk(s: Setup, steps: int) -> dict[str, float]:
    """Return bytes of one checkpoint (weights and optimizer) and of all that are kept."""
    unsharded = states(replace(s, gpus=1))
    weights = s.trained * 4.0 if s.mode != "full" else unsharded["weights"]
    if s.sharding == "fsdp2":
        weights *= 2  # model.safetensors and pytorch_model_fsdp.bin
    one, every = weights + unsharded["optimizer"], s.cfg.sft.save_steps
    if s.method == "grpo":
        every = s.cfg.grpo.save_rounds * s.cfg.grpo.steps_per_round
    kept = min(KEPT, steps // every) if every else 0
    return {"one": one, "number": kept, "kept": one * kept}


# --- the whole -----------------------------------------------------------------------------------


def plan(s: Setup) -> dict[str, Any]:
    """Plan a training; everything in it can be written as JSON, bytes as numbers."""
    triple, longest = batches(s), s.cfg.grpo.max_prompt_tokens
    seen = visual_tokens(s.cfg.model, s.shape.pixels_per_token)
    prompt = min(TEXT_TOKENS + seen["median"], longest)
    work, phases, wrong = workload(s, prompt), memory(s), problems(s)
    if TEXT_TOKENS + seen["max"] > longest:
        wrong.append(
            f"prompts of about {TEXT_TOKENS + seen['max']} tokens pass grpo.max_prompt_tokens "
            f"{longest}; such records are left out, or lower model.max_pixels"
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
        "batches": triple,
        "work": work,
        "memory_bytes": phases,
        "peak_bytes": {phase: sum(parts.values()) for phase, parts in phases.items()},
        "disk_bytes": disk(s, work["optimizer steps"]),
        "h100_hours": hours(s, work),
        "problems": wrong,
    }


def setup_of(
    cfg: Settings, method: str, gpus: int, model: str | None = None, **stated: Any
) -> Setup:
    """Return what a profile means on a number of GPUs; what is stated, and not None, wins."""
    mode, g = getattr(cfg, method).mode, cfg.grpo
    usual = {
        "sharding": "fsdp2" if mode == "full" and gpus > 1 else "ddp",
        "card_gb": CARD_GB[mode],
        # paper C.1: on the CPU between scorings; facts and judges take no room here
        "reward_model": method == "grpo" and g.reward_model == "xcomposer" and "open" in g.parts,
    }
    stated = {name: value for name, value in stated.items() if value is not None}
    if "records" not in stated:
        stated["records"] = number_of_records(cfg, method)
    return Setup(cfg, method, shape_of(model or cfg.model.policy), gpus, **usual | stated)


def number_of_records(cfg: Settings, method: str) -> int:
    """Count the records that a profile trains on; without their file, those of the paper."""
    if not cfg.data.folder:
        each = cfg.data.construct_per_source if method == "sft" else cfg.data.rl_per_source
        return each * len(cfg.data.sources)
    file = fetch.split_file(ROOT / cfg.data.folder, "sft" if method == "sft" else "rl")
    return sum(1 for _ in records.iter_file(file)) if file.is_file() else PAPER_RECORDS[method]


def tables(made: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return a plan as two tables for people: GB a GPU by phase, and everything else by name."""
    phases, batch, saved = made["memory_bytes"], made["batches"], made["disk_bytes"]
    phases = {phase: parts | {"peak": made["peak_bytes"][phase]} for phase, parts in phases.items()}
    names = dict.fromkeys(name for parts in phases.values() for name in parts if name != "peak")
    rows = [
        {"GB a GPU": n} | {phase: round(p.get(n, 0) / GB, 3) for phase, p in phases.items()}
        for n in (*names, "peak")
    ]
    took = "the policy is too small for an estimate"
    if made["h100_hours"] is not None:
        took = (
            f"{made['h100_hours']:.1f}, an estimate: {MFU:.0%} of their arithmetic in training, "
            "a tenth of that in sampling, rewards not counted"
        )
    said = {
        "parameters": f"{made['shape']['total']:,}, from {made['shape']['origin']}",
        f"trained ({made['mode']})": f"{made['trained_parameters']:,}",
        "tokens": f"{made['longest_sequence']} in the longest row, {made['prompt_tokens']} in a "
                  f"prompt, {made['visual_tokens']['median']} in a picture",
        "batch": f"{batch['batch']} = {batch['per_device']} a GPU x {batch['accumulation']} "
                 f"accumulated x {batch['gpus']} GPUs",
        "records": f"{made['records']:,}",
        **{name: f"{n:,}" for name, n in made["work"].items()},
        "hours on H100s": took,
        "disk": f"{saved['number']} checkpoints of {saved['one'] / GB:.2f} GB",
    }  # fmt: skip
    return [rows, [{"": name, "plan": text} for name, text in said.items()]]
