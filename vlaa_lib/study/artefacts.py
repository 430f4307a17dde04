"""Artefacts of a run: each is built once in its folder, several at a time where that is faster.

An artefact is done when its `done.json` holds the settings it was built from; anything else is
built again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from threading import Thread
from typing import Any

from filelock import FileLock

from vlaa_lib import ROOT, Halted, VlaaError, folders, profiles
from vlaa_lib.escape import say
from vlaa_lib.profiles import Settings
from vlaa_lib.progress import progress_bar


def once(path: Path, settings: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """Build `path` unless its marker says that it was built from these settings.

    An unfinished build of the same settings is continued; one of other settings is removed first.

    Raises:
        VlaaError: the folder holds something without our marker, which is never removed.
    """
    settings = json.loads(json.dumps(settings))  # as it reads back: tuples become lists
    done, begun = path / "done.json", path / "begun.json"

    def says(marker: Path) -> bool:
        return marker.is_file() and folders.read_json(marker).get("settings") == settings

    def is_ours(marker: Path) -> bool:
        return marker.is_file() and "settings" in folders.read_json(marker)

    if says(done):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{path.name}.lock"):  # two processes may need the same
        if says(done):
            return path
        folders.sweep(path)
        if path.exists() and not says(begun):
            is_empty = path.is_dir() and not any(path.iterdir())
            if path.is_symlink() or not (is_empty or is_ours(begun) or is_ours(done)):
                raise VlaaError(
                    f"{path}: not built by us (no begun.json or done.json of ours in it), so it is "
                    "left alone; move it away, or give another --run-dir"
                )
            shutil.rmtree(path)
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        say(f"building {shown} ...")
        done.unlink(missing_ok=True)
        folders.write_json(begun, {"settings": settings})
        start = time.monotonic()
        build(path)
        marker = {"settings": settings, "seconds": round(time.monotonic() - start, 1)}
        folders.write_json(done, marker)
        say(f"built {shown} in {marker['seconds']} s")
    return path


def origin(path: Path | str) -> dict[str, Any]:
    """Return what a stage puts among its settings for the one that it builds on: its marker.

    What the user gave, or the repository holds, has none: then its path.
    """
    marker = Path(path) / "done.json"
    return {"from": folders.read_json(marker) if marker.is_file() else str(path)}


def at_once(
    stage: Callable[[Settings, Path, Any], Any], cfg: Settings, run: Path, which: Iterable[Any]
) -> list[Any]:
    """Return what a stage makes of each, built at the same time: `at_once(grpo, cfg, run, names)`.

    A pocket VLM's matrices are too small to fill two cores, so on a CPU each is built in a process
    with its share of them; what several build on is built by the first of them. With a GPU, with
    `cfg.launch`, or on one core they are built here, one after another.

    Raises:
        Halted: one of them failed; the others have ended, none was started after it.
    """
    import torch

    which, cores = list(which), torch.get_num_threads()  # those that this process may use
    together = min(cores, len(which))
    if together > 1 and cfg.launch == profiles.HERE and not torch.cuda.is_available():
        spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        given = together, spawn, _begin, (cores // together, os.getpid())
        bar = progress_bar(total=len(which), desc=f"{together} stages at once")
        with bar, ProcessPoolExecutor(*given) as workers:
            begun = [workers.submit(_apart, stage, cfg, run, one) for one in which]
            try:
                for done in as_completed(begun):
                    say(done.result())
                    bar.update()
            except Exception:  # an hour of the others is not to be lost for it
                workers.shutdown(cancel_futures=True)
                raise
            except BaseException:  # an interrupt
                for child in multiprocessing.active_children():
                    child.terminate()
                raise
    return [stage(cfg, run, one) for one in which]


def _begin(threads: int, parent: int) -> None:
    """Start a process of `at_once`: it ends with its parent, and no bar fills its log."""
    os.environ |= {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}  # torch loads after this

    def watch() -> None:  # a kernel that was killed cannot end us itself
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _apart(stage: Callable[..., Any], cfg: Settings, run: Path, which: Any) -> str:
    """Build a stage in a process of its own, where all that it says goes to a log."""
    name, start = f"{stage.__name__} {which}", time.monotonic()
    log = run / "logs" / (re.sub(r"\W+", "-", name) + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as sink:
        os.dup2(sink.fileno(), sys.stdout.fileno())
        os.dup2(sink.fileno(), sys.stderr.fileno())
    try:
        stage(cfg, run, which)
    except Exception as error:  # told in words: not every error can travel between processes
        traceback.print_exc()
        raise Halted(f"{name}: {type(error).__name__}: {error}\nwhole log: {log}") from None
    finally:
        sys.stdout.flush()
    return f"{name} is there after {time.monotonic() - start:.0f} s"
