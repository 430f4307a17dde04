"""Stages for test_stages.py, in a module that a new process loads at once."""

import json
import os
import time
from pathlib import Path

from vlaa_lib.study import artefacts


def noted(cfg, run: Path, which: str) -> dict:
    """Build on what all need, wait until two are at it, note who built this, with which threads."""

    def build(path):
        (run / f"{which}.begun").touch()
        if which == "fails":
            raise LookupError("no more paper")
        end = time.monotonic() + 60
        while len(list(run.glob("*.begun"))) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        row = {"which": which, "pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}
        (path / "note.json").write_text(json.dumps(row | {"seed": cfg.seed}), encoding="utf-8")
        assert time.monotonic() < end, "no other has begun"

    artefacts.once(run / "base", {}, lambda path: print("the base"))
    return json.loads((artefacts.once(run / which, {}, build) / "note.json").read_text(
        encoding="utf-8"))


def sleeps(cfg, run: Path, which: str) -> None:
    (run / f"{which}.pid").write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)


def process_of(cfg, run: Path, which: str) -> int:
    return os.getpid()
