"""Seconds of each notebook: through our runner, again on kept artefacts, and through nbclient."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT

from .timing import interleaved


def notebooks(
    profile: str = "smoke", names: list[str] | None = None, repeats: int = 3
) -> dict[str, Any]:
    """Run notebooks in order, all in one fresh folder, and each again when it has run.

    Args:
        names: numbers or names; by default all.
    Returns:
        `speed`: a row a notebook; `again s`: the same with what the first run built; `nbclient s`:
        the peer, nbclient alone, on that as well, both in turn and medians; `ratio`: ours again
        through the peer's.
    """
    from vlaa_lib import profiles
    from vlaa_lib.study import run

    profiles.load(profile)  # an unknown one is said at once
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in run.find_notebooks(names):
            given = {"profile": profile, "run_dir": folder}
            ours = partial(run.execute, path, Path(folder), given, path.stem)
            (first,) = interleaved([ours], 1)
            again, peer = interleaved([ours, partial(_nbclient, path, given)], repeats)
            rows.append(
                {
                    "notebook": path.stem, "first s": round(first, 1), "again s": round(again, 1),
                    "nbclient s": round(peer, 1), "ratio": round(again / peer, 2),
                }
            )  # fmt: skip
    return {
        "benchmark": "notebooks", "peer": "nbclient", "profile": profile, "repeats": repeats,
        "cores": os.cpu_count(), "speed": rows,
    }  # fmt: skip


def _nbclient(path: Path, given: dict[str, Any]) -> None:
    """Run a notebook with these parameters through nbclient alone."""
    from nbclient import NotebookClient
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    notebook = parameterize_notebook(load_notebook_node(str(path)), given)
    NotebookClient(notebook, resources={"metadata": {"path": str(ROOT)}}, timeout=None).execute()
