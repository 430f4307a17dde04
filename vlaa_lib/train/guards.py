"""What is checked before a training starts: lengths, padding, image tokens against features."""

from __future__ import annotations

import json
import math
from typing import Any

from vlaa_lib.models import ImageProcessor
from vlaa_lib.progress import progress_bar
from vlaa_lib.records import Reject

PROBED = 8  # ours: rows put through the whole processor, from the smallest picture to the largest


class GuardError(ValueError):
    """Model, processor and data do not fit together; the message names the record and why."""


def count_tokens(row: dict[str, Any], processor: ImageProcessor) -> tuple[int, int, int]:
    """Count a dataset row's tokens: (text of the prompt, image, completion)."""
    tokenizer = processor.tokenizer
    prompt = processor.apply_chat_template(
        row["prompt"], tokenize=False, add_generation_prompt=True
    )
    completion = row["completion"][0]["content"] if "completion" in row else ""
    return (
        len(tokenizer.encode(prompt, add_special_tokens=False)),
        image_tokens(row, processor),
        len(tokenizer.encode(completion, add_special_tokens=False)) if completion else 0,
    )


def image_tokens(row: dict[str, Any], processor: ImageProcessor) -> int:
    """Count the tokens of a row's picture from the size in its file."""
    from PIL import Image

    with Image.open(row["image"]) as image:
        width, height = image.size
    patches = processor.image_processor.get_number_of_image_patches(height, width)
    return patches // processor.image_processor.merge_size**2


def within(
    rows: list[dict[str, Any]], processor: ImageProcessor, limit: int
) -> tuple[list[dict[str, Any]], list[Reject]]:
    """Split rows into those of at most `limit` tokens, image included, and rejects; none is cut.

    A cut prompt would lose part of its picture ("image features and image tokens do not match"),
    a cut trace its answer.
    """
    kept, rejects = [], []
    for row in progress_bar(rows, desc="lengths", unit="record", leave=False, delay=2):
        tokens = sum(count_tokens(row, processor))
        if tokens <= limit:
            kept.append(row)
            continue
        name = json.loads(row["record"])["id"]
        reason = f"{tokens} tokens with its image, the limit is {limit}"
        rejects.append(Reject("", 0, name, reason))
    return kept, rejects


def preflight(rows: list[dict[str, Any]], processor: ImageProcessor, model: Any) -> None:
    """Put the smallest, the largest and a few other pictures through the processor and compare.

    Raises:
        GuardError: padding on the right, or image tokens that do not match the image's features.
    """
    from PIL import Image

    if processor.tokenizer.padding_side != "left":
        raise GuardError("the tokenizer pads on the right; load it with models.load_processor")
    if processor.image_token_id != model.config.image_token_id:
        raise GuardError(
            f"the processor's image token is {processor.image_token_id}, the model's "
            f"{model.config.image_token_id}: they come from different checkpoints"
        )
    ordered = sorted(rows, key=lambda row: image_tokens(row, processor))
    step = max(1, math.ceil(len(ordered) / PROBED))
    for row in [*ordered[::step], ordered[-1]]:
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}],
            tokenize=False,
        )
        with Image.open(row["image"]) as image:
            made = processor(images=[image.convert("RGB")], text=[text], return_tensors="pt")
        tokens = int((made["input_ids"] == processor.image_token_id).sum())
        merged = processor.image_processor.merge_size**2
        features = int(made["image_grid_thw"].prod()) // merged
        if tokens != features or tokens != image_tokens(row, processor):
            raise GuardError(
                f"record {json.loads(row['record'])['id']}: {tokens} image tokens for {features} "
                "features; the chat template or the image processor is not Qwen2-VL's"
            )
