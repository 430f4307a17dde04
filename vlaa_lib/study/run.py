"""The papermill driver: notebooks in order, with checked parameters, resume and progress."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT, folders, profiles

from . import report

NOTEBOOKS, RUNS = ROOT / "notebooks", ROOT / "runs"
HEARTBEAT_S = 30.0  # ours: often enough to trust, seldom enough to read
START_TIMEOUT_S = 120  # ours: a kernel starts in 3 s; a busy machine may take ten times that
_TYPES = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}


class RunError(ValueError):
    """A run that cannot start; the message says why and what to do."""


class NotebookFailed(RuntimeError):
    """A notebook that did not run to its end, and why."""


def run(
    profile: str = "laptop",
    notebooks: Sequence[str | Path] | None = None,
    run_dir: str | Path | None = None,
    overrides: dict[str, dict[str, Any]] | None = None,
    resume: bool = True,
) -> int:
    """Run the ordered notebooks through papermill and return the exit code for the shell.

    An unfinished run of the same profile, settings, notebooks and overrides is continued: what is
    done stays done, unless its notebook changed.

    Args:
        notebooks: numbers, names or paths; by default all of `notebooks/NN_*.ipynb`.
        run_dir: folder of the run, from the repository root; by default `runs/<time>-<profile>`.
        overrides: further parameters by notebook name, e.g. `{"04_grpo": {"steps": 5}}`.
    Returns:
        0 when all ran to the end, 1 when one failed, 130 when interrupted.
    Raises:
        RunError: unknown notebook or parameter, wrong type, or a folder that holds another run.
    """
    settings, paths = profiles.load(profile), find_notebooks(notebooks)
    overrides = overrides or {}
    if unknown := overrides.keys() - {path.stem for path in paths}:
        raise RunError(f"overrides name notebooks that are not run: {', '.join(sorted(unknown))}")
    for path in paths:  # all of them now: a typing error must not wait for the first hour to pass
        check_parameters(path, {"profile": profile, "run_dir": "", **overrides.get(path.stem, {})})
    plan = {
        "profile": profile,
        "settings": json.loads(json.dumps(asdict(settings))),
        "asked": [path.stem for path in paths],
        "overrides": overrides,
    }
    with _claimed(plan, run_dir, resume) as folder, _sigterm_as_interrupt():
        return _run_all(paths, folder, plan)


def find_notebooks(asked: Sequence[str | Path] | None = None) -> list[Path]:
    """Return notebook paths for numbers (`04`), names or paths; by default all, in order.

    Raises:
        RunError: one that is not there, or none at all.
    """
    known = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if asked is None:
        if not known:
            raise RunError(f"no notebook like 00_name.ipynb in {NOTEBOOKS}")
        return known
    found = []
    for item in asked:
        matches = [p for p in known if str(item) in (p.stem, p.stem.split("_")[0])]
        if not matches and Path(item).is_file():
            matches = [Path(item).resolve()]
        if not matches:
            names = ", ".join(path.stem for path in known)
            raise RunError(f"no notebook {str(item)!r}; there are {names}")
        found += matches
    return found


def check_parameters(path: Path, parameters: dict[str, Any]) -> None:
    """Refuse parameters that the notebook does not declare, or of another type.

    Papermill itself only warns of an unknown name, and passes on any type.
    """
    import papermill

    try:
        known = papermill.inspect_notebook(path)
    except Exception as error:  # not JSON, no kernel, ...: papermill has no common error for these
        raise RunError(f"{path.name}: cannot read its parameters: {error}") from error
    for name, value in parameters.items():
        if name not in known:
            listed = ", ".join(known) or "none; is a cell tagged 'parameters'?"
            raise RunError(f"{path.name}: unknown parameter {name!r}; it declares {listed}")
        wanted = known[name]["inferred_type_name"]
        types = _TYPES.get(wanted)
        is_stray_bool = isinstance(value, bool) and wanted != "bool"  # bool is an int in Python
        if types and value is not None and (is_stray_bool or not isinstance(value, types)):
            raise RunError(
                f"{path.name}: parameter {name!r} is {value!r} ({type(value).__name__}); "
                f"the notebook declares {wanted}"
            )


# --- the run's folder and its state ----------------------------------------------------------


@contextmanager
def _claimed(plan: dict[str, Any], run_dir: str | Path | None, resume: bool) -> Iterator[Path]:
    """Find or make the run's folder and hold its lock; the lock goes when this process does."""
    if run_dir is not None:
        folder = ROOT / run_dir
        state = _state(folder)
        if state and not resume:
            raise RunError(f"{folder} holds a run already; give another folder to start anew")
        if state and not _same(state, plan, ("profile", "settings")):
            raise RunError(f"{folder} holds a run with other settings; give another folder")
        stream = _lock(folder)
        if stream is None:
            raise RunError(f"{folder} is in use by another process; wait, or give another folder")
    else:
        folder, stream = _unfinished(plan) if resume else (None, None)
        if stream is None:
            folder = _new_folder(plan["profile"])
            stream = _lock(folder)
    with stream:
        yield folder


