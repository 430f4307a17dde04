"""The released files: ViLReward-73K's scored processes and ViLBench's questions, read locally."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .. import records, rewards
from ..records import Loaded, Record, RecordError, Reject

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
    return Read(*_sorted(path, (_made(_process, *item, images) for item in _items(path))))


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
        return records.from_json(found | {"reward": _reward(found)})

    made = (_made(make, *item, images) for item in _items(path))
    loaded = Loaded(*_sorted(path, made))
    bad = {reject.id: reject for reject in rewards.audit(loaded.records, file=Path(path).name)}
    usable = [record for record in loaded.records if record.id not in bad]
    return Loaded(usable, [*loaded.rejects, *bad.values()])


def _reward(row: Mapping[str, Any]) -> str:
    if rewards.options(str(row["question"])):
        return "mcq"
    return "digit" if re.fullmatch(r"-?\d{1,12}(\.\d{1,12})?", str(row["gt"]).strip()) else "math"


def _items(path: str | Path) -> Iterator[tuple[int, Any]]:
    path = Path(path)
    if not path.is_file():
        raise RecordError(f"{path}: no such file; fetch it from the hub and give its local path")
    try:
        with path.open(encoding="utf-8") as stream:
            yield from records.iter_json(stream)
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 text ({error.reason}); is it an archive?") from None


def _made(make: Any, line: int, row: Any, images: str | Path | None) -> Any:
    """Return what `make` makes of a row, or (line, index, reason) where it cannot be used."""
    index = str(row.get("index", row.get("id", ""))) if isinstance(row, dict) else ""
    try:
        if isinstance(row, RecordError):
            raise row
        if not isinstance(row, dict):
            raise RecordError(f"expected a JSON object, found {type(row).__name__}")
        made = make(row)
        if images is not None and not (Path(images) / made.image).is_file():
            raise RecordError(f"image {made.image!r} is not below {images}; fetch it or fix it")
        return line, made
    except RecordError as error:
        return line, index, str(error)


def _process(row: dict[str, Any]) -> Process:
    for name in COLUMNS:
        if row.get(name) is None or row[name] == "":
            raise RecordError(f"key {name!r} is missing or empty")
    for name in COLUMNS[1:4]:
        if not isinstance(row[name], str) or not row[name].strip():
            raise RecordError(f"key {name!r} is {type(row[name]).__name__}, expected text")
    index, value = row["index"], row["value"]
    if isinstance(index, bool) or not isinstance(index, (str, int)):
        raise RecordError(f"key 'index' is {type(index).__name__}, expected text or a number")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecordError(f"key 'value' is {type(value).__name__}, expected a number")
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise RecordError(f"value {value} is not between 0 and 1")
    image = records.clean_image_path(row["image_path"])
    return Process(str(index), image, row["question"], row["process"], float(value))


def _sorted(path: str | Path, made: Iterable[Any]) -> tuple[list[Any], list[Reject]]:
    """Part what was made from what was not; several processes may share one index.

    Raises:
        RecordError: there was neither.
    """
    rows, rejects, seen = [], [], {}
    for line, *found in made:
        if len(found) == 2:
            rejects.append(Reject(Path(path).name, line, *found))
        elif isinstance(found[0], Record) and found[0].id in seen:
            said = f"id already used on line {seen[found[0].id]}"
            rejects.append(Reject(Path(path).name, line, found[0].id, said))
        else:
            rows.append(found[0])
            seen[getattr(found[0], "id", "")] = line
    if not rows and not rejects:
        raise RecordError(f"{path}: the file holds no rows; was the download complete?")
    return rows, rejects
