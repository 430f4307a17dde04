"""Greedy answers beside a plain `generate` in the file's order: rows a second."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from vlaa_lib import models, prompts
from vlaa_lib.evaluate.generate import ask, generate, render
from vlaa_lib.pocket import microworld

from .timing import device, interleaved


def evaluate(
    per_source: int = 16,
    batch: int = 64,
    tokens: int = prompts.MAX_NEW_TOKENS,
    repeats: int = 3,
    model: str = "data/pocket/instruct",
    seed: int = 0,
) -> dict[str, Any]:
    """Answer the same held-out questions with our loop and with `generate`, in turn.

    Both batch, pad on the left, keep a cache and stop at the end of a turn. Ours sorts by length,
    and rows that have ended leave the batch.

    Returns:
        `speed`: one row; `same answers`: share of completions that are equal.
    """
    policy = models.load_policy(model, dtype="float32")
    said: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = list(microworld.SOURCES)
        made = microworld.write_split(folder, sources, "dev", per_source, seed)
        images = Path(folder) / "images"

        def ours() -> None:
            said["ours"] = generate(policy, made, images, batch, tokens)

        def theirs() -> None:
            said["theirs"] = _plain(policy, made, images, batch, tokens)

        mine, peer = interleaved([ours, theirs], repeats)
    same = [a == b for a, b in zip(said["ours"], said["theirs"], strict=True)]
    row = {
        "rows": len(made),
        "ours a second": round(len(made) / mine, 2),
        "peer's a second": round(len(made) / peer, 2),
        "times faster": round(peer / mine, 2),
        "same answers": round(sum(same) / len(same), 4),
    }
    return {
        "benchmark": "evaluate", "peer": "transformers generate, in the file's order",
        "model": model, "batch": batch, "seed": seed, "repeats": repeats,
        "cores": os.cpu_count(), "device": device(), "speed": [row],
    }  # fmt: skip


def _plain(policy: Any, made: list, images: Path, batch: int, tokens: int) -> list[str]:
    import torch
    from PIL import Image

    texts: list[str] = []
    policy.model.eval()
    for start in range(0, len(made), batch):
        some = made[start : start + batch]
        inputs = policy.processor(
            images=[Image.open(images / record.image) for record in some],
            text=[render(policy.processor, ask(record)) for record in some],
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            ids = policy.model.generate(
                **inputs.to(policy.model.device),
                do_sample=False,
                max_new_tokens=tokens,
                repetition_penalty=1.0,
                suppress_tokens=[policy.model.config.image_token_id],
            )
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts += policy.processor.batch_decode(new, skip_special_tokens=True)
    return texts
