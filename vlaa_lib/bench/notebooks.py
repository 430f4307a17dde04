"""Seconds of each notebook: through our runner, again on kept artefacts, and through nbclient."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from .. import ROOT


def notebooks(profile: str = "smoke", names: list[str] | None = None) -> dict[str, Any]:
    """Run notebooks in order, all in one fresh folder, and each once more when it has run.

    Args:
        names: numbers or names; by default all.
    Returns:
        `speed`: a row a notebook; `again s`: the same with what the first run built; `nbclient s`:
        the peer, nbclient alone, on that as well; `ratio`: ours again through the peer's.
    """
    from .. import run

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in run.find_notebooks(names):
            given = {"profile": profile, "run_dir": folder}
            row: dict[str, Any] = {"notebook": path.stem}
            for key in ("first s", "again s"):
                start = time.perf_counter()
                run.execute(path, Path(folder), given, path.stem)
                row[key] = round(time.perf_counter() - start, 1)
            row["nbclient s"] = round(_nbclient(path, given), 1)
            row["ratio"] = round(row["again s"] / row["nbclient s"], 2)
            rows.append(row)
    return {
        "benchmark": "notebooks", "peer": "nbclient", "profile": profile,
        "cores": os.cpu_count(), "speed": rows,
    }  # fmt: skip


def _nbclient(path: Path, given: dict[str, Any]) -> float:
    """Return the seconds that nbclient takes for a notebook with these parameters."""
    from nbclient import NotebookClient
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    notebook = parameterize_notebook(load_notebook_node(str(path)), given)
    start = time.perf_counter()
    NotebookClient(notebook, resources={"metadata": {"path": str(ROOT)}}, timeout=None).execute()
    return time.perf_counter() - start
