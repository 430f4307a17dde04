"""Archives: unpack a downloaded zip or tar as what it is, hostile input; all of it or nothing."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vlaa_lib.records import RecordError, clean_image_path

MAX_RATIO = 20  # ours: pictures hardly shrink; an archive that grows more than this is a trap
MIN_LIMIT_BYTES = 64 * 2**20  # ours: small archives may grow this much whatever their ratio
MAX_MEMBERS = 1_000_000  # ours: six times the records of the whole release
HEADER_BYTES = 2**20  # ours: what a tar may hold between two files (long names, padding)

# split archives: x.tar.gz.aa as `split` names them, or x.zip.001, x.tar.part-1
PART = r"(?:\.(?:part[-_.]?)?(?!gz|xz)(?:\d{1,3}|[a-z]{2}))?"
NAME = re.compile(r"(.+\.(?:tar\.gz|tgz|tar|zip))" + PART, re.IGNORECASE)


class ArchiveError(ValueError):
    """An archive that is not unpacked; the message says why and what to do."""


def group(paths: list[str]) -> dict[str, list[str]]:
    """Return the archives among file names: name without part number -> its parts in order.

    >>> group(["a.json", "b.tar.gz", "c.zip.10", "c.zip.9", "d.tar.ab", "d.tar.aa"])
    {'b.tar.gz': ['b.tar.gz'], 'c.zip': ['c.zip.9', 'c.zip.10'], 'd.tar': ['d.tar.aa', 'd.tar.ab']}
    """
    found: dict[str, list[str]] = {}
    for path in sorted(paths, key=lambda path: (len(path), path)):
        if match := NAME.fullmatch(path):
            found.setdefault(match[1], []).append(path)
    return dict(sorted(found.items()))


def is_inside(path: str) -> bool:
    """Say whether a path stays below the folder that it starts from.

    >>> [is_inside(path) for path in ("a/b.png", "./a", "a/../../b", "/a", "C:/a", "")]
    [True, True, False, False, False, False]
    """
    try:
        clean_image_path(path)
        return not path.startswith(("/", "\\")) and "\0" not in path
    except RecordError:
        return False


def unpack(parts: list[Path], folder: Path) -> int:
    """Unpack an archive into a folder, beside what is there; return how many files it holds.

    Files are written to a new folder first and moved when all are there, so that an archive which
    is hostile, broken or cut short leaves nothing behind. Links, devices, names that leave the
    folder and archives that grow beyond all measure are refused.

    Args:
        parts: the archive, or the parts of a split one in order.
    Raises:
        ArchiveError: nothing was unpacked.
    """
    staging = folder / f".unpacking-{parts[0].name}"
    limit = max(MIN_LIMIT_BYTES, MAX_RATIO * sum(part.stat().st_size for part in parts))
    shutil.rmtree(staging, ignore_errors=True)  # of an earlier run that was killed
    staging.mkdir(parents=True)
    try:
        with _joined(parts, staging) as source:
            count = _write(source, staging, limit)
        _check_clash(staging, folder)
    except ArchiveError as error:
        shutil.rmtree(staging)
        raise ArchiveError(f"{parts[0]}: {error}; nothing was unpacked, do not trust it") from None
    except Exception as error:  # decoders raise whatever a broken file makes them
        shutil.rmtree(staging)
        raise ArchiveError(
            f"{parts[0]}: broken, cut short, or the disk is full ({error}); nothing was unpacked. "
            "Make room, or delete it and fetch it again"
        ) from error
    _move(staging, folder)
    shutil.rmtree(staging)
    return count


def _joined(parts: list[Path], folder: Path) -> IO[bytes]:
    """Open an archive; the parts of a split one are joined in an unnamed file."""
    if len(parts) == 1:
        return parts[0].open("rb")
    whole = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    for part in parts:
        with part.open("rb") as stream:
            shutil.copyfileobj(stream, whole)
    whole.seek(0)
    return whole


def _write(source: IO[bytes], staging: Path, limit: int) -> int:
    """Write the members below the staging folder; return how many."""
    count = total = 0
    magic = source.read(4)
    source.seek(0)
    if magic.startswith(b"PK"):
        members = _zip_members(source)
    else:
        is_gzip = magic.startswith(b"\x1f\x8b")
        members = _tar_members(gzip.GzipFile(fileobj=source) if is_gzip else source)
    for name, size, stream in members:
        count, total = count + 1, total + size
        if not is_inside(name):
            raise ArchiveError(f"member {name!r} leaves the folder")
        if total > limit or count > MAX_MEMBERS:
            raise ArchiveError(f"it grows beyond {limit:,} bytes or {MAX_MEMBERS:,} files: a bomb")
        target = staging / clean_image_path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:  # our own mode and owner, never the archive's
            shutil.copyfileobj(stream, out, 2**20)
    return count


def _zip_members(source: IO[bytes]) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield (name, size, stream) of each file; a stream never gives more than its size."""
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # zero where it was not made on Unix
            if not info.is_dir() and kind not in (0, stat.S_IFREG):
                raise ArchiveError(f"member {info.filename!r} is a link or a device")
            if not info.is_dir():
                with archive.open(info) as stream:
                    yield info.filename, info.file_size, stream


class _Metered:
    """Give out a stream's bytes up to an allowance: a tar's header may claim any length."""

    def __init__(self, stream: IO[bytes]):
        self.stream, self.allowed = stream, HEADER_BYTES

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes."""
        if self.allowed <= 0:
            raise ArchiveError(f"a header of more than {HEADER_BYTES:,} bytes: a bomb")
        data = self.stream.read(size)
        self.allowed -= len(data)
        return data


def _tar_members(source: IO[bytes]) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield (name, size, stream) of each file, in one pass."""
    metered = _Metered(source)
    with tarfile.open(fileobj=metered, mode="r|") as archive:
        for member in archive:
            if not (member.isreg() or member.isdir()):
                raise ArchiveError(f"member {member.name!r} is a link or a device")
            if member.isreg():
                metered.allowed = member.size + HEADER_BYTES
                yield member.name, member.size, archive.extractfile(member)
            archive.members.clear()  # a million of them would fill the memory
            metered.allowed = HEADER_BYTES


def _check_clash(source: Path, target: Path) -> None:
    """Refuse a file where a folder is, a folder where a file is, and hidden names at the top."""
    for child in source.iterdir():
        if child.name.startswith("."):
            raise ArchiveError(f"member {child.name!r} is hidden; such names are our own")
    for path in source.rglob("*"):
        there = target / path.relative_to(source)
        if there.exists() and there.is_dir() != path.is_dir():
            raise ArchiveError(f"member {path.relative_to(source)} clashes with {there}")


def _move(source: Path, target: Path) -> None:
    """Move by renaming: a folder as a whole, or piece by piece into one that is there already."""
    if source.is_dir() and target.is_dir():
        for child in source.iterdir():
            _move(child, target / child.name)
    else:
        os.replace(source, target)