def _unfinished(plan: dict[str, Any]) -> tuple[Path | None, Any]:
    """Return the newest run that began with this plan, did not end and is free, with its lock."""
    for folder in sorted(RUNS.glob(f"*-{plan['profile']}"), reverse=True):
        state = _state(folder)
        if state and not state["finished"] and _same(state, plan, tuple(plan)):
            stream = _lock(folder)
            if stream is not None:
                return folder, stream
    return None, None


def _same(state: dict[str, Any], plan: dict[str, Any], keys: Sequence[str]) -> bool:
    return all(state[key] == plan[key] for key in keys)


def _new_folder(profile: str) -> Path:
    stamp, number = f"{datetime.now():%Y%m%d-%H%M%S}", 0
    while True:  # two runs may start within one second
        folder = RUNS / f"{stamp}{f'.{number}' if number else ''}-{profile}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def _lock(folder: Path) -> Any:
    """Return an open, locked file in the folder, or None where another process has it."""
    import fcntl  # POSIX only, like the Makefile

    folder.mkdir(parents=True, exist_ok=True)
    stream = (folder / ".lock").open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


def _state(folder: Path) -> dict[str, Any] | None:
    path = folder / "state.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _write_json(path: Path, value: Any) -> None:
    folders.write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


# --- running ---------------------------------------------------------------------------------


def _run_all(paths: list[Path], folder: Path, plan: dict[str, Any]) -> int:
    state = _state(folder) or {"started": _now(), "notebooks": {}}
    state |= {**plan, "finished": None}
    shown = os.path.relpath(folder, ROOT) if folder.is_relative_to(ROOT) else str(folder)
    again = "python -m vlaa_lib run --profile " + plan["profile"]
    _say(f"profile {plan['profile']}: {len(paths)} notebooks -> {shown}")
    code = 0
    for index, path in enumerate(paths, 1):
        label = f"[{index}/{len(paths)}] {path.stem}"
        # relative inside the repository: outputs then name no machine's folders
        given = {"profile": plan["profile"], "run_dir": shown}
        given |= plan["overrides"].get(path.stem, {})
        entry = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "parameters": given}
        before = state["notebooks"].get(path.stem, {})
        if before.get("status") == "done" and _same(before, entry, tuple(entry)):
            _say(f"{label}: done before, in {before['seconds'] / 60:.1f} min")
            continue
        state["notebooks"][path.stem] = entry | {"status": "running"}
        _write_json(folder / "state.json", state)
        _say(f"{label}: starts at {datetime.now():%H:%M:%S}")
        start = time.monotonic()
        try:
            execute(path, folder, given, label)
            entry["status"] = "done"
        except KeyboardInterrupt:
            entry["status"], code = "stopped", 130
        except Exception as error:  # whatever stops a notebook is told in the same way
            entry |= {"status": "failed", "error": explain(error)}
            code = 1
        entry["seconds"] = round(time.monotonic() - start, 1)
        state["notebooks"][path.stem] = entry
        _write_json(folder / "state.json", state)
        _write_json(folder / "run_card.json", report.run_card(state))
        _say(f"{label}: {entry['status']} after {entry['seconds'] / 60:.1f} min")
        if code:
            _say(entry.get("error", "interrupted"))
            _say(f"output so far: {shown}/logs/{path.stem}.log, {shown}/notebooks/{path.name}")
            _say(f"`{again}` with the same options goes on from {path.stem}")
            break
    else:
        state["finished"] = _now()
        _write_json(folder / "state.json", state)
    _write_json(folder / "run_card.json", report.run_card(state))
    _say(f"report: {os.path.relpath(report.write_report(folder))}")
    return code


