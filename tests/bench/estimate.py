"""What the fast paths of GRPO should save on a GPU at a real policy's size: arithmetic, no run."""

from __future__ import annotations

import math
import random
from statistics import NormalDist
from typing import Any

from vlaa_lib.train.plan import PEAK_FLOPS
from vlaa_lib.train.shapes import shape_of

from .roofline import PATCHES

BYTES_A_SECOND = 3.35e12  # memory of one H100 SXM, whose arithmetic PEAK_FLOPS is
# with recomputed activations: forward twice, backward as two more, one where weights are frozen
PASSES = {"full": 4, "lora": 3}


def estimate(
    model: str = "Qwen/Qwen2.5-VL-3B-Instruct",
    generations: list[int] = [4, 8],  # noqa: B006
    modes: list[str] = ["full", "lora"],  # noqa: B006
    prompts: int = 64,
    image: int = 315,
    question: int = 120,
    mean: int = 250,
    longest: int = 800,
    step: int = 32,
    micro: int = 4,
    mfu: float = 0.4,
    bandwidth: float = 0.6,
) -> dict[str, Any]:
    """Estimate seconds of a sampling round on one H100, by phase, with and without the fast paths.

    An estimate: multiplications of the matrices alone, at a stated share of the card's peak, and
    for sampling the bytes of weights and cache at a stated share of its bandwidth. Attention,
    launches of kernels, rewards, the optimizer and adapters are left out, and rows leave as soon as
    they end, which flatters ours a little. The tower is frozen; old, reference and policy passes
    run, activations are recomputed, which keeps prompts unshared in the last. Lengths are
    log-normal and their groups drawn, see `lengths`: ours pads a group's rows to their longest
    where prompts are shared, and in the policy's passes rows that are sorted over a step.

    Args:
        modes: full or lora, whose frozen weights need no gradients.
        prompts: of a round on the card. image: visual tokens, 315 at 262,144 px. question: tokens.
        mean, longest: tokens of completions in a round; TRL pads all rows to the longest.
        step: completions of an optimizer step on the card: a share of the paper's 256 on 8.
        micro: completions of a pass.
        mfu: share of the peak arithmetic. bandwidth: share of the peak bandwidth.
    Returns:
        `speed`: a row for each G, mode and phase, seconds and their ratio; `padding`: columns that
            ours computes for each token that a completion has, with shared prompts and in a step.
    """
    shape = shape_of(model)
    word = 2 * shape.linears  # operations a token in the language model, and in the head:
    head = 2 * shape.hidden * shape.vocabulary
    picture = 2 * shape.vision * PATCHES * image
    asked, rate = image + question, mfu * PEAK_FLOPS
    rows, padding = [], []
    for g in generations:
        n = prompts * g
        said = lengths(n, mean, longest)
        grouped, sorted_ = columns(said, g, micro), columns(said, step, micro)
        padding.append({"G": g, "shared prompts": round(grouped / sum(said), 3),
                        "sorted step": round(sorted_ / sum(said), 3)})  # fmt: skip
        whole = n * (picture + word * (asked + longest) + head * longest)
        shared = prompts * math.ceil(g / micro)  # a prompt runs once in each pass over its group
        parts = shared * word * asked + (word + head) * grouped
        # every step reads all weights, and the cache of the rows that are still in the batch
        weights = 2 * (shape.total - shape.vision)
        cache = shape.kv_bytes_per_token()
        reading = longest * (weights + n * cache * (asked + longest / 2))
        leaving = longest * weights + n * cache * mean * (asked + mean / 2)
        for mode in modes:
            passes = PASSES[mode]
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
                    n * (picture + passes * (word * (asked + longest) + head * longest)) / rate,
                    passes * (n * word * asked + (word + head) * sorted_) / rate,
                ),
            }
            phases["all"] = tuple(sum(pair[i] for pair in phases.values()) for i in (0, 1))
            rows += [
                {"G": g, "mode": mode, "phase": phase, "TRL s": round(theirs, 2),
                 "ours s": round(ours, 2), "times faster": round(theirs / ours, 2)}
                for phase, (theirs, ours) in phases.items()
            ]  # fmt: skip
    return {
        "benchmark": "estimate", "peer": "TRL GRPOTrainer", "note": "an estimate, not measured",
        "model": model, "shape": shape.origin, "prompts": prompts, "mfu": mfu,
        "bandwidth": bandwidth, "padding": padding, "speed": rows,
    }  # fmt: skip


def lengths(n: int, mean: float, longest: float, seed: int = 0) -> list[float]:
    """Return n log-normal lengths of this mean, the longest of them as given, in a drawn order.

    Raises:
        ValueError: so few lengths of that mean cannot have so long a one.

    >>> [round(length) for length in sorted(lengths(5, 100, 200))]
    [27, 49, 74, 111, 200]
    """
    quantiles = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    top, ratio = quantiles[-1], math.log(longest / mean)
    if not 0 <= 2 * ratio <= top * top:
        raise ValueError(f"{n} log-normal lengths of mean {mean} with a longest of {longest}: none")
    spread = top - math.sqrt(top * top - 2 * ratio)  # longest = mean exp(spread top - spread² / 2)
    found = [longest * math.exp(spread * (q - top)) for q in quantiles]
    random.Random(seed).shuffle(found)
    return found


def columns(lengths: list[float], window: int, micro: int) -> float:
    """Return how many columns passes of `micro` rows have, rows sorted within each window.

    >>> columns([1, 9, 2, 8], 4, 2), columns([1, 9, 2, 8], 2, 2), columns([1, 9], 2, 1)
    (22, 34, 10)
    """
    starts = range(0, len(lengths), window)
    windows = [sorted(lengths[i : i + window], reverse=True) for i in starts]
    return sum(
        rows[i] * len(rows[i : i + micro]) for rows in windows for i in range(0, len(rows), micro)
    )
