"""What the fast paths of GRPO should save on a GPU at a real policy's size: arithmetic, no run."""

from __future__ import annotations

from typing import Any

from ..train.plan import PEAK_FLOPS
from ..train.shapes import shape_of
from .roofline import PATCHES

BYTES_A_SECOND = 3.35e12  # memory of one H100 SXM, whose arithmetic PEAK_FLOPS is
PASSES = 4  # with recomputed activations: forward twice, backward as two more


def estimate(
    model: str = "Qwen/Qwen2.5-VL-3B-Instruct",
    generations: list[int] = [4, 8],  # noqa: B006
    prompts: int = 64,
    image: int = 315,
    question: int = 120,
    mean: int = 250,
    longest: int = 800,
    padding: float = 1.2,
    mfu: float = 0.4,
    bandwidth: float = 0.6,
) -> dict[str, Any]:
    """Estimate seconds of a sampling round on one H100, by phase, with and without the fast paths.

    An estimate: multiplications of the matrices alone, at a stated share of the card's peak, and
    for sampling the bytes of weights and cache at a stated share of its bandwidth. Attention,
    launches of kernels, rewards and the optimizer are left out, and rows leave as soon as they end,
    which flatters ours a little. The tower is frozen; old, reference and policy passes run,
    activations are recomputed, which keeps prompts unshared in the last.

    Args:
        prompts: of a round on the card. image: visual tokens, 315 at 262,144 px. question: tokens.
        mean, longest: tokens of completions in a round; TRL pads all rows to the longest.
        padding: columns for each token that a completion has, where rows are sorted.
        mfu: share of the peak arithmetic. bandwidth: share of the peak bandwidth.
    Returns:
        `speed`: a row for each G and phase, seconds and their ratio.
    """
    shape = shape_of(model)
    word = 2 * shape.linears  # operations a token in the language model, and in the head:
    head = 2 * shape.hidden * shape.vocabulary
    picture = 2 * shape.vision * PATCHES * image
    asked, rate = image + question, mfu * PEAK_FLOPS
    narrow = mean * padding
    rows = []
    for g in generations:
        n = prompts * g
        whole = n * (picture + word * (asked + longest) + head * longest)
        parts = prompts * word * asked + n * (word + head) * narrow
        # every step reads all weights, and the cache of the rows that are still in the batch
        weights = 2 * (shape.total - shape.vision)
        cache = shape.kv_bytes_per_token()
        reading = longest * (weights + n * cache * (asked + longest / 2))
        leaving = longest * weights + n * cache * mean * (asked + mean / 2)
        phases = {
            "vision and prompts, sampling": (
                n * (picture + word * asked) / rate,
                prompts * (picture + word * asked) / rate,
            ),
            "tokens, sampling": tuple(
                size / (bandwidth * BYTES_A_SECOND) for size in (reading, leaving)
            ),
            "old and reference": (2 * whole / rate, 2 * parts / rate),
            "policy": (
                n * (picture + PASSES * (word * (asked + longest) + head * longest)) / rate,
                n * PASSES * (word * (asked + narrow) + head * narrow) / rate,
            ),
        }
        phases["all"] = tuple(sum(pair[i] for pair in phases.values()) for i in (0, 1))
        rows += [
            {"G": g, "phase": phase, "TRL s": round(theirs, 2), "ours s": round(ours, 2),
             "times faster": round(theirs / ours, 2)}
            for phase, (theirs, ours) in phases.items()
        ]  # fmt: skip
    return {
        "benchmark": "estimate", "peer": "TRL GRPOTrainer", "note": "an estimate, not measured",
        "model": model, "shape": shape.origin, "prompts": prompts, "mfu": mfu,
        "bandwidth": bandwidth, "speed": rows,
    }  # fmt: skip
