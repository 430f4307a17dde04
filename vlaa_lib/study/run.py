"""The papermill driver: the notebooks in order, into one folder that says what it was run with.

Papermill runs and records; what takes long is in `stages`, built once. So a run that was stopped
goes on by running its notebooks again: some seconds each, up to the first stage that is missing.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT, Halted, VlaaError, folders, profiles
from vlaa_lib.escape import printable, say

NOTEBOOKS, RUNS = ROOT / "notebooks", ROOT / "runs"
START_TIMEOUT_S = 120  # ours: a kernel starts in 3 s; a busy machine may take ten times that


def run(
    profile: str = "laptop",
    notebooks: Sequence[str | Path] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = True,
) -> int:
    """Run the ordered notebooks through papermill and return the exit code for the shell.

    Without `run_dir` the newest unfinished run of the same settings and notebooks is continued.

    Args:
        notebooks: numbers, names or paths; by default all of `notebooks/NN_*.ipynb`.
        run_dir: folder of the run, from the repository root; by default `runs/<time>-<profile>`.
    Returns:
        0 when all ran to the end, 1 when one failed, 130 when interrupted.
    Raises:
        VlaaError: unknown notebook, one without our parameters, or a folder that holds another run.
    """
    from . import stages

    cfg = profiles.load(profile)
    settings, paths = asdict(cfg), find_notebooks(notebooks)
    for path in paths:  # all of them now: a mistake must not wait for the first hour to pass
        check_parameters(path)
    card = {  # what a result must travel with
        "profile": profile, "seed": settings["seed"], "started": _now(), "finished": None,
        "minutes": {}, "status": {path.stem: "waiting" for path in paths},
        **folders.provenance(), "settings": json.loads(json.dumps(settings)),
    }  # fmt: skip
    if run_dir is not None:
        folder = ROOT / run_dir
        if not resume and _card(folder):
            raise VlaaError(f"{folder} holds a run already; give another folder to start anew")
    else:
        new = RUNS / f"{datetime.now():%Y%m%d-%H%M%S}-{profile}"
        folder = (_unfinished(card) if resume else None) or new
    # like Ctrl-C, so that the kernel is shut down and the card is written
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with folders.lock(stages.folder(cfg, folder)):
            folders.claim(folder, card["settings"])
            return _run_all(paths, folder, card)
    finally:
        signal.signal(signal.SIGTERM, before)


def find_notebooks(asked: Sequence[str | Path] | None = None) -> list[Path]:
    """Return notebook paths for numbers (`04`), names or paths; by default all, in order.

    Raises:
        VlaaError: one that is not there, or none at all.
    """
    known = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not known and asked is None:
        raise VlaaError(f"no notebook like 00_name.ipynb in {NOTEBOOKS}")
    found = []
    for item in known if asked is None else asked:
        matches = [p for p in known if str(item) in (str(p), p.stem, p.stem.split("_")[0])]
        if not matches and Path(item).is_file():
            matches = [Path(item).resolve()]
        if not matches:
            names = ", ".join(path.stem for path in known)
            raise VlaaError(f"no notebook {str(item)!r}; there are {names}")
        found += matches
    return found


def check_parameters(path: Path) -> None:
    """Refuse a notebook that does not take `profile` and `run_dir` as text.

    Papermill itself only warns of a name that is not declared, and passes on any type.
    """
    import papermill

    try:
        known = papermill.inspect_notebook(path)
    except Exception as error:  # not JSON, no kernel, ...: papermill has no common error for these
        raise VlaaError(f"{path.name}: cannot read its parameters: {error}") from error
    for name in ("profile", "run_dir"):
        if name not in known:
            listed = ", ".join(known) or "none; is a cell tagged 'parameters'?"
            raise VlaaError(f"{path.name}: unknown parameter {name!r}; it declares {listed}")
        if (wanted := known[name]["inferred_type_name"]) not in ("str", "None"):
            raise VlaaError(f"{path.name}: parameter {name!r} is declared {wanted}; make it a str")


def _card(folder: Path) -> dict[str, Any]:
    file = folder / "run_card.json"
    return folders.read_json(file) if file.is_file() else {}


def _unfinished(card: dict[str, Any]) -> Path | None:
    """Return the folder of the newest run that began like this one and did not end."""
    for folder in sorted(RUNS.glob(f"*-{card['profile']}"), reverse=True):
        held = _card(folder)
        if held and not held["finished"] and held["settings"] == card["settings"] and (
            held["status"].keys() == card["status"].keys()
        ):
            return folder
    return None


def _run_all(paths: list[Path], folder: Path, card: dict[str, Any]) -> int:
    from . import report

    if held := _card(folder):
        card["started"], card["minutes"] = held["started"], held["minutes"]
        card["status"] = held["status"] | card["status"]
    # relative inside the repository: outputs then name no machine's folders
    shown = os.path.relpath(folder, ROOT) if folder.is_relative_to(ROOT) else str(folder)
    say(f"profile {card['profile']}: {len(paths)} notebooks -> {shown}")
    for number, path in enumerate(paths, 1):
        name, label, error = path.stem, f"[{number}/{len(paths)}] {path.stem}", ""
        card["status"][name] = "running"
        _keep(folder, card)
        say(f"{label}: starts at {datetime.now():%H:%M:%S}, prints to {shown}/logs/{name}.log")
        start = time.monotonic()
        try:
            execute(path, folder, {"profile": card["profile"], "run_dir": shown}, label)
            card["status"][name] = "done"
        except KeyboardInterrupt:
            card["status"][name], error = "stopped", "interrupted"
        except Exception as failure:  # whatever stops a notebook is told in the same way
            card["status"][name], error = "failed", explain(failure)
        minutes = (time.monotonic() - start) / 60
        card["minutes"][name] = round(card["minutes"].get(name, 0) + minutes, 2)  # of all tries
        _keep(folder, card)
        say(f"{label}: {card['status'][name]} after {minutes:.1f} min")
        if error:
            say(error)
            say(f"output so far: {shown}/logs/{name}.log, {shown}/notebooks/{path.name}")
            say(f"`python -m vlaa_lib run --profile {card['profile']}` with the same options goes "
                 f"on from {name}")  # fmt: skip
            break
    else:
        card["finished"] = _now()
        _keep(folder, card)
    say(f"report: {os.path.relpath(report.write_report(folder))}")
    return 0 if not error else 130 if error == "interrupted" else 1


def execute(path: Path, folder: Path, parameters: dict[str, Any], label: str) -> None:
    """Run one notebook; its executed copy and its log of printed lines go below the run's folder.

    Raises:
        Halted: a cell never ran, though nothing failed.
        Exception: as papermill and nbclient raise them, for failed cells and dead kernels.
    """
    import papermill

    copy, log = folder / "notebooks" / path.name, folder / "logs" / f"{path.stem}.log"
    for file in (copy, log):
        file.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        done = papermill.execute_notebook(
            path, copy, parameters, kernel_name="python3", cwd=ROOT,
            progress_bar={"desc": label, "disable": None},  # on a terminal only
            start_timeout=START_TIMEOUT_S, stdout_file=stream, stderr_file=stream,
            # these go to nbclient: one output a progress bar instead of one a refresh, no widgets
            coalesce_streams=True, store_widget_state=False,
        )  # fmt: skip
    check_ran(done)


def check_ran(notebook: Any) -> None:
    """Refuse an executed notebook with a code cell that never ran.

    A `sys.exit(0)` ends a notebook early and papermill calls that a success.
    """
    for number, cell in enumerate(notebook.cells, 1):
        has_code = cell.cell_type == "code" and cell.source.strip()
        is_left_out = "skip-execution" in cell.metadata.get("tags", [])
        if has_code and not is_left_out and cell.execution_count is None:
            raise Halted(
                f"cell {number} of {len(notebook.cells)} never ran: an earlier cell ended the "
                "notebook, for instance with sys.exit"
            )
    if notebook.metadata.papermill.exception:
        raise Halted("the last cell ended the notebook, for instance with sys.exit")


def explain(error: Exception, lines: int = 15) -> str:
    """Return the last lines of what a notebook failed with, safe to print on a terminal.

    Colours and control characters go: what a notebook prints may hold a model's text.
    """
    text = printable(error).strip() or type(error).__name__
    if type(error).__name__ == "DeadKernelError":
        text += "\nthe kernel's process was killed; out of memory?"
    return "\n".join(text.split("\n")[-lines:])


def _keep(folder: Path, card: dict[str, Any]) -> None:
    folders.write_json(folder / "run_card.json", card)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
