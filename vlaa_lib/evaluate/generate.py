"""Batched greedy generation: left-padded with Hugging Face models, or with vLLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib import prompts
from vlaa_lib.images import MAX_PIXELS, MIN_PIXELS, fit_image, open_image
from vlaa_lib.progress import progress_bar
from vlaa_lib.records import Record

if TYPE_CHECKING:
    from PIL import Image

    from vlaa_lib.models import Policy


@dataclass(frozen=True)
class Ask:
    """One question: its pictures stand before its text; no system prompt is the template's own.

    Attributes:
        reply: how the reply begins; what is generated goes on from there.
    """

    user: str
    system: str
    images: tuple[str, ...]
    reply: str = ""


@dataclass(frozen=True)
class Completion:
    """What a model said, how many tokens that took, and whether it was cut off by the limit."""

    text: str
    num_tokens: int
    is_truncated: bool


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
    """Return one completion for each record, in the records' order.

    Args:
        batch: records a forward pass; rows of similar length share one.
        temperature: 0 is greedy.
        blank: show a grey picture of the same size instead.
    Raises:
        images.ImageError: a picture is missing or broken.
    """
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
    """Return one completion for each ask, in their order; see `generate`."""
    completions = [""] * len(asks)
    order = by_length([asked.user + asked.reply for asked in asks], batch)
    for chosen in progress_bar(order, desc="generate", unit="batch", leave=False, delay=2):
        some = [asks[i] for i in chosen]
        made = complete(policy, some, images, max_new_tokens, temperature, blank)
        for i, completion in zip(chosen, made, strict=True):
            completions[i] = completion.text
    return completions


def by_length(texts: list[str], batch: int) -> list[list[int]]:
    """Group positions so that texts of similar length share a batch.

    >>> by_length(["abc", "a", "ab"], batch=2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def complete(
    policy: Policy,
    asks: list[Ask],
    images: str | Path,
    max_new_tokens: int,
    temperature: float = 0.0,
    blank: bool = False,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
    repetition_penalty: float = 1.0,
) -> list[Completion]:
    """Answer one batch with a Hugging Face model.

    Args:
        repetition_penalty: 1 is none, whatever the checkpoint's own file says.
    Raises:
        images.ImageError: a picture is missing or broken.
    """
    import torch

    from vlaa_lib.train.decoding import decode

    policy.model.eval()
    sampling = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    shown = [show(ask, images, blank, min_pixels, max_pixels) for ask in asks]
    inputs = policy.processor(
        images=[picture for pictures in shown for picture in pictures],
        text=[render(policy.processor, ask) for ask in asks],
        padding=True,
        return_tensors="pt",
    ).to(policy.model.device)
    with torch.inference_mode():
        ids = policy.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            **sampling,
            repetition_penalty=repetition_penalty,
            use_cache=True,
            # a sampled image token would ask for features that are not there
            suppress_tokens=[policy.model.config.image_token_id],
            custom_generate=decode,
        )
    ids = ids[:, inputs["input_ids"].shape[1] :]  # [B, T]
    texts = policy.processor.batch_decode(ids, skip_special_tokens=True)
    ends = _ends(policy)
    return [_completion(text, row, ends) for text, row in zip(texts, ids.tolist(), strict=True)]


def _ends(policy: Policy) -> set[int]:
    """Return the tokens that end a turn; checkpoints name one or several."""
    named = policy.model.generation_config.eos_token_id
    if named is None:
        named = policy.processor.tokenizer.eos_token_id
    return set(named) if isinstance(named, list) else {named}


def _completion(text: str, ids: list[int], ends: set[int]) -> Completion:
    """Count tokens up to the first that ends the turn; without one the limit cut it off."""
    last = next((i for i, token in enumerate(ids) if token in ends), None)
    return Completion(text, len(ids) if last is None else last + 1, last is None)


def complete_vllm(
    path: str | Path,
    images: str | Path,
    max_new_tokens: int,
    temperature: float = 0.0,
    blank: bool = False,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
    repetition_penalty: float = 1.0,
) -> Complete:
    """Load a checkpoint into vLLM, which batches by itself; return what answers with it.

    Raises:
        ValueError: vLLM is not installed, or the folder is an adapter.
    """
    from vlaa_lib import models

    path = models.resolve(path)
    if (Path(path) / "adapter_config.json").is_file():
        raise ValueError(f"{path} is an adapter; take --backend hf, or merge it first")
    try:
        from vllm import LLM, SamplingParams
    except ImportError:
        raise ValueError(
            "vLLM is not installed; `pip install 'vlaa_lib[vllm]'` on Linux with a GPU, or take "
            "--backend hf"
        ) from None
    processor = models.load_processor(path, max_pixels, min_pixels)
    pixels = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    model = LLM(model=path, mm_processor_kwargs=pixels)
    sampling = SamplingParams(
        temperature=temperature, max_tokens=max_new_tokens, repetition_penalty=repetition_penalty
    )

    def answer(asks: list[Ask]) -> list[Completion]:
        inputs: list[Any] = [
            {
                "prompt": render(processor, ask),
                "multi_modal_data": {"image": show(ask, images, blank, min_pixels, max_pixels)},
            }
            for ask in asks
        ]
        made = [output.outputs[0] for output in model.generate(inputs, sampling)]
        return [Completion(m.text, len(m.token_ids), m.finish_reason == "length") for m in made]

    return answer


def show(
    ask: Ask, images: str | Path, blank: bool, min_pixels: int, max_pixels: int
) -> list[Image.Image]:
    """Open an ask's pictures, fitted to the limits, or grey ones of their sizes."""
    from PIL import Image

    opened = [fit_image(open_image(name, images), min_pixels, max_pixels) for name in ask.images]
    return [Image.new("RGB", p.size, (128,) * 3) for p in opened] if blank else opened


def render(processor: Any, ask: Ask) -> str:
    """Write an ask with the checkpoint's own chat template, pictures first, up to its reply."""
    from trl.data_utils import prepare_multimodal_messages

    chat = [{"role": "system", "content": ask.system}] if ask.system else []
    chat.append({"role": "user", "content": ask.user})
    chat = prepare_multimodal_messages(chat, images=list(ask.images))
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return text + ask.reply


def ask(record: Record) -> Ask:
    """Return what a record asks, as training asks it."""
    user = prompts.user_text(record.question, record.reward)
    return Ask(user, prompts.SYSTEM_PROMPT, (record.image,))


def prompt_text(policy: Policy, record: Record) -> str:
    """Render a record's prompt as training does."""
    return render(policy.processor, ask(record))
