"""Figures of process rewards: accuracy against N, last-n, calibration, trees; the paper in grey."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from vlaa_lib import ROOT
from vlaa_lib.tables import Rows, number, read

from .figures import Figure, curves, finish, frame, groups, kept, numbers, plain, reach
from .style import HEIGHT_PX, PAPER_COLOR, WIDTH_PX, style_of

PAPER = ROOT / "data" / "paper" / "vilbench_digitised.json"
WINDOWS = ("last", "last 2", "last 4", "last 8", "mean")  # the paper's axis, from ORM to PRM
# the lines that need no scorer: black, told apart by their dash; grey is the paper's alone
_LINES = {"oracle": "solid", "majority": "longdash", "greedy": "dash", "random": "dot"}
_SYMBOLS = ("circle-open", "square-open", "diamond-open", "x-thin-open", "triangle-up-open")
_APART = 1.03  # ours: scorers stand a little apart, so that their intervals can be told apart
_LEGEND_PX = 90  # ours: many lines need more room below than others' figures
_COLUMNS = ("scorer", "aggregator", "n", "accuracy", "low", "high")


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
    mine = _of(rows, generator)
    marks = []
    for name, dash in _LINES.items():
        line = frame(row for row in mine if row["scorer"] == name)
        if len(line):
            marks.append(_line(line, "n", name, "black", dash))
    judged = [row for row in mine if row["aggregator"] == aggregator]
    for index, (name, line) in enumerate(groups(frame(judged), "scorer")):
        line["n"] = numbers(line, "n")["n"] * _APART**index
        marks.append(_scored(line, "n", name, index))
    if with_paper:
        for row, symbol in zip(paper_rows(), _SYMBOLS, strict=True):
            values = [row[column] / 100 for column in ("2", "4", "8", "16")]
            marks.append(_grey([2, 4, 8, 16], values, row["paper"], symbol))
    said = "N, candidates of a question", "chosen answers that are right"
    figure = finish(marks, kept(mine, *_COLUMNS), title, *said)
    sizes = sorted({int(number(row["n"])) for row in mine})
    figure.update_xaxes(type="log", tickvals=sizes, ticktext=[str(n) for n in sizes])
    return figure.update_layout(height=HEIGHT_PX + _LEGEND_PX, yaxis_tickformat=".0%")


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
    mine = [row for row in _of(rows, generator)
            if number(row["n"]) == n and row["aggregator"] in WINDOWS]  # fmt: skip
    if not mine:
        raise ValueError(f"no scored rows of the generator {generator!r} at N = {n}")
    mine.sort(key=lambda row: WINDOWS.index(row["aggregator"]))
    marks = [
        _scored(line, "aggregator", name, index)
        for index, (name, line) in enumerate(groups(frame(mine), "scorer"))
    ]
    if with_paper:
        printed = paper()["fig3_printed_mean"].items()
        for symbol, (name, values) in zip(_SYMBOLS[:2], printed, strict=True):
            marks.append(_grey(WINDOWS, [value / 100 for value in values], name, symbol))
    said = "which step scores are averaged (last: ORM, mean: PRM)", "chosen answers that are right"
    figure = finish(marks, kept(mine, *_COLUMNS), title, *said)
    figure.update_xaxes(categoryorder="array", categoryarray=WINDOWS)
    return figure.update_layout(height=HEIGHT_PX + _LEGEND_PX, yaxis_tickformat=".0%")


def _of(rows: str | Path | Rows, generator: str) -> list[dict[str, Any]]:
    mine = [row for row in read(rows) if row["generator"] == generator]
    if not mine:
        raise ValueError(f"no rows of the generator {generator!r}")
    return mine


def _line(
    data: Any, x: str, name: str, color: str, dash: str = "solid", symbol: str = "circle"
) -> go.Scatter:
    return go.Scatter(
        x=data[x] if x != "n" else numbers(data, x)[x], y=numbers(data, "accuracy")["accuracy"],
        name=name, mode="lines+markers", line={"color": color, "dash": dash, "width": 2},
        marker={"symbol": symbol, "size": 7},
    )  # fmt: skip


def _scored(data: Any, x: str, name: str, index: int) -> go.Scatter:
    """Draw one scorer's line, with its intervals."""
    style = style_of(name, index)
    line = _line(data, x, name, style.color, symbol=style.symbol)
    return line.update(error_y=reach(data, "accuracy"))


