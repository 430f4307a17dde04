"""Folders of results: written whole or not at all, claimed by one setting, with their origin.

Work that was stopped goes on in its folder; other settings are refused.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from vlaa_lib import ROOT, VlaaError

PACKAGES = ("accelerate", "datasets", "math-verify", "numpy", "papermill", "peft", "pillow",
            "plotly", "torch", "transformers", "trl")  # what results can depend on

# see `draft_of`; its machine and its process
_DRAFT = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)\.[0-9a-f]{12}")

# --- files ---------------------------------------------------------------------------------------


def draft_of(path: str | Path) -> Path:
    """Return a name beside a file, or folder, for what becomes it: this process's own."""
    made = f"{_here()}-{os.getpid()}.{uuid4().hex[:12]}"
    return Path(path).with_name(f".{Path(path).name}.{made}")


def _here() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """Give a draft, one's own, that becomes the file at the end; on an error it is removed."""
    path, draft = Path(path), draft_of(path)
    with named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Let an error of the system name the file, which it does not where a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic(path: str | Path) -> Iterator[TextIO]:
    """Open a text that is there whole or not at all, on the disk too."""
    # half a surrogate pair, which no file can hold, becomes the escape that JSON has for it
    given = {"encoding": "utf-8", "errors": "backslashreplace"}
    with staged(path) as draft, draft.open("w", **given) as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Write pieces of text to one file atomically."""
    with atomic(path) as stream:
        stream.writelines(lines)


def write_text(path: str | Path, text: str) -> None:
    """Write a file atomically."""
    write_lines(path, [text])


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON Lines, atomically; `whole_lines` reads them."""
    write_lines(path, (as_json(row) + "\n" for row in rows))


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON for people too, atomically."""
    write_text(path, as_json(value, indent=1) + "\n")


def as_json(value: Any, **layout: Any) -> str:
    """Write a value as JSON; NaN and infinity, which JSON does not know, become null.

    >>> as_json({"reward": float("nan"), "of": (1, 2)})
    '{"reward": null, "of": [1, 2]}'
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, **layout)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically; the columns are those of all rows, in order of appearance."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic(path) as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_text(path: str | Path) -> str:
    """Read UTF-8, whatever the locale; the mark (BOM) that some editors put first is no text."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        said = f"not UTF-8 text ({error.reason}); save it as UTF-8"
        raise VlaaError(f"{path}: {said}") from None


def read_json(path: str | Path, kind: type = dict) -> Any:
    """Read a JSON file of ours, an object or, where `kind` is list, a list."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind):
        said = "object" if kind is dict else "list"
        raise VlaaError(f"{path}: not a JSON {said}; delete it, or take it from where it was made")
    return found


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping."""
    import yaml

    try:
        found = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        # never its whole text, which quotes lines, and so a key that stands there
        mark, why = getattr(error, "problem_mark", None), getattr(error, "problem", str(error))
        place = f"line {mark.line + 1}: " if mark else ""
        raise VlaaError(f"{path}: cannot be read as YAML ({place}{why}); mend it") from None
    except OSError as error:
        raise VlaaError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise VlaaError(f"{path}: expected a section or `key: value` lines, found {kind}")
    return found


def whole_lines(path: str | Path, cut: bool = False) -> list[dict[str, Any]]:
    """Read the rows of a JSON Lines file that is appended to; no file, no rows.

    The half line that a killed process left at the end is no row; `cut` removes it, so that the
    next row does not run into it.
    """
    path = Path(path)
    *whole, half = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    if cut and half:
        os.truncate(path, path.stat().st_size - len(half))
    return [
        _object(line, f"{path}:{number}: not a JSON object; delete this line")
        for number, line in enumerate(whole, 1)
    ]


def _object(text: str | bytes, problem: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise VlaaError(problem)
    return found


def append_line(path: str | Path, row: dict[str, Any]) -> None:
    """Add one row to a JSON Lines file, in one write: it is whole, or the half line at the end."""
    given = {"encoding": "utf-8", "errors": "backslashreplace"}  # as `atomic`
    with named(path), Path(path).open("a", **given) as stream:
        stream.write(as_json(row) + "\n")


# --- whose folder it is --------------------------------------------------------------------------


def claim(
    folder: str | Path, settings: dict[str, Any], marker: str = "settings.json",
    names: Iterable[str] = (),
) -> Path:  # fmt: skip
    """Make a folder ours, or refuse it: it holds work of other settings.

    Args:
        marker: the file in it that keeps the settings.
        names: settings that are for people, such as a checkpoint's path; they may differ.
    """
    path = Path(folder) / marker
    settings = json.loads(json.dumps(settings))  # as it reads back: tuples become lists
    if not path.is_file():
        write_json(path, settings)
        return Path(folder)
    held = read_json(path)
    keys = sorted((held.keys() | settings) - set(names))
    if differ := [key for key in keys if held.get(key) != settings.get(key)]:
        said = ", ".join(f"{k} {held.get(k)!r} instead of {settings.get(k)!r}" for k in differ)
        raise VlaaError(
            f"{folder} holds work of other settings ({said}); give another folder, the same "
            "settings, or delete it"
        )
    return Path(folder)


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder for one process, or refuse; the lock goes when the process does."""
    from filelock import FileLock, Timeout

    Path(folder).mkdir(parents=True, exist_ok=True)
    held = FileLock(Path(folder) / ".lock", timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise VlaaError(
            f"{folder} is in use by another process; wait for it, or give another folder"
        ) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise _unlockable(folder, error) from None
        raise  # read-only, say
    try:
        sweep(folder)
        yield
    finally:
        held.release()


def check_locks(folder: str | Path) -> None:
    """Make a folder, or refuse one on a disk that has no POSIX locks, such as SQLite needs.

    SQLite takes their want for another program that holds the file, and waits for it in vain.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        import fcntl

        with tempfile.TemporaryFile(dir=folder) as probe:
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows has locks of its own
        return
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise _unlockable(folder, error) from None


def _unlockable(folder: str | Path, error: OSError) -> VlaaError:
    return VlaaError(
        f"{folder}: its disk cannot lock files ({error.strerror}), as some network disks; use a "
        "folder on a disk of this machine, or mount the disk with locks (Lustre: -o flock)"
    )


# disks of one machine; all others, among them those not known, may be shared by several
_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "tmpfs", "overlay"}


def is_on_this_machine(folder: str | Path) -> bool:
    """Tell whether a folder is on a disk that only this machine uses, as far as Linux says."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    place, kind, depth = Path(folder).resolve(), "", 0
    for _, at, found, *_ in map(str.split, mounts.splitlines()):
        at = at.replace("\\040", " ")
        if place.is_relative_to(at) and len(at) >= depth:  # of two at one place the last one counts
            kind, depth = found, len(at)
    return kind in _LOCAL


def sweep(folder: str | Path) -> None:
    """Remove the drafts that killed processes of this machine left in a folder and below."""
    for left in list(Path(folder).rglob(".*")):
        made = _DRAFT.fullmatch(left.name)
        if not made or made[1] != _here() or _is_alive(int(made[2])):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def fingerprint(model: str | Path) -> str:
    """Return a hash of a checkpoint's folder, or the name of one on the hub.

    Small files whole; of weights their size and 64 pieces of 4 KiB spread over the file, since
    part of a model may be frozen: the end of a file alone can be that of every checkpoint.
    """
    folder = Path(model)
    if not folder.is_dir():
        return str(model)
    found, files = hashlib.sha256(), sorted(folder.iterdir())
    for path in (p for p in files if p.suffix in (".json", ".jinja", ".txt")):
        found.update(path.name.encode() + path.read_bytes())
    for path in (p for p in files if p.suffix in (".safetensors", ".bin")):
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            found.update(f"{path.name} {size}".encode())
            for number in range(64):
                stream.seek(max(0, size - 4096) * number // 63)
                found.update(stream.read(4096))
    return found.hexdigest()[:16]


# --- where it comes from -------------------------------------------------------------------------


def provenance() -> dict[str, Any]:
    """Return machine, versions, commit and dirty flag, the last two None outside git."""
    git = ("git", "-C", str(ROOT))
    # where ROOT is none itself it may lie inside another repository
    commit = _output(*git, "rev-parse", "HEAD") if (ROOT / ".git").exists() else None
    return {
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": commit,
        "dirty": bool(_output(*git, "status", "--porcelain")) if commit else None,
    }


@cache
def machine() -> str:
    """Describe this machine in a line: system, processor, cores we may use, memory, GPUs."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    said = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    if found := re.search(r"^model name\s*:\s*(.+)$", said, re.MULTILINE):
        model = found[1]
    usable = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(usable(0)) if usable else os.cpu_count()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    query = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    gpus = _output(*query) if shutil.which(query[0]) else None
    shown = gpus.replace("\n", "; ") if gpus else "no GPU"
    return f"{platform.system()}, {model}, {cores} cores, {memory_gib:.0f} GiB, {shown}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    text = {"encoding": "utf-8", "errors": "replace"}
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=30, **text)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
