"""Rows of a batch: picked, joined, like beside like; and the micro-batches of an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# loss types that are a sum over rows, or a mean over equally many; `bnpo` divides by the tokens of
# each micro-batch
ORDERLESS = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo")


def alike(lengths: Tensor, groups: Sequence[int] | None = None) -> Tensor:
    """Return the order of rows [B], longest first, in which like stand beside like.

    Args:
        lengths: [B] tokens.
        groups: which group each row belongs to; groups stay together, that of the longest first.

    >>> alike(torch.tensor([2, 9, 3, 5])).tolist()
    [1, 3, 2, 0]
    >>> alike(torch.tensor([2, 9, 3, 5]), [7, 7, 8, 8]).tolist()
    [1, 0, 3, 2]
    """
    order = lengths.argsort(stable=True, descending=True)
    if groups is None:
        return order
    _, ranks = distinct([groups[row] for row in order.tolist()])
    return order[torch.tensor(ranks, device=order.device).argsort(stable=True)]


def distinct(rows: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Return the place of each distinct row, and which of them every row is.

    >>> distinct("aabba")
    ([0, 2], [0, 0, 1, 1, 0])
    """
    known: dict[Any, int] = {}
    first: list[int] = []
    for place, row in enumerate(rows):
        if row not in known:
            known[row] = len(first)
            first.append(place)
    return first, [known[row] for row in rows]


def of_rows(rows: Tensor, columns: dict[str, Any]) -> dict[str, Any]:
    """Pick rows from what TRL passes beside ids and mask; one picture a row.

    Args:
        columns: among others `pixel_values` [patches, D], which `image_grid_thw` [B, 3] measures.
    """
    grids = columns.get("image_grid_thw")
    picked = {}
    for name, value in columns.items():
        if name == "pixel_values" and value is not None:
            parts = value.split(grids.prod(-1).tolist())
            picked[name] = torch.cat([parts[row] for row in rows.tolist()])
        elif isinstance(value, Tensor) and value.ndim:
            picked[name] = value[rows]
        elif isinstance(value, list):  # num_images
            picked[name] = [value[row] for row in rows.tolist()]
        else:
            picked[name] = value
    return picked


def prompts_of(ids: Tensor, columns: dict[str, Any]) -> list[tuple]:
    """Return what tells rows' prompts apart: the picture's number and the tokens [B, P]."""
    ends = columns["image_grid_thw"].prod(-1).cumsum(0) - 1
    numbers = columns["pixel_values"][ends, 0].tolist()
    return [(number, *row) for number, row in zip(numbers, ids.tolist(), strict=True)]


def joined(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Join micro-batches; what is no column is that of the first."""
    whole = dict(batches[0])
    for name, value in whole.items():
        columns = [batch[name] for batch in batches]
        if isinstance(value, list):
            whole[name] = [row for column in columns for row in column]
        elif isinstance(value, Tensor) and value.ndim:
            whole[name] = torch.cat(columns)
    return whole


@dataclass
class Window:
    """Micro-batches of one optimizer step, whose rows are computed in another order.

    That changes no sum over the step, but it does change how wide rows are padded. TRL's logs
    depend on it, as they are means over micro-batches of means over tokens: so TRL computes them
    again, on its own micro-batches, from the log-probs that are known by then.

    Args:
        stock: TRL's own, without pixels.
        order: [rows] of them all, the order in which they are computed.
        passes: log-probs and entropies [rows, T] of the micro-batches computed so far.
    """

    stock: list[dict[str, Any]]
    order: Tensor
    passes: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def unsorted(self) -> list[tuple[Tensor, Tensor, None]]:
        """Return, once all are computed, what a pass over each of `stock` would; forget it."""
        back, size = self.order.argsort(), len(self.order) // len(self.stock)
        columns = [torch.cat(found)[back].split(size) for found in zip(*self.passes, strict=True)]
        self.passes = []
        return [(logps, entropies, None) for logps, entropies in zip(*columns, strict=True)]
