"""What people look at: live source, figures, tables, traces side by side."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT
from vlaa_lib.tables import Rows, Table

from .html import trace_html

__all__ = ["AskAgain", "TraceViewer", "minutes", "source", "table", "trace_html"]


def __getattr__(name: str) -> Any:
    """Load the widgets where they are used: they bring ipywidgets with them."""
    if name in ("AskAgain", "TraceViewer"):
        from . import viewer

        return getattr(viewer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def source(fn: Callable | type) -> Any:
    """Show the live source of a function or class under a comment that says where it stands.

    Raises:
        TypeError: built in, or otherwise without Python source.
    """
    from IPython.display import Code

    fn = inspect.unwrap(fn)
    lines, number = inspect.getsourcelines(fn)
    file = Path(inspect.getsourcefile(fn))
    place = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name
    # Code colours with Pygments, which escapes the text
    return Code(f"# {place}, line {max(1, number)}\n{''.join(lines)}", language="python")


def table(rows: str | Path | Rows, columns: list[str] | None = None) -> Table:
    """Show rows, or a CSV file, as a table; its text twin is `tables.text_table`."""
    return Table(rows, columns)


def minutes(notebook: str) -> Table:
    """Say how long a notebook took in the measured runs of `data/results`, as a table."""
    rows = []
    for path in sorted((ROOT / "data" / "results").glob("**/run_card.json")):
        card = json.loads(path.read_text())
        if (spent := card["minutes"].get(notebook)) is not None:
            row = {"profile": card["profile"], "minutes": round(spent, 1)}
            rows.append(row | {"on": card["machine"]})
    return table(rows or [{"minutes": "no run of this notebook is measured yet"}])
