"""VLMEvalKit's prediction files, read and written, and its config entry for a checkpoint."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vlaa_lib import folders, records
from vlaa_lib.records import RecordError, Reject

from .files import Benchmark, tsv_rows
from .prompting import Settings
from .runner import Answers

MAX_CELL_CHARS = 32_767  # Excel's limit; the kit's writer cuts what is longer, the answer with it
FORMATS = (".xlsx", ".tsv", ".json")  # PRED_FORMAT of the kit
KIT_COLUMNS = ("images",)  # ours, which the kit does not know


def write(path: str | Path, benchmark: Benchmark, found: Answers) -> None:
    """Write a prediction file: the benchmark's columns and `prediction`, in its order.

    Raises:
        ValueError: a format that the kit does not read, or openpyxl is not there for xlsx.
        RecordError: a text that xlsx cannot hold whole; write tsv or json.
    """
    path = Path(path)
    rows = [
        {k: v for k, v in row.items() if k not in KIT_COLUMNS}
        | {"prediction": found[row["index"]]["prediction"]}
        for row in benchmark.rows
        if row["index"] in found
    ]
    if _format(path) == ".xlsx":
        return _write_xlsx(path, rows)
    if path.suffix == ".json":
        return folders.write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    text = io.StringIO(newline="")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # the kit quotes every cell: so its reader sees line breaks and tabs inside
    writer = csv.DictWriter(
        text, columns, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL
    )
    writer.writeheader()
    writer.writerows(rows)
    return folders.write_text(path, text.getvalue())


def read(path: str | Path, benchmark: Benchmark) -> tuple[Answers, list[Reject]]:
    """Read a prediction file of the kit or of ours for a benchmark's rows.

    Returns:
        The answers by index, and what is wrong: rows without prediction (kept as an empty one),
        of another benchmark, given twice, or as long as the cell in which xlsx cuts texts.
    Raises:
        ValueError: a format that the kit does not write, or openpyxl is not there for xlsx.
        RecordError: the file cannot be read, or has no prediction for any row.
    """
    path = Path(path)
    asked, found, notes = {row["index"] for row in benchmark.rows}, {}, []
    readers = {".xlsx": _read_xlsx, ".json": _read_json, ".tsv": _read_tsv}
    for line, row in readers[_format(path)](path):

        def note(reason: str, line: int = line, row: Any = row) -> None:
            index = str(row.get("index", "")) if isinstance(row, dict) else ""
            notes.append(Reject(path.name, line, index, reason))

        if isinstance(row, RecordError):
            note(str(row))
            continue
        index, text = _index(row.get("index")), row.get("prediction")
        if index not in asked:
            note(f"no row of {benchmark.name} has this index")
        elif index in found:
            note("this index is there twice; the first one counts")
        else:
            if text is None or text == "" or text != text:  # NaN
                note("no prediction; it counts as an empty one")
                text = ""
            if path.suffix == ".xlsx" and len(str(text)) >= MAX_CELL_CHARS:
                note(f"{MAX_CELL_CHARS:,} characters, where xlsx cuts; set PRED_FORMAT=tsv")
            found[index] = {"index": index, "prediction": str(text)}
    if not found:
        why = f"; the first reason: {notes[0]}" if notes else ""
        raise RecordError(f"{path}: no prediction for a row of {benchmark.name}{why}")
    return found, notes


def _index(value: Any) -> str:
    """Return an index as the TSV spells it; Excel makes 7.0 of 7."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _format(path: Path) -> str:
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: not {', '.join(FORMATS)}, the formats of VLMEvalKit")
    return path.suffix


def _read_tsv(path: Path) -> Iterator[tuple[int, Any]]:
    yield from tsv_rows(path, ("index", "prediction"), "a prediction file")


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8") as stream:
            for line, row in records.iter_json(stream):
                is_row = isinstance(row, (dict, RecordError))
                yield line, row if is_row else RecordError("not a JSON object")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 text ({error.reason})") from None


