"""Records: the released files' schema, typed; a streaming reader and an atomic writer."""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from vlaa_lib import VlaaError
from vlaa_lib.folders import as_json, write_lines

REWARDS = ("digit", "mcq", "math", "iou", "open")
# what a training's rewards and traces need of a record, as columns of its dataset
COLUMNS = ("id", "source", "question", "gt", "solution", "reward", "frame", "meta")
FRAMES = ("norm01", "norm1000", "pixel_original", "pixel_resized")
CHUNK_CHARS = 2**16  # read at a time: files are larger than memory
MAX_RECORD_CHARS = 2**26  # ours: a thousand times the longest record of the release
MAX_DEPTH = 64  # ours, of lists and objects inside each other; a scene has six
FLAT = "images"  # the source of pictures that lie in no folder of the image root
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")  # never in JSON, early in archives and UTF-16
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)  # or a whole string

# Image folder of the released files -> (source, reward). Paper figure 4; chartqa is in the release
# but not in the figure: open-ended is our choice.
FOLDERS = {
    "clevr_math": ("CLEVR-Math", "digit"),
    "geoqa170k": ("GeoQA170K", "mcq"),
    "arxivqa": ("ArxivQA", "mcq"),
    "synthesis": ("Math PUMA", "math"),
    "coco": ("COCO", "iou"),
    "vg": ("VisualGenome", "iou"),
    "docvqa": ("DocVQA", "open"),
    "vizwiz": ("VizWiz", "open"),
    "allava_laion": ("ALLaVA-LAION", "open"),
    "chartqa": ("ChartQA", "open"),
}


@dataclass(frozen=True)
class Record:
    """One image, question and gold, with whatever the pipeline has added to it so far."""

    id: str
    image: str  # path below the image root, `/`-separated
    question: str
    gt: str  # gold as distributed
    ds_answer: str = ""  # the teacher's reply as it came
    answer: str = ""  # the final trace with tags
    caption: str = ""
    source: str = ""
    reward: str = ""  # one of REWARDS; chooses the verifier (paper figure 4)
    solution: str = ""  # the gold's normalised text, what verifiers read
    frame: str = ""  # coordinate frame of boxes (`iou` only)
    meta: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)  # keys we do not know, as they came

    def to_json(self) -> dict[str, Any]:
        """Return the record as the flat object that `from_json` reads; empty fields left out."""
        row = {k: v for k, v in vars(self).items() if k != "extra" and v not in ("", {})}
        return row | self.extra

    def to_columns(self) -> dict[str, Any]:
        """Return the dataset columns that `from_columns` reads; the column `image` is TRL's.

        A column holds one type, and the released files give some golds as numbers: `gt` is text.
        """
        columns = {name: getattr(self, name) for name in COLUMNS}
        return columns | {"gt": normalise_gold(self.gt), "picture": self.image}


@dataclass(frozen=True)
class Reject:
    """A record that was not used, and why."""

    file: str
    line: int | None  # None: it is no line of a file
    id: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " * bool(self.file)
        return f"{place}{brief(self.id) or '(no id)'}: {self.reason}"


class Loaded(NamedTuple):
    """Records that passed, and the rejects table."""

    records: list[Record]
    rejects: list[Reject]


class RecordError(VlaaError):
    """A record, or a whole file, that cannot be used; the message says why and what to do."""


def brief(text: str, chars: int = 80) -> str:
    """Return what a message quotes of a text, which may be a megabyte."""
    return text if len(text) <= chars else f"{text[:chars]}… ({len(text):,} characters)"


def normalise_gold(gt: Any) -> str:
    """Return the gold as text; a worked solution that ends in `†Answer:` keeps only its answer.

    >>> normalise_gold(3), normalise_gold("We get ...\\n†Answer: y = 2 x"), normalise_gold(" B ")
    ('3', 'y = 2 x', 'B')
    """
    text = json.dumps(gt) if isinstance(gt, (list, tuple)) else str(gt)
    return re.split(r"†\s*answer\s*:", text, flags=re.IGNORECASE)[-1].strip()


