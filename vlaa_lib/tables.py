"""Tables: rows as text for a terminal, as Markdown for a file, as HTML for a page.

Not by pandas' writers: numbers stand to the right, with four digits, texts wrap, all is escaped.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlaa_lib import VlaaError
from vlaa_lib.escape import AS_TEXT, markdown

Rows = Iterable[dict[str, Any]]

_GREY_TEXT = "color:#767676;font-style:italic"  # the paper's lines; its grey is too pale for text


def read(rows: str | Path | Rows) -> list[dict[str, Any]]:
    """Return rows as a list; a path is read as CSV."""
    if not isinstance(rows, (str, Path)):
        return list(rows)
    try:
        with open(rows, encoding="utf-8-sig", newline="") as stream:
            return list(csv.DictReader(stream))
    except (csv.Error, UnicodeDecodeError) as error:
        said = f"not a CSV file in UTF-8 ({error}); write it again"
        raise VlaaError(f"{rows}: {said}") from None


def number(value: Any) -> float | None:
    """Return a finite float, or None for what is missing, NaN, infinite or text.

    >>> number("0.5"), number(""), number("nan"), number(None), number(10**400)
    (0.5, None, None, None, None)
    """
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def known(value: Any) -> Any:
    """Return a value, or None for what stands for none in tables: NaN, pandas' NA and NaT.

    >>> known(float("nan")), known(0)
    (None, 0)
    """
    try:
        return None if value is None or bool(value != value) else value
    except TypeError:  # NA is neither equal to itself nor not
        return None
    except ValueError:  # an array
        return value


def thinned(rows: Sequence[Any], most: int = 40) -> tuple[Sequence[Any], str]:
    """Return at most so many rows, evenly chosen, and a sentence that says so ("" for all).

    >>> thinned(range(9), 5)
    (range(0, 9, 2), 'One row in 2 of 9.')
    """
    every = max(1, -(-len(rows) // most))
    return rows[::every], f"One row in {every} of {len(rows)}." if every > 1 else ""


class Table:
    """A table to look at: HTML where a page can show it, `text_table` everywhere else.

    Args:
        columns: which ones, in which order; by default all, in order of appearance.
        grey_from: from this row on the numbers are the paper's, in grey.
    """

    def __init__(
        self, rows: str | Path | Rows, columns: list[str] | None = None,
        grey_from: int | None = None,
    ) -> None:  # fmt: skip
        self.rows, self.columns, self.grey_from = read(rows), columns, grey_from

    def __repr__(self) -> str:
        return text_table(self.rows, self.columns)

    def _repr_html_(self) -> str:
        return html_table(self.rows, self.columns, self.grey_from)


def text_table(
    rows: str | Path | Rows, columns: list[str] | None = None,
    escaped: Callable[[str], str] = lambda text: text.replace("|", "\\|"),
) -> str:  # fmt: skip
    """Write rows as an aligned table for people; see `Table`, and `markdown_table` for a file.

    >>> print(text_table([{"model": "sft", "accuracy": 0.51234}, {"model": "a|b"}]))
    | model | accuracy |
    | :---- | -------: |
    | sft   |   0.5123 |
    | a\\|b  |          |
    """
    lines, numeric = _cells(rows, columns)
    if not numeric:
        return "(no rows)"
    lines = [[escaped(text) for text in line] for line in lines]
    written = []
    for is_right, (head, *body) in zip(numeric, zip(*lines, strict=True), strict=True):
        width = max(3, *map(len, (head, *body)))
        rule = "-" * (width - 1)
        texts = [head, f"{rule}:" if is_right else f":{rule}", *body]
        written.append([t.rjust(width) if is_right else t.ljust(width) for t in texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*written, strict=True))


def markdown_table(rows: str | Path | Rows, columns: list[str] | None = None) -> str:
    """Write a `text_table` for a Markdown file, in which no cell's text becomes markup."""
    return text_table(rows, columns, markdown)


def html_table(
    rows: str | Path | Rows, columns: list[str] | None = None, grey_from: int | None = None
) -> str:
    """Write the rows of a `text_table` as HTML, escaped; long texts wrap inside their column.

    >>> html_table([{"a<b": 0.51234}])  # doctest: +ELLIPSIS
    '<table class=...><thead><tr><th style=...>a&lt;b</th>...>0.5123</td></tr></tbody></table>'
    """
    (head, *body), numeric = _cells(rows, columns)
    if not numeric:
        return "<p>(no rows)</p>"

    def line(tag: str, texts: list[str], right: str, row: str = "<tr>") -> str:
        cells = (
            f'<{tag} style="text-align:{right if is_right else "left"}">{escape(text)}</{tag}>'
            for text, is_right in zip(texts, numeric, strict=True)
        )
        return f"{row}{''.join(cells)}</tr>"

    grey = len(body) if grey_from is None else grey_from
    written = "".join(
        line("td", texts, "right;white-space:nowrap",  # 1e-09 stays on one line
             "<tr>" if place < grey else f'<tr style="{_GREY_TEXT}">')
        for place, texts in enumerate(body)
    )  # fmt: skip
    heading = line("th", head, "right")
    return f"<table {AS_TEXT}><thead>{heading}</thead><tbody>{written}</tbody></table>"


def _cells(
    rows: str | Path | Rows, columns: list[str] | None
) -> tuple[list[list[str]], list[bool]]:
    """Return the lines of texts, the heading first, and which columns are numbers."""
    rows = read(rows)
    columns = columns or list(dict.fromkeys(key for row in rows for key in row if key is not None))
    numeric = [all(_is_number(row.get(column)) for row in rows) for column in columns]
    lines = [[_cell(row.get(c), n) for c, n in zip(columns, numeric, strict=True)] for row in rows]
    return [[_cell(column) for column in columns], *lines], numeric


def _is_number(value: Any) -> bool:
    missing = value is None or value == ""
    return missing or (not isinstance(value, bool) and number(value) is not None)


def _cell(value: Any, is_numeric: bool = False) -> str:
    """Return one line of text; decimal numbers, also those of a CSV, with four digits."""
    if value is None:
        return ""
    if is_numeric and isinstance(value, str) and "." in value:
        value = float(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return " ".join(str(value).split())
