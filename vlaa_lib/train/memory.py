"""The memory of a training by phase and part, in bytes a GPU; all arithmetic.

What it rests on is in `tests/test_plan.py`: weights, gradients, optimizer and activations are held
there to what the pocket VLM really takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vlaa_lib import models
from vlaa_lib.profiles import Settings

from .checkpoints import KEPT
from .shapes import Shape

SHARDINGS = ("ddp", "zero2", "zero3", "fsdp2")
GB = 1e9
USABLE = 0.95  # ours: the allocator fragments; a peak above this share of a card does not fit
RUNTIME_BYTES = 1.0 * GB  # ours: CUDA context, libraries, NCCL buffers
REWARD_MODEL_BYTES = 17 * GB  # InternLM-XComposer2.5-7B-Reward in half precision; not measured
NF4_BYTES = 0.5 + 0.127 / 8  # a weight: 4 bits, and doubly quantised constants of blocks of 64
VLLM_SHARE = 0.3  # TRL default of vllm_gpu_memory_utilization; held all the time (no sleep mode)
HEAD_TOKENS, HEAD_WORDS = 4096, 32_768  # TRL 1.16: one tile of the fused head


@dataclass(frozen=True)
class Setup:
    """What is to be planned: settings, machine, and what is assumed."""

    cfg: Settings
    method: str  # sft or grpo
    shape: Shape
    gpus: int
    sharding: str
    card_gb: float
    records: int
    reward_model: str = "none"  # none, parked (on the card only while scoring) or on
    keep: int = KEPT  # checkpoints on disk at a time
    checkpointing: bool = True  # activations recomputed: `trainer_args` does so on GPUs
    width: int = 2  # bytes of a value in computation: 2 = bf16, 4 = a CPU's fp32

    @property
    def section(self) -> Any:
        return self.cfg.sft if self.method == "sft" else self.cfg.grpo

    @property
    def mode(self) -> str:
        return self.section.mode

    @property
    def sequence(self) -> int:
        """Tokens of the longest row that memory must hold."""
        if self.method == "sft":
            return self.cfg.sft.max_tokens
        return self.cfg.grpo.max_prompt_tokens + self.cfg.grpo.max_completion_tokens

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return self.shape.trained(self.mode, 0 if self.mode == "full" else _rank(self.mode))

    @property
    def has_reference(self) -> bool:
        """Whether a second model is held; an adapter is switched off instead."""
        return self.method == "grpo" and self.mode == "full" and self.cfg.grpo.kl != "off"

    @property
    def shards(self) -> int:
        """Over how many GPUs the weights are spread."""
        return self.gpus if self.sharding in ("zero3", "fsdp2") else 1


def _rank(mode: str) -> int:
    return models.adapter(mode).r


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
    return {
        "weights": (s.trained * weight + base) / s.shards,
        "gradients": s.trained * gradient / spread,
        "optimizer": s.trained * optimizer / spread,
        "reference": s.shape.total * copy / s.shards if s.has_reference else 0.0,
    }


def layer_bytes(s: Setup) -> float:
    """Return what one layer keeps for the backward pass, in bytes a token.

    Two norms (input in fp32, normalised, scaled), query, key, value, attention's output, the
    MLP's gate, its activation, up and product; with adapters their inner values instead of what
    only the norms' own gradients need.
    """
    hidden = 6 if s.mode == "full" else 4
    inner = 0 if s.mode == "full" else 7 * _rank(s.mode)
    shape = s.shape
    values = 4 * shape.mlp + hidden * shape.hidden + 2 * shape.kv_width + inner
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


def head_bytes(s: Setup) -> float:
    """Return bytes of TRL's fused head: one tile of logits, and its weights' fp32 gradient."""
    tokens = s.section.per_device_batch * s.cfg.grpo.max_completion_tokens
    tile = min(tokens, HEAD_TOKENS) * min(s.shape.vocabulary, HEAD_WORDS) * s.width
    return tile + (s.shape.vocabulary * s.shape.hidden * 4 if s.mode == "full" else 0)


def memory(s: Setup) -> dict[str, dict[str, float]]:
    """Return bytes a GPU: phase -> part -> bytes. SFT has the one phase `training`."""
    held = states(s) | {"runtime": RUNTIME_BYTES}
    if s.shards > 1:  # the layer in use, the next one and the embeddings are there in whole
        layers = 2 * s.shape.linears / s.shape.layers
        held["gathered weights"] = 2 * (layers + s.shape.embeddings)
    training = {"activations": activations(s), "logits": head_bytes(s)}
    if s.method == "sft":
        return {"training": held | training}
    g, tokens = s.cfg.grpo, s.section.per_device_batch * s.sequence
    if g.sampler == "vllm-colocate":
        held["vLLM"] = VLLM_SHARE * s.card_gb * GB
    if s.reward_model == "on":
        held["reward model"] = REWARD_MODEL_BYTES
    sampling: dict[str, float] = {}
    if g.sampler == "transformers":  # all local completions in one call, logits in fp32
        if s.shards > 1:
            sampling["gathered weights"] = s.shape.total * 2.0
        local = math.ceil(g.rollouts / s.gpus)
        cache = local * s.sequence * s.shape.kv_bytes_per_token(s.width)
        sampling |= {"KV cache": cache, "logits": local * s.shape.vocabulary * 4.0}
    scoring = {"activations": tokens * layer_bytes(s), "logits": head_bytes(s)}
    if s.reward_model == "parked":
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
    pool = VLLM_SHARE * s.card_gb * GB - 2 * s.shape.total
    one = s.sequence * s.shape.kv_bytes_per_token()
    if s.method == "grpo" and s.cfg.grpo.sampler == "vllm-colocate" and pool < one + RUNTIME_BYTES:
        found.append(
            f"vLLM's share, {VLLM_SHARE:.0%} of {s.card_gb:g} GB, cannot hold the policy "
            f"({2 * s.shape.total / GB:.1f} GB) and one sequence"
        )
    return found
