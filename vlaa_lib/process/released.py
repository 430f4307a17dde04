"""Scored processes as ViLReward-73K has them: the released file, or what the tree search wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from vlaa_lib import records
from vlaa_lib.records import RecordError, Reject

COLUMNS = ("index", "image_path", "question", "process", "value")


class Process(NamedTuple):
    """One scored process: the steps of a solution up to a step (ours: or all), and its value."""

    index: str
    image: str  # path below the image root
    question: str
    process: str
    value: float  # in [0, 1]


class Read(NamedTuple):
    """Rows that passed, and the rejects table."""

    rows: list[Process]
    rejects: list[Reject]


def read_processes(path: str | Path, images: str | Path | None = None) -> Read:
    """Read a JSON array or JSON Lines; a row that cannot be used is a reject, with its line.

    Args:
        images: image root; when given, each image must exist below it.
    Raises:
        RecordError: the file is missing, empty or not text.
    """
    path, found = Path(path), Read([], [])
    if not path.is_file():
        raise RecordError(f"{path}: no such file; fetch it from the hub and give its local path")
    try:
        with path.open(encoding="utf-8") as stream:
            for line, row in records.iter_json(stream):
                try:
                    found.rows.append(_process(row, images))
                except RecordError as error:
                    index = row.get("index", "") if isinstance(row, dict) else ""
                    found.rejects.append(Reject(path.name, line, str(index), str(error)))
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 text ({error.reason}); is it an archive?") from None
    if not found.rows and not found.rejects:
        raise RecordError(f"{path}: the file holds no rows; was the download complete?")
    return found


def _process(row: Any, images: str | Path | None) -> Process:
    if isinstance(row, RecordError):
        raise row
    if not isinstance(row, dict):
        raise RecordError(f"expected a JSON object, found {type(row).__name__}")
    kinds = {"index": (str, int), "value": (int, float)}
    for name in COLUMNS:
        if row.get(name) is None or row[name] == "":
            raise RecordError(f"key {name!r} is missing or empty")
        is_kind = isinstance(row[name], kinds.get(name, str)) and not isinstance(row[name], bool)
        if not is_kind or (name in COLUMNS[1:4] and not row[name].strip()):
            wanted = {"index": "text or a number", "value": "a number"}.get(name, "text")
            raise RecordError(f"key {name!r} is {type(row[name]).__name__}, expected {wanted}")
    index, image, question, process, value = (row[name] for name in COLUMNS)
    if re.search(r"[\ud800-\udfff]", image + question + process):
        raise RecordError("a text holds half a character (a lone surrogate); repair it")
    if not 0 <= value <= 1:
        raise RecordError(f"value {value} is not between 0 and 1")
    image = records.clean_image_path(image)
    if images is not None and not (Path(images) / image).is_file():
        raise RecordError(f"image {image!r} is not below {images}; fetch it or fix it")
    return Process(str(index), image, question, process, float(value))
