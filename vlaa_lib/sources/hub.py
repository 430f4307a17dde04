"""The released dataset: fetch it from the hub, verified and pinned, and unpack it."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vlaa_lib import folders

from . import archives

DATASET = "UCSC-VLAA/VLAA-Thinking"  # the authors' README
SPLITS = {"sft": "VLAA-Thinking-SFT-126K.json", "rl": "VLAA-Thinking-GRPO-25K.json"}  # its files
STATE = ".fetch"  # folder below the root: partial downloads, marks of unpacked archives, the lock
API_TIMEOUT_S = 30  # ours: the library's default is to wait for ever


class HubError(ValueError):
    """A fetch that cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of the release: path below the root, bytes, sha256 (git's sha1 if not in LFS)."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Plan:
    """What a fetch will do.

    Attributes:
        rows: table of all chosen files, their sizes and states.
        download: files that are not there yet, small ones first.
        unpack: archives not unpacked yet: name without part number -> parts in order.
        needs: bytes to download, and bytes that unpacking is expected to add.
    """

    root: Path
    commit: str
    rows: list[dict[str, str]]
    download: list[RemoteFile]
    unpack: dict[str, list[RemoteFile]]
    needs: tuple[int, int]


def plan(root: str | Path, revision: str | None = None, only: list[str] | None = None) -> Plan:
    """Ask the hub for the release's files and compare with the folder; write nothing.

    Args:
        revision: branch, tag or commit; by default the one in `root/REVISION`, else `main`.
        only: patterns such as `*.json`; by default every file.
    Raises:
        HubError: the hub refuses, or the folder holds another revision.
    """
    root = Path(root)
    pinned = (root / "REVISION").read_text().strip() if (root / "REVISION").is_file() else ""
    commit, listed = _listing(revision or pinned or "main")
    if pinned and commit != pinned:
        raise HubError(
            f"{root} holds revision {pinned}, and {revision!r} is {commit}; two revisions are not "
            "mixed: use another --root, or leave out --revision"
        )
    files = {f.path: f for f in listed if not only or any(fnmatch.fnmatch(f.path, p) for p in only)}
    if not files:
        raise HubError(
            f"--only {' '.join(only or [])} fits no file; there are "
            + ", ".join(file.path for file in listed)
        )
    groups = {stem: [files[p] for p in parts] for stem, parts in archives.group([*files]).items()}
    unpack = {stem: parts for stem, parts in groups.items() if not _is_unpacked(root, stem, parts)}
    done = {part.path for stem in groups.keys() - unpack.keys() for part in groups[stem]}
    states = {path: "unpacked" if path in done else _state(root, f) for path, f in files.items()}
    rows = [{"file": path, "size": megabytes(file.size), "state": states[path]}
            for path, file in files.items()]  # fmt: skip
    todo = [file for path, file in files.items() if states[path] not in ("there", "unpacked")]
    needs = (
        sum(file.size - _size(_part(root, file)) for file in todo),
        # ours: pictures hardly shrink in an archive, and parts are joined in a temporary file
        sum(part.size * (1 if len(parts) == 1 else 2) for parts in unpack.values()
            for part in parts),
    )  # fmt: skip
    return Plan(root, commit, rows, sorted(todo, key=lambda file: file.size), unpack, needs)


def fetch(plan: Plan) -> None:
    """Download what is missing, verify it, unpack archives; a broken fetch goes on where it was.

    Raises:
        HubError: no room, no access, a broken connection or wrong bytes.
        ArchiveError: a hostile or broken archive.
    """
    from huggingface_hub.utils import WeakFileLock

    _check_room(plan)
    root = plan.root
    with _explained(str(root)):
        (root / STATE).mkdir(parents=True, exist_ok=True)
    try:
        with WeakFileLock(root / STATE / "lock", timeout=1), _explained(str(root)):
            folders.write_text(root / "REVISION", plan.commit + "\n")
            for file in plan.download:
                _download(root, plan.commit, file)
            for stem, parts in plan.unpack.items():
                archives.unpack([root / part.path for part in parts], (root / stem).parent)
                folders.write_text(_mark(root, stem), _key(parts))
    except TimeoutError:
        raise HubError(f"another fetch is at work in {root}; wait until it ends") from None


def _endpoint() -> str | None:
    """Return the mirror to use; passed on, as the library reads it only when it is imported."""
    return (os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None


def _token() -> str | bool:
    """Return the token of the environment; False keeps the library from looking elsewhere."""
    return os.environ.get("HF_TOKEN") or False


def _listing(revision: str) -> tuple[str, list[RemoteFile]]:
    """Return the commit that a revision names, and its files."""
    from huggingface_hub import HfApi

    endpoint = _endpoint()
    where = f"{DATASET} at {endpoint or 'the hub'}, revision {revision!r}"
    with _explained(where):
        try:
            info = HfApi(endpoint=endpoint, token=_token()).dataset_info(
                DATASET, revision=revision, files_metadata=True, timeout=API_TIMEOUT_S
            )
            files = [
                RemoteFile(f.rfilename, int(f.size), str(f.lfs.sha256 if f.lfs else f.blob_id))
                for f in info.siblings
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HubError(f"{where}: no hub answers there ({error}); check HF_ENDPOINT") from None
    if not re.fullmatch("[0-9a-f]{40}", str(info.sha)):
        raise HubError(f"{where}: {info.sha!r} is no commit; check HF_ENDPOINT")
    for file in files:  # a mirror may say anything: these become paths on this disk
        digest = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", file.digest)
        inside = archives.is_inside(file.path) and not file.path.startswith((STATE, "REVISION"))
        if not inside or not digest or file.size < 0:
            raise HubError(f"{where}: cannot accept the file {file}; use another HF_ENDPOINT")
    return info.sha, files


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the library's and the system's errors into one line with a remedy."""
    from huggingface_hub import errors

    again = "run the same command again, it goes on where it stopped"
    try:
        yield
        return
    except errors.GatedRepoError:
        reason = "access is gated; accept the terms on its page, then set HF_TOKEN to your token"
    except errors.RevisionNotFoundError:
        reason = "no such revision; check --revision"
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        reason = f"the server answered {status}; {again}"
        if status in (401, 403, 404):  # mirrors answer any of these for any cause
            reason = (
                f"access refused ({status}): the name is not there, is private or gated, or the "
                "token is wrong; check HF_ENDPOINT and HF_TOKEN"
            )
    except errors.HTTPError as error:  # base of the HTTP library, whichever this release uses
        reason = f"no connection ({error}); {again}"
    except OSError as error:
        reason = f"{error}; mend that and {again}"
    raise HubError(f"{what}: {reason}")


def _check_room(plan: Plan) -> None:
    place = next(p for p in (plan.root, *plan.root.absolute().parents) if p.exists())
    free, (download, unpack) = shutil.disk_usage(place).free, plan.needs
    if download + unpack > free:
        raise HubError(
            f"{plan.root}: {megabytes(free)} are free, but {megabytes(download)} are to be "
            f"downloaded and about {megabytes(unpack)} unpacked; make room, choose another --root, "
            "or fewer files with --only"
        )


def _download(root: Path, commit: str, file: RemoteFile) -> None:
    """Fetch one file: let its part grow, verify, rename.

    Not by `hf_hub_download`, which starts from nothing after a kill and compares only sizes.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part, target = _part(root, file), root / file.path
    if _size(part) > file.size:
        part.unlink()
    url = hf_hub_url(DATASET, file.path, repo_type="dataset", revision=commit, endpoint=_endpoint())
    headers = build_hf_headers(token=_token())
    headers["Accept-Encoding"] = "identity"  # the bytes as stored, so that a part can go on
    with _explained(file.path):
        with part.open("ab") as stream:
            http_get(url, stream, resume_size=stream.tell(), headers=headers,
                     expected_size=file.size, displayed_filename=file.path)  # fmt: skip
        found = _digest(part, file)
        if found == file.digest:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, target)
            return
        part.unlink()
    raise HubError(
        f"{file.path}: what came has digest {found}, the hub's listing says {file.digest}; it was "
        "deleted. Run the same command again, or use another HF_ENDPOINT"
    )


def _digest(path: Path, file: RemoteFile) -> str:
    """Return a file's sha256, or git's sha1 where the hub knows only that."""
    digest = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _part(root: Path, file: RemoteFile) -> Path:
    """Return where a download grows; named by content, so never mixed with another's."""
    return root / STATE / f"{file.digest}.part"


def _mark(root: Path, stem: str) -> Path:
    """Return the file that says that an archive was unpacked; it holds the archive's key."""
    return root / STATE / f"{stem.replace('/', '__')}.unpacked"


def _key(parts: list[RemoteFile]) -> str:
    return " ".join(part.digest for part in parts)


def _is_unpacked(root: Path, stem: str, parts: list[RemoteFile]) -> bool:
    """Say whether this very archive was unpacked; the archive may have been deleted since."""
    return _mark(root, stem).is_file() and _mark(root, stem).read_text() == _key(parts)


def _state(root: Path, file: RemoteFile) -> str:
    target, started = root / file.path, _size(_part(root, file))
    if target.is_file():
        return "there" if _size(target) == file.size else "of another size: replace"
    return f"fetch; {megabytes(started)} are here" if started else "fetch"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def megabytes(size: int) -> str:
    """Return a size for people.

    >>> megabytes(623_000_000)
    '623.0 MB'
    """
    return f"{size / 1e6:,.1f} MB"


def split_file(data: Path, name: str) -> Path:
    """Return the file of a split, `sft` or `rl`: ours, else by its name in the release."""
    ours = data / f"{name}.jsonl"
    return ours if ours.is_file() else data / SPLITS[name]
