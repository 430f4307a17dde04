"""Batched, left-padded greedy generation with Hugging Face models."""

from __future__ import annotations

from pathlib import Path

from tqdm.auto import tqdm

from .. import prompts
from ..images import fit_image, open_image
from ..models import Policy
from ..records import Record


def generate(
    policy: Policy,
    records: list[Record],
    images: str | Path,
    batch: int = 64,
    max_new_tokens: int = 160,
    temperature: float = 0.0,
    blank: bool = False,
    texts: list[str] | None = None,
) -> list[str]:
    """Return one completion for each record, in the records' order.

    Args:
        batch: records a forward pass; rows of similar length share one.
        temperature: 0 is greedy.
        blank: show a grey picture of the same size instead.
        texts: rendered prompts, one a record; by default `prompt_text` of each.
    Raises:
        images.ImageError: a picture is missing or broken.
    """
    import torch
    from PIL import Image

    lengths = [len(text) for text in texts or (record.question for record in records)]
    order = sorted(range(len(records)), key=lengths.__getitem__)
    completions = [""] * len(records)
    policy.model.eval()
    sampling = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    for start in tqdm(range(0, len(order), batch), desc="generate", unit="batch", leave=False):
        chosen = order[start : start + batch]
        pictures = [fit_image(open_image(records[i].image, images)) for i in chosen]
        if blank:
            pictures = [Image.new("RGB", picture.size, (128,) * 3) for picture in pictures]
        inputs = policy.processor(
            images=pictures,
            text=[texts[i] if texts else prompt_text(policy, records[i]) for i in chosen],
            padding=True,
            return_tensors="pt",
        ).to(policy.model.device)
        with torch.inference_mode():
            ids = policy.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                **sampling,
                use_cache=True,
                # a sampled image token would ask for features that are not there
                suppress_tokens=[policy.model.config.image_token_id],
            )
        said = policy.processor.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for i, text in zip(chosen, said, strict=True):
            completions[i] = text
    return completions


def prompt_text(policy: Policy, record: Record) -> str:
    """Render a record's prompt with the checkpoint's own chat template, image first."""
    return render(policy, prompts.messages(record.question, record.reward), record.image)


def render(policy: Policy, chat: list[dict], image: str) -> str:
    """Render messages about an image, up to where the policy's reply begins."""
    from trl.data_utils import prepare_multimodal_messages

    chat = prepare_multimodal_messages(chat, images=[image])
    return policy.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
