"""Boxes on a picture: a gold box beside each answer's, with the overlap under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlaa_lib.images import font, sheet
from vlaa_lib.rewards.verifiers import iou

if TYPE_CHECKING:
    from PIL import Image

    from vlaa_lib.rewards.verifiers import Box

SIDE_PX, CAPTION_PX = 180, 20  # of one panel: three to a row stay under 640 px
GOLD, ANSWER = (0, 0, 0), (213, 94, 0)  # black and Okabe-Ito's vermilion


def overlaps(image: Image.Image, gold: Box, answers: Sequence[Box | None]) -> Image.Image:
    """Draw each answer's box (thin, coloured) over the gold's (thick, black), one panel each.

    Args:
        gold: corners as fractions, as `rewards.parse_box` returns them; `answers` likewise, None
            for an answer that is no box.
    """
    from PIL import Image, ImageDraw

    panels = []
    for number, box in enumerate(answers, 1):
        panel = Image.new("RGB", (SIDE_PX, SIDE_PX + CAPTION_PX), "white")
        panel.paste(image.convert("RGB").resize((SIDE_PX, SIDE_PX)))
        pen = ImageDraw.Draw(panel)
        for shape, color, width in ((gold, GOLD, 4), (box, ANSWER, 2)):
            if shape:
                pen.rectangle([v * (SIDE_PX - 1) for v in shape], outline=color, width=width)
        said = f"IoU {iou(gold, box):.3f}" if box else "no box"
        pen.text((4, SIDE_PX + 2), f"{number}: {said}", fill="black", font=font(14))
        panels.append(panel)
    return sheet(panels, columns=3)
