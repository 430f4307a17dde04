"""The released dataset: fetch it pinned and verified, unpack it, say which pictures are there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from vlaa_lib import VlaaError, folders, records
from vlaa_lib.images import ImageError, open_image
from vlaa_lib.progress import progress_bar
from vlaa_lib.records import FOLDERS, RecordError, brief, clean_image_path

DATASET = "UCSC-VLAA/VLAA-Thinking"  # the authors' README
SPLITS = {"sft": "VLAA-Thinking-SFT-126K.json", "rl": "VLAA-Thinking-GRPO-25K.json"}  # its files
MARKS = ".fetch"  # folder below the root: which archives were unpacked
API_TIMEOUT_S = 30  # ours: the library's default is to wait for ever
MAX_RATIO = 20  # ours: pictures hardly shrink; an archive that grows more than this is a trap
MIN_LIMIT_BYTES = 64 * 2**20  # ours: small archives may grow this much whatever their ratio
MAX_MEMBERS = 1_000_000  # ours: six times the records of the whole release
SHOWN = 5  # ours: bad records that are quoted for each file

# x.tar.gz, or a split archive: x.tar.gz.aa as `split` names its parts, x.zip.001, x.tar.part-1
ARCHIVE = re.compile(
    r"(.+\.(?:tar\.gz|tgz|tar|zip))(?:\.(?:part[-_.]?)?(?!gz|xz)(?:\d{1,3}|[a-z]{2}))?", re.I
)
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
        for name, parts in plan.unpack.items():
            unpack([root / part.path for part in parts], (root / name).parent)
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


# --- unpack --------------------------------------------------------------------------------------


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


def unpack(parts: list[Path], folder: Path) -> None:
    """Unpack a zip or tar, whole or in parts, beside what is in a folder; all of it or nothing.

    What was downloaded is hostile input: names that leave the folder or are there twice, links,
    devices, a tar without its end mark, and archives that grow beyond all measure are refused.
    """
    staging = folder / f".unpacking-{parts[0].name}"
    shutil.rmtree(staging, ignore_errors=True)  # of an earlier run that was killed
    staging.mkdir(parents=True)
    limit = max(MIN_LIMIT_BYTES, MAX_RATIO * sum(part.stat().st_size for part in parts))
    try:
        with parts[0].open("rb") if len(parts) == 1 else _joined(parts, folder) as source:
            _extract(source, staging, limit)
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
