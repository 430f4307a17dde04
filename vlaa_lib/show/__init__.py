"""What people look at: live source, figures, tables, traces side by side."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import ROOT
from . import figures
from .html import trace_html

__all__ = ["figures", "source", "trace_html"]


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
