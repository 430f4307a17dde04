"""The nine public datasets of the paper's table 1, as their authors distribute them, as records.

`data/SOURCES.md` says where to get each and what of it we could not verify. The micro-world's
sources are read through the same functions.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT, VlaaError, folders, records, rewards, worlds
from vlaa_lib.records import FOLDERS, Record, RecordError, Reject

from . import files, rows

Item = Record | Reject

# the paper samples from GeoQA170K without saying how many; so many in the authors' earlier release
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
    """One dataset: where it is, which file is read, and what a row of it becomes."""

    folder: str  # of its root below the common one, as `data prepare --root` expects it
    home: str
    patterns: tuple[str, ...]  # of the file with the rows, the first that is there
    fields: str  # what is read of a row
    row: Callable[[rows.Row], Any]
    key: str = ""  # of the list of rows in the file
    image_folders: tuple[str, ...] = ("images",)  # where archives unpack to, besides what rows say
    join: Join | None = None
    is_whole: bool = False  # sample pictures with all their records, not one record a picture


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


def table() -> list[dict[str, Any]]:
    """List the public sources: where to get them, what is read, reward, the paper's count."""
    reward, counts = dict(FOLDERS.values()), paper_counts()
    return [
        {"source": name, "from": reader.home, "below --root": reader.folder,
         "files": ", ".join([*reader.patterns, *(reader.join.patterns[:1] if reader.join else [])]),
         "fields": reader.fields, "reward": reward[name], "paper's count": counts[name]}
        for name, reader in READERS.items()
    ]  # fmt: skip


def paper_counts(scale: float = 1.0) -> dict[str, int]:
    """Return how many pictures to sample of each public source (table 1, `original`), scaled."""
    if not 0 < scale < math.inf:
        raise VlaaError(f"scale {scale} is not a positive number; 1 is the paper's size")
    paper = json.loads((ROOT / "data/paper/vlaa_thinking.json").read_text(encoding="utf-8"))
    original = {row[0]: row[2] or GEOQA_COUNT for row in paper["table1_dataset"]["rows"]}
    return {name: max(1, round(original[name] * scale)) for name in READERS}


def _reader(source: str) -> Reader:
    if source not in READERS:
        known = ", ".join([*READERS, *worlds.known().sources])
        raise VlaaError(f"unknown source {source!r}; use one of {known}")
    return READERS[source]


def read(source: str, root: str | Path) -> Iterator[Item]:
    """Yield the records of a source's file in its order, a Reject for each that cannot be used.

    Golds of digit, choice and box questions are held against their verifier here. Memory does not
    grow with the file. `extra["origin"]` says where the picture is: a path below the root, or
    FILE#ROW in a parquet file. A micro source has no end and no file; its root is not looked at.
    """
    if source in worlds.known().sources:
        yield from (sample.record for sample in worlds.known().stream(source, "train"))
        return
    reader = _reader(source)
    for line in files.lines(files.find(root, reader.patterns, reader.home), reader.key):
        try:
            made = reader.row(line.row)
        except RecordError as error:
            made = error
        for item in made if isinstance(made, list) else [made]:
            try:
                yield _record(reader, root, line, item)
            except RecordError as error:
                name = item["id"] if isinstance(item, dict) else _row_id(line.row)
                yield Reject(line.file.name, line.number, name, str(error))


def _row_id(row: Any) -> str:
    names = ("id", "questionId", "image_filename", "image", "image_url")
    known = (row.get(name) for name in names if isinstance(row, dict))
    return next((str(value) for value in known if isinstance(value, (str, int))), "")


