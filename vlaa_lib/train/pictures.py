"""The pictures of a sampling round: each opened, cut into patches and encoded once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class Pictures:
    """Stand in for an image processor and a frozen tower, which do their work once a picture.

    Args:
        processor: the image processor, which keeps doing the work.
        tower: patches [N, D] and grids [n, 3] to n features; None to let the model encode pixels.
    """

    def __init__(self, processor: Any, tower: Callable[[Tensor, Tensor], Sequence[Tensor]] | None):
        self._processor, self.tower = processor, tower
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
        """Answer for the image processor, whose own attributes are as before afterwards."""
        own = self._processor
        self._fetch, self._preprocess = own.fetch_images, own.preprocess
        own.fetch_images, own.preprocess = self.fetch, self.preprocess
        try:
            yield
        finally:
            del own.fetch_images, own.preprocess

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
