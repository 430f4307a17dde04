"""Figures: rows or a CSV as a data frame, drawn by plotly in one look.

Every function returns a `Figure`, whose text is the table of its numbers. Figures that compare
models stand in `model_figures`, those of process rewards in `process_figures`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from vlaa_lib.escape import in_figure
from vlaa_lib.folders import write_csv
from vlaa_lib.images import font, sheet
from vlaa_lib.rewards.boxes import iou
from vlaa_lib.tables import Rows, number, read, text_table, thinned

from .style import HEIGHT_PX, WIDTH_PX, style_of

if TYPE_CHECKING:
    from PIL import Image

    from vlaa_lib.rewards.boxes import Box

Given = str | Path | Rows  # rows, or the CSV that holds them

_INTERVAL = ("low", "high", "n", "records")
_BANDS = 4  # lines with a band each; more are a muddle, and have their intervals at the markers
_SIDE_PX, _CAPTION_PX = 180, 20  # of a picture: three to a row stay under 640 px
GOLD, ANSWER = (0, 0, 0), (213, 94, 0)  # boxes: black and Okabe-Ito's vermilion


# --- what every figure is made of ----------------------------------------------------------------


class Figure(go.Figure):
    """A plotly figure that is a table as well: its text is the table of its numbers, `rows`."""

    rows: Sequence[dict[str, Any]] = ()

    def __repr__(self) -> str:
        shown, note = thinned(self.rows)
        return text_table(shown) + (f"\n{note}" if note else "")

    def _ipython_display_(self) -> None:
        from IPython.display import display

        # the text is for pages where plotly draws nothing, such as GitHub
        display(self._repr_mimebundle_() | {"text/plain": repr(self)}, raw=True)

    def save(self, path: str | Path) -> Figure:
        """Write the numbers as `path`.csv, from which `results` draws them; return the figure."""
        write_csv(Path(path).with_suffix(".csv"), self.rows)
        return self


def finish(
    marks: Sequence[Any], rows: Rows, title: str, x_title: str, y_title: str, legend: bool = True
) -> Figure:
    """Make a figure with the house's size, title, axes and legend."""
    figure = Figure(marks)
    figure.rows = list(rows)
    lines = textwrap.wrap(title, 70)
    return figure.update_layout(
        template="simple_white", width=WIDTH_PX, height=HEIGHT_PX, showlegend=legend,
        title={"text": "<br>".join(map(in_figure, lines)), "font": {"size": 15}},
        xaxis_title=in_figure(x_title), yaxis_title=in_figure(y_title),
        legend={"orientation": "h", "y": -0.32},
        margin={"l": 60, "r": 20, "t": 32 + 18 * max(1, len(lines)), "b": 60},
    )


def html(figure: go.Figure) -> str:
    """Return a figure as a piece of a page that holds plotly's own script."""
    options = {"displaylogo": False}
    return figure.to_html(full_html=False, include_plotlyjs=False, config=options)


def frame(rows: Given) -> pd.DataFrame:
    """Return rows as a data frame, its texts as plotly shows them; those of a CSV stay texts."""
    # before pandas, which cannot hold half a surrogate pair
    return pd.DataFrame([{k: in_figure(v) for k, v in row.items()} for row in read(rows)])


