"""The nine public datasets of the paper's table 1, as their authors distribute them, as records.

`data/SOURCES.md` says where to get each and what of it we could not verify.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vlaa_lib import ROOT, VlaaError, folders, records, rewards
from vlaa_lib.records import Record, RecordError, Reject, clean_image_path, iter_file

from . import rows

Rejecting = Callable[[Reject], Any]  # told of each row that is left out
BATCH_ROWS = 64  # ours: rows of a parquet file, with their pictures, held at a time
# the paper samples from GeoQA170K without saying how many; so many in the authors' earlier release
GEOQA_COUNT = 14_019  # repo README (VL-Thinking)


class Join(NamedTuple):
    """A second file that adds to the records sampled, matched by the picture's file name."""

    patterns: tuple[str, ...]
    image_field: str
    take: Callable[[rows.Row], rows.Row]
    key: str = ""


class Reader(NamedTuple):
    """One dataset: where it is, which file is read, and what a row of it becomes."""

    folder: str  # of its root below the common one, as `data prepare --root` expects it
    home: str
    patterns: tuple[str, ...]  # of the file with the rows, the first that is there
    row: Callable[[rows.Row], Any]
    key: str = ""  # of the list of rows in the file
    image_folders: tuple[str, ...] = ("images",)  # where archives unpack to, besides what rows say
    join: Join | None = None
    is_whole: bool = False  # sample pictures with all their records, not one record a picture


_HUB = "huggingface.co/datasets/"
_LLAVA_COT = Reader(
    "llava_cot", _HUB + "Xkev/LLaVA-CoT-100k", ("train.jsonl",), partial(rows.llava_cot, "coco"),
    image_folders=("image",), is_whole=True,
)  # fmt: skip

# name in table 1 -> how it is read
READERS = {
    "CLEVR-Math": Reader(
        "clevr_math", _HUB + "dali-does/clevr-math", ("clevr-math-train.json",), rows.clevr_math,
        key="questions",
        join=Join(("scenes/CLEVR_train_scenes.json", "CLEVR_train_scenes.json"),
                  "image_filename", rows.clevr_scene, key="scenes"),
    ),
    "GeoQA170K": Reader(
        "geoqa170k", _HUB + "lmms-lab/LLaVA-OneVision-Data (geo170k(qa)) or Luckyjhg/Geo170K",
        ("train-*.parquet", "qa_tuning.json"), rows.geoqa,
    ),
    "Math PUMA": Reader(
        "synthesis", _HUB + "Math-PUMA/Math-PUMA_Data_Stage2 (Synthesis)", ("train.json*",),
        rows.math_puma,
    ),
    "ArxivQA": Reader(
        "arxivqa", _HUB + "MMInstruction/ArxivQA", ("arxivqa.jsonl",), rows.arxivqa
    ),
    "DocVQA": Reader(
        "docvqa", "www.docvqa.org/datasets (task 1, single page)", ("train_v1.0*.json",),
        rows.docvqa, key="data", image_folders=("spdocvqa_images", "documents", "images"),
    ),
    "VizWiz": Reader(
        "vizwiz", "vizwiz.org/tasks-and-datasets/vqa", ("train.json",), rows.vizwiz,
        image_folders=("train", "images"),
    ),
    "ALLaVA-LAION": Reader(
        "allava_laion", _HUB + "FreedomIntelligence/ALLaVA-4V (allava_laion)",
        ("ALLaVA-Instruct-LAION-4V.json",), rows.allava,
        join=Join(("ALLaVA-Caption-LAION-4V.json",), "image", rows.allava_caption),
    ),
    "COCO": _LLAVA_COT,
    "VisualGenome": _LLAVA_COT._replace(row=partial(rows.llava_cot, "vg")),
}  # fmt: skip


def paper_counts(scale: float = 1.0) -> dict[str, int]:
    """Return how many pictures to sample of each public source (table 1, `original`), scaled."""
    if not 0 < scale < math.inf:
        raise VlaaError(f"scale {scale} is not a positive number; 1 is the paper's size")
    paper = folders.read_json(ROOT / "data/paper/vlaa_thinking.json")
    original = {row[0]: row[2] or GEOQA_COUNT for row in paper["table1_dataset"]["rows"]}
    return {name: max(1, round(original[name] * scale)) for name in READERS}


# --- files: rows as a stream, pictures found below a root, never outside it ----------------------


