"""Batched greedy generation: left-padded with Hugging Face models, or with vLLM."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib import VlaaError, prompts
from vlaa_lib.images import MAX_PIXELS, MIN_PIXELS, fit_image, open_image
from vlaa_lib.progress import progress_bar
from vlaa_lib.records import Record

if TYPE_CHECKING:
    from PIL import Image

    from vlaa_lib.models import Policy


@dataclass(frozen=True)
class Ask:
    """One question; its pictures stand before its text."""

    user: str
    system: str  # empty: the template's own
    images: tuple[str, ...]
    reply: str = ""  # what is generated goes on from it


@dataclass(frozen=True)
class Completion:
    """What a model said, how many tokens that took, and whether it was cut off by the limit."""

    text: str
    num_tokens: int
    is_truncated: bool


@dataclass(frozen=True)
class Limits:
    """How long replies get, how they are drawn, the bounds of a picture's area (px), precision."""

    max_new_tokens: int = prompts.MAX_NEW_TOKENS
    temperature: float = 0.0  # greedy; the kit's top_k 1 comes to the same
    repetition_penalty: float = 1.0  # VLMEvalKit; Qwen2.5-VL's own file has 1.05
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    dtype: str = "auto"  # of the weights, where a model is loaded for them


Complete = Callable[[list[Ask]], list[Completion]]  # one batch


def generate(
    policy: Policy,
    records: list[Record],
    images: str | Path,
    batch: int = 64,
    max_new_tokens: int = prompts.MAX_NEW_TOKENS,
    temperature: float = 0.0,
    blank: bool = False,
) -> list[str]:
    """Complete each record, asked as in training; `blank` shows grey pictures of the same sizes."""
    asks = [ask(record) for record in records]
    return answer(policy, asks, images, batch, max_new_tokens, temperature, blank)


def answer(
    policy: Policy,
    asks: list[Ask],
    images: str | Path,
    batch: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    blank: bool = False,
) -> list[str]:
    """Return the completions of asks, in their order; see `generate`."""
    texts, limits = [""] * len(asks), Limits(max_new_tokens, temperature)
    order = by_length([len(asked.user + asked.reply) for asked in asks], batch)
    for chosen in progress_bar(order, desc="generate", unit="batch", leave=False, delay=2):
        made = complete(policy, [asks[i] for i in chosen], images, limits, blank)
        for i, completion in zip(chosen, made, strict=True):
            texts[i] = completion.text
    return texts


