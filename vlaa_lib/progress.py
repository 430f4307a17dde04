"""Progress bars of one line of text: on a terminal, or as one output of a notebook's cell."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable | None = None, desc: str = "", **options: Any) -> tqdm:
    """Return a tqdm bar; in a notebook its last state stays in the page, also when nobody runs it.

    A widget, which `tqdm.auto` takes there, is stored with what it showed first: 0 %.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return tqdm(items, desc, file=_Output() if hasattr(shell, "kernel") else None, **options)


def close_bars() -> None:
    """End the line of each bar that an error left open: what is said next begins a line."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def take_over_transformers() -> None:
    """Show the bars of transformers, for loading or saving, as ours; a small model shows none."""
    from transformers.utils import logging

    def bar(_: Any, args: tuple, options: dict[str, Any]) -> tqdm:
        disable = not logging.is_progress_bar_enabled()
        return progress_bar(*args, **{"leave": False, "delay": 2, "disable": disable} | options)

    logging.set_tqdm_hook(bar)


class _Output(io.TextIOBase):
    """What tqdm writes to, as to a terminal: each line takes the place of the one before it."""

    encoding, handle = "utf-8", None

    def isatty(self) -> bool:
        return True  # somebody looks

    def write(self, text: str) -> int:
        if text.startswith("\r") and len(text) > 1:  # others only move a cursor
            self._show({"text/plain": line} if (line := text.strip()) else {})
        return len(text)

    def _show(self, data: dict[str, str]) -> None:
        from IPython.display import display

        if self.handle:
            self.handle.update(data, raw=True)
        elif data:
            self.handle = display(data, raw=True, display_id=True)
