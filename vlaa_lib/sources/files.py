"""Files of the public datasets: rows as a stream, pictures found below a root, never outside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from vlaa_lib.records import RecordError, clean_image_path, iter_file

BATCH_ROWS = 64  # ours: rows of a parquet file, with their pictures, held at a time
_EXTENSIONS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif"}


class Line(NamedTuple):
    """One row of a file, or the error in its place; `number` counts from 1."""

    file: Path
    number: int
    row: Any


def find(root: str | Path, patterns: Iterable[str], home: str) -> list[Path]:
    """Return the files of the first pattern that matches in the root or one folder below it."""
    root = Path(root)
    for pattern in patterns:
        if found := sorted({*root.glob(pattern), *root.glob(f"*/{pattern}")}):
            return found
    raise RecordError(f"{root}: no {' or '.join(patterns)} here; get it from {home} and unpack it")


def lines(files: Iterable[Path], key: str = "") -> Iterator[Line]:
    """Yield the rows of parquet, JSON Lines or JSON files, streaming; `key` as of `iter_json`."""
    for file in files:
        try:
            rows = _parquet_rows(file) if file.suffix == ".parquet" else iter_file(file, key)
            for number, row in rows:
                yield Line(file, number, row)
        except RecordError as error:  # not UTF-8
            yield Line(file, 0, error)


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


def image_extension(data: Any) -> str:
    """Return the file extension of an embedded picture, from its bytes alone, or refuse it."""
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=list(_EXTENSIONS)) as image:
            return _EXTENSIONS[image.format]
    except Exception as error:  # PIL's decoders raise whatever broken bytes make them
        known, why = ", ".join(_EXTENSIONS), type(error).__name__
        raise RecordError(f"field 'image' holds no {known} picture ({why})") from None


def place(source: Path, target: Path) -> None:
    """Put a picture below the new root: a second name of the same file, or a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