def clean_image_path(image: str) -> str:
    """Return the image path relative to the root, refusing one that would leave it.

    One published record starts with a stray `/`; it means the image root, not the disk's.
    """
    parts = [part for part in image.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts:
        raise RecordError("'image' is empty; give a path below the image root")
    if ".." in parts or ":" in parts[0]:
        raise RecordError(f"image {brief(image)!r} leaves the image root; use a path below it")
    return "/".join(parts)


def from_columns(columns: Mapping[str, Sequence[Any]]) -> list[Record]:
    """Return the records of a batch, from the columns that TRL hands to a reward function."""
    rows = zip(columns["picture"], *(columns[name] for name in COLUMNS), strict=True)
    return [Record(image=picture, **dict(zip(COLUMNS, row, strict=True))) for picture, *row in rows]


def image_below(image: str, images: str | Path | None) -> str:
    """Return the clean path of an image, which must exist where the root is given."""
    image = clean_image_path(image)
    try:
        is_there = images is None or (Path(images) / image).is_file()
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise RecordError(f"image {brief(image)!r}: {error.strerror}; fix the path") from None
    if not is_there:
        raise RecordError(f"image {brief(image)!r} is not below {images}; fetch it or fix it")
    return image


def check(row: Any, needed: Iterable[str], kinds: Mapping[str, tuple[Any, str]]) -> None:
    """Refuse what is no object, lacks a key, or holds a value of another kind.

    Args:
        row: a value as `iter_json` yields it; a RecordError is raised again.
        kinds: by key, the types it may have and their name for the reader.
    """
    if isinstance(row, RecordError):
        raise row
    if not isinstance(row, dict):
        raise RecordError(f"expected a JSON object, found {type(row).__name__}")
    for key in needed:
        if row.get(key) is None or row[key] in ("", []):
            raise RecordError(f"key {key!r} is missing or empty")
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # JSON can escape what no file can hold
        raise RecordError("a text holds half a character (a lone surrogate); repair it") from None
    except (ValueError, RecursionError) as error:
        is_deep = isinstance(error, RecursionError)
        said = "is nested too deeply" if is_deep else "holds NaN, infinity or a number as large"
        raise RecordError(f"it {said}; repair or delete it") from None
    if text.count("{") + text.count("[") > MAX_DEPTH < _depth(row):
        raise RecordError(f"it is nested deeper than {MAX_DEPTH} levels; flatten or delete it")
    for key, (kind, said) in kinds.items():
        if row.get(key) is not None and not isinstance(row[key], kind):
            raise RecordError(f"key {key!r} is {type(row[key]).__name__}, expected {said}")


def _depth(value: Any) -> int:
    """Count the levels of lists and objects, without recursion."""
    level, depth = [value], 0
    while level := [held for one in level if isinstance(one, (dict, list))
                    for held in (one.values() if isinstance(one, dict) else one)]:  # fmt: skip
        depth += 1
    return depth


def from_json(row: Any) -> Record:
    """Turn one JSON object of the pipeline's or the released shape into a Record, or refuse it."""
    texts = ("image", "question", "ds_answer", "answer", "caption", "source", "reward", "frame")
    kinds = dict.fromkeys(texts, (str, "text"))
    kinds |= {"id": ((str, int), "text or a number"), "meta": (dict, "an object")}
    check(row, ("id", "image", "question", "gt"), kinds)
    gold = row["gt"]
    if isinstance(gold, (bool, dict)) or (isinstance(gold, float) and not math.isfinite(gold)):
        raise RecordError(f"gold {json.dumps(gold)[:60]} is no answer; write 'gt' as text")
    image = clean_image_path(row["image"])
    source, reward = FOLDERS.get(image.split("/")[0], ("", ""))
    reward = row.get("reward") or reward
    if reward not in REWARDS:
        said = f"unknown reward {brief(reward)!r}" if reward else (
            f"no known source for image {brief(image)!r}"
        )
        raise RecordError(f"{said}; set 'reward' to one of {', '.join(REWARDS)}")
    frame = row.get("frame") or ("norm01" if reward == "iou" else "")
    if frame and frame not in FRAMES:
        raise RecordError(f"unknown frame {brief(frame)!r}; use one of {', '.join(FRAMES)}")
    known = {f.name for f in fields(Record)} - {"extra"}
    values = {k: row[k] for k in known & row.keys() if row[k] is not None}
    values |= {
        "id": str(row["id"]),
        "image": image,
        "source": row.get("source") or source or (image.split("/")[0] if "/" in image else FLAT),
        "reward": reward,
        "frame": frame,
        "solution": str(row.get("solution") or normalise_gold(row["gt"])),
        "extra": {k: v for k, v in row.items() if k not in known},
    }
    return Record(**values)


def iter_json(
    stream: TextIO, key: str = "", chunk_chars: int = CHUNK_CHARS
) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) from a JSON array or JSON Lines, whichever the text is, streaming.

    With a key: from the array under it, in one object. A broken JSON line is yielded as its
    RecordError and the next line goes on; inside a broken array nothing after the break can be
    told apart, so its error is the last item.
    """
    first = stream.read(1)
    while first and (first.isspace() or first == "\ufeff"):
        first = stream.read(1)
    stream.seek(0)
    if first == "[" or key:
        yield from _iter_array(stream, key, chunk_chars)
        return
    # by its line breaks alone: `str.splitlines` would also cut at U+2028 and U+0085 inside a text
    number = 0
    while line := stream.readline(MAX_RECORD_CHARS):
        number += 1
        if len(line) == MAX_RECORD_CHARS and not line.endswith("\n"):
            while not (rest := stream.readline(MAX_RECORD_CHARS)).endswith("\n") and rest:
                pass
            said = f"longer than {MAX_RECORD_CHARS:,} characters; delete this line"
            yield number, RecordError(said)
        elif text := line.strip("\ufeff \t\r\n"):
            try:
                text.encode()
                yield number, json.loads(text)
            except UnicodeEncodeError:  # see `iter_file`
                yield number, RecordError("not UTF-8 text; repair or delete this line")
            except (ValueError, RecursionError) as error:  # also: a number of thousands of digits
                yield number, RecordError(f"not valid JSON ({error}); repair or delete this line")


def _iter_array(stream: TextIO, key: str, chunk_chars: int) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) for each element of an array, holding one chunk beyond an element."""
    opening = re.compile(rf'"{key}"\s*:\s*\[' if key else r"\[")
    buffer, line = stream.read(chunk_chars), 1
    while not (match := opening.search(buffer)):
        kept_chars = max(chunk_chars, 2**10)  # the key may lie across two chunks
        line += buffer.count("\n", 0, -kept_chars)
        if not (more := stream.read(chunk_chars)):
            yield 1, RecordError(f"no list under the key {key!r}; is this the dataset's own file?")
            return
        buffer = buffer[-kept_chars:] + more
    decoder, gap = json.JSONDecoder(parse_int=_integer), re.compile(r"[\s,]*")
    at, counted = match.end(), 0
    while True:
        at = gap.match(buffer, at).end()
        line, counted = line + buffer.count("\n", counted, at), at
        if buffer.startswith("]", at):
            if not key and (buffer[at + 1 :] + stream.read(chunk_chars)).strip():
                yield line, RecordError("text after the end of the array; make it one array")
            return
        try:
            value, end = decoder.raw_decode(buffer, at)
        except RecursionError:
            value, end = RecordError("it is nested too deeply; delete it"), _end(buffer, at)
        except ValueError:  # cut off by the chunk, as a rule
            end = len(buffer)
        if end < len(buffer):  # a number could go on in the next chunk: something must follow
            yield line, value
            at = end
        elif (left := len(buffer) - at) <= MAX_RECORD_CHARS and (
            more := stream.read(max(chunk_chars, left))  # each time twice: all of it is linear
        ):
            buffer, at, counted = buffer[at:] + more, 0, 0
        else:
            broken = "the JSON array is broken or cut off here; nothing after it can be read"
            yield line, RecordError(broken)
            return