def _record(reader: Reader, root: str | Path, line: files.Line, item: Any) -> Record:
    if isinstance(item, RecordError):
        raise item
    if isinstance(item["origin"], bytes):
        origin = f"{line.file.relative_to(root).as_posix()}#{line.number}"
    else:
        origin = files.locate(root, item["origin"], reader.image_folders)
    record = records.from_json({**item, "origin": origin})
    if record.reward in ("digit", "mcq", "iou"):  # a math gold costs a process: `write` does those
        for reject in rewards.audit([record]):
            raise RecordError(reject.reason)
    return record


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
    out: str | Path, counts: dict[str, int], roots: dict[str, str | Path], seed: int = 0
) -> list[dict[str, Any]]:
    """Sample sources into `out`: `records.jsonl`, `rejects.jsonl`, the pictures in `images/`.

    What a second file adds (CLEVR's scenes, ALLaVA's captions) is read for the sample only. Both
    tables are replaced at the end; pictures are second names of the dataset's own files where the
    file system can.

    Args:
        counts: pictures wanted of each source.
        roots: folder of each public source.
    Returns:
        A row a source: pictures asked for, records written, rejects, golds repaired or left so.
    """
    out, kept, summary = Path(out), {}, []
    with folders.atomic(out / "rejects.jsonl") as stream:  # more of them than memory holds
        rejected: Counter[str] = Counter()

        def reject(why: Reject) -> None:  # None: no record, see `sift`
            rejected[source] += 1
            stream.write(json.dumps(asdict(why)) + "\n")  # ASCII: names may be broken

        def sift(items: Iterable[Item]) -> Iterator[Record]:
            return (item for item in items if isinstance(item, Record) or reject(item))

        for source, n in counts.items():
            made = {}
            for record in sift(_prepare(source, n, roots, out / "images", seed, sift)):
                if record.id in kept or record.id in made:
                    reject(Reject("", 0, record.id, "id already used by another record chosen"))
                else:
                    made[record.id] = record
            kept |= made
            repairs = Counter(r.meta.get("gold_repair", "kept") for r in made.values())
            del repairs["kept"]
            row = {"source": source, "asked": n, "written": len(made), "rejected": rejected[source]}
            summary.append(row | repairs)
    records.write(kept.values(), out / "records.jsonl")
    return summary


def _prepare(
    source: str,
    n: int,
    roots: dict[str, str | Path],
    images: Path,
    seed: int,
    sift: Callable[[Iterable[Item]], Iterator[Record]],
) -> Iterator[Item]:
    """Sample one source and finish the records chosen: joined, audited, their pictures placed."""
    if source in worlds.known().sources:
        for made in islice(worlds.known().stream(source, "train", seed), n):
            made.save(images)
            yield made.record
        return
    reader = _reader(source)
    if source not in roots:
        raise VlaaError(f"no folder given for {source}; name the one that holds {reader.home}")
    root = Path(roots[source])
    chosen = sample(sift(read(source, root)), n, seed, reader.is_whole)
    if reader.join:
        chosen = list(sift(_joined(reader.join, root, reader.home, chosen)))
    if dict(FOLDERS.values())[source] == "math":
        bad = {reject.id: reject for reject in rewards.audit(chosen)}
        yield from bad.values()
        chosen = [record for record in chosen if record.id not in bad]
    yield from _placed(chosen, root, images)


def _joined(join: Join, root: Path, home: str, chosen: Iterable[Record]) -> Iterator[Item]:
    """Add what a second file says of each picture; a record that it does not know is rejected."""
    wanted, found = {Path(record.image).name for record in chosen}, {}
    paths = files.find(root, join.patterns, home)
    for line in files.lines(paths, join.key):
        try:
            if (name := Path(rows.field(line.row, join.image_field)).name) in wanted:
                found[name] = join.take(line.row)
        except RecordError as error:
            yield Reject(line.file.name, line.number, _row_id(line.row), str(error))
    for record in chosen:
        name = Path(record.image).name
        try:
            if name not in found:
                raise RecordError(f"nothing usable on image {name!r}; is the file complete?")
            meta = record.meta | found[name]["meta"]
            yield records.from_json((record.to_json() | found[name]) | {"meta": meta})
        except RecordError as error:
            yield Reject(paths[0].name, 0, record.id, str(error))


def _placed(chosen: list[Record], root: Path, images: Path) -> Iterator[Record]:
    """Bring the pictures of the records chosen below the new root."""
    embedded: dict[str, dict[int, str]] = {}  # parquet file -> row -> image
    for record in chosen:
        file, _, row = record.extra["origin"].rpartition("#")
        if file.endswith(".parquet"):
            embedded.setdefault(file, {})[int(row)] = record.image
        else:
            files.place(root / record.extra["origin"], images / record.image)
        yield replace(record, extra={})
    for file, wanted in embedded.items():
        for line in files.lines([root / file]):
            if line.number in wanted:
                target = images / wanted[line.number]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(line.row["image"]["bytes"])
