"""Tables: rows as Markdown for a terminal, as HTML for a page."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

Rows = Iterable[dict[str, Any]]


def read(rows: str | Path | Rows) -> list[dict[str, Any]]:
    """Return rows as a list; a path is read as CSV."""
    if isinstance(rows, (str, Path)):
        with open(rows, encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    return list(rows)


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


def text_table(rows: str | Path | Rows, columns: list[str] | None = None) -> str:
    """Write rows as an aligned Markdown table, readable as plain text too.

    Args:
        rows: dicts, or the path of a CSV file.
        columns: which ones, in which order; by default all, in order of appearance.

    >>> print(text_table([{"model": "sft", "accuracy": 0.51234}, {"model": "a|b"}]))
    | model | accuracy |
    | :---- | -------: |
    | sft   |   0.5123 |
    | a\\|b  |          |
    """
    columns, lines, numeric = _cells(rows, columns)
    if not columns:
        return "(no rows)"
    lines = [[text.replace("|", "\\|") for text in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    rule = [
        "-" * (width - 1) + ":" if is_numeric else ":" + "-" * (width - 1)
        for is_numeric, width in zip(numeric, widths, strict=True)
    ]
    padded = [
        [
            text.rjust(width) if is_numeric else text.ljust(width)
            for is_numeric, text, width in zip(numeric, line, widths, strict=True)
        ]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def html_table(rows: str | Path | Rows, columns: list[str] | None = None) -> str:
    """Write the rows of a `text_table` as HTML, escaped; long texts wrap inside their column.

    >>> html_table([{"a<b": 0.51234}])  # doctest: +ELLIPSIS
    '<table><thead><tr><th style="text-align:right">a&lt;b</th>...>0.5123</td></tr></tbody></table>'
    """
    columns, lines, numeric = _cells(rows, columns)
    if not columns:
        return "<p>(no rows)</p>"
    head, *body = lines
    heading = _tr("th", head, ["right" if is_numeric else "left" for is_numeric in numeric])
    # 1e-09 stays on one line
    places = ["right;white-space:nowrap" if is_numeric else "left" for is_numeric in numeric]
    rest = "".join(_tr("td", line, places) for line in body)
    return f"<table><thead>{heading}</thead><tbody>{rest}</tbody></table>"


def _tr(tag: str, texts: list[str], places: list[str]) -> str:
    """Return a row of a table, escaped."""
    cells = zip(texts, places, strict=True)
    made = (f'<{tag} style="text-align:{place}">{escape(text)}</{tag}>' for text, place in cells)
    return f"<tr>{''.join(made)}</tr>"


class Table:
    """A table to look at: HTML where a page can show it, `text_table` everywhere else."""

    def __init__(self, rows: str | Path | Rows, columns: list[str] | None = None) -> None:
        self.rows, self.columns = read(rows), columns

    def __repr__(self) -> str:
        return text_table(self.rows, self.columns)

    def _repr_html_(self) -> str:
        return html_table(self.rows, self.columns)


def _cells(
    rows: str | Path | Rows, columns: list[str] | None
) -> tuple[list[str], list[list[str]], list[bool]]:
    """Return the columns, the lines of texts with the heading first, and which are numbers."""
    rows = read(rows)
    columns = columns or list(dict.fromkeys(key for row in rows for key in row if key is not None))
    numeric = [all(_is_number(row.get(c)) for row in rows) for c in columns]
    lines = [[_cell(row.get(c), n) for c, n in zip(columns, numeric, strict=True)] for row in rows]
    return columns, [[_cell(c) for c in columns], *lines], numeric


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