def _integer(digits: str) -> float:
    """Read a whole number; one of thousands of digits, which Python refuses, is infinite."""
    return int(digits) if len(digits) < 4300 else math.inf


def _end(buffer: str, start: int) -> int:
    """Return where an element of brackets ends, or the end of the buffer."""
    depth = 0
    for found in _BRACKETS.finditer(buffer, start):
        depth += (found[0] in "[{") - (found[0] in "]}")
        if not depth:
            return found.end()
    return len(buffer)


def iter_file(path: str | Path, key: str = "") -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of a file as `iter_json` does; a RecordError where there is no text."""
    try:
        with open(path, "rb") as file:
            if _BINARY.search(file.peek(2**12)[: 2**12]):
                raise RecordError(f"{path}: not UTF-8 text; is it an archive?")
            # a byte that is no UTF-8 makes its own record a reject, not the file
            yield from iter_json(io.TextIOWrapper(file, "utf-8", "surrogateescape"), key)
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise RecordError(f"{path}: a folder; name a file in it") from None
    except io.UnsupportedOperation:
        raise RecordError(f"{path}: no regular file; write what it holds to one first") from None


def read(path: str | Path, images: str | Path | None = None) -> Iterator[Record | Reject]:
    """Yield each record of a file, or its Reject; with an image root its image must be there."""
    return (row for _, row in numbered(path, images))


def numbered(
    path: str | Path, images: str | Path | None = None
) -> Iterator[tuple[int, Record | Reject]]:
    """Yield what `read` does, each with its line."""
    seen: dict[str, int] = {}
    for line, row in iter_file(path):
        try:
            record = from_json(row)
            if record.id in seen:
                raise RecordError(f"id already used on line {seen[record.id]}")
            image_below(record.image, images)
        except RecordError as error:
            name = str(row.get("id", "")) if isinstance(row, dict) else ""
            yield line, Reject(Path(path).name, line, name, str(error))
            continue
        seen[record.id] = line
        yield line, record


def kept(path: str | Path, images: str | Path | None = None) -> Iterator[Record]:
    """Read a file with `read` and pass over its rejects, where these are told elsewhere."""
    return (row for row in read(path, images) if isinstance(row, Record))


def load(path: str | Path, images: str | Path | None = None) -> Loaded:
    """Read a whole file with `read`; a RecordError where it holds nothing."""
    items = list(read(path, images))
    if not items:
        raise RecordError(f"{path}: the file holds no records; was the download complete?")
    rejects = [item for item in items if isinstance(item, Reject)]
    return Loaded([item for item in items if isinstance(item, Record)], rejects)


def spread(made: Iterable[Record], n: int) -> list[Record]:
    """Take n records, of each source as many as of the others while it has some."""
    found, seen = [], Counter()
    for record in made:
        found.append((seen[record.source], record))
        seen[record.source] += 1
    found.sort(key=lambda pair: pair[0])  # stable: the first of each source, the second, ...
    return [record for _, record in found[:n]]


def line_of(row: Record | Reject) -> str:
    """Return a record's or a reject's line of a JSON Lines file."""
    return as_json(row.to_json() if isinstance(row, Record) else vars(row)) + "\n"


def write(rows: Iterable[Record | Reject], path: str | Path) -> None:
    """Write records or rejects as JSON Lines, atomically."""
    write_lines(path, map(line_of, rows))