def by_length(
    lengths: Sequence[int],
    rows: float = math.inf,
    tokens: float = math.inf,
    longest_first: bool = False,
) -> list[list[int]]:
    """Group positions of similar length: padding is work for nothing.

    At most `rows` in a group; rows times its longest at most `tokens`, but what is longer goes
    alone. `longest_first`: what does not fit the memory fails at once, not in the last hour.

    >>> by_length([3, 1, 2], rows=2), by_length([3, 9, 4, 4], tokens=8, longest_first=True)
    ([[1, 2], [0]], [[1], [2, 3], [0]])
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=longest_first):
        group = groups[-1] if groups else []
        longest = max(lengths[j] for j in (i, *group[:1]))  # it stands first or comes now
        if not group or len(group) >= rows or (len(group) + 1) * longest > tokens:
            groups.append([])
        groups[-1].append(i)
    return groups


def complete(
    policy: Policy, asks: list[Ask], images: str | Path, limits: Limits, blank: bool = False
) -> list[Completion]:
    """Answer one batch with a Hugging Face model."""
    import torch

    from vlaa_lib.train.decoding import decode

    policy.model.eval()
    sampling: dict[str, Any] = {"do_sample": False}
    if limits.temperature:
        sampling = {"do_sample": True, "temperature": limits.temperature, "top_k": 0}
    shown = [show(ask, images, limits, blank) for ask in asks]
    inputs = policy.processor(
        images=[picture for pictures in shown for picture in pictures],
        text=[render(policy.processor, ask) for ask in asks],
        padding=True,
        return_tensors="pt",
    ).to(policy.model.device)
    with torch.inference_mode():
        ids = policy.model.generate(
            **inputs,
            max_new_tokens=limits.max_new_tokens,
            **sampling,
            repetition_penalty=limits.repetition_penalty,  # whatever the checkpoint's file says
            use_cache=True,
            # a sampled image token would ask for features that are not there
            suppress_tokens=[policy.model.config.image_token_id],
            custom_generate=decode,
        )
    ids = ids[:, inputs["input_ids"].shape[1] :]  # [B, T]
    texts = policy.processor.batch_decode(ids, skip_special_tokens=True)
    ends = policy.model.generation_config.eos_token_id  # one, or several
    if ends is None:
        ends = policy.processor.tokenizer.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    return [_completion(text, row, ends) for text, row in zip(texts, ids.tolist(), strict=True)]


def _completion(text: str, ids: list[int], ends: set[int]) -> Completion:
    """Count tokens up to the first that ends the turn; without one it is cut off."""
    last = next((i for i, token in enumerate(ids) if token in ends), None)
    return Completion(text, len(ids) if last is None else last + 1, last is None)


def loaded(
    model: str | Path,
    images: str | Path,
    limits: Limits,
    mode: str = "full",
    backend: str = "hf",
    blank: bool = False,
) -> Complete:
    """Load a checkpoint, an adapter unmerged, or either in 4 bit; return what answers with it."""
    from vlaa_lib import models

    if backend == "vllm":
        if mode != "full":
            raise VlaaError(f"--mode {mode} is for --backend hf")
        return _vllm(models.resolve(model), images, limits, blank)
    given = mode, limits.max_pixels, limits.min_pixels, limits.dtype
    policy = models.load_policy(model, *given, merge=False)
    return lambda asks: complete(policy, asks, images, limits, blank)


def _vllm(path: str, images: str | Path, limits: Limits, blank: bool) -> Complete:
    """Load a checkpoint into vLLM, which batches by itself."""
    from vlaa_lib import models

    if (Path(path) / "adapter_config.json").is_file():
        raise VlaaError(f"{path} is an adapter; take --backend hf, or merge it first")
    try:
        from vllm import LLM, SamplingParams
    except ImportError:
        raise VlaaError(
            "vLLM is not installed; `pip install 'vlaa_lib[vllm]'` on Linux with a GPU, or take "
            "--backend hf"
        ) from None
    processor = models.load_processor(path, limits.max_pixels, limits.min_pixels)
    pixels = {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
    model = LLM(
        model=path,
        dtype=limits.dtype,
        mm_processor_kwargs=pixels,
        limit_mm_per_prompt={"video": 0},  # profiling a video costs start time
        max_model_len=-1,  # as long as the card has room for: 128,000 is refused on a small one
        **models.SAFE,
    )
    sampling = SamplingParams(
        temperature=limits.temperature,
        max_tokens=limits.max_new_tokens,
        repetition_penalty=limits.repetition_penalty,
        # a sampled one would ask for features that are not there; -100 is the lowest bias
        logit_bias={processor.image_token_id: -100.0},
        # a line break that ends a reply is part of it, as with Hugging Face; special tokens are not
        include_stop_str_in_output=True,
    )

    def answer(asks: list[Ask]) -> list[Completion]:
        inputs: list[Any] = [{
            "prompt": render(processor, ask),
            "multi_modal_data": {
                "image": [models.whole_patches(p, processor)
                          for p in show(ask, images, limits, blank)],
            },
        } for ask in asks]  # fmt: skip
        made = [output.outputs[0] for output in model.generate(inputs, sampling)]
        return [Completion(m.text, len(m.token_ids), m.finish_reason == "length") for m in made]

    return answer


def show(ask: Ask, images: str | Path, limits: Limits, blank: bool = False) -> list[Image.Image]:
    """Open an ask's pictures, fitted to the limits, or grey ones of their sizes."""
    from PIL import Image

    pixels = limits.min_pixels, limits.max_pixels
    opened = [fit_image(open_image(name, images), *pixels) for name in ask.images]
    return [Image.new("RGB", p.size, (128,) * 3) for p in opened] if blank else opened


def render(processor: Any, ask: Ask) -> str:
    """Write an ask with the checkpoint's own chat template, pictures first, up to its reply."""
    from trl.data_utils import prepare_multimodal_messages

    from vlaa_lib.models import plain

    chat = [{"role": "system", "content": ask.system}] if ask.system else []
    chat.append({"role": "user", "content": plain(processor, ask.user)})
    chat = prepare_multimodal_messages(chat, images=list(ask.images))
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return text + ask.reply


def ask(record: Record) -> Ask:
    """Return what a record asks, as training asks it."""
    user = prompts.user_text(record.question, record.reward)
    return Ask(user, prompts.SYSTEM_PROMPT, (record.image,))


def fingerprint(policy: Policy) -> dict[str, Any]:
    """Say what a policy's numbers depend on: weights, precision, wording, pixels."""
    import torch

    weights = hashlib.sha256()
    for name, tensor in policy.model.state_dict().items():
        # the beginning of each tensor: training moves it, and 3B parameters take no time
        some = tensor.detach().reshape(-1)[:4096].cpu().contiguous()
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        weights.update(some.view(torch.uint8).numpy().tobytes())
    wording = [prompts.SYSTEM_PROMPT, prompts.TASK_INSTRUCTIONS, policy.processor.chat_template]
    size = policy.processor.image_processor.size
    return {
        "policy": str(policy.path),
        "weights": weights.hexdigest()[:16],
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "wording": hashlib.sha256(json.dumps(wording, sort_keys=True).encode()).hexdigest()[:16],
        "min_pixels": size["shortest_edge"],
        "max_pixels": size["longest_edge"],
    }
