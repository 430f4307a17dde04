"""Benchmarks: VLMEvalKit's TSVs, read row by row, or held-out records.

Pictures of a file go to a cache, each once. A row that cannot be asked is a reject with file, line,
column and reason. One whose gold makes no sense is asked, as it counts in the kit's mean too; its
score names the reason.
"""

from __future__ import annotations

import ast
import base64
import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlaa_lib import VlaaError, folders, prompts
from vlaa_lib import images as pictures
from vlaa_lib.records import Record, RecordError, Reject, clean_image_path

MAX_REFERENCE_CHARS = 64  # VLMEvalKit: so short a text in `image` is the index of another row
MAX_LITERAL_CHARS = 20_000  # ours: ten times the longest list of choices
HELD_OUT = "held-out"  # records of ours as a benchmark

Row = dict[str, Any]  # the file's own columns as text, without the picture, and `images`
Answers = dict[str, Row]  # index -> prediction, tokens, truncated; the last two not of the kit's


@dataclass(frozen=True)
class Layout:
    """What a benchmark's file must hold, besides index, question and a picture."""

    columns: tuple[str, ...]  # that VLMEvalKit reads
    asked: tuple[str, ...] = ()  # that a prompt needs; never empty
    num_rows: int | None = None  # of the split that the paper scores; None for micro ones


_VISTA = ("question_type", "answer_type", "choices", "answer", "answer_option", "task", "skills")
_VERSE = ("question_for_eval", "answer", "question_type", "problem_version", "metadata")
_DYNA = ("qid", "varid", "answer", "answer_type", "subject", "knowledge_level")
_WE = ("ID", "key", "knowledge concept", "A", "B", "answer")
LAYOUTS = {
    "MathVista_MINI": Layout(_VISTA, (), 1000),
    "MathVision": Layout(("choices", "answer", "category"), (), 3040),
    "MathVerse_MINI_Vision_Only": Layout(_VERSE, (), 788),
    "MathVerse_MINI_Vision_Only_cot": Layout(_VERSE, ("query_cot",), 788),
    "MathVerse_MINI": Layout(_VERSE, (), 5 * 788),  # all problem versions
    "DynaMath": Layout(_DYNA, (), 5010),
    "WeMath": Layout(_WE, (), 1740),
    "WeMath_COT": Layout(_WE, ("requirement",), 1740),
    "LogicVista": Layout(("answer", "skill"), (), 447),
}
LAYOUTS |= {
    f"micro-{name.partition('_')[0]}": Layout(layout.columns, ("micro_reward",))
    for name, layout in LAYOUTS.items()
}


@dataclass
class Benchmark:
    """A benchmark's rows in the file's order, and everything that is not among them."""

    name: str
    images: Path  # the root that the rows' `images` are below
    rows: list[Row] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    num_other_split: int = 0

    def __str__(self) -> str:
        """Say how many rows there are, and how many the paper's split has."""
        split = LAYOUTS[self.name].num_rows if self.name in LAYOUTS else None
        said = f"{self.name}: {len(self.rows)} rows"
        if split not in (None, len(self.rows)):
            said += f" (the paper's split has {split})"
        if self.rejects:
            said += f"; {len(self.rejects)} cannot be asked"
        if self.num_other_split:
            said += f"; {self.num_other_split} are of another split"
        return said


def family(name: str) -> str:
    """Return which of the six a benchmark is, real or micro.

    >>> family("MathVerse_MINI_Vision_Only")
    'MathVerse'
    """
    if name not in LAYOUTS:
        raise VlaaError(f"unknown benchmark {name!r}; use one of {', '.join(LAYOUTS)}")
    return name.removeprefix("micro-").partition("_")[0]


def held_out(records: Iterable[Record], images: str | Path) -> Benchmark:
    """Make a benchmark of records: asked as training asks, scored by their own verifiers."""
    rows = [{"index": str(i), "images": [one.image], "record": one}
            for i, one in enumerate(records)]  # fmt: skip  (an id may be there twice)
    return Benchmark(HELD_OUT, Path(images), rows)


# --- files ----------------------------------------------------------------------------------------


