"""What a machine can do at most, and what a training needs of it: the roofline of a benchmark."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlaa_lib import models
from vlaa_lib.train.shapes import Shape, published

RANDOM = "random:"  # in front of a published policy's name: its shape, with random weights
PATCHES = 4  # that one visual token is merged from
PROCESSOR = "data/pocket/instruct"  # whose tokens a random policy reads


def checkpoint(model: str, folder: str | Path) -> str:
    """Return a policy's place; write an untrained one into `folder` where the name asks for it.

    Nobody has to download 3 billion parameters to measure how fast they are trained.

    Args:
        model: checkpoint, or `random:Qwen2.5-VL-3B`; `random:Qwen2.5-VL-3B/16` is a sixteenth of
            it, in width and in depth.
    Raises:
        ValueError: no published shape of that name, or no such part of it.
    """
    if not model.startswith(RANDOM):
        return model
    import torch
    from transformers import AutoModelForImageTextToText

    name, _, part = model.removeprefix(RANDOM).partition("/")
    if part and not part.isdigit():
        raise ValueError(f"{model}: give a part as in random:Qwen2.5-VL-3B/16")
    config = published(name, int(part or 1))
    processor = models.load_processor(PROCESSOR)
    for key, token in (
        ("image_token_id", models.IMAGE_PAD),
        ("vision_start_token_id", models.VISION_START),
        ("vision_end_token_id", models.VISION_END),
    ):
        setattr(config, key, processor.tokenizer.convert_tokens_to_ids(token))
    config.text_config.eos_token_id = processor.tokenizer.eos_token_id
    config.text_config.pad_token_id = processor.tokenizer.pad_token_id
    torch.manual_seed(0)
    place = Path(folder) / "policy"
    policy = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    policy.save_pretrained(place)
    processor.save_pretrained(place)
    return str(place)


def machine() -> dict[str, float]:
    """Measure the rates of this machine: `TFLOP/s` of square matrix products, `GB/s` of a copy.

    Products are in the precision that training computes in: bfloat16 on a GPU, else float32.
    """
    import torch

    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    n, size = (8192, 2**30) if cuda else (1024, 2**26)
    a, b = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(2))
    there, back = (torch.ones(size, device=device, dtype=torch.uint8) for _ in range(2))
    return {
        "TFLOP/s": round(2 * n**3 / _seconds(lambda: a @ b) / 1e12, 3),
        "GB/s": round(2 * size / _seconds(lambda: there.copy_(back)) / 1e9, 1),  # read and write
    }


def _seconds(work: Callable[[], Any], repeats: int = 10) -> float:
    """Return the median seconds of some work, after two turns that do not count."""
    import torch

    found = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found[2:])


def forward_flops(shape: Shape, tokens: int, pictures: int, visual: int) -> float:
    """Count one forward pass: 2 operations for each weight of a matrix that a token goes through.

    Attention's own products are left out, as is usual; they are few at these lengths.

    Args:
        tokens: of all rows, pictures' included. visual: of a picture, after merging.
    """
    words = 2 * (shape.linears + shape.hidden * shape.vocabulary) * tokens
    return words + 2 * shape.vision * PATCHES * visual * pictures


def training_flops(
    shape: Shape, tokens: int, pictures: int, visual: int, mode: str = "full"
) -> float:
    """Count a forward and a backward pass; the tower rests, and a base under LoRA has no update."""
    words = forward_flops(shape, tokens, 0, 0)
    return words * (3 if mode == "full" else 2) + forward_flops(shape, 0, pictures, visual)
