"""What each public dataset is: where it comes from, which file is read, what a row becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from . import rows

# the paper samples from GeoQA170K without saying how many; 14,019 in the authors' earlier release
GEOQA_COUNT = 14_019  # repo README (VL-Thinking)


@dataclass(frozen=True)
class Join:
    """A second file that adds to the records sampled, matched by the picture's file name."""

    patterns: tuple[str, ...]
    image_field: str
    take: Callable[[rows.Row], rows.Row]
    key: str = ""


@dataclass(frozen=True)
class Reader:
    """One dataset: where it is, which file is read, and what a row of it becomes.

    Attributes:
        folder: of its root below the common one, as `data prepare --root` expects it.
        patterns: of the file with the rows, the first that is there; `key`: see `files.lines`.
        image_folders: where the archive of pictures unpacks to, besides what rows state.
        fields: what is read of a row.
        is_whole: sample pictures with all their records, not one record a picture.
    """

    folder: str
    home: str
    patterns: tuple[str, ...]
    fields: str
    row: Callable[[rows.Row], rows.Made]
    key: str = ""
    image_folders: tuple[str, ...] = ("images",)
    join: Join | None = None
    is_whole: bool = False


_HUB = "huggingface.co/datasets/"
_LLAVA_COT = Reader(
    "llava_cot", _HUB + "Xkev/LLaVA-CoT-100k", ("train.jsonl",), "image, conversations",
    partial(rows.llava_cot, "coco"), image_folders=("image",), is_whole=True,
)  # fmt: skip

# Name in table 1 -> how it is read.
READERS = {
    "CLEVR-Math": Reader(
        "clevr_math", _HUB + "dali-does/clevr-math", ("clevr-math-train.json",),
        "image_filename, split, question, answer; scenes: image_filename, objects",
        rows.clevr_math, key="questions",
        join=Join(("scenes/CLEVR_train_scenes.json", "CLEVR_train_scenes.json"),
                  "image_filename", rows.clevr_scene, key="scenes"),
    ),
    "GeoQA170K": Reader(
        "geoqa170k", _HUB + "lmms-lab/LLaVA-OneVision-Data (geo170k(qa)) or Luckyjhg/Geo170K",
        ("train-*.parquet", "qa_tuning.json"), "image, conversations", rows.geoqa,
    ),
    "Math PUMA": Reader(
        "synthesis", _HUB + "Math-PUMA/Math-PUMA_Data_Stage2 (Synthesis)", ("train.json*",),
        "image_url, instruction, output, image_url_2, instruction_2", rows.math_puma,
    ),
    "ArxivQA": Reader(
        "arxivqa", _HUB + "MMInstruction/ArxivQA", ("arxivqa.jsonl",),
        "id, image, question, options, label, rationale", rows.arxivqa,
    ),
    "DocVQA": Reader(
        "docvqa", "www.docvqa.org/datasets (task 1, single page)", ("train_v1.0*.json",),
        "questionId, image, question, answers", rows.docvqa, key="data",
        image_folders=("spdocvqa_images", "documents", "images"),
    ),
    "VizWiz": Reader(
        "vizwiz", "vizwiz.org/tasks-and-datasets/vqa", ("train.json",),
        "image, question, answers, answerable", rows.vizwiz, image_folders=("train", "images"),
    ),
    "ALLaVA-LAION": Reader(
        "allava_laion", _HUB + "FreedomIntelligence/ALLaVA-4V (allava_laion)",
        ("ALLaVA-Instruct-LAION-4V.json",), "id, image, conversations, url; captions alike",
        rows.allava,
        join=Join(("ALLaVA-Caption-LAION-4V.json",), "image", rows.allava_caption),
    ),
    "COCO": _LLAVA_COT,
    "VisualGenome": replace(_LLAVA_COT, row=partial(rows.llava_cot, "vg")),
}  # fmt: skip
