"""Figures of an evaluation: models by benchmark, relative change, differences, flips.

The text twin of each is a table of the same rows: `by_benchmark`, or `show.table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlaa_lib.tables import Table, html_table

from .figures import bar, error_bars, finish
from .style import PAPER_COLOR, Rows, chosen, distinct, number, read, style_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MICRO = "micro-"
_GREY_TEXT = "color:#767676;font-style:italic"  # PAPER_COLOR is too pale to read as text


class BesidePaper(Table):
    """A table whose last lines are the paper's, in grey."""

    def __init__(self, ours: Rows, paper: Rows) -> None:
        ours, paper = list(ours), list(paper)
        super().__init__([*ours, *paper])
        self.num_ours = len(ours)

    def _repr_html_(self) -> str:
        before, head, *lines = html_table(self.rows).split("<tr>")  # texts are escaped: ours
        starts = ["<tr>"] * self.num_ours + [f'<tr style="{_GREY_TEXT}">'] * len(lines)
        body = "".join(start + line for start, line in zip(starts, lines, strict=False))
        return f"{before}<tr>{head}{body}"


def by_benchmark(rows: Rows, paper: Rows = (), y: str = "value") -> BesidePaper:
    """Set models in lines and benchmarks in columns, in points of a hundred (paper table 4).

    Args:
        rows: model, benchmark, `y`, low, high: of `benchmarks.table4` or `relative_change`.
        paper: the paper's: `named`, benchmark and `y`; in grey under ours, without an interval.

    >>> by_benchmark([{"model": "sft", "benchmark": "micro-X", "value": 0.5, "low": None}])
    | model      | X              |
    | :--------- | :------------- |
    | SFT, micro | 50.0 [unknown] |
    """
    rows, paper, lines = list(rows), list(paper), []
    for model in distinct(rows, "model"):
        mine = chosen(rows, "model", model)
        micro = ", micro" if mine[0]["benchmark"].startswith(_MICRO) else ""
        line = {"model": style_of(model).label + micro}
        lines.append(line | {_place(row): _points(row, y) for row in mine})
    theirs = []
    for named in distinct(paper, "named"):
        found = chosen(paper, "named", named)
        theirs.append({"model": f"paper: {named}"} | {
            _place(row): f"{100 * row[y]:.1f}" for row in found
        })  # fmt: skip
    return BesidePaper(lines, theirs)


def _place(row: dict[str, Any]) -> str:
    return row["benchmark"].removeprefix(_MICRO)


def _points(row: dict[str, Any], y: str) -> str:
    value, low, high = (number(row.get(key)) for key in (y, "low", "high"))
    if value is None:
        return "no value"
    # no blank inside: a narrow column breaks the line before the bracket
    reach = "unknown" if None in (low, high) else f"{100 * low:.1f},{100 * high:.1f}"
    return f"{100 * value:.1f} [{reach}]"


def relative_change(rows: Rows, paper: Rows = (), title: str = "") -> Figure:
    """Draw how far models are from a baseline, by benchmark (paper figure 3).

    Args:
        rows: of `benchmarks.relative_change`; no bar where there is no value.
        paper: the paper's, with model, benchmark and change: grey marks on the model's bar.
    """
    import plotly.graph_objects as go

    rows, paper, marks = read(rows), read(paper), []
    for index, model in enumerate(distinct(rows, "model")):
        mine, theirs = chosen(rows, "model", model), chosen(paper, "model", model)
        place = {"x": [_place(row) for row in mine], "offsetgroup": model}
        values = [number(row.get("change")) for row in mine]
        marks.append(bar(style_of(model, index), values, place, error_bars(mine, "change")))
        if theirs:
            marks.append(_paper(theirs, model, is_first=not any(m.legendgroup for m in marks)))
    figure = go.Figure(marks)
    figure.update_layout(barmode="group", scattermode="group", yaxis_tickformat="+.0%")
    figure.add_hline(y=0, line_width=1)
    baseline = rows[0].get("baseline", "the baseline") if rows else "the baseline"
    return finish(figure, title, "micro benchmark", f"change of the score of {baseline}")


def _paper(rows: Rows, model: str, is_first: bool) -> Any:
    import plotly.graph_objects as go

    look = {"symbol": "diamond-wide", "size": 9, "color": PAPER_COLOR}
    return go.Scatter(
        x=[_place(row) for row in rows],
        y=[row["change"] for row in rows],
        offsetgroup=model,
        name="paper, real benchmarks",
        legendgroup="paper",
        legendrank=2000,  # behind the models
        showlegend=is_first,
        mode="markers",
        marker=look | {"line": {"color": "black", "width": 0.5}},
    )


def differences(rows: Rows, title: str = "", x_title: str = "difference") -> Figure:
    """Draw differences with their intervals, one a line; filled where the interval misses zero.

    Args:
        rows: name, difference, low, high; `compare.compare` returns all but the name.
    """
    import plotly.graph_objects as go

    rows = read(rows)
    filled = [row["low"] > 0 or row["high"] < 0 for row in rows]
    dots = go.Scatter(
        x=[row["difference"] for row in rows],
        y=[row["name"] for row in rows],
        error_x=error_bars(rows, "difference"),
        mode="markers",
        marker={
            "size": 11,
            "color": "#000000",
            "symbol": ["circle" if is_told else "circle-open" for is_told in filled],
        },
    )
    figure = go.Figure(dots)
    figure.add_vline(x=0, line_dash="dash", line_width=1)
    figure.update_yaxes(autorange="reversed")  # the first one on top
    figure = finish(figure, title, x_title, "", legend=False)
    return figure.update_layout(margin_l=150)


def flips(
    rows: Rows, first: str, second: str, benchmarks: Sequence[str] = (), title: str = ""
) -> Figure:
    """Draw by benchmark how many rows the second model gained over the first, and lost.

    Args:
        rows: of `benchmarks.flips` of these two.
        benchmarks: which ones, also without a flip; by default those of the rows.
    """
    import plotly.graph_objects as go

    rows = read(rows)
    names = benchmarks or distinct(rows, "benchmark")
    bars = []
    for is_gain, model, sign in ((True, second, 1), (False, first, -1)):
        style = style_of(model, not is_gain)
        counts = [
            sum(row["gained"] is is_gain for row in chosen(rows, "benchmark", name))
            for name in names
        ]
        place = {"x": [name.removeprefix(_MICRO) for name in names]}
        said = place | {"text": [str(count or "") for count in counts], "textposition": "outside"}
        values = [sign * count for count in counts]
        bars.append(bar(style._replace(label=f"only {style.label} right"), values, said, None))
    figure = go.Figure(bars)
    figure.update_layout(barmode="relative")
    figure.update_yaxes(showticklabels=False)  # the counts stand at the bars
    figure.add_hline(y=0, line_width=1)
    return finish(figure, title, "micro benchmark", "rows lost (down), gained (up)")
