"""What the pocket VLM's tower learns alone: cells, pixels, and the facts of the whole picture."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from vlaa_lib.models import ImageProcessor

from . import microworld
from .lessons import CELLS, pixels
from .microworld import facts, scenes, truth
from .microworld.render import corner_points, plot_point

# what the tower learns to say of a cell; x and y: the place of an object inside it, in pixels
CELL = ("column", "row", "color", "shape", "size", "x", "y", "key", "value", "digit")
CLASSES = 24  # values that one reading of the tower can have
# ours: how often the tower sees each kind of scene that is harder to read than the others
HARD = {"objects": 3, "scatter": 2, "function": 3, "triangle": 3, "circle": 2}


def tower_scene(index: int, seed: int) -> dict:
    rng = random.Random(f"tower/{seed}/{index}")
    kind = rng.choices(list(scenes.KINDS), [HARD.get(kind, 1) for kind in scenes.KINDS])[0]
    return scenes.draw(kind, "pretrain", rng)


class TowerTask(nn.Module):
    """Read what a cell holds and where it is off its token, and each fact off the picture's tokens.

    One linear map does for every token, and a fact is one query's attention over them: what the
    language model can read, and no more.
    """

    def __init__(self, visual: nn.Module, width: int):
        super().__init__()
        names = len(reading_names())
        self.visual = visual
        self.cell = nn.Linear(width, len(CELL) * CLASSES)
        self.pixel = nn.Linear(width, 3 * 14 * 14)
        self.queries = nn.Parameter(torch.zeros(names, width))  # at first every fact sees the mean
        self.facts = nn.Parameter(torch.randn(names, width, CLASSES) * width**-0.5)

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor, **labels: Tensor):
        """Return the loss, and how many of the facts that are there were read right."""
        tokens = self.visual(pixel_values, grid_thw=image_grid_thw).pooler_output  # [B*16, width]
        drawn = (self.pixel(tokens) - labels["small"].reshape(-1, 3 * 14 * 14)).square().mean()
        held = nn.functional.cross_entropy(
            self.cell(tokens).view(-1, CLASSES), labels["cells"].flatten()
        )
        tokens = tokens.view(-1, CELLS, tokens.shape[-1])
        weights = (self.queries @ tokens.mT).softmax(-1)  # [B, names, 16]
        read = torch.einsum("bnt,btw,nwc->bnc", weights, tokens, self.facts).flatten(0, 1)
        told = labels["facts"].flatten()
        wrong, there = nn.functional.cross_entropy(read, told, reduction="none"), told > 0
        # most of what could be there is not: what is there weighs as much as all that is not
        loss = 20 * drawn + 2 * held + wrong[there].mean() + wrong[told == 0].mean()
        return loss, (read.argmax(-1) == told)[there].float().mean()


def readings(scene: dict) -> dict[tuple, int]:
    """Return what can be read off a scene, as named classes in 0..CLASSES - 1, from its facts.

    >>> readings({"kind": "bars", "bars": [{"color": "red", "value": 3}]})[("bar", "red")]
    3
    """
    read = {}
    for fact in truth.of_scene(scene):
        kind, args = fact.kind, fact.args
        if kind == "count":
            read[(kind, *args[1:])] = args[0]
        elif kind == "angle":
            read[kind, args[0]] = args[1] // 5
        elif kind == "equal":
            read |= {(kind, color): 1 for color in args}
        elif kind == "family":
            read[kind, args[0]] = 1 + list(facts.FAMILIES.values()).index(args[1])
        elif kind == "vertex":
            read |= {(kind, args[0], "x"): args[1] + 5, (kind, args[0], "y"): args[2] + 5}
        elif kind == "field" and args[1].isdigit():
            read |= {(kind, args[0], i): 1 + int(d) for i, d in enumerate(args[1])}
        elif kind == "field":
            read[kind, args[0]] = 1 + scenes.FIELDS[args[0]].index(args[1])
        elif kind == "thing":
            read["hue",] = 1 + list(scenes.COLORS).index(args[0])
            read["shape",] = 1 + scenes.SHAPES.index(args[1])
        elif kind != "unclear":  # one name, one number: bar, point, length, slope ...
            read[kind, args[0]] = args[1] + (5 if scene["kind"] == "function" else 0)
    return read


@cache
def reading_names() -> dict[tuple, tuple[int, frozenset[str]]]:
    """Number every name that `readings` may return, with the scene kinds that it belongs to."""
    colors, curve = list(scenes.COLORS), ("family", "slope", "crossing", "factor", "middle")
    names = {
        "objects": [("count", *pair) for pair in product(colors, scenes.SHAPES)],
        "scatter": [("count", color, "point") for color in colors],
        "bars": [("bar", color) for color in colors],
        "line": [("point", x) for x in range(1, 5)],
        "function": [*product(curve, colors), *product(("vertex",), colors, "xy")],
        "triangle": [*product(("angle", "equal"), colors)],
        "circle": [("length", name) for name in facts.LENGTHS],
        "rectangle": [("length", name) for name in facts.LENGTHS],
        "slip": [*product(("field",), scenes.FIELDS), *product(("field",), scenes.FIELDS, (0, 1))],
        "closeup": [("hue",), ("shape",)],
    }
    every = dict.fromkeys(name for known in names.values() for name in known)
    return {
        name: (number, frozenset(kind for kind, known in names.items() if name in known))
        for number, name in enumerate(every)
    }


def reading_labels(scene: dict) -> Tensor:
    """Return one class for each reading name, 0 = absent, -100 = of another kind of scene."""
    names, read = reading_names(), readings(scene)
    return torch.tensor(
        [read.get(n, 0) if scene["kind"] in kinds else -100 for n, (_, kinds) in names.items()]
    )


# what no cell of a scene shows is 0, of these labels; of the others it does not apply
EMPTY = {"objects": ("color", "shape"), "bars": ("color", "value"), "line": ("value",),
         "function": ("color", "key"), "slip": ("key", "value", "digit"),
         "triangle": ("color", "value")}  # fmt: skip


def cell_labels(scene: dict) -> Tensor:
    """Return what each of the 16 cells shows, [16, labels of CELL], -100 = does not apply."""
    labels = {name: torch.full((scenes.GRID, scenes.GRID), -100) for name in CELL}  # [row, column]
    step = torch.arange(scenes.GRID)
    labels["column"], labels["row"] = step.expand(4, 4).clone(), step[:, None].expand(4, 4).clone()
    for name in EMPTY.get(scene["kind"], ()):
        labels[name][:] = 0
    for at, shown in _shown(scene):
        for name, value in shown.items():
            labels[name][at] = value
    return torch.stack([labels[name].flatten() for name in CELL], dim=-1)


def _shown(scene: dict) -> Iterator[tuple[Any, dict[str, int]]]:
    """Yield which cells, as [row, column], show what."""
    # what a column or row of the picture says (a bar, a field of a slip) all its cells say
    whole, step, kind = slice(None), scenes.SIDE_PX // scenes.GRID, scene["kind"]
    if kind == "objects":
        for item in scene["objects"]:
            x, y = (round(v * scenes.SIDE_PX) for v in item["box"][:2])
            size = list(scenes.SIZES_PX).index(item["size"])
            yield (y // step, x // step), _look(item) | {"size": size, "x": x % step, "y": y % step}
    elif kind == "bars":
        for column, bar in enumerate(scene["bars"]):
            yield (whole, column), _look(bar) | {"value": bar["value"]}
    elif kind == "line":
        for column, value in enumerate(scene["values"]):
            yield (whole, column), {"value": value}
    elif kind == "function":
        for curve in scene["curves"]:  # where it is anchored: its vertex, or on the axis
            x, y = (int(v * scenes.SIDE_PX) for v in plot_point(curve["h"], curve["k"]))
            key = 1 + list(facts.FAMILIES.values()).index(curve["family"])
            place = {"x": x % step * CLASSES // step, "y": y % step * CLASSES // step}
            yield (y // step, x // step), _look(curve) | {"key": key} | place
    elif kind == "slip":
        for row, (key, value) in enumerate(scene["fields"].items()):
            digits = value if value.isdigit() else ""
            first = int(digits[0]) if digits else scenes.FIELDS[key].index(value)
            second = 1 + int(digits[1]) if len(digits) > 1 else 0
            key = 1 + list(scenes.FIELDS).index(key)
            yield (row, whole), {"key": key, "value": 1 + first, "digit": second}
    elif kind == "triangle":
        for (x, y), corner in zip(corner_points(scene), scene["corners"], strict=True):
            value = corner["angle"] // 5 if corner["marked"] else 0
            yield (int(y * scenes.GRID), int(x * scenes.GRID)), _look(corner) | {"value": value}
    elif kind == "circle":
        marked = scene["marked"]
        yield whole, {"key": facts.LENGTHS.index(marked), "value": truth.length(scene, marked)}
    elif kind == "rectangle":
        yield whole, {"value": scene["width"], "digit": scene["height"]}
    elif kind == "closeup":
        yield whole, _look(scene) if scene["clear"] else _look(scene) | {"shape": 0}


def _look(item: dict) -> dict[str, int]:
    """Return the classes of a thing's colour and, where it has one, of its shape."""
    color = {"color": 1 + list(scenes.COLORS).index(item["color"])}
    return color | ({"shape": 1 + scenes.SHAPES.index(item["shape"])} if "shape" in item else {})


def collate_tower(samples: list[dict], processor: ImageProcessor) -> dict[str, Tensor]:
    """Return cells [B, 16, labels], facts [B, names], small [B, 16, 3, 14, 14] (each cell at half
    size), pixel_values and image_grid_thw.
    """
    images = [microworld.render(scene) for scene in samples]
    half = numpy.stack([numpy.asarray(image.reduce(2), dtype="float32") for image in images])
    half = torch.from_numpy(half / 127.5 - 1).permute(0, 3, 1, 2)
    small = half.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    return {
        "cells": torch.stack([cell_labels(scene) for scene in samples]),
        "facts": torch.stack([reading_labels(scene) for scene in samples]),
        "small": small,
        **pixels(images, processor),
    }
