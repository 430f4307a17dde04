"""Figures of process rewards: accuracy against N, last-n, calibration; the paper in grey."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib import ROOT

from .figures import error_bars, finish
from .style import HEIGHT_PX, PAPER_COLOR, Rows, chosen, distinct, number, read, style_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

PAPER = ROOT / "data" / "paper" / "vilbench_digitised.json"
WINDOWS = ("last", "last 2", "last 4", "last 8", "mean")  # the paper's axis, from ORM to PRM
# the lines that need no scorer: black, told apart by their dash; grey is the paper's alone
_LINES = {"oracle": "solid", "majority": "longdash", "greedy": "dash", "random": "dot"}


_APART = 1.03  # ours: scorers stand a little apart, so that their intervals can be told apart
_LEGEND_PX = 90  # ours: many lines need more room below than others' figures


@cache
def paper() -> dict[str, Any]:
    """Return the authors' published numbers, in percent, and what is wrong with them."""
    return json.loads(PAPER.read_text(encoding="utf-8"))


def paper_rows(table: str = "vilprm_avg") -> list[dict[str, Any]]:
    """Return one of the authors' tables as rows, each marked as the paper's.

    Args:
        table: `vilprm_avg`, `orm_prm_by_generator` or `mathverse_split`.
    Raises:
        ValueError: another name.
    """
    if table not in ("vilprm_avg", "orm_prm_by_generator", "mathverse_split"):
        raise ValueError(f"table {table!r}: see data/paper/{PAPER.name} for what is there")
    found = dict(paper()[table])
    columns = found.pop("cols")
    return [{"paper": name} | dict(zip(columns, row, strict=True)) for name, row in found.items()]


def accuracy_by_n(
    rows: str | Path | Rows,
    generator: str = "average",
    aggregator: str = "mean",
    title: str = "",
    with_paper: bool = False,
) -> Figure:
    """Draw accuracy against N: each scorer with its interval, between the lines without a scorer.

    Args:
        rows: as `process.best_of_n.table` returns them, or their CSV.
        with_paper: the paper's averages in grey as well: other questions, other generators, and
            a set of these that changes between N = 4 and 8.
    Raises:
        ValueError: no row of this generator.
    """
    import plotly.graph_objects as go

    mine = chosen(read(rows), "generator", generator)
    if not mine:
        raise ValueError(f"no rows of the generator {generator!r}")
    lines = [
        _scatter(chosen(mine, "scorer", name), name, "black", dash, "circle")
        for name, dash in _LINES.items()
    ]
    judged = [row for row in mine if str(row["aggregator"]) == aggregator]
    for index, name in enumerate(dict.fromkeys(str(row["scorer"]) for row in judged)):
        line = _scored(chosen(judged, "scorer", name), name, index, "n")
        line.x = [n * _APART**index for n in line.x]
        lines.append(line)
    if with_paper:
        for row, symbol in zip(paper_rows(), _SYMBOLS, strict=True):
            values = [row[column] / 100 for column in ("2", "4", "8", "16")]
            lines.append(_grey([2, 4, 8, 16], values, row["paper"], symbol))
    figure = go.Figure([line for line in lines if len(line.x)])
    sizes = sorted({int(number(row["n"])) for row in mine})
    figure.update_xaxes(type="log", tickvals=sizes, ticktext=[str(n) for n in sizes])
    figure.update_yaxes(tickformat=".0%")
    figure = finish(figure, title, "N, candidates of a question", "chosen answers that are right")
    return figure.update_layout(height=HEIGHT_PX + _LEGEND_PX)


def last_n_curve(
    rows: str | Path | Rows,
    n: int = 16,
    generator: str = "average",
    title: str = "",
    with_paper: bool = False,
) -> Figure:
    """Draw accuracy against how many of the last steps' scores are averaged, a line a scorer.

    Args:
        rows: as `process.best_of_n.table` returns them, or their CSV.
        with_paper: the means printed on the paper's figure in grey as well, of other questions.
    Raises:
        ValueError: no row of this generator at this n.
    """
    import plotly.graph_objects as go

    mine = [row for row in chosen(read(rows), "generator", generator) if number(row["n"]) == n]
    mine = [row for row in mine if row["aggregator"] in WINDOWS]
    if not mine:
        raise ValueError(f"no scored rows of the generator {generator!r} at N = {n}")
    lines = []
    for index, name in enumerate(dict.fromkeys(str(row["scorer"]) for row in mine)):
        of = {row["aggregator"]: row for row in chosen(mine, "scorer", name)}
        own = [of[window] for window in WINDOWS if window in of]
        lines.append(_scored(own, name, index, "aggregator"))
    if with_paper:
        for symbol, (name, values) in zip(
            _SYMBOLS[:2], paper()["fig3_printed_mean"].items(), strict=True
        ):
            lines.append(_grey(WINDOWS, [value / 100 for value in values], name, symbol))
    figure = go.Figure(lines)
    figure.update_xaxes(categoryorder="array", categoryarray=list(WINDOWS))
    figure.update_yaxes(tickformat=".0%")
    x_title = "which step scores are averaged (last: ORM, mean: PRM)"
    figure = finish(figure, title, x_title, "chosen answers that are right")
    return figure.update_layout(height=HEIGHT_PX + _LEGEND_PX)


def calibration(rows: str | Path | Rows, group: str = "seed", title: str = "") -> Figure:
    """Draw the mean value of steps against their mean score, a line a group, beside the diagonal.

    Args:
        rows: as `process.prm.calibration` returns them, or their CSV.
    """
    import plotly.graph_objects as go

    rows = read(rows)
    lines = [
        go.Scatter(x=[0, 1], y=[0, 1], name="score = value", mode="lines",
                   line={"color": "black", "dash": "dot", "width": 1})
    ]  # fmt: skip
    for index, name in enumerate(distinct(rows, group)):
        style, mine = style_of(f"{group} {name}", index), chosen(rows, group, name)
        lines.append(
            go.Scatter(
                x=[number(row["score"]) for row in mine],
                y=[number(row["value"]) for row in mine],
                name=style.label,
                mode="lines+markers",
                line={"color": style.color, "dash": style.dash, "width": 2},
                marker={"symbol": style.symbol, "size": 7},
                text=[f"{row['steps']} steps" for row in mine],
            )
        )
    return finish(go.Figure(lines), title, "mean score", "share of right rollouts (value)")


_SYMBOLS = ("circle-open", "square-open", "diamond-open", "x-thin-open", "triangle-up-open")


def _scored(rows: list[dict[str, Any]], name: str, index: int, x: str) -> Scatter:
    """Draw one scorer's line, with its intervals."""
    style = style_of(name, index)
    line = _scatter(rows, name, style.color, "solid", style.symbol, x)
    line.error_y = error_bars(rows, "accuracy")
    return line


def _scatter(
    rows: list[dict[str, Any]], name: str, color: str, dash: str, symbol: str, x: str = "n"
) -> Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[row[x] if x != "n" else number(row[x]) for row in rows],
        y=[number(row["accuracy"]) for row in rows],
        name=name,
        mode="lines+markers",
        line={"color": color, "dash": dash, "width": 2},
        marker={"symbol": symbol, "size": 7},
    )


def _grey(x: Any, y: list[float], name: str, symbol: str) -> Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=list(x),
        y=y,
        name=f"paper: {name}",
        mode="lines+markers",
        line={"color": PAPER_COLOR, "width": 1},
        marker={"symbol": symbol, "size": 6, "color": PAPER_COLOR},
    )
