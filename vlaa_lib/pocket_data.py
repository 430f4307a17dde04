"""What the pocket VLM learns from: pretraining documents, chats, and the tower's labels."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from . import microworld, prompts
from .microworld import SOURCES, facts, narrator, questions, scenes
from .models import IMAGE_PAD, VISION_END, VISION_START, ImageProcessor

CELLS = scenes.GRID**2  # visual tokens of a micro-world picture
# ours: objects carry three of the five sources
KIND_SHARES = {"objects": 0.6, "bars": 0.2, "function": 0.2}


class Stream(IterableDataset):
    """An endless stream of training batches; `make(index)` gives one sample, `collate` a batch."""

    def __init__(self, make: Any, collate: Any, batch: int, start: int = 0):
        self.make, self.collate, self.batch, self.start = make, collate, batch, start

    def __iter__(self) -> Iterator[Any]:
        index = self.start
        while True:  # four batches at a time, rows of similar length together: less padding
            pool = [self.make(index + i) for i in range(4 * self.batch)]
            pool.sort(key=self.length)
            batches = [pool[i : i + self.batch] for i in range(0, len(pool), self.batch)]
            random.Random(index).shuffle(batches)
            yield from map(self.collate, batches)
            index += len(pool)

    @staticmethod
    def length(sample: Any) -> int:
        """Return the characters of a sample's text; samples without text are all alike."""
        return sum(len(text) for text, _ in sample[1]) if isinstance(sample, tuple) else 0


def draw(index: int, seed: int) -> tuple[dict, random.Random]:
    """Draw a pretraining scene, and the generator that goes on with it."""
    rng = random.Random(f"pocket/{seed}/{index}")
    kind = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
    return scenes.draw(kind, "pretrain", rng), rng


def _dense(scene: dict, rng: random.Random) -> str:
    """Describe everything in a scene plainly, in reading order."""
    told = facts.of_scene(scene)
    if scene["kind"] == "objects":
        places = facts.places(scene)
        told = told + rng.sample(places, min(2, len(places)))
    if scene["kind"] == "function":
        return " ".join(map(facts.say, told)) + f" {scenes.expression(scene)}"
    return " ".join(map(facts.say, told))


def _sources(scene: dict) -> list[str]:
    kinds = [s for s, (kind, _, _) in SOURCES.items() if kind == scene["kind"]]
    return [s for s in kinds if s != "locate" or facts.places(scene)]


def describe_text(scene: dict, rng: random.Random) -> list[tuple[str, bool]]:
    """Write a document of the first language stage as (text, is it a target) pieces.

    The description of everything comes first, then questions that it answers.
    """
    pieces = [(_dense(scene, rng) + "\n", True)]
    for _ in range(3):
        question, think, answer = _question(scene, rng)
        if rng.random() < 0.3:
            answer = f"{think} {answer}"
        pieces += [(question, False), (f" {answer}\n", True)]
    return [*pieces, ("<|endoftext|>", True)]


def base_text(scene: dict, rng: random.Random) -> list[tuple[str, bool]]:
    """Write one question that only the picture answers or, in one of five, a description."""
    if rng.random() < 0.2:
        return [(_dense(scene, rng) + "\n", True), ("<|endoftext|>", True)]
    question, think, answer = _question(scene, rng)
    if rng.random() < 0.4:
        answer = f"{think} {answer}"
    return [(question, False), (f" {answer}\n", True), ("<|endoftext|>", True)]


def chat_text(scene: dict, rng: random.Random, think_share: float) -> list[tuple[str, bool]]:
    """Write a chat of one turn as (text, is it a target) pieces; the image follows the first."""
    question, think, answer = _question(scene, rng)
    asked = prompts.user_text(question, _reward(scene, question))
    if rng.random() < think_share:
        answer = prompts.join_think_answer(think, answer)
    return [
        (f"<|im_start|>system\n{prompts.SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n", False),
        (f"{asked}<|im_end|>\n<|im_start|>assistant\n", False),
        (f"{answer}<|im_end|>", True),
    ]


def _question(scene: dict, rng: random.Random) -> tuple[str, str, str]:
    """Ask something that suits the scene; return (question, plain think text, answer)."""
    question, _ = questions.ask(rng.choice(_sources(scene)), scene, rng)
    return question, *narrator.plain_trace(scene, question)


def _reward(scene: dict, question: str) -> str:
    kind = questions.read(question).kind
    return next(SOURCES[s][1] for s in _sources(scene) if kind in questions.KINDS[s])


def collate_text(
    samples: list[tuple[dict, list[tuple[str, bool]]]], processor: ImageProcessor, image_after: int
) -> dict[str, Tensor]:
    """Tokenise pieces and put the image tokens after piece number `image_after`.

    Returns:
        input_ids, labels, attention_mask, mm_token_type_ids [B, T]; pixel_values; image_grid_thw.
    """
    tokenizer = processor.tokenizer
    image = tokenizer.encode(f"{VISION_START}{IMAGE_PAD * CELLS}{VISION_END}")
    rows, labels = [], []
    for _, pieces in samples:
        ids, marks = ([], []) if image_after else (list(image), [-100] * len(image))
        for number, (text, target) in enumerate(pieces, 1):
            piece = tokenizer.encode(text)
            ids, marks = ids + piece, marks + (piece if target else [-100] * len(piece))
            if number == image_after:
                ids, marks = ids + image, marks + [-100] * len(image)
        rows.append(torch.tensor(ids))
        labels.append(torch.tensor(marks))
    padded = nn.utils.rnn.pad_sequence(rows, True, tokenizer.pad_token_id)
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": padded,
        "labels": nn.utils.rnn.pad_sequence(labels, True, -100),
        "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long(),
        "mm_token_type_ids": (padded == processor.image_token_id).int(),
        **pixels([microworld.render(scene) for scene, _ in samples], processor),
    }


def pixels(images: list, processor: ImageProcessor) -> dict[str, Tensor]:
    """Return pixel_values [patches, 1176] and image_grid_thw [B, 3]."""
    return dict(processor.image_processor(images, return_tensors="pt"))


def cell_labels(scene: dict) -> Tensor:
    """Return the colour and shape of each of the 16 cells, [16, 2], 0 = none."""
    labels = torch.zeros(CELLS, 2, dtype=torch.long)
    for item in scene.get("objects", []):
        x0, y0, x1, y1 = item["box"]
        cell = int((y0 + y1) / 2 * scenes.GRID) * scenes.GRID + int((x0 + x1) / 2 * scenes.GRID)
        labels[cell, 0] = 1 + list(scenes.COLORS).index(item["color"])
        labels[cell, 1] = 1 + scenes.SHAPES.index(item["shape"])
    return labels


def collate_tower(samples: list[dict], processor: ImageProcessor) -> dict[str, Tensor]:
    """Return the tower stage's batch; `small` holds each cell at half size, [B, 16, 3, 14, 14]."""
    images = [microworld.render(scene) for scene in samples]
    half = torch.stack([_to_tensor(image.reduce(2)) for image in images])
    small = half.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    labels = torch.stack([cell_labels(scene) for scene in samples])
    return {"labels": labels, "small": small, **pixels(images, processor)}


def _to_tensor(image: Any) -> Tensor:
    return torch.from_numpy(numpy.asarray(image, dtype="float32") / 127.5 - 1).permute(2, 0, 1)


def loader(make: Any, collate: Any, batch: int) -> DataLoader:
    """Prepare batches in one process of its own, beside the training."""
    return DataLoader(
        Stream(make, collate, batch), batch_size=None, num_workers=1, prefetch_factor=4
    )
