"""The released files: ViLReward-73K's scored processes and ViLBench's questions, read locally."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vlaa_lib import records, rewards
from vlaa_lib.records import Loaded, Record, RecordError, Reject

T = TypeVar("T")
COLUMNS = ("index", "image_path", "question", "process", "value")
# ours: ViLBench's own names are not known; the value is a column, or several to be tried in turn
BENCHMARK_COLUMNS = {
    "id": ("index", "id"),
    "image": ("image_path", "image"),
    "question": ("question",),
    "gt": ("answer", "gt"),
    "source": ("source", "dataset"),
}


@dataclass(frozen=True)
class Process:
    """One scored process: the steps of a solution up to a step (ours: or all), and its value.

    Attributes:
        image: path below the image root.
        value: in [0, 1].
    """

    index: str
    image: str
    question: str
    process: str
    value: float


class Read(NamedTuple):
    """Rows that passed, and the rejects table."""

    rows: list[Process]
    rejects: list[Reject]


def read_processes(path: str | Path, images: str | Path | None = None) -> Read:
    """Read ViLReward-73K, or what the tree search wrote: a JSON array or JSON Lines.

    Args:
        images: image root; when given, each image must exist below it.
    Raises:
        RecordError: the file is missing, empty or not text.
    """
    return Read(*_parted(path, _process, images))


def read_benchmark(
    path: str | Path,
    images: str | Path | None = None,
    columns: Mapping[str, Iterable[str]] = BENCHMARK_COLUMNS,
) -> Loaded:
    """Read ViLBench's questions as records, so that a pool can be sampled for them.

    The reward, which chooses the verifier, is `mcq` where the question has options, `digit` for a
    number and `math` else (ours; the release's grading is not known).

    Raises:
        RecordError: the file is missing, empty or not text.
    """

    seen: set[str] = set()

    def make(row: dict[str, Any]) -> Record:
        found = {
            key: next((row[name] for name in names if name in row), None)
            for key, names in columns.items()
        }
        if missing := [key for key in ("id", "image", "question", "gt") if found[key] is None]:
            tried = ", ".join(columns[missing[0]])
            raise RecordError(
                f"no column for {missing[0]!r} (tried {tried}; the row has "
                f"{', '.join(map(str, row))}); name it with columns="
            )
        record = records.from_json(found | {"reward": _reward(found)})
        if record.id in seen:
            raise RecordError("id already used above; number the rows")
        for reject in rewards.audit([record]):
            raise RecordError(reject.reason)
        seen.add(record.id)
        return record

    return Loaded(*_parted(path, make, images))


def _reward(row: Mapping[str, Any]) -> str:
    if rewards.options(str(row["question"])):
        return "mcq"
    return "digit" if re.fullmatch(r"-?\d{1,12}(\.\d{1,12})?", str(row["gt"]).strip()) else "math"


def _parted(
    path: str | Path, make: Callable[[dict[str, Any]], T], images: str | Path | None
) -> tuple[list[T], list[Reject]]:
    """Make something of each row of a file, or a reject; nothing is passed over."""
    path, rows, rejects = Path(path), [], []
    if not path.is_file():
        raise RecordError(f"{path}: no such file; fetch it from the hub and give its local path")
    try:
        with path.open(encoding="utf-8") as stream:
            for line, row in records.iter_json(stream):
                try:
                    rows.append(_checked(row, make, images))
                except RecordError as error:
                    index = row.get("index", row.get("id", "")) if isinstance(row, dict) else ""
                    rejects.append(Reject(path.name, line, str(index), str(error)))
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 text ({error.reason}); is it an archive?") from None
    if not rows and not rejects:
        raise RecordError(f"{path}: the file holds no rows; was the download complete?")
    return rows, rejects


def _checked(row: Any, make: Callable[[dict[str, Any]], T], images: str | Path | None) -> T:
    if isinstance(row, RecordError):
        raise row
    if not isinstance(row, dict):
        raise RecordError(f"expected a JSON object, found {type(row).__name__}")
    made = make(row)
    if images is not None and not (Path(images) / made.image).is_file():
        raise RecordError(f"image {made.image!r} is not below {images}; fetch it or fix it")
    return made


def _process(row: dict[str, Any]) -> Process:
    for name in COLUMNS:
        if row.get(name) is None or row[name] == "":
            raise RecordError(f"key {name!r} is missing or empty")
    for name in COLUMNS[1:4]:
        if not isinstance(row[name], str) or not row[name].strip():
            raise RecordError(f"key {name!r} is {type(row[name]).__name__}, expected text")
    if any(re.search(r"[\ud800-\udfff]", row[name]) for name in COLUMNS[1:4]):
        raise RecordError("a text holds half a character (a lone surrogate); repair it")
    index, value = row["index"], row["value"]
    if isinstance(index, bool) or not isinstance(index, (str, int)):
        raise RecordError(f"key 'index' is {type(index).__name__}, expected text or a number")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecordError(f"key 'value' is {type(value).__name__}, expected a number")
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise RecordError(f"value {value} is not between 0 and 1")
    image = records.clean_image_path(row["image_path"])
    return Process(str(index), image, row["question"], row["process"], float(value))