def find(root: str | Path, patterns: Iterable[str], home: str) -> list[Path]:
    """Return the files of the first pattern that matches in the root or one folder below it."""
    root = Path(root)
    for pattern in patterns:
        if found := sorted({*root.glob(pattern), *root.glob(f"*/{pattern}")}):
            return found
    raise RecordError(f"{root}: no {' or '.join(patterns)} here; get it from {home} and unpack it")


def lines(files: Iterable[Path], key: str = "") -> Iterator[tuple[Path, int, Any]]:
    """Yield (file, line, row) of parquet, JSON Lines or JSON; an error in the place of a row."""
    for file in files:
        try:
            found = _parquet_rows(file) if file.suffix == ".parquet" else iter_file(file, key)
            for number, row in found:
                yield file, number, row
        except RecordError as error:  # not UTF-8
            yield file, 0, error


def _parquet_rows(file: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        yield number + 1, RecordError(f"broken parquet file ({error}); fetch it again")


def locate(root: str | Path, path: str, folders: Iterable[str]) -> str:
    """Return where a row's picture lies below the root, `/`-separated.

    Archives unpack at different depths: leading folders of the path may be missing on disk, and
    the whole may lie in one of `folders`; the longest form that exists wins.
    """
    parts = clean_image_path(path).split("/")
    for start in range(len(parts)):
        for folder in ("", *folders):
            place = "/".join(filter(None, (folder, *parts[start:])))
            if not os.path.isfile(os.path.join(root, place)):
                continue
            if not Path(root, place).resolve().is_relative_to(Path(root).resolve()):
                raise RecordError(f"image {path!r} is a link that leaves {root}; copy it in")
            return place
    raise RecordError(f"image {path!r} is not below {root}; unpack the images there")


def place(source: Path, target: Path) -> None:
    """Put a picture below the new root: a second name of the same file, or a copy."""
    with folders.staged(target) as draft:
        try:
            os.link(source.resolve(), draft)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, draft)


# --- rows to records -----------------------------------------------------------------------------


def read(source: str, root: str | Path, reject: Rejecting) -> Iterator[Record]:
    """Yield the records of a source's file in its order; memory does not grow with the file.

    Golds of digit, choice and box questions are held against their verifier here.
    `extra["origin"]` says where the picture is: a path below the root, or FILE#ROW in a parquet
    file; `extra["line"]` where the record is: file and line.
    """
    if source not in READERS:
        raise VlaaError(f"unknown source {source!r}; use one of {', '.join(READERS)}")
    reader = READERS[source]
    for file, number, row in lines(find(root, reader.patterns, reader.home), reader.key):
        try:
            made = reader.row(row)
        except RecordError as error:
            made = error
        for item in made if isinstance(made, list) else [made]:
            try:
                if isinstance(item, RecordError):
                    raise item
                if isinstance(item["origin"], bytes):
                    origin = f"{file.relative_to(root).as_posix()}#{number}"
                else:
                    origin = locate(root, item["origin"], reader.image_folders)
                where = {"origin": origin, "line": [file.name, number]}
                record = records.from_json(item | where)
                if record.reward in ("digit", "mcq", "iou"):  # math: see `_chosen`
                    for bad in rewards.audit([record]):
                        raise RecordError(bad.reason)
            except RecordError as error:
                name = item["id"] if isinstance(item, dict) else _row_id(row)
                reject(Reject(file.name, number, name, str(error)))
            else:
                yield record


def _row_id(row: Any) -> str:
    names = ("id", "questionId", "image_filename", "image", "image_url")
    known = (row.get(name) for name in names if isinstance(row, dict))
    return next((str(value) for value in known if isinstance(value, (str, int))), "")


def sample(
    found: Iterable[Record], n: int, seed: int = 0, is_whole: bool = False
) -> list[Record]:
    """Choose the records of `n` pictures, one a picture, or all of each (`is_whole`) (paper §2).

    Pictures are ordered by a hash of seed and path, and the first `n` are taken; so is the record
    of a picture. Unlike a reservoir's, this choice depends on nothing but the set of records: not
    on their order, and rows added later can only take the places of a few.

    >>> made = [Record(f"r{i}", f"a/{i % 5}.png", "q", "1") for i in range(50)]
    >>> len(sample(made, 3)), len(sample(made, 9)), len(sample(made, 2, is_whole=True))
    (3, 5, 20)
    """
    chosen: dict[str, list[Record]] = {}

    def order(text: str) -> str:
        return rows.digest(f"{seed}\n{text}")

    def first() -> dict[str, list[Record]]:
        return {image: chosen[image] for image in sorted(chosen, key=order)[:n]}

    for record in found:
        kept = [*chosen.get(record.image, []), record]
        kept.sort(key=lambda r: order(f"{r.id}\n{r.question}"))
        chosen[record.image] = kept if is_whole else kept[:1]
        if len(chosen) > 2 * n + 100:  # what comes later can only push pictures out
            chosen = first()
    return [record for kept in first().values() for record in kept]


