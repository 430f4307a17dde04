"""Turn records into the dataset columns that TRL's trainers read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vlaa_lib import prompts
from vlaa_lib.images import ImageError, fit_image, open_image
from vlaa_lib.progress import progress_bar
from vlaa_lib.records import Record, RecordError, Reject


def fitted_image(record: Record, images: str | Path, cache: str | Path, **budget: int) -> str:
    """Return the path of an image that every stage may open: checked, and fitted where it must be.

    Trainers get paths, not pixels: TRL would otherwise copy and pickle each picture G times.
    """
    path = Path(images) / record.image
    image = open_image(record.image, images)
    fitted = fit_image(image, **budget)
    if fitted is image and image.size == _stored_size(path):
        return str(path.resolve())
    target = Path(cache) / Path(record.image).with_suffix(".png")
    target.parent.mkdir(parents=True, exist_ok=True)
    # each process of a launch fits the same image, and none may read another's half-written one
    draft = target.with_name(f".{os.getpid()}-{target.name}")
    fitted.save(draft)
    os.replace(draft, target)
    return str(target.resolve())


def _stored_size(path: Path) -> tuple[int, int]:
    """Read the size in the file; it differs from the opened one after an EXIF rotation."""
    from PIL import Image

    with Image.open(path) as stored:
        return stored.size


def row(record: Record, image: Any, with_trace: bool) -> dict[str, Any]:
    """Build one dataset row; `image` is a path or a picture, as TRL takes both.

    Raises:
        RecordError: a trace is asked for and the record has none.
    """
    made = {
        "prompt": prompts.messages(record.question, record.reward),
        "image": image,
        "record": json.dumps(record.to_json(), ensure_ascii=False),
    }
    if not with_trace:
        return made
    if prompts.split_think_answer(record.answer).problem:
        raise RecordError("no trace in 'answer'; run `construct` on these records first")
    return made | {"completion": [{"role": "assistant", "content": record.answer}]}


def rows(
    records: list[Record], images: str | Path, cache: str | Path, with_trace: bool, **budget: int
) -> tuple[list[dict[str, Any]], list[Reject]]:
    """Build dataset rows `prompt, image, record` and, for SFT, `completion`.

    Returns:
        The rows, and a reject for each record without a usable image or (SFT) trace.
    """
    made, rejects = [], []
    for record in progress_bar(records, desc="images", unit="record", leave=False, delay=2):
        try:
            image = fitted_image(record, images, cache, **budget)
            made.append(row(record, image, with_trace))
        except (RecordError, ImageError) as error:
            rejects.append(Reject("", 0, record.id, str(error)))
    return made, rejects