def _grey(x: Any, y: list[float], name: str, symbol: str) -> go.Scatter:
    look = {"symbol": symbol, "size": 6, "color": PAPER_COLOR}
    line = {"color": PAPER_COLOR, "width": 1}
    return go.Scatter(
        x=x, y=y, name=f"paper: {name}", mode="lines+markers", line=line, marker=look
    )


def calibration(rows: str | Path | Rows, group: str = "seed", title: str = "") -> Figure:
    """Draw the mean value of steps against their mean score, a line a group, beside the diagonal.

    Args:
        rows: as `process.prm.calibration` returns them, or their CSV.
    """
    named = [row | {group: f"{group} {row[group]}"} for row in read(rows)]
    diagonal = go.Scatter(x=[0, 1], y=[0, 1], name="score = value", mode="lines",
                          line={"color": "black", "dash": "dot", "width": 1})  # fmt: skip
    marks = [diagonal, *curves(named, "score", "value", group)]
    axes = ("mean score", "share of right rollouts (value)")
    return finish(marks, kept(named, group, "score", "value", "steps"), title, *axes)


# --- trees ---------------------------------------------------------------------------------------

_ROW, _INDENT = 34, 26  # px
_SHOWN = 58  # ours: characters of a step that fit a line
_VALUES = ["#D55E00", "#FFFFFF", "#0072B2"]  # no rollout right, half, all: told apart by everybody


def tree(found: dict[str, Any]) -> Figure:
    """Draw a stored tree of `process.search`: one line a step, indented by its depth.

    A disc's colour goes from red (no rollout right) to blue (all right), its number says the same;
    a square is where an answer ended.
    """
    nodes: list[dict[str, Any]] = []  # a line each, from above

    def walk(node: dict[str, Any], depth: int, above: int | None) -> None:
        place = len(nodes)
        share = node["right"] / node["rollouts"] if node["rollouts"] else 0.0
        nodes.append({"depth": depth, "step": node["step"] or "the question", "value": share,
                      "visits": node["visits"], "is_end": node["is_end"], "above": above})
        for child in node["children"]:
            walk(child, depth + 1, place)

    walk(found["root"], 0, None)
    x = [20 + _INDENT * node["depth"] for node in nodes]
    lines: dict[str, list] = {"x": [], "y": []}
    for place, node in enumerate(nodes):
        if node["above"] is not None:
            lines["x"] += [x[node["above"]], x[node["above"]], x[place], None]
            lines["y"] += [node["above"], place, place, None]
    y = list(range(len(nodes)))
    said = [plain(f"{node['value']:.2f}  {_short(node['step'], _SHOWN)}") for node in nodes]
    symbols = ["square" if node["is_end"] else "circle" for node in nodes]
    marks = [
        go.Scatter(lines, mode="lines", line={"color": "#777777", "width": 1}, hoverinfo="skip"),
        go.Scatter(
            x=x, y=y, mode="markers+text", text=said, textposition="middle right",
            hovertext=[plain(node["step"]) for node in nodes], hoverinfo="text",
            marker={"size": 17, "symbol": symbols, "color": [node["value"] for node in nodes],
                    "cmin": 0, "cmax": 1, "colorscale": _VALUES,
                    "line": {"color": "#333333", "width": 1}},
        ),
        go.Scatter(
            x=[WIDTH_PX - 8] * (len(nodes) - 1), y=y[1:], mode="text", hoverinfo="skip",
            text=[f"{node['visits']} visits" for node in nodes[1:]], textposition="middle left",
        ),
    ]  # fmt: skip
    root = found["root"]
    table = [{"step": "· " * node["depth"] + node["step"], "value": node["value"],
              "visits": node["visits"]} for node in nodes]  # fmt: skip
    figure = finish(marks, table, f"Search tree of {found['record_id']}", "", "", legend=False)
    total = f"{found['status']}; {root['right']} of {root['rollouts']} answers right at the root"
    heading = f"{plain(_short(found['question'], 90))}<br>{plain(total)}"
    figure.update_layout(
        title_subtitle={"text": heading, "font": {"size": 12}},
        height=110 + _ROW * len(nodes), margin={"l": 0, "r": 0, "t": 90, "b": 20},
    )  # fmt: skip
    figure.update_xaxes(visible=False, range=[0, WIDTH_PX])
    return figure.update_yaxes(visible=False, range=[len(nodes) - 0.5, -0.5])


def _short(words: str, most: int) -> str:
    words = " ".join(words.split())
    return words if len(words) <= most else words[: most - 1] + "…"
