"""The released dataset: fetch it pinned and verified, unpack it, say which pictures are there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from vlaa_lib import VlaaError, folders, records
from vlaa_lib.images import ImageError, open_image
from vlaa_lib.progress import progress_bar
from vlaa_lib.records import FOLDERS, RecordError, clean_image_path

from .unpack import archives, unpack

DATASET = "UCSC-VLAA/VLAA-Thinking"  # the authors' README
SPLITS = {"sft": "VLAA-Thinking-SFT-126K.json", "rl": "VLAA-Thinking-GRPO-25K.json"}  # its files
MARKS = ".fetch"  # folder below the root: which archives were unpacked
API_TIMEOUT_S = 30  # ours: the library's default is to wait for ever
SHOWN = 5  # ours: bad records that are quoted for each file

GENOME = "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html"
STANFORD = "https://cs.stanford.edu/people/rak248/VG_100K_2"
ELSEWHERE = {  # folders that the release does not carry: page, file (authors' download script)
    "coco/train2017": ("https://cocodataset.org/#download",
                       "http://images.cocodataset.org/zips/train2017.zip (about 19 GB)"),
    "vg/VG_100K": (GENOME, f"{STANFORD}/images.zip (about 9 GB)"),
    "vg/VG_100K_2": (GENOME, f"{STANFORD}/images2.zip (about 5 GB)"),
}  # fmt: skip


def split_file(data: Path, name: str) -> Path:
    """Return the file of a split, `sft` or `rl`: ours, else by its name in the release."""
    ours = data / f"{name}.jsonl"
    return ours if ours.is_file() else data / SPLITS[name]


# --- fetch ---------------------------------------------------------------------------------------


class RemoteFile(NamedTuple):
    """A file of the release: path below the root, bytes, sha256 (git's sha1 if not in LFS)."""

    path: str
    size: int
    digest: str


class Plan(NamedTuple):
    """What a fetch will do."""

    root: Path
    commit: str
    rows: list[dict[str, str]]  # table of all chosen files, their sizes and states
    download: list[RemoteFile]
    # archives not unpacked yet: name without part number -> parts in order
    unpack: dict[str, list[RemoteFile]]
    needs: tuple[int, int]  # bytes to download, and bytes that unpacking is expected to add


def plan(root: str | Path, revision: str | None = None, only: list[str] | None = None) -> Plan:
    """Ask the hub for the release's files and compare with the folder; write nothing.

    Args:
        revision: branch, tag or commit; by default the one in `root/REVISION`, else `main`.
        only: patterns such as `*.json`; by default every file.
    """
    root = Path(root)
    pin = root / "REVISION"
    pinned = folders.read_text(pin).strip() if pin.is_file() else ""
    wanted = revision or pinned or "main"
    with _explained(f"{DATASET}, revision {wanted!r}"):
        info = _hub().dataset_info(
            DATASET, revision=wanted, files_metadata=True, timeout=API_TIMEOUT_S
        )
        listed = [  # a mirror may say anything: these become paths on this disk
            RemoteFile(_checked_name(f.rfilename), int(f.size),
                       f.lfs.sha256 if f.lfs else f.blob_id)
            for f in info.siblings if f.rfilename != ".gitattributes"  # git's own: every hub has it
        ]  # fmt: skip
        if not re.fullmatch("[0-9a-f]{40}", info.sha):
            raise ValueError(f"{info.sha!r} is no commit")
    if pinned and info.sha != pinned:
        raise VlaaError(
            f"{root} holds revision {pinned}, and {revision!r} is {info.sha}; two revisions are "
            "not mixed: use another --root, or leave out --revision"
        )
    files = {f.path: f for f in listed if any(fnmatch(f.path, p) for p in only or ["*"])}
    if not files:
        there = ", ".join(file.path for file in listed)
        raise VlaaError(f"--only {' '.join(only or [])} fits no file; there are {there}")
    unpack, states = {}, {}
    for path, file in files.items():
        is_there = (root / path).is_file() and (root / path).stat().st_size == file.size
        states[path] = "there" if is_there else "fetch"
    for name, paths in archives([*files]).items():
        mark, digests = _mark(root, name, parts := [files[path] for path in paths])
        if mark.is_file() and folders.read_text(mark) == digests:
            states |= dict.fromkeys(paths, "unpacked")  # the archive itself may be deleted
        else:
            unpack[name] = parts
    todo = sorted((files[path] for path in files if states[path] == "fetch"), key=lambda f: f.size)
    rows = [{"file": path, "size": megabytes(file.size), "state": states[path]}
            for path, file in files.items()]  # fmt: skip
    # ours: pictures hardly shrink in an archive, and parts are joined in a temporary file
    to_unpack = sum(p.size * min(len(parts), 2) for parts in unpack.values() for p in parts)
    return Plan(root, info.sha, rows, todo, unpack, (sum(f.size for f in todo), to_unpack))


def download(plan: Plan) -> None:
    """Download what is missing, verify it, unpack archives; again, only what is not there yet.

    Not by `snapshot_download`, which takes what is there for the whole when the hub refuses.
    """
    root, (new, unpacked) = plan.root, plan.needs
    free = shutil.disk_usage(next(p for p in (root, *root.absolute().parents) if p.exists())).free
    if new + unpacked > free:
        raise VlaaError(
            f"{root}: {megabytes(free)} are free, but {megabytes(new)} are to be downloaded and "
            f"about {megabytes(unpacked)} unpacked; make room, choose another --root, or fewer "
            "files with --only"
        )
    with folders.lock(root):
        folders.write_text(root / "REVISION", plan.commit + "\n")
        for file in plan.download:
            with _explained(file.path):
                _hub().hf_hub_download(
                    DATASET, file.path, repo_type="dataset", revision=plan.commit, local_dir=root,
                    tqdm_class=_bounded(file),
                )  # fmt: skip
            # the hub's digests: sha256 of what is in LFS, git's sha1 of the rest
            is_lfs = len(file.digest) == 64
            found = hashlib.sha256() if is_lfs else hashlib.sha1(b"blob %d\0" % file.size)
            with (root / file.path).open("rb") as stream:
                while chunk := stream.read(2**20):
                    found.update(chunk)
            if found.hexdigest() != file.digest:
                (root / file.path).unlink()
                raise VlaaError(
                    f"{file.path}: what came has digest {found.hexdigest()}, the hub's listing "
                    f"says {file.digest}; it was deleted. Run the same command again, or use "
                    "another HF_ENDPOINT"
                )
        kept = [root / "REVISION", *(root / row["file"] for row in plan.rows)]
        for name, parts in plan.unpack.items():
            unpack([root / part.path for part in parts], (root / name).parent, kept)
            folders.write_text(*_mark(root, name, parts))


def _hub() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def _checked_name(name: str) -> str:
    """Return a listed file's path below the root, unless it would pass for one of our own there."""
    try:
        path = clean_image_path(name)
    except RecordError:
        path = ""
    if path in ("", "REVISION") or any(part.startswith(".") for part in path.split("/")):
        raise ValueError(f"it lists {name!r}, which is hidden, ours, or outside the folder")
    return path


def _bounded(file: RemoteFile) -> type:
    """Return a progress bar that ends a download beyond the size that the listing promised.

    The hub's library tells its bar of each piece before it writes it, and has no limit itself.
    """
    from huggingface_hub.utils import tqdm

    class Bounded(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **options: Any) -> None:
            self.come = initial  # of an earlier try
            super().__init__(*args, initial=initial, **options)

        def update(self, n: float | None = 1) -> bool | None:
            self.come += n or 0
            if self.come > file.size:
                raise VlaaError(
                    f"{file.path}: more than the {file.size:,} bytes that the listing promised; "
                    "it was stopped. Use another HF_ENDPOINT"
                )
            return super().update(n)

    return Bounded


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the hub library's and the system's errors into one line with a remedy."""
    from huggingface_hub import errors

    again = "run the same command again: finished files are kept"
    try:
        yield
        return
    except VlaaError:
        raise
    except errors.GatedRepoError:
        reason = "access is gated; accept the terms on its page, then set HF_TOKEN to your token"
    except errors.RevisionNotFoundError:
        reason = "no such revision; check --revision"
    except errors.HfHubHTTPError as error:
        reason = f"the server answered {error.response.status_code}; {again}"
        if error.response.status_code in (401, 403, 404):  # mirrors answer any for any cause
            reason += "; or the name is private, gated or not there: check HF_ENDPOINT and HF_TOKEN"
    except (errors.HTTPError, OSError) as error:  # the HTTP library's, whichever it is
        reason = f"no connection, or no disk ({error}); {again}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no hub answers there ({error}); check HF_ENDPOINT"
    raise VlaaError(f"{what}: {' '.join(reason.split())}")


def _mark(root: Path, name: str, parts: list[RemoteFile]) -> tuple[Path, str]:
    """Return the file that says that an archive was unpacked, and its text, the parts' digests."""
    file = root / MARKS / f"{name.replace('/', '__')}.unpacked"
    return file, " ".join(part.digest for part in parts)


def megabytes(size: int) -> str:
    """Return a size for people, as 623.0 MB."""
    return f"{size / 1e6:,.1f} MB"


# --- which pictures are there --------------------------------------------------------------------


def check(
    root: str | Path, files: list[str] | None = None, deep: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """Count, folder by folder, the records whose picture is there, missing or unreadable.

    Args:
        root: as for `plan`; pictures are below `root/images` if there is one, else `root`.
        files: records, JSON array or JSON Lines; by default every `.json` and `.jsonl` in `root`.
        deep: open and decode every picture; otherwise only an empty file counts as unreadable.
    Returns:
        A row a folder; and what is wrong, with its remedy: nothing when all is well.
    """
    root = Path(root)
    images = root / "images" if (root / "images").is_dir() else root
    paths = [Path(f) for f in files or sorted([*root.glob("*.json"), *root.glob("*.jsonl")])]
    if not paths:
        raise VlaaError(f"{root}: no .json or .jsonl here; fetch, or name --records")
    look = lru_cache(2**16)(lambda image: _look(image, images, deep))  # records share pictures
    tallies: dict[str, Counter[str]] = {}
    notes, examples = [], {}
    for path in paths:
        bad = 0
        rows = records.iter_file(path)
        for line, row in progress_bar(rows, path.name, unit=" records", disable=None):
            try:
                records.check(row, ["image"], {"image": (str, "text")})
                image = clean_image_path(row["image"])
            except RecordError as error:
                bad += 1
                notes += [f"{path}:{line}: {error}"] if bad <= SHOWN else []
                continue
            # counted folder by folder; strangers share one, to bound memory
            top, deeper = image.split("/")[0], "/".join(image.split("/")[:2])
            folder = deeper if deeper in ELSEWHERE else top if top in FOLDERS else "(other)"
            state, reason = look(image)
            tallies.setdefault(folder, Counter()).update(["records", state])
            if reason and folder not in examples:
                examples[folder] = f"{folder}: {reason}; {_remedy(folder, root, images)}"
        if bad > SHOWN:
            notes.append(f"{path}: {bad - SHOWN} more bad records like these")
    notes += [examples[folder] for folder in sorted(examples)]
    if not tallies and not notes:
        notes.append(f"{', '.join(map(str, paths))}: no records; was the download complete?")
    return [
        {"folder": folder, "source": FOLDERS.get(folder.split("/")[0], ("unknown",))[0]}
        | {state: tally[state] for state in ("records", "there", "missing", "unreadable")}
        for folder, tally in sorted(tallies.items())
    ], notes


def _look(image: str, images: Path, deep: bool) -> tuple[str, str]:
    """Return there, missing or unreadable, and the reason."""
    try:
        found = (images / image).stat()
        if deep:
            open_image(image, images)
    except (FileNotFoundError, NotADirectoryError):
        return "missing", f"{image} is missing"
    except (ImageError, OSError, ValueError) as error:
        return "unreadable", str(error)
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        return "unreadable", f"{image} is empty or no file"
    return "there", ""


def _remedy(folder: str, root: Path, images: Path) -> str:
    """Say where the pictures of a folder come from."""
    if folder in ELSEWHERE:
        page, file = ELSEWHERE[folder]
        return f"not in the release: from {page} take {file}, unpack it as {images / folder}"
    if folder in ("coco", "vg"):
        return f"not in the release; only {', '.join(ELSEWHERE)} are known"
    if folder in FOLDERS:
        marks = ", ".join(map(str, root.glob(f"{MARKS}/*{folder}*.unpacked")))
        again = f"unpacked before; to do that again delete {marks}, then " if marks else ""
        return f"in the release: {again}python -m vlaa_lib data fetch vlaa-thinking --root {root}"
    return "no folder of the release; put the pictures there or mend the records"
