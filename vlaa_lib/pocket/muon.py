"""Muon: the optimizer of the pocket VLM's weight matrices, in float32."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Jordan et al. 2024: the fifth-order polynomial that drives singular values towards 1 fastest
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose every update has singular values near 1 (Jordan et al. 2024).

    Scaled to the size of an AdamW update (Liu et al. 2025), so that learning rates carry over.
    `torch.optim.Muon` does the same in bfloat16, which is slower than the training itself on
    processors that only emulate it.

    Args:
        matrices: parameters of two dimensions; embeddings and heads are better left to AdamW.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in (p for p in group["params"] if p.grad is not None):
                state, grad = self.state[matrix], matrix.grad
                mean = state.setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(grad, 1 - group["momentum"])
                update = orthogonal(grad.lerp(mean, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * max(matrix.shape) ** 0.5 * group["lr"])


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return [m, n] with the matrix's singular vectors and singular values of about 0.7 to 1.2."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        square = wide @ wide.T
        wide = _A * wide + (_B * square + _C * square @ square) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def optimizers(module: nn.Module, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Return AdamW for embeddings, heads and vectors, and Muon for the matrices between them."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    inner = {name for name in trained if re.search(r"visual|layers", name)}
    matrices = {name for name in inner if trained[name].ndim == 2}
    rest = [p for name, p in trained.items() if name not in matrices]
    return [
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
        Muon([trained[name] for name in sorted(matrices)], lr=muon_lr),
    ]
