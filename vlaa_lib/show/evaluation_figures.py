"""Figures of an evaluation: models by benchmark, relative change, differences, flips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from vlaa_lib.tables import Rows, Table, number, read

from .figures import Figure, bar, bars, beside, finish, frame, groups, kept, plain, reach
from .style import PAPER_COLOR, style_of

_MICRO = "micro-"


def by_benchmark(rows: Rows, paper: Rows = (), y: str = "value") -> Table:
    """Set models in lines and benchmarks in columns, in points of a hundred (paper table 4).

    Args:
        rows: model, benchmark, `y`, low, high: of `stats.table4` or `relative_change`.
        paper: the paper's: `named`, benchmark and `y`; in grey under ours, without an interval.

    >>> by_benchmark([{"model": "sft", "benchmark": "micro-X", "value": 0.5, "low": None}])
    | model      | X              |
    | :--------- | :------------- |
    | SFT, micro | 50.0 [unknown] |
    """
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        micro = ", micro" if row["benchmark"].startswith(_MICRO) else ""
        line = lines.setdefault(row["model"], {"model": style_of(row["model"]).label + micro})
        line[row["benchmark"].removeprefix(_MICRO)] = _points(row, y)
    ours = len(lines)
    for row in paper:
        name = f"paper: {row['named']}"
        line = lines.setdefault(name, {"model": name})
        line[row["benchmark"].removeprefix(_MICRO)] = f"{100 * row[y]:.1f}"
    return Table(lines.values(), grey_from=ours)


def _points(row: dict[str, Any], y: str) -> str:
    value, low, high = (number(row.get(key)) for key in (y, "low", "high"))
    if value is None:
        return "no value"
    # no blank inside: a narrow column breaks the line before the bracket
    ends = "unknown" if None in (low, high) else f"{100 * low:.1f},{100 * high:.1f}"
    return f"{100 * value:.1f} [{ends}]"


def relative_change(rows: Rows, paper: Rows = (), title: str = "") -> Figure:
    """Draw how far models are from a baseline, by benchmark (paper figure 3).

    Args:
        rows: of `stats.relative_change`; no bar where there is no value.
        paper: the paper's, with model, benchmark and change: grey marks on the model's bar.
    """
    ours, theirs = (
        [row | {"benchmark": row["benchmark"].removeprefix(_MICRO)} for row in read(given)]
        for given in (rows, paper)
    )
    baseline = ours[0].get("baseline", "the baseline") if ours else "the baseline"
    said = f"change of the score of {baseline}"
    figure = bars(ours, "benchmark", "change", "model", title, "micro benchmark", said)
    for model, mine in groups(frame(theirs), "model"):
        name = "paper, real benchmarks"
        beside(figure, name, mine["change"], mine["benchmark"], model, PAPER_COLOR)
    return figure.update_yaxes(tickformat="+.0%").add_hline(y=0, line_width=1)


def differences(rows: Rows, title: str = "", x_title: str = "difference") -> Figure:
    """Draw differences with their intervals, one a line; filled where the interval misses zero.

    Args:
        rows: name, difference, low, high; `stats.compare` returns all but the name.
    """
    rows = read(rows)
    data = frame(rows)
    symbols = np.where((data["low"] > 0) | (data["high"] < 0), "circle", "circle-open")
    dots = go.Scatter(
        x=data["difference"], y=data["name"], error_x=reach(data, "difference"), mode="markers",
        marker={"size": 11, "color": "#000000", "symbol": symbols},
    )  # fmt: skip
    table = kept(rows, "name", "difference")
    figure = finish([dots], table, title, x_title, "", legend=False)
    figure.update_yaxes(autorange="reversed")  # the first one on top
    return figure.update_layout(margin_l=150).add_vline(x=0, line_dash="dash", line_width=1)


def flips(
    rows: Rows, first: str, second: str, benchmarks: Sequence[str] = (), title: str = ""
) -> Figure:
    """Draw by benchmark how many rows the second model gained over the first, and lost.

    Args:
        rows: of `stats.flips` of these two.
        benchmarks: which ones, also without a flip; by default those of the rows.
    """
    rows, marks = read(rows), []
    names = benchmarks or dict.fromkeys(row["benchmark"] for row in rows)
    table = [{"benchmark": name.removeprefix(_MICRO)} for name in names]
    for key, model, sign in (("gained", second, 1), ("lost", first, -1)):
        for line, name in zip(table, names, strict=True):
            line[key] = sum(row["gained"] is (sign > 0) for row in rows
                            if row["benchmark"] == name)  # fmt: skip
        style = style_of(model, sign < 0)
        place = {"x": [plain(line["benchmark"]) for line in table], "textposition": "outside",
                 "text": [str(line[key] or "") for line in table]}  # fmt: skip
        heights = [sign * line[key] for line in table]
        marks.append(bar(style._replace(label=f"only {style.label} right"), heights, place))
    figure = finish(marks, table, title, "micro benchmark", "rows lost (down), gained (up)")
    figure.update_yaxes(showticklabels=False)  # the counts stand at the bars
    return figure.update_layout(barmode="relative").add_hline(y=0, line_width=1)
