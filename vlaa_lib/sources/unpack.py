"""Archives, zip or tar, whole or in parts: unpacked as the hostile input that they are."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

from vlaa_lib import VlaaError
from vlaa_lib.records import brief, clean_image_path

MAX_RATIO = 20  # ours: pictures hardly shrink; an archive that grows more than this is a trap
MIN_LIMIT_BYTES = 64 * 2**20  # ours: small archives may grow this much whatever their ratio
MAX_MEMBERS = 1_000_000  # ours: six times the records of the whole release

# x.tar.gz, or a split archive: x.tar.gz.aa as `split` names its parts, x.zip.001, x.tar.part-1
ARCHIVE = re.compile(
    r"(.+\.(?:tar\.gz|tgz|tar|zip))(?:\.(?:part[-_.]?)?(?!gz|xz)(?:\d{1,3}|[a-z]{2}))?", re.I
)


def archives(paths: list[str]) -> dict[str, list[str]]:
    """Return the archives among file names: name without part number -> its parts in order.

    >>> archives(["a.json", "b.tar.gz", "c.zip.10", "c.zip.9", "d.tar.ab", "d.tar.aa"])
    {'b.tar.gz': ['b.tar.gz'], 'c.zip': ['c.zip.9', 'c.zip.10'], 'd.tar': ['d.tar.aa', 'd.tar.ab']}
    """
    found: dict[str, list[str]] = {}
    for path in sorted(paths, key=lambda path: (len(path), path)):
        if match := ARCHIVE.fullmatch(path):
            found.setdefault(match[1], []).append(path)
    return dict(sorted(found.items()))


def unpack(parts: list[Path], folder: Path, kept: Collection[Path] = ()) -> None:
    """Unpack a zip or tar, whole or in parts, beside what is in a folder; all of it or nothing.

    What was downloaded is hostile input: names that leave the folder or are there twice, links,
    devices, a tar without its end mark, and archives that grow beyond all measure are refused.

    Args:
        kept: files that no member may replace, such as those whose digest was compared.
    """
    staging = folder / f".unpacking-{parts[0].name}"
    shutil.rmtree(staging, ignore_errors=True)  # of an earlier run that was killed
    staging.mkdir(parents=True)
    limit = max(MIN_LIMIT_BYTES, MAX_RATIO * sum(part.stat().st_size for part in parts))
    try:
        with parts[0].open("rb") if len(parts) == 1 else _joined(parts, folder) as source:
            _extract(source, staging, limit)
        if lost := next((path for path in kept if _same_place(path, folder, staging)), None):
            raise VlaaError(f"it would replace {lost}")
        shutil.copytree(staging, folder, dirs_exist_ok=True, copy_function=os.replace)
    except VlaaError as error:
        raise VlaaError(f"{parts[0]}: {error}; nothing was unpacked, do not trust it") from None
    except Exception as error:  # decoders raise whatever a broken file makes them
        raise VlaaError(
            f"{parts[0]}: broken, cut short, or the disk is full ({error}); make room, or delete "
            "it and fetch it again"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _same_place(path: Path, folder: Path, staging: Path) -> bool:
    return path.is_relative_to(folder) and (staging / path.relative_to(folder)).exists()


def _joined(parts: list[Path], folder: Path) -> IO[bytes]:
    whole = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    for part in parts:
        with part.open("rb") as stream:
            shutil.copyfileobj(stream, whole)
    whole.seek(0)
    return whole


class _Member(tarfile.TarInfo):
    """A member that tells its archive when the end mark was read: without it a tar is cut short."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            archive.has_end = True
            raise


def _extract(source: IO[bytes], staging: Path, limit: int) -> None:
    total, made = 0, {}  # path -> is it a folder; those that no member names, too

    def check(name: str, size: int, is_plain: bool, is_folder: bool) -> None:
        nonlocal total
        path, total = clean_image_path(name), total + size  # refuses one that leaves the folder
        if path.startswith("."):
            raise VlaaError(f"member {brief(name)!r} is hidden, as our own files are")
        if not is_plain:
            raise VlaaError(f"member {brief(name)!r} is a link or a device")
        if path in made and not (is_folder and made[path]):
            raise VlaaError(f"member {brief(name)!r} is there twice")
        made[path] = is_folder
        while (path := path.rpartition("/")[0]) and path not in made:
            made[path] = True
        if total > limit or len(made) > MAX_MEMBERS:
            raise VlaaError(f"it grows beyond {limit:,} bytes or {MAX_MEMBERS:,} files: a bomb")

    def checked(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        if member.name not in (".", "./"):
            is_folder = member.isdir()
            check(member.name, member.size, member.isreg() or is_folder, is_folder)
        return tarfile.data_filter(member, path)  # no foreign owner, no set-user bit

    is_zip = source.read(2) == b"PK"
    source.seek(0)
    if not is_zip:
        with tarfile.open(fileobj=source, tarinfo=_Member) as archive:
            archive.extractall(staging, filter=checked)
            if not getattr(archive, "has_end", False):
                raise VlaaError("it breaks off between two members")
        return
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # zero where it was not made on Unix
            is_plain = info.is_dir() or kind in (0, stat.S_IFREG)
            check(info.filename, info.file_size, is_plain, info.is_dir())
        archive.extractall(staging)
