"""What a sampling round holds, for `fast.py`: each picture once, and its rows, like by like."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def replaced(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Give an object another method for a while; its own attributes are as before afterwards."""
    before = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)


class Pictures:
    """Stand in for an image processor and a frozen tower, which do their work once a picture.

    Args:
        processor: the image processor, which keeps doing the work.
        tower: patches [N, D] and grids [n, 3] to n features; None to let the model encode pixels.
    """

    def __init__(self, processor: Any, tower: Callable[[Tensor, Tensor], Sequence[Tensor]] | None):
        self._processor, self.tower = processor, tower
        self._fetch, self._preprocess = processor.fetch_images, processor.preprocess
        self.forget()

    def forget(self) -> None:
        """Start a round: hold no picture any more."""
        self._opened: dict[str, Any] = {}  # path -> picture
        self._places: dict[bytes, int] = {}  # content -> number of the picture
        self._place_of: dict[int, int] = {}  # the same by identity, of pictures in `_opened`
        self._patches: list[Tensor | None] = []  # [patches, D]; None once encoded
        self._grids: list[Tensor] = []  # [1, 3]
        self._features: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """Answer for the image processor."""
        with replaced(self._processor, "fetch_images", self.fetch), \
             replaced(self._processor, "preprocess", self.preprocess):  # fmt: skip
            yield

    def fetch(self, images: Any) -> Any:
        """Open a path, or each of nested lists of them; pictures stay what they are."""
        if isinstance(images, (list, tuple)):
            return [self.fetch(image) for image in images]
        if not isinstance(images, str):
            return images
        if images not in self._opened:
            self._opened[images] = self._fetch(images)
        return self._opened[images]

    def preprocess(self, images: Any, **kwargs: Any) -> Any:
        """Return the processor's `pixel_values` and `image_grid_thw`, made once a picture.

        With a tower, a pixel row is the picture's number: TRL splits, shuffles and cuts those as it
        would the pixels.
        """
        from transformers import BatchFeature
        from transformers.image_utils import make_flat_list_of_images

        flat = make_flat_list_of_images(self.fetch(images))
        places = [self._place(image, kwargs) for image in flat]
        grids = torch.cat([self._grids[place] for place in places])
        if self.tower is None:
            rows = [self._patches[place] for place in places]
        else:
            sizes = grids.prod(-1).tolist()
            rows = [torch.full((n, 1), p) for n, p in zip(sizes, places, strict=True)]
        return BatchFeature({"pixel_values": torch.cat(rows), "image_grid_thw": grids})

    def _place(self, image: Any, kwargs: dict[str, Any]) -> int:
        """Return the number of a picture; a new one is cut into patches."""
        if (known := self._place_of.get(id(image))) is not None:
            return known
        pixels = image.tobytes() if hasattr(image, "tobytes") else bytes(image)
        shape = f"{getattr(image, 'mode', '')} {getattr(image, 'size', '')}".encode()
        key = hashlib.blake2b(pixels + shape, digest_size=16).digest()
        if key not in self._places:
            found = self._preprocess([image], **kwargs | {"return_tensors": "pt"})
            self._places[key] = len(self._grids)
            self._patches.append(found["pixel_values"])
            self._grids.append(found["image_grid_thw"])
        place = self._places[key]
        if any(image is opened for opened in self._opened.values()):  # else its id is used again
            self._place_of[id(image)] = place
        return place

    def features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> tuple[Tensor, ...]:
        """Return each picture's features [tokens, width], for pixel rows that are numbers."""
        sizes = image_grid_thw.prod(-1)
        places = pixel_values[sizes.cumsum(0) - 1, 0].tolist()
        if new := sorted(set(places) - self._features.keys()):
            patches = torch.cat([self._patches[place] for place in new])
            grids = torch.cat([self._grids[place] for place in new])
            at = pixel_values.device
            self._features.update(zip(new, self.tower(patches.to(at), grids.to(at)), strict=True))
            for place in new:
                self._patches[place] = None
        return tuple(self._features[place] for place in places)


# --- rows ----------------------------------------------------------------------------------------


def alike(lengths: Tensor, groups: Sequence[int] | None = None) -> Tensor:
    """Return the order of rows [B], longest first, in which like stand beside like.

    Rows of a group, where `groups` names it, stay together; the group of the longest comes first.

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
    first: dict[Any, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(row, place)
    number = {row: n for n, row in enumerate(first)}
    return list(first.values()), [number[row] for row in rows]


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