def numbers(data: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return columns as floats, NaN for what is missing, infinite or text."""
    return data.reindex(columns=list(columns)).map(number).astype(float)


def groups(data: pd.DataFrame, column: str | None) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of each value of a column, as text, in order of appearance."""
    if column is None or column not in data:
        return [("", data)]
    return list(data.groupby(data[column].astype(str), sort=False))


def kept(rows: Rows, *columns: str | None) -> list[dict[str, Any]]:
    """Return a figure's text twin: its columns, and intervals and counts where rows have them."""
    columns = dict.fromkeys((*columns, *_INTERVAL))
    return [{key: row[key] for key in columns if key in row} for row in rows]


def reach(data: pd.DataFrame, y: str) -> dict[str, Any] | None:
    """Turn `low` and `high` into plotly's distances from `y`; None without intervals."""
    found = numbers(data, y, "low", "high")
    known = found.notna().all(axis=1)
    if not known.any():
        return None
    return {
        "type": "data", "symmetric": False, "color": "#555555", "thickness": 1.2,
        "array": (found["high"] - found[y]).where(known, 0.0),
        "arrayminus": (found[y] - found["low"]).where(known, 0.0),
    }


# --- lines and bars ------------------------------------------------------------------------------


def learning_curve(
    rows: Given, x: str = "step", y: str = "reward", group: str | None = None, title: str = "",
    x_title: str = "optimizer step", y_title: str | None = None,
) -> Figure:
    """Draw a value over steps, one line a group, with intervals where rows hold `low` and `high`.

    Raises:
        ValueError: no row has both numbers; rows that lack one are left out.
    """
    rows = read(rows)
    split, marks = groups(frame(rows), group), []
    for index, (name, mine) in enumerate(split):
        style = style_of(name or in_figure(y), index)
        found = numbers(mine, x, y, "low", "high").dropna(subset=[x, y])
        band = found.dropna()
        if len(split) <= _BANDS and len(band):
            marks.append(go.Scatter(
                x=[*band[x], *band[x][::-1]], y=[*band["low"], *band["high"][::-1]],
                fill="toself", fillcolor=style.color, opacity=0.18, line_width=0, mode="lines",
                hoverinfo="skip", showlegend=False,
            ))
        if len(found):
            marks.append(go.Scatter(
                x=found[x], y=found[y], name=style.label, mode="lines+markers",
                error_y=reach(found, y) if len(split) > _BANDS else None,
                line={"color": style.color, "dash": style.dash, "width": 2},
                marker={"symbol": style.symbol, "size": 6},
            ))
    if not marks:
        raise ValueError(f"no row has numbers in both {x!r} and {y!r}")
    legend = sum(mark.showlegend is not False for mark in marks) > 1
    figure = finish(marks, kept(rows, group, x, y), title, x_title, y_title or y, legend)
    if all(value >= 0 for mark in marks for value in mark.y):
        figure.update_yaxes(rangemode="nonnegative")  # not -1 below a flat 0
    return figure


def bars(
    rows: Given, x: str, y: str, group: str | None = None, title: str = "",
    x_title: str | None = None, y_title: str | None = None, note: str | None = None,
) -> Figure:
    """Draw bars from zero by `x`, side by side for each group, with intervals where rows have them.

    Args:
        note: column of what stands below each place of `x`: of how many traces, say.
    Raises:
        ValueError: no row has a number in `y`.
    """
    rows = read(rows)
    data, is_model = frame(rows), x == "model"
    if numbers(data, y).isna().all(axis=None):
        raise ValueError(f"no row has a number in {y!r}")
    data["place"] = data[x].astype(str)
    if is_model:  # models keep their colour and their name also along the axis
        data["place"] = [style_of(name).label for name in data["place"]]
    if note:
        data["place"] += "<br>of " + data[note].astype(str)
    marks = []
    for index, (name, mine) in enumerate(groups(data, x if is_model else group)):
        style = style_of(name or in_figure(y), index)
        look = {"shape": style.pattern, "fgcolor": "white", "size": 5}
        edge = {"color": "black", "width": 0.5}
        marks.append(go.Bar(
            x=mine["place"], y=numbers(mine, y)[y], name=style.label, error_y=reach(mine, y),
            offsetgroup=None if is_model else name,
            marker={"color": style.color, "line": edge, "pattern": look},
        ))
    axes = x if x_title is None else x_title, y_title or y
    legend = group is not None and not is_model
    figure = finish(marks, kept(rows, group, x, y, *_INTERVAL, note), title, *axes, legend)
    places = list(dict.fromkeys(data["place"]))
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=places)
    return figure.update_layout(barmode="overlay" if is_model else "group", scattermode="group")


