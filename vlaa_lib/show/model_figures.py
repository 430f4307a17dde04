"""Figures that compare models: scores by benchmark, and what stands in their traces.

Figures of traces have 95 % bootstrap intervals over records: rollouts of one prompt are averaged
first, since they are not independent. They are drawn from rows, or again from the CSV that `save`
wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import plotly.graph_objects as go

from vlaa_lib.evaluate import bootstrap
from vlaa_lib.tables import Rows, Table, number, read
from vlaa_lib.traces import FIGURE7_PHRASES, is_right

from .figures import (
    Figure,
    Given,
    bar,
    bars,
    beside,
    curves,
    finish,
    frame,
    groups,
    kept,
    learning_curve,
    numbers,
    plain,
    reach,
)
from .style import HEIGHT_PX, PAPER_COLOR, style_of

MICRO = "micro-"  # benchmarks of the micro-world begin so; their axes say it once
OUTCOMES = ("helped", "hurt", "unchanged")  # of `traces.corrections`
MANY = 3  # false steps of one trace, from which on they are one column
PARTS = 4  # of equal size, into which a model's traces are cut by length
MEASURES = {
    "false_share": "false among a trace's checked steps",
    "hesitation": "aha words per 100 words",
    "follows": "answers that follow, share",
}


# --- scores --------------------------------------------------------------------------------------


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
        micro = ", micro" if row["benchmark"].startswith(MICRO) else ""
        line = lines.setdefault(row["model"], {"model": style_of(row["model"]).label + micro})
        value, low, high = (number(row.get(key)) for key in (y, "low", "high"))
        # no blank inside: a narrow column breaks the line before the bracket
        ends = "unknown" if None in (low, high) else f"{100 * low:.1f},{100 * high:.1f}"
        points = "no value" if value is None else f"{100 * value:.1f} [{ends}]"
        line[row["benchmark"].removeprefix(MICRO)] = points
    ours = len(lines)
    for row in paper:
        name = f"paper: {row['named']}"
        line = lines.setdefault(name, {"model": name})
        line[row["benchmark"].removeprefix(MICRO)] = f"{100 * row[y]:.1f}"
    return Table(lines.values(), grey_from=ours)


def relative_change(rows: Rows, paper: Rows = (), title: str = "") -> Figure:
    """Draw how far models are from a baseline, by benchmark (paper figure 3).

    Args:
        rows: of `stats.relative_change`; no bar where there is no value.
        paper: the paper's, with model, benchmark and change: grey marks on the model's bar.
    """
    ours, theirs = (
        [row | {"benchmark": row["benchmark"].removeprefix(MICRO)} for row in read(given)]
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
    )
    figure = finish([dots], kept(rows, "name", "difference"), title, x_title, "", legend=False)
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
    table = [{"benchmark": name.removeprefix(MICRO)} for name in names]
    for key, model, sign in (("gained", second, 1), ("lost", first, -1)):
        for line, name in zip(table, names, strict=True):
            line[key] = sum(row["gained"] is (sign > 0) for row in rows
                            if row["benchmark"] == name)
        style = style_of(model, sign < 0)
        place = {"x": [plain(line["benchmark"]) for line in table], "textposition": "outside",
                 "text": [str(line[key] or "") for line in table]}
        heights = [sign * line[key] for line in table]
        marks.append(bar(style._replace(label=f"only {style.label} right"), heights, place))
    figure = finish(marks, table, title, "micro benchmark", "rows lost (down), gained (up)")
    figure.update_yaxes(showticklabels=False)  # the counts stand at the bars
    return figure.update_layout(barmode="relative").add_hline(y=0, line_width=1)


# --- traces --------------------------------------------------------------------------------------


def means(rows: Rows, by: Sequence[str], value: str) -> list[dict[str, Any]]:
    """Average a column over groups of rows, with an interval over the groups' records.

    Rows without a number in `value` are left out, and `n` counts the others; groups come in order
    of appearance.
    """
    found: dict[tuple, dict[str, list[float]]] = {}
    for row in rows:
        if (one := number(row.get(value))) is not None:
            records = found.setdefault(tuple(row.get(key) for key in by), {})
            records.setdefault(row["record_id"], []).append(one)
    table = []
    for key, records in found.items():
        each = [fmean(values) for values in records.values()]
        low, high = bootstrap(each)
        made = dict(zip(by, key, strict=True)) | {value: fmean(each), "low": low, "high": high}
        table.append(made | {"n": sum(map(len, records.values())), "records": len(each)})
    return table


def _is_saved(rows: Given) -> bool:
    return isinstance(rows, (str, Path))  # the numbers of a figure, as `save` wrote them


def training(rows: Given, title: str = "") -> Figure:
    """Draw reward and length over training, a line a model (paper figure 6).

    Args:
        rows: of trace stores; `load(folder, ["model", "optimizer_step", "record_id", "reward",
            "completion_tokens"])` holds all that is needed.
    """
    axes = {"reward": "mean reward", "completion_tokens": "tokens a completion"}
    if not _is_saved(rows):
        given = list(rows)
        rows = [
            {"measure": said, "mean": row.pop(value)} | row for value, said in axes.items()
            for row in sorted(means(given, ("model", "optimizer_step"), value),
                              key=lambda row: row["optimizer_step"])
        ]
    table, marks = read(rows), []
    for axis, said in zip(("y", "y2"), axes.values(), strict=True):
        mine = [row for row in table if row["measure"] == said]
        for mark in curves(mine, "optimizer_step", "mean", "model"):
            marks.append(mark.update(yaxis=axis, legendgroup=mark.name))
            if axis == "y2":
                mark.showlegend = False
    reward, length = axes.values()
    return finish(marks, table, title, "optimizer step", reward).update_layout(
        height=2 * HEIGHT_PX, legend_y=-0.12, xaxis_anchor="y2",
        yaxis={"domain": [0.54, 1]}, yaxis2={"domain": [0, 0.46], "title": {"text": length}},
    )


def aha_map(rows: Given, title: str = "", paper: dict[str, list] | None = None) -> Figure:
    """Draw how often each phrase occurs in 100 traces of each model (paper figure 7).

    Args:
        rows: of `traces.measured`.
        paper: its counts, `figure7_aha_counts` in `data/paper`, drawn below in grey; they are of
            answers whose number the paper does not say.
    """
    value = "per 100 traces"
    table = read(rows) if _is_saved(rows) else _per_hundred(rows, FIGURE7_PHRASES, "phrase")
    ours = [row | {"said": "{:.3g}<br>({:.3g} to {:.3g})".format(
        *(number(row[key]) for key in (value, "low", "high")))} for row in table]
    marks = [_cells(ours, "phrase", "model", value, "#0072B2")]
    if paper:
        counted = [
            {"phrase": phrase, "model": f"paper: {name}", value: count, "said": str(count)}
            for phrase in FIGURE7_PHRASES
            for name, count in zip(paper["columns"], paper[phrase], strict=True)
        ]
        marks.append(_cells(counted, "phrase", "model", value, PAPER_COLOR).update(yaxis="y2"))
    figure = finish(marks, table, title, "", "", legend=False).update_yaxes(autorange="reversed")
    if paper:
        figure.update_layout(
            height=2 * HEIGHT_PX, xaxis_anchor="y2", yaxis={"domain": [0.52, 1]},
            yaxis2={"domain": [0, 0.48], "autorange": "reversed",
                    "title": {"text": "the paper's counts, of its models"}},
        )
    return figure.update_layout(margin_l=110)


def false_steps(rows: Given, title: str = "") -> Figure:
    """Draw `pocket.false_steps_by_noise` as a map: of all traces, then of the verified ones."""
    table = read(rows)
    told = [
        row | {"noise": f"x {number(row['noise']):g}",
               "said": f"{number(row['false_all']):.0%} → {number(row['false_verified']):.0%}"}
        for row in table
    ]
    marks = [_cells(told, "noise", "source", "false_verified", "#0072B2")]
    x_title = "caption noise, times the profile's rates"
    figure = finish(marks, table, title, x_title, "", legend=False)
    return figure.update_yaxes(autorange="reversed")


def _cells(rows: Rows, x: str, y: str, value: str, color: str) -> go.Heatmap:
    """Return a cell for each row, from white at 0 to `color`, with its `said` in it."""
    data = frame({**row, y: style_of(str(row[y])).label} for row in rows)
    data["said"] = data["said"].str.replace("&lt;br&gt;", "<br>")  # ours: a second line
    return go.Heatmap(
        x=data[x], y=data[y], z=numbers(data, value)[value], text=data["said"],
        texttemplate="%{text}", zmin=0, colorscale=["#FFFFFF", color], showscale=False,
        xgap=2, ygap=2,
    )


def self_correction(rows: Given, title: str = "") -> Figure:
    """Draw what is said again after a doubt word, by its outcome (`traces.corrections`).

    Args:
        rows: of `traces.measured`; a trace without a scene is left out.
    """
    x, y = "second thought", "per 100 traces"
    table = rows if _is_saved(rows) else _per_hundred(rows, OUTCOMES, x)
    return bars(table, x, y, "model", title, "the second thought", "in 100 traces")


def _per_hundred(rows: Rows, columns: tuple[str, ...], name: str) -> list[dict[str, Any]]:
    """Count what several columns hold in 100 traces of each model; `name` heads the columns."""
    rows = list(rows)
    return [
        {"model": row["model"], name: column, "per 100 traces": 100 * row[column],
         "low": 100 * row["low"], "high": 100 * row["high"], "n": row["n"]}
        for column in columns for row in means(rows, ("model",), column)
    ]


def by_model(rows: Given, measure: str = "false_share", title: str = "") -> Figure:
    """Draw the mean of a measure of `traces.measured` by model, such as hesitation or `follows`."""
    if not _is_saved(rows):
        given = list(rows)
        rows = means(given, ("model",), measure)
        for row in rows:
            mine = (r.get("checked_steps") or 0 for r in given if r["model"] == row["model"])
            # a rate is worth as much as the steps it is of
            steps = measure == "false_share"
            row["of"] = f"{sum(mine)} steps" if steps else f"{row['n']} traces"
    return bars(rows, "model", measure, None, title, "", MEASURES.get(measure, measure), "of")


def reward_by_truth(rows: Given, title: str = "") -> Figure:
    """Draw the reward of traces with no, one, two, or more false steps, by model.

    Args:
        rows: of a store or of `traces.measured`; a trace without a scene is left out, and one
            without a checkable step is no true one: it has a place of its own.
    """

    def place(row: dict[str, Any]) -> str:
        if row.get("checked_steps") == 0:
            return "none checked"
        return f"{row['false_steps']}" if row["false_steps"] < MANY else f"{MANY} or more"

    x = "false steps"
    if not _is_saved(rows):
        placed = [row | {x: place(row)} for row in rows if row.get("false_steps") is not None]
        rows = sorted(means(placed, (x, "model"), "reward"), key=lambda row: row[x])
    return bars(rows, x, "reward", "model", title, "false steps of a trace", "mean reward")


def length_and_right(rows: Given, title: str = "") -> Figure:
    """Draw the share of right answers over the length of the trace, a line a model.

    Args:
        rows: of an evaluation's store or of `traces.measured`.
    """
    if not _is_saved(rows):
        told = [row | {"right": is_right(row)} for row in rows if row.get("words") is not None]
        rows = []
        for name in dict.fromkeys(row["model"] for row in told):
            mine = sorted((row for row in told if row["model"] == name), key=lambda r: r["words"])
            for i in range(PARTS):
                if part := mine[i * len(mine) // PARTS : (i + 1) * len(mine) // PARTS]:
                    words = fmean(row["words"] for row in part)
                    rows += [{"model": name, "words": words} | r for r in means(part, (), "right")]
    axes = "words of the trace", "right answers, share"
    return learning_curve(rows, "words", "right", "model", title, *axes)
