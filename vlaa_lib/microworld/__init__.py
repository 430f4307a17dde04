"""The micro-world: scenes with known truth, the questions on them, and their pictures."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .. import records
from ..records import Record
from . import questions, scenes
from .render import render
from .scenes import SPLITS

# micro source -> (scene kind, reward, what it stands for in the paper's table 1)
SOURCES = {
    "solids": ("objects", "digit", "CLEVR-Math"),
    "panel": ("bars", "mcq", "ArxivQA"),
    "plot": ("function", "math", "Math PUMA"),
    "locate": ("objects", "iou", "COCO"),
    "describe": ("objects", "open", "ALLaVA-LAION"),
}
__all__ = ["SOURCES", "SPLITS", "Sample", "generate", "render", "write_split"]


@dataclass(frozen=True)
class Sample:
    """One record with its picture."""

    record: Record
    image: Image.Image


def generate(source: str, split: str, index: int, seed: int = 0) -> Sample:
    """Make sample number `index` of a source and split; the same four values, the same sample.

    Raises:
        ValueError: unknown source or split.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; use one of {', '.join(SOURCES)}")
    kind, reward, _ = SOURCES[source]
    rng = random.Random(f"{source}/{split}/{index}/{seed}")
    asked = None
    while asked is None:  # a few scenes have no object that colour and shape name uniquely
        scene = scenes.draw(kind, split, rng)
        if source != "locate" or questions.facts.places(scene):
            asked = questions.ask(source, scene, rng)
    question, gold = asked
    record = Record(
        id=f"{source}-{split}-{seed}-{index:06d}",
        image=f"{source}/{split}-{seed}-{index:06d}.png",
        question=question,
        gt=gold,
        source=source,
        reward=reward,
        solution=gold,
        frame="norm01" if reward == "iou" else "",
        meta={"scene": scene},
    )
    return Sample(record, render(scene))


def write_split(
    path: str | Path, sources: list[str], split: str, count: int, seed: int = 0
) -> list[Record]:
    """Write `count` samples of each source: `path/records.jsonl` and pictures in `path/images`."""
    path, made = Path(path), []
    for source in sources:
        for index in range(count):
            sample = generate(source, split, index, seed)
            target = path / "images" / sample.record.image
            target.parent.mkdir(parents=True, exist_ok=True)
            sample.image.save(target)
            made.append(sample.record)
    records.write(made, path / "records.jsonl")
    return made