def accuracy_bars(
    rows: Given, title: str = "", x_title: str = "source",
    y_title: str = "accuracy (share of records)",
) -> Figure:
    """Draw accuracy by source and model with its interval (columns `low`, `high`).

    Where rows hold `blank_accuracy`, a mark shows what the model gets right with a blank picture:
    what lies below it can be guessed.
    """
    rows = [{"source": "all"} | row for row in read(rows)]
    figure = bars(rows, "source", "accuracy", "model", title, x_title, y_title)
    for model, mine in groups(frame(rows), "model"):
        blank = numbers(mine, "blank_accuracy")["blank_accuracy"]
        if blank.notna().any():
            edge = {"color": "black", "width": 1.5}  # seen on dark and on light bars
            figure.add_scatter(
                x=mine["source"], y=blank, offsetgroup=model, mode="markers", name="blank picture",
                marker={"symbol": "diamond-wide", "size": 9, "color": "white", "line": edge},
                legendgroup="blank", legendrank=2000,  # one entry of the legend, behind the models
                showlegend="blank picture" not in {mark.name for mark in figure.data},
            )
    figure.rows = kept(rows, "model", "source", "accuracy", *_INTERVAL, "blank_accuracy")
    return figure.update_layout(yaxis_range=[0, 1])


# --- construction and rewards --------------------------------------------------------------------


def counts(rows: Given, title: str = "") -> Figure:
    """Draw how many records of all sources enter and leave each step (`step`, `in`, `out`)."""
    # rows of the source `all` or `total` are sums themselves
    data = frame(row for row in read(rows) if row.get("source") not in ("all", "total"))
    sums = {step: numbers(mine, "in", "out").sum() for step, mine in groups(data, "step")}
    table = [{"step": step, "records": total[way], "way": way}
             for way in ("in", "out") for step, total in sums.items()]
    figure = bars(table, "step", "records", "way", title)
    return figure.update_traces(texttemplate="%{y:,}", textposition="outside")


def perplexity(rows: Given, top_k: int, title: str = "") -> Figure:
    """Draw how the perplexity of traces is distributed (log scale), the `top_k` highest in colour.

    Raises:
        ValueError: there are fewer than `top_k` rows, or none.
    """
    logs = np.log10([float(row["perplexity"]) for row in read(rows)])
    if not 1 <= top_k <= len(logs):
        raise ValueError(f"top_k {top_k} is not between 1 and the {len(logs)} rows")
    threshold, width = np.sort(logs)[-top_k], max(np.ptp(logs) / 40, 1e-3)
    # bins are counted from the threshold, so that no bar is half kept
    places = np.floor((logs - threshold) / width).astype(int)
    table = [{"perplexity from": f"{10 ** (threshold + place * width):.4g}",
              "traces": int((places == place).sum()), "part": "left out" if place < 0 else "kept"}
             for place in range(places.min(), places.max() + 1)]
    x_title = f"perplexity of a trace, log scale; kept from {10**threshold:,.4g}"
    figure = bars(table, "perplexity from", "traces", "part", title, x_title)
    figure.update_traces(offsetgroup=None)  # a bin is of one part, and as wide as the others
    return figure.update_layout(barmode="overlay", bargap=0)


def overlaps(image: Image.Image, gold: Box, answers: Sequence[Box | None]) -> Image.Image:
    """Draw each answer's box (thin, coloured) over the gold's (thick, black), one panel each.

    Args:
        gold, answers: corners as fractions (`rewards.parse_box`); None: an answer is no box.
    """
    from PIL import Image, ImageDraw

    panels = []
    for place, box in enumerate(answers, 1):
        panel = Image.new("RGB", (_SIDE_PX, _SIDE_PX + _CAPTION_PX), "white")
        panel.paste(image.convert("RGB").resize((_SIDE_PX, _SIDE_PX)))
        pen = ImageDraw.Draw(panel)
        for shape, color, width in ((gold, GOLD, 4), (box, ANSWER, 2)):
            if shape:
                pen.rectangle([v * (_SIDE_PX - 1) for v in shape], outline=color, width=width)
        said = f"IoU {iou(gold, box):.3f}" if box else "no box"
        pen.text((4, _SIDE_PX + 2), f"{place}: {said}", fill="black", font=font(14))
        panels.append(panel)
    return sheet(panels, columns=3)