def read(
    name: str, path: str | Path, images: str | Path, image_root: str | Path | None = None
) -> Benchmark:
    """Read a benchmark's TSV; write its pictures to `images`, each under the hash of its bytes.

    `image_path` starts from `image_root`, by default the file's own folder. Of a file with all
    problem versions `MathVerse_MINI_Vision_Only` takes its own, as the paper.
    """
    family(name)  # refuses an unknown name
    path, layout, found = Path(path), LAYOUTS[name], Benchmark(name, Path(images))
    root = Path(image_root or path.parent).resolve()
    # index -> its pictures, the index of the row that has them, or why there are none
    shown: dict[str, list[str] | str | RecordError] = {}
    lines: dict[str, int] = {}
    asked: list[Row] = []
    for line, row in tsv_rows(path, ("index", "question", *layout.columns, *layout.asked), name):
        index = ""
        try:
            if isinstance(row, RecordError):
                raise row
            index = row["index"] = row["index"].strip()
            if not 0 < len(index) <= MAX_REFERENCE_CHARS:
                raise RecordError(f"column 'index': {index[:40]!r} is no index; number the rows")
            if index in lines:
                raise RecordError(
                    f"column 'index': {index!r} is used on line {lines[index]}; number anew"
                )
            lines[index] = line
            given = row.pop("image", None), row.pop("image_path", None)
            shown[index] = _pictures(*given, found.images, root)
            if "Vision_Only" in name and row["problem_version"] != "Vision Only":
                found.num_other_split += 1  # another row may refer to its picture
                continue
            _check(name, row)
            asked.append(row)
        except RecordError as error:
            found.rejects.append(Reject(path.name, line, index, str(error)))
    for row in asked:
        mine = shown[row["index"]]
        if isinstance(mine, str):
            other, mine = mine, shown.get(mine)
            if not isinstance(mine, list):
                mine = RecordError(
                    f"column 'image': {other!r} is neither a picture nor the index of a row "
                    "that has a usable one"
                )
        if isinstance(mine, list):
            found.rows.append(row | {"images": mine})
        else:
            found.rejects.append(Reject(path.name, lines[row["index"]], row["index"], str(mine)))
    found.rejects.sort(key=lambda reject: reject.line)
    if not found.rows:
        why = found.rejects[0] if found.rejects else "it holds another split"
        raise RecordError(f"{path}: no row can be asked; the first reason: {why}")
    return found


def tsv_rows(
    path: Path, columns: Iterable[str], what: str
) -> Iterator[tuple[int, dict[str, str] | RecordError]]:
    """Yield (first line, row) of a TSV that has the columns, one row in memory at a time.

    What is no row is a RecordError in its place, and the next goes on. Not pandas, which fills a
    row that is too short and forgets the lines.
    """
    if not path.is_file():
        raise RecordError(f"{path}: no such file; check the path given for {what}")
    csv.field_size_limit(pictures.MAX_FILE_BYTES * 2)  # a picture as base64 is a third longer
    line, is_empty = 0, True

    def lines() -> Iterator[str]:  # counted here: the reader forgets those of what is no row
        nonlocal line
        for text in stream:
            line += 1
            yield text

    # a byte that is no UTF-8 makes its own row a reject, as in `records.iter_file`
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.DictReader(lines(), delimiter="\t", strict=True)
        try:
            named = reader.fieldnames or []
            "".join(named).encode()
        except (csv.Error, UnicodeEncodeError) as error:
            said = f"not a TSV file in UTF-8 ({error}); fetch it again"
            raise RecordError(f"{path.name}:1: {said}") from None
        if missing := [c for c in columns if c not in named]:
            raise RecordError(
                f"{path.name}:1: no column {', '.join(map(repr, missing))}; is it {what}?"
            )
        first = line + 1
        while (row := _next_row(reader)) is not None:
            yield first, row
            first, is_empty = line + 1, False
    if is_empty:
        raise RecordError(f"{path.name}: the file holds no rows; was it cut off?")


def _next_row(reader: csv.DictReader) -> dict[str, str] | RecordError | None:
    try:
        row = next(reader, None)
        if row and (None in row or None in row.values()):
            return RecordError(
                f"the row does not have the header's {len(reader.fieldnames)} columns; quote tabs "
                "and line breaks"
            )
        "".join(row.values() if row else ()).encode()
    except csv.Error as error:
        is_open = "end of data" in str(error)
        said = "a quote that opens here is never closed, so nothing behind it can be read"
        return RecordError(said if is_open else f"not a row of a TSV ({error}); repair it")
    except UnicodeEncodeError:
        return RecordError("not UTF-8 text; repair or delete the row")
    return row


