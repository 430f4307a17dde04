"""One look for every figure: a colour, a marker and a dash for each model, and rows from a CSV."""

from __future__ import annotations

from typing import Any, NamedTuple

from vlaa_lib.tables import Rows, number, read

PAPER_COLOR = "#999999"  # the paper's values: grey, always, and nothing else is grey
WIDTH_PX, HEIGHT_PX = 620, 360  # under 640 px: fits a notebook, GitHub and the report


class Style(NamedTuple):
    """How one model is drawn; `symbol`, `dash` and `pattern` are plotly's names."""

    label: str
    color: str
    symbol: str
    dash: str
    pattern: str


# Okabe and Ito's palette, told apart by colour-blind people; shapes serve print in grey
_STYLES = {
    "base": Style("base", "#E69F00", "square", "dot", "."),
    "instruct": Style("instruct", "#000000", "circle", "dash", ""),
    "sft": Style("SFT", "#D55E00", "diamond", "dashdot", "/"),
    "grpo": Style("GRPO", "#0072B2", "triangle-up", "solid", ""),
    "sft_grpo": Style("SFT+GRPO", "#009E73", "cross", "longdash", "x"),
    "teacher": Style("teacher", "#CC79A7", "star", "longdashdot", "-"),
}
_OTHERS = (
    Style("", "#56B4E9", "hexagon", "solid", "\\"),
    Style("", "#8C510A", "triangle-down", "dash", "+"),
    Style("", "#542788", "x", "dot", "|"),
)


def style_of(name: str, index: int = 0) -> Style:
    """Return a model's style, or the `index`-th of the others for any other name.

    Others are three colours with three shapes: nine in all, before they come again.

    >>> style_of("sft_grpo").label, style_of("reward").label
    ('SFT+GRPO', 'reward')
    """
    turn, place = divmod(index, len(_OTHERS))
    shape = _OTHERS[(place + turn) % len(_OTHERS)]
    other = shape._replace(label=name, color=_OTHERS[place].color)
    return _STYLES.get(name) or other


def distinct(rows: Rows, column: str | None) -> list[str]:
    """Return a column's values as text, each once, in order of appearance."""
    return list(dict.fromkeys(str(row.get(column, "")) for row in rows)) if column else [""]


def chosen(rows: Rows, column: str | None, value: str) -> list[dict[str, Any]]:
    """Return the rows that hold a value of `distinct` in the column."""
    return [row for row in rows if not column or str(row.get(column, "")) == value]


__all__ = [
    "HEIGHT_PX", "PAPER_COLOR", "WIDTH_PX", "Rows", "Style", "chosen", "distinct", "number", "read",
    "style_of",
]