def execute(path: Path, folder: Path, parameters: dict[str, Any], label: str) -> None:
    """Run one notebook; its executed copy and its log of printed lines go below the run's folder.

    Raises:
        NotebookFailed: a cell never ran, though nothing failed.
        Exception: as papermill and nbclient raise them, for failed cells and dead kernels.
    """
    import papermill

    copy, log = folder / "notebooks" / path.name, folder / "logs" / f"{path.stem}.log"
    for file in (copy, log):
        file.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream, _Heartbeat(label, log) as heartbeat:
        done = papermill.execute_notebook(
            path,
            copy,
            parameters,
            kernel_name="python3",
            cwd=ROOT,
            progress_bar=False,
            start_timeout=START_TIMEOUT_S,
            stdout_file=stream,
            stderr_file=stream,
            # these go to nbclient: one output a progress bar instead of one a refresh, no widget
            # state, and a kernel that does not outlive us
            coalesce_streams=True,
            store_widget_state=False,
            kernel_manager_class=_kernel_manager(),
            on_cell_start=heartbeat.cell_starts,
        )
    check_ran(done)


def check_ran(notebook: Any) -> None:
    """Refuse an executed notebook with a code cell that never ran.

    A `sys.exit(0)` ends a notebook early and papermill calls that a success.
    """
    for number, cell in enumerate(notebook.cells, 1):
        has_code = cell.cell_type == "code" and cell.source.strip()
        is_left_out = "skip-execution" in cell.metadata.get("tags", [])
        if has_code and not is_left_out and cell.execution_count is None:
            raise NotebookFailed(
                f"cell {number} of {len(notebook.cells)} never ran: an earlier cell ended the "
                "notebook, for instance with sys.exit"
            )
    if notebook.metadata.papermill.exception:
        raise NotebookFailed("the last cell ended the notebook, for instance with sys.exit")


def explain(error: Exception, lines: int = 15) -> str:
    """Return the last lines of what a notebook failed with, safe to print on a terminal."""
    text = _plain(str(error)).strip() or type(error).__name__
    if type(error).__name__ == "DeadKernelError":
        text += "\nthe kernel's process was killed; out of memory?"
    return "\n".join(text.splitlines()[-lines:])


def _plain(text: str) -> str:
    """Drop colours and control characters: what a notebook prints may hold a model's text."""
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


class _Heartbeat:
    """Say every `HEARTBEAT_S` which cell runs and what was printed last, from a thread."""

    def __init__(self, label: str, log: Path):
        self.label, self.log, self.cell = label, log, 0
        self.start, self.ended = time.monotonic(), threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> _Heartbeat:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()

    def cell_starts(self, cell: Any, cell_index: int) -> None:
        self.cell = cell_index + 1
        if not self.thread.is_alive():  # not earlier: a process with threads should not fork
            self.thread.start()

    def _beat(self) -> None:
        while not self.ended.wait(HEARTBEAT_S):
            minutes = (time.monotonic() - self.start) / 60
            _say(f"{self.label}: cell {self.cell}, {minutes:.1f} min{self._last_line()}")

    def _last_line(self) -> str:
        with self.log.open("rb") as stream:
            stream.seek(max(0, self.log.stat().st_size - 2000))
            tail = stream.read().decode("utf-8", "replace")
        lines = [line for line in re.split(r"[\r\n]", tail) if line.strip()]
        return f" | {_plain(lines[-1]).strip()[:70]}" if lines else ""


@cache
def _kernel_manager() -> type:
    """Return a kernel manager whose kernels are killed with this process (Linux).

    Elsewhere ipykernel notices within a second that its parent is gone, and ends.
    """
    from jupyter_client import AsyncKernelManager

    if sys.platform != "linux":
        return AsyncKernelManager
    prctl, set_parent_death_signal = ctypes.CDLL(None).prctl, 1  # PR_SET_PDEATHSIG, <linux/prctl.h>

    class MortalKernelManager(AsyncKernelManager):
        async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
            kw["preexec_fn"] = lambda: prctl(set_parent_death_signal, signal.SIGKILL)
            await super()._async_launch_kernel(kernel_cmd, **kw)

    return MortalKernelManager


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that the kernel is shut down and the state is written."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets handlers in the main thread only
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    print(text, flush=True)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