# LaTeX in a literal list whose writer did not double its backslashes: `\f`, `\t`, ... are escapes
_MACRO = re.compile(
    r"(?<!\\)((?:\\\\){0,20})\\(?=(?:alpha|angle|approx|bar|begin|beta|binom|boxed|bullet|frac|forall"
    r"|nabla|neq?|neg|not|notin|nu|rangle|rho|right|rightarrow|tanh?|tau|text(?:bf|it|rm)?|tfrac"
    r"|theta|therefore|times|to|top|triangle|underline|vec|vee|varphi|vert|xi)(?![A-Za-z]))"
)


def listed(value: Any) -> list[str] | None:
    r"""Read a list, or its text as JSON or a Python literal, running nothing; None for all else.

    >>> listed('["a"]'), listed("['a', 2]"), listed("[]"), listed("[1, 2"), listed("3")
    (['a'], ['a', '2'], [], None, None)
    >>> listed(r"['\frac{1}{2}', '\\times', 'a\nb']")
    ['\\frac{1}{2}', '\\times', 'a\nb']
    """
    if isinstance(value, str):
        value = _MACRO.sub(r"\1\\\\", value)
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = literal(value)
    return [str(entry) for entry in value] if isinstance(value, (list, tuple)) else None


def literal(cell: Any) -> Any:
    """Read a Python literal, running nothing; None for a text that is none."""
    if not isinstance(cell, str):
        return cell
    try:
        return ast.literal_eval(cell.strip()) if len(cell) <= MAX_LITERAL_CHARS else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # hostile text's
        return None


def is_missing(text: str | None) -> bool:
    """Tell whether a cell is empty, or a NaN that became text."""
    return text is None or text.strip().lower() in ("", "nan")


def _check(name: str, row: Row) -> None:
    """Refuse a row without the texts that its prompt and its score need."""
    needed = ["question", "answer", *LAYOUTS[name].asked]
    if row.get("question_type") == "multi_choice":  # MathVista's gold is then a letter
        needed[1] = "answer_option"
    for column in needed:
        if is_missing(row[column]):
            raise RecordError(f"column {column!r} is empty or NaN; fill it in or delete the row")
        if special := re.search(r"<\|\w+\|>", row[column]):  # would be read as the token itself
            raise RecordError(f"column {column!r} spells the special token {special[0]}")
    if row.get("micro_reward", "mcq") not in prompts.TASK_INSTRUCTIONS:
        raise RecordError(f"column 'micro_reward': unknown reward {row['micro_reward'][:40]!r}")


def _pictures(
    image: str | None, image_path: str | None, images: Path, root: Path
) -> list[str] | str | RecordError:
    """Write a row's pictures and return their names, another row's index, or what is wrong."""
    try:
        if not is_missing(image):
            image = image.strip()
            if len(image) <= MAX_REFERENCE_CHARS:
                return image
            # base64 has neither quotes nor backslashes, so any list of it is one of JSON
            cells = _entries(image.replace("'", '"'))
            return [_write(base64.b64decode("".join(cell.split()), validate=True), images)
                    for cell in cells]  # fmt: skip
        if is_missing(image_path):
            raise RecordError("columns 'image' and 'image_path': the row has no picture")
        names = []
        for path in _entries(image_path.strip()):
            if Path(path).is_relative_to(root):  # the kit writes absolute paths
                path = str(Path(path).relative_to(root))
            pictures.open_image(path, root)  # refuses what leaves the root, before it is read
            names.append(_write((root / clean_image_path(path)).read_bytes(), images))
        return names
    except (RecordError, pictures.ImageError) as error:
        return RecordError(str(error))
    except ValueError as error:
        return RecordError(f"column 'image': not base64 ({error}); fetch the file again")


def _entries(text: str) -> list[str]:
    """Return a cell's entries: those of a list, or the cell itself."""
    entries = listed(text) if text.startswith("[") else [text]
    if not entries:
        raise RecordError(f"{text[:40]!r} is no list of pictures; write it as JSON")
    return entries


def _write(data: bytes, images: Path) -> str:
    """Write a picture under its hash, unless it is there; what is there has been checked."""
    name = hashlib.sha256(data).hexdigest()[:32] + pictures.image_extension(data)
    if (images / name).is_file():
        return name
    try:
        with folders.staged(images / name) as draft:
            draft.write_bytes(data)
            pictures.fitted_size(*pictures.open_image(draft.name, images).size)
    except pictures.ImageError as error:
        raise RecordError(f"column 'image': {str(error).replace(draft.name, name)}") from None
    return name
