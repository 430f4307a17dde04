"""What people look at: live source, figures, tables, traces side by side."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT, folders
from vlaa_lib.tables import Table

from .html import trace_html

__all__ = ["AskAgain", "TraceViewer", "minutes", "source", "table", "trace_html"]

table = Table  # rows, or a CSV file


def __getattr__(name: str) -> Any:
    """Load the widgets where they are used: they bring ipywidgets with them."""
    if name in ("AskAgain", "TraceViewer"):
        from . import viewer

        return getattr(viewer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def source(fn: Callable | type) -> Any:
    """Show the live source of a function or class under a comment that says where it stands."""
    from IPython.display import Code

    fn = inspect.unwrap(fn)
    lines, number = inspect.getsourcelines(fn)
    file = Path(inspect.getsourcefile(fn))
    place = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name
    # Code colours with Pygments, which escapes the text
    return Code(f"# {place}, line {max(1, number)}\n{''.join(lines)}", language="python")


def minutes(notebook: str) -> Table:
    """Say how long a notebook took in the measured runs of `data/results`, as a table."""
    files = sorted((ROOT / "data" / "results").glob("**/run_card.json"))
    cards = map(folders.read_json, files)
    rows = [{"profile": card["profile"], "minutes": round(card["minutes"][notebook], 1),
             "on": card["machine"]}
            for card in cards if card["minutes"].get(notebook) is not None]
    return table(rows or [{"minutes": "no run of this notebook is measured yet"}])
