"""Pictures of the released records: which are there, which are missing, and where to get those."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlaa_lib import records
from vlaa_lib.images import ImageError, open_image
from vlaa_lib.progress import progress_bar

from .hub import STATE

SHOWN = 5  # ours: bad records that are quoted for each file

# Folders that the release does not carry: page, file (authors' download script), folder it goes to.
ELSEWHERE = {
    "coco/train2017": (
        "https://cocodataset.org/#download",
        "http://images.cocodataset.org/zips/train2017.zip (about 19 GB)",
    ),
    "vg/VG_100K": (
        "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html",
        "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip (about 9 GB)",
    ),
    "vg/VG_100K_2": (
        "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html",
        "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip (about 5 GB)",
    ),
}


@dataclass
class Tally:
    """Records of one folder of pictures, and what became of their pictures."""

    records: int = 0
    there: int = 0
    missing: int = 0
    unreadable: int = 0
    example: str = ""  # the first picture that is not there, and why


@dataclass
class Check:
    """What `check` found: a tally for each folder, the bad records, what to do about both."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    bad: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Say whether there are records, and each is good and has its picture."""
        tallies = self.tallies.values()
        return bool(tallies) and not self.bad and all(t.records == t.there for t in tallies)

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: one row for each folder."""
        return [
            {"folder": folder, "source": records.FOLDERS.get(folder.split("/")[0], ("unknown",))[0]}
            | {key: getattr(t, key) for key in ("records", "there", "missing", "unreadable")}
            for folder, t in sorted(self.tallies.items())
        ]


def check(root: str | Path, files: list[str] | None = None, deep: bool = False) -> Check:
    """Count, folder by folder, the records whose picture is there, missing or unreadable.

    Streams: memory does not grow with the files.

    Args:
        root: as for `hub.fetch`; pictures are below `root/images` if there is one, else `root`.
        files: records, JSON array or JSON Lines; by default every `.json` and `.jsonl` in `root`.
        deep: open and decode every picture; otherwise only an empty file counts as unreadable.
    Raises:
        RecordError: there is no file of records, or one is not text.
    """
    root, found = Path(root), Check()
    images = root / "images" if (root / "images").is_dir() else root
    paths = [Path(f) for f in files or sorted([*root.glob("*.json"), *root.glob("*.jsonl")])]
    if not paths:
        raise records.RecordError(f"{root}: no .json or .jsonl here; fetch, or name --records")
    look = lru_cache(2**16)(lambda name: _look(name, images, deep))  # records share pictures
    for path in paths:
        bad = 0
        named = progress_bar(_image_names(path), path.name, unit=" records", disable=None)
        for line, name in named:
            if isinstance(name, records.RecordError):
                bad += 1
                if bad <= SHOWN:
                    found.notes.append(f"{path}:{line}: {name}")
                continue
            tally = found.tallies.setdefault(_folder(name), Tally())
            state, reason = look(name)
            tally.records += 1
            setattr(tally, state, getattr(tally, state) + 1)
            tally.example = tally.example or reason
        if bad > SHOWN:
            found.notes.append(f"{path}: {bad - SHOWN} more bad records like these")
        found.bad += bad
    for folder, tally in sorted(found.tallies.items()):
        if tally.example:
            found.notes.append(f"{folder}: {tally.example}; {_remedy(folder, root, images)}")
    return found


def _image_names(path: Path) -> Iterator[tuple[int, str | records.RecordError]]:
    """Yield (line, image path or why there is none) for each record of a file."""
    try:
        with path.open(encoding="utf-8") as stream:
            for line, row in records.iter_json(stream):
                try:
                    if isinstance(row, records.RecordError):
                        raise row
                    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
                        raise records.RecordError("names no image; set 'image' to a path")
                    yield line, records.clean_image_path(row["image"])
                except records.RecordError as error:
                    yield line, error
    except UnicodeDecodeError as error:
        raise records.RecordError(f"{path}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise records.RecordError(f"{path}: {error.strerror}; check --records") from None


def _folder(name: str) -> str:
    """Return the folder that a picture is counted under; strangers share one, to bound memory."""
    top, _, rest = name.partition("/")
    deeper = f"{top}/{rest.partition('/')[0]}"
    return deeper if deeper in ELSEWHERE else top if top in records.FOLDERS else "(other)"


def _look(name: str, images: Path, deep: bool) -> tuple[str, str]:
    """Return there, missing or unreadable, and the reason."""
    try:
        found = (images / name).stat()
        if deep:
            open_image(name, images)
    except (FileNotFoundError, NotADirectoryError):
        return "missing", f"{name} is missing"
    except (ImageError, OSError, ValueError) as error:
        return "unreadable", str(error)
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        return "unreadable", f"{name} is empty or no file"
    return "there", ""


def _remedy(folder: str, root: Path, images: Path) -> str:
    """Say where the pictures of a folder come from and where they go."""
    if folder in ELSEWHERE:
        page, file = ELSEWHERE[folder]
        target = images / folder
        return f"not in the release: from {page} take {file} and unpack it to become {target}"
    if folder.split("/")[0] in ("coco", "vg"):
        return f"not in the release; only {', '.join(ELSEWHERE)} are known"
    if folder in records.FOLDERS:
        marks = ", ".join(map(str, root.glob(f"{STATE}/*{folder}*.unpacked")))
        again = f"unpacked before; to do that again delete {marks}, then " if marks else ""
        return f"in the release: {again}python -m vlaa_lib data fetch vlaa-thinking --root {root}"
    return "no folder of the release; put the pictures there or mend the records"
