"""Who samples the completions of GRPO: transformers, or vLLM beside the trainer or in a server."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from vlaa_lib import VlaaError
from vlaa_lib.models import Policy
from vlaa_lib.profiles import Settings

MEMORY_SHARE = 0.3  # TRL default: of a GPU, for a colocated vLLM's weights and KV cache


def sampler_args(cfg: Settings, policy: Policy) -> dict[str, Any]:
    """Return the arguments of `GRPOConfig` for `grpo.sampler`, with what must never go wrong.

    vLLM samples from its own copy of the weights, which TRL renews after every optimizer step
    that a sampling round follows; adapters are merged into that copy.

    Raises:
        VlaaError: a sampler that cannot work with these settings or on this machine.
        ValueError: prompts would be padded on the right.
    """
    g = cfg.grpo
    processor = policy.processor
    if (side := processor.tokenizer.padding_side) != "left":
        raise ValueError(
            f"the tokenizer pads on the {side}, between a prompt and its completion; load it with "
            "models.load_processor"
        )
    # a sampled one would ask for image features that are not there
    banned = [processor.image_token_id, processor.video_token_id]
    banned = [token for token in banned if token is not None]
    common = {
        "temperature": g.temperature,
        "top_p": 1.0,  # TRL default, said aloud: sample from the whole distribution
        "top_k": 0,  # TRL default
        "max_completion_length": g.max_completion_tokens,
    }
    if g.sampler == "transformers":
        return common | {"generation_kwargs": {"suppress_tokens": banned}}
    _check_vllm(cfg)
    args = common | {
        "use_vllm": True,
        "vllm_mode": g.sampler.removeprefix("vllm-"),
        # vLLM has no `suppress_tokens`; -100 is the lowest bias that it takes
        "generation_kwargs": {"logit_bias": dict.fromkeys(banned, -100.0)},
        # TRL default: weights a completion by how far vLLM's probabilities are from the trainer's,
        # and logs the distance (sampling/...)
        "vllm_importance_sampling_correction": True,
    }
    if g.sampler == "vllm-server":
        return args | {"vllm_server_base_url": g.sampler_url}
    return args | {
        "vllm_gpu_memory_utilization": MEMORY_SHARE,
        "vllm_max_model_length": g.max_prompt_tokens + g.max_completion_tokens,
        "vllm_enable_sleep_mode": True,  # ours: between rounds the memory is the trainer's
    }


def _check_vllm(cfg: Settings) -> None:
    """Refuse vLLM where it is missing or would sample from other weights than the policy's."""
    g = cfg.grpo
    if g.mode == "4bit":
        raise VlaaError(
            f"grpo.sampler: {g.sampler} needs whole weights, and merging an adapter into packed "
            "4-bit ones rounds it away; set grpo.sampler: transformers or grpo.mode: lora"
        )
    if g.sampler == "vllm-server" and not g.sampler_url.startswith(("http://", "https://")):
        raise VlaaError(
            f"grpo.sampler_url: {g.sampler_url!r} is no address; e.g. http://localhost:8000"
        )
    if find_spec("vllm") is None:  # a server's client needs it too, to send the weights
        raise VlaaError(
            f"grpo.sampler: {g.sampler} needs vLLM, which is not installed; "
            "pip install 'vlaa_lib[vllm]', or set grpo.sampler: transformers"
        )
