"""GRPO's objective, term by term, to be read: TRL computes it in its trainer (paper §4).

`tests/test_objective.py` holds every function here to TRL's trainer. Shapes: B prompts, G
completions a prompt, T completion tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-4  # TRL: added to the standard deviation; OpenRLHF has 1e-9


def advantages(rewards: Tensor, scale: str = "group") -> Tensor:
    """Centre rewards inside each group and scale them (`scale_rewards` of TRL).

    Args:
        rewards: [B, G] reward of each completion.
        scale: `group` by the group's standard deviation (n - 1 in its denominator), `batch` by
            that of all rewards, `none` not at all.
    Returns:
        [B, G] advantages; zeros where a group has no spread.

    >>> advantages(torch.ones(1, 4)).tolist()
    [[0.0, 0.0, 0.0, 0.0]]
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if scale == "none":
        return centred
    spread = rewards.std(dim=1, keepdim=True) if scale == "group" else rewards.std()
    return centred / (spread + EPS)


def surrogate(logps: Tensor, old_logps: Tensor, advantages: Tensor, epsilon: float) -> Tensor:
    """Return what each token gains, [B*G, T]: the smaller of ratio and clipped ratio, times A.

    Args:
        logps, old_logps: [B*G, T] log-probabilities under the policy now, and when it sampled.
        advantages: [B*G] one a completion.
    """
    ratio = (logps - old_logps).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate the divergence from the reference at each token, never below 0 (Schulman 2020)."""
    difference = ref_logps - logps
    return difference.exp() - difference - 1


def mean_over_tokens(values: Tensor, mask: Tensor, loss_type: str, max_tokens: int = 0) -> Tensor:
    """Average token values [B*G, T] as TRL's `loss_type` of the same name does.

    `grpo` over each completion's tokens, then over completions (paper §4): a token of a long
    completion weighs less. `bnpo` and `dapo` over all tokens. `dr_grpo` over `max_tokens` for
    every completion: no completion is divided by its own length.
    """
    kept = values * mask
    if loss_type == "grpo":
        return (kept.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if loss_type == "dr_grpo":
        return kept.sum() / (len(values) * max_tokens)
    return kept.sum() / mask.sum().clamp(min=1)


def loss(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    beta: float,
    epsilon: float = 0.2,
    loss_type: str = "grpo",
    max_tokens: int = 0,
) -> Tensor:
    """Return minus the objective: gain minus beta times divergence, averaged; a scalar."""
    gain = surrogate(logps, old_logps, advantages, epsilon) - beta * k3(logps, ref_logps)
    return -mean_over_tokens(gain, mask, loss_type, max_tokens)
