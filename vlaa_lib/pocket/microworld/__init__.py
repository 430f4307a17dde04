"""The micro-world: scenes with known truth, the questions on them, and their pictures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count as counter
from itertools import islice
from pathlib import Path

from PIL import Image

from vlaa_lib import VlaaError, folders, records
from vlaa_lib.images import sheet
from vlaa_lib.records import Record

from . import questions, scenes
from .render import render
from .scenes import LEVELS, SPLITS

# micro source -> (reward, what it stands for in the paper's table 1)
SOURCES = {
    "solids": ("digit", "CLEVR-Math"),
    "figure": ("mcq", "GeoQA170K"),
    "plot": ("math", "Math PUMA"),
    "panel": ("mcq", "ArxivQA"),
    "slip": ("open", "DocVQA"),
    "closeup": ("open", "VizWiz"),
    "describe": ("open", "ALLaVA-LAION"),
    "locate": ("iou", "COCO"),
    "relation": ("iou", "VisualGenome"),
}
__all__ = ["LEVELS", "SOURCES", "SPLITS", "Sample", "generate", "record", "render", "sheet",
           "stream", "write_split"]  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One record with its picture."""

    record: Record
    image: Image.Image

    def save(self, images: str | Path) -> None:
        """Write the picture to where the record says, below an image root."""
        target = Path(images) / self.record.image
        target.parent.mkdir(parents=True, exist_ok=True)
        with folders.named(target):
            self.image.save(target)


def generate(
    source: str, split: str, index: int, seed: int = 0, level: int | None = None
) -> Sample:
    """Make sample number `index` of a source and split; the same values, the same sample."""
    made = record(source, split, index, seed, level)
    return Sample(made, render(made.meta["scene"]))


def record(
    source: str, split: str, index: int, seed: int = 0, level: int | None = None
) -> Record:
    """Make the record of `generate`, without its picture."""
    if source not in SOURCES:
        raise VlaaError(f"unknown source {source!r}; use one of {', '.join(SOURCES)}")
    rng = random.Random(f"{source}/{split}/{index}/{seed}")
    asked = None
    while asked is None:  # a few scenes do not suit the question drawn for them
        kind = rng.choice(list(questions.KINDS[source]))
        scene = scenes.draw(kind, split, rng, level)
        asked = questions.ask(source, scene, rng)
    question, gold = asked
    reward = SOURCES[source][0]
    return Record(
        id=f"{source}-{split}-{seed}-{index:06d}",
        image=f"{source}/{split}-{seed}-{index:06d}.png",
        question=question,
        gt=gold,
        source=source,
        reward=reward,
        solution=gold,
        frame="norm01" if reward == "iou" else "",
        meta={"level": scene["level"], "scene": scene},
    )


def stream(source: str, split: str, seed: int = 0) -> Iterator[Sample]:
    """Yield samples of a source and split whose scenes all differ, as the paper's images do."""
    seen = set()
    for index in counter():
        made = record(source, split, index, seed)
        if (shown := scenes.content(made.meta["scene"])) not in seen:
            seen.add(shown)
            yield Sample(made, render(made.meta["scene"]))


def write_split(
    path: str | Path, sources: list[str], split: str, count: int, seed: int = 0
) -> list[Record]:
    """Write `count` samples of each source: `path/records.jsonl` and pictures in `path/images`."""
    path, made = Path(path), []
    for source in sources:
        for sample in islice(stream(source, split, seed), count):
            sample.save(path / "images")
            made.append(sample.record)
    records.write(made, path / "records.jsonl")
    return made
