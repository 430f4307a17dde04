"""What a device can do, and how much of it a policy reaches: python -m tests.gpu.roofline DIR FILE.

Arithmetic bounds reading a long prompt, memory bounds writing token after token.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from vlaa_lib import folders, models
from vlaa_lib.escape import say
from vlaa_lib.tables import text_table
from vlaa_lib.train.shapes import shape_of

REPEATS = 5


def seconds(work: Callable[[], Any]) -> float:
    """Return the seconds of a call: the fastest of a few, after one that is not timed."""
    found = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def measured(folder: str) -> list[dict[str, Any]]:
    """Measure arithmetic (TFLOP/s) and memory (GB/s): bare, then by a policy in bf16."""
    gpu = torch.cuda.is_available()
    place, side, tokens = ("cuda", 8192, 4096) if gpu else ("cpu", 512, 64)
    matrix = torch.randn(side, side, device=place, dtype=torch.bfloat16)
    most = 2 * side**3 / seconds(lambda: matrix @ matrix) / 1e12
    block = torch.zeros(2**30 if gpu else 2**26, dtype=torch.uint8, device=place)
    copy = torch.zeros_like(block)
    moved = 2 * block.numel() / seconds(lambda: copy.copy_(block)) / 1e9  # read and written
    policy, shape = models.load_policy(folder, dtype="bfloat16"), shape_of(folder)
    language = shape.total - shape.vision
    ids = torch.randint(1000, (1, tokens), device=place)
    with torch.inference_mode():
        read = 2 * (language - shape.embeddings) * tokens / seconds(
            lambda: policy.model.model(input_ids=ids)
        ) / 1e12  # fmt: skip
        cache = policy.model.model(input_ids=ids[:, :32], use_cache=True).past_key_values
        written = 2 * language / 1e9 / seconds(
            lambda: policy.model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
        )  # fmt: skip
    return [
        {"what": f"prompt of {tokens} tokens, TFLOP/s", "device": most, "policy": read,
         "share": read / most},
        {"what": "one token after another, GB/s", "device": moved, "policy": written,
         "share": written / moved},
    ]  # fmt: skip


if __name__ == "__main__":
    rows = measured(sys.argv[1])
    say(text_table(rows))
    folders.write_json(sys.argv[2], {"rows": rows})