def write(
    out: str | Path, counts: dict[str, int], root: str | Path, seed: int = 0
) -> list[dict[str, Any]]:
    """Sample sources below a root into `out`: `records.jsonl`, `rejects.jsonl`, `images/`.

    What a second file adds (CLEVR's scenes, ALLaVA's captions) is read for the sample only. Both
    tables are replaced at the end; pictures are second names of the dataset's own files where the
    file system can.

    Args:
        counts: pictures wanted of each source.
    Returns:
        A row a source: pictures asked for, records written, rejects, golds repaired or left so.
    """
    out, kept, summary = Path(out), {}, []
    # more rejects than memory holds
    with folders.lock(out), folders.atomic(out / "rejects.jsonl") as stream:
        rejected: Counter[str] = Counter()

        def reject(why: Reject) -> None:
            rejected[source] += 1
            stream.write(records.line_of(why))

        for source, n in counts.items():
            repairs: Counter[str] = Counter()
            before = len(kept)
            for record in _chosen(source, n, Path(root), out / "images", seed, reject):
                if record.id in kept:
                    reject(Reject("", None, record.id, "id already used by another record chosen"))
                    continue
                kept[record.id] = record
                repairs[record.meta.get("gold_repair", "kept")] += 1
            del repairs["kept"]
            row = {"source": source, "asked": n, "written": len(kept) - before}
            summary.append(row | {"rejected": rejected[source]} | repairs)
    records.write(kept.values(), out / "records.jsonl")
    return summary


def _chosen(
    source: str, n: int, root: Path, images: Path, seed: int, reject: Rejecting
) -> Iterator[Record]:
    """Sample one source and finish the records chosen: joined, audited, their pictures placed."""
    reader = READERS[source]
    root = root / reader.folder
    chosen = sample(read(source, root, reject), n, seed, reader.is_whole)
    if reader.join:
        chosen = list(_joined(reader.join, root, reader.home, chosen, reject))
    # a math gold costs a process: of those chosen alone
    found = rewards.audit([record for record in chosen if record.reward == "math"])
    bad = {why.id: why.reason for why in found}
    embedded: dict[str, dict[int, str]] = {}  # parquet file -> row -> image
    for record in chosen:
        if record.id in bad:
            reject(Reject(*record.extra["line"], record.id, bad[record.id]))
            continue
        file, _, number = record.extra["origin"].rpartition("#")
        if file.endswith(".parquet"):
            embedded.setdefault(file, {})[int(number)] = record.image
        else:
            place(root / record.extra["origin"], images / record.image)
        yield replace(record, extra={})
    for name, wanted in embedded.items():
        for _, number, row in lines([root / name]):
            if number in wanted:
                with folders.staged(images / wanted[number]) as draft:
                    draft.write_bytes(row["image"]["bytes"])


def _joined(
    join: Join, root: Path, home: str, chosen: list[Record], reject: Rejecting
) -> Iterator[Record]:
    """Add what a second file says of each picture; a record that it does not know is rejected."""
    wanted, found = {Path(record.image).name for record in chosen}, {}
    paths = find(root, join.patterns, home)
    for file, number, row in lines(paths, join.key):
        try:
            if (name := Path(rows.field(row, join.image_field)).name) in wanted:
                found[name] = join.take(row)
        except RecordError as error:
            reject(Reject(file.name, number, _row_id(row), str(error)))
    for record in chosen:
        name = Path(record.image).name
        try:
            if name not in found:
                raise RecordError(f"nothing usable on image {name!r}; is the file complete?")
            meta = record.meta | found[name]["meta"]
            yield records.from_json((record.to_json() | found[name]) | {"meta": meta})
        except RecordError as error:
            reject(Reject(paths[0].name, None, record.id, str(error)))