def _openpyxl() -> Any:
    try:
        import openpyxl
    except ImportError:
        raise ValueError(
            "xlsx needs openpyxl: `pip install openpyxl`; or take .tsv (kit: PRED_FORMAT=tsv)"
        ) from None
    return openpyxl


def _read_xlsx(path: Path) -> Iterator[tuple[int, Any]]:
    openpyxl = _openpyxl()
    try:
        # data_only: a formula is never wanted, and never computed
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        lines = book.worksheets[0].iter_rows(values_only=True)
        header = [str(name) for name in next(lines, ())]
        if missing := [name for name in ("index", "prediction") if name not in header]:
            raise RecordError(f"{path.name}:1: no column {missing[0]!r}; is it a prediction file?")
        for line, values in enumerate(lines, 2):
            yield line, dict(zip(header, values, strict=False))
    except (RecordError, FileNotFoundError):
        raise
    except Exception as error:  # a broken archive raises whatever its parts make openpyxl raise
        raise RecordError(f"{path}: not an xlsx file ({error}); write it again") from None


def _write_xlsx(path: Path, rows: list[dict[str, Any]]) -> None:
    openpyxl = _openpyxl()
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.utils.exceptions import IllegalCharacterError

    book = openpyxl.Workbook()
    sheet = book.active

    def cell(value: Any, place: str) -> Any:
        if len(str(value)) > MAX_CELL_CHARS:
            raise RecordError(
                f"{place}: {len(str(value)):,} characters, and a cell of xlsx holds "
                f"{MAX_CELL_CHARS:,}; write .tsv or .json (kit: PRED_FORMAT=tsv)"
            )
        try:
            made = WriteOnlyCell(sheet, str(value))
        except IllegalCharacterError:
            raise RecordError(
                f"{place}: a control character that xlsx cannot hold; write .tsv or .json"
            ) from None
        made.data_type = "s"  # a text that starts with "=" is no formula
        return made

    columns = list(dict.fromkeys(key for row in rows for key in row))
    sheet.append(columns)
    for row in rows:
        sheet.append([cell(row.get(c, ""), f"index {row['index']}, {c!r}") for c in columns])
    draft = path.with_name(f".{os.getpid()}-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        book.save(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def kit_config(name: str, model: str, chosen: Settings) -> str:
    """Return Python text that registers a checkpoint with VLMEvalKit (vlmeval/config.py).

    Its VLAAThinkerChat takes what stands in the answer tag, and Qwen2.5-VL only where the path
    says so: another path would load the wrong class.

    Raises:
        ValueError: an adapter, which the kit does not load, or a path that it would misread.
    """
    folder = Path(model)
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{model} is an adapter, which the kit cannot load; merge it first")
    if (folder / "config.json").is_file():
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if (kind == "qwen2_5_vl") != bool(re.search(r"2\.5|2_5|qwen25", model.lower())):
            raise ValueError(
                f"{model}: the kit takes a path with 2.5, 2_5 or qwen25 for Qwen2.5-VL and any "
                f"other for Qwen2-VL, and this is {kind}; rename or link the folder"
            )
    arguments = {
        "model_path": model,
        "min_pixels": chosen.min_pixels,
        "max_pixels": chosen.max_pixels,
        "max_new_tokens": chosen.max_new_tokens,
        "use_custom_prompt": False,
        "post_process": True,  # the answer tag
        "system_prompt": chosen.system_prompt or None,
    }
    return "\n".join(_config_lines(name, arguments)) + "\n"


def _config_lines(name: str, arguments: dict[str, Any]) -> Iterable[str]:
    yield "# In vlmeval/config.py, after supported_VLM has been built:"
    yield "from functools import partial"
    yield ""
    yield "from vlmeval.vlm import VLAAThinkerChat"
    yield ""
    yield f"supported_VLM[{name!r}] = partial("
    yield "    VLAAThinkerChat,"
    yield from (f"    {key}={value!r}," for key, value in arguments.items())
    yield ")"
