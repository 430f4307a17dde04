"""Figures of traces: the paper's figures 6 and 7, step truth, self-correction.

Intervals are 95 % bootstrap intervals over records: rollouts of one prompt are averaged first,
since they are not independent. Each figure is drawn from rows, or again from the CSV that `save`
wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from vlaa_lib.evaluate import bootstrap
from vlaa_lib.tables import Rows, number, read
from vlaa_lib.traces import FIGURE7_PHRASES, is_right

from .figures import Figure, bars, curves, finish, frame, learning_curve, numbers
from .style import HEIGHT_PX, PAPER_COLOR, style_of

OUTCOMES = ("helped", "hurt", "unchanged")  # of `traces.corrections`
MANY = 3  # false steps of one trace, from which on they are one column
MEASURES = {
    "false_share": "false among a trace's checked steps",
    "hesitation": "aha words per 100 words",
    "follows": "answers that follow, share",
}

Given = str | Path | Rows


def means(rows: Rows, by: Sequence[str], value: str, resamples: int = 1000) -> list[dict[str, Any]]:
    """Average a column over groups of rows, with an interval over the groups' records.

    Rows without a number in `value` are left out, and `n` counts the others; groups come in order
    of appearance.
    """
    groups: dict[tuple, dict[str, list[float]]] = {}
    for row in rows:
        if (found := number(row.get(value))) is not None:
            records = groups.setdefault(tuple(row.get(key) for key in by), {})
            records.setdefault(row["record_id"], []).append(found)
    table = []
    for key, records in groups.items():
        each = [fmean(values) for values in records.values()]
        low, high = bootstrap(each, resamples)
        made = dict(zip(by, key, strict=True)) | {value: fmean(each), "low": low, "high": high}
        table.append(made | {"n": sum(map(len, records.values())), "records": len(each)})
    return table


def _made(rows: Given, make: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> list[dict]:
    """Return the numbers of a figure: worked out from rows, or read from its own CSV."""
    return read(rows) if isinstance(rows, (str, Path)) else make(list(rows))


def training(rows: Given, title: str = "") -> Figure:
    """Draw reward and length over training, a line a model (paper figure 6).

    Args:
        rows: of trace stores; `load(folder, ["model", "optimizer_step", "record_id", "reward",
            "completion_tokens"])` holds all that is needed.
    """
    axes = {"reward": "mean reward", "completion_tokens": "tokens a completion"}

    def make(rows: list[dict]) -> list[dict]:
        return [
            {"measure": said, "mean": row.pop(value)} | row for value, said in axes.items()
            for row in sorted(means(rows, ("model", "optimizer_step"), value),
                              key=lambda row: row["optimizer_step"])
        ]  # fmt: skip

    table, marks = _made(rows, make), []
    for place, said in enumerate(axes.values()):
        for mark in curves([row for row in table if row["measure"] == said],
                           "optimizer_step", "mean", "model"):  # fmt: skip
            mark.update(yaxis="y2" if place else "y", legendgroup=mark.name)
            if place:
                mark.showlegend = False
            marks.append(mark)
    reward, length = axes.values()
    figure = finish(marks, table, title, "optimizer step", reward)
    return figure.update_layout(
        height=2 * HEIGHT_PX, legend_y=-0.12, xaxis_anchor="y2",
        yaxis={"domain": [0.54, 1]}, yaxis2={"domain": [0, 0.46], "title": {"text": length}},
    )  # fmt: skip


def aha_map(rows: Given, title: str = "", paper: dict[str, list] | None = None) -> Figure:
    """Draw how often each phrase occurs in 100 traces of each model (paper figure 7).

    Args:
        rows: of `traces.measured`.
        paper: its counts, `figure7_aha_counts` in `data/paper`, drawn below in grey; they are of
            answers whose number the paper does not say.
    """
    value = "per 100 traces"
    table = _made(rows, lambda rows: _per_hundred(rows, FIGURE7_PHRASES, "phrase"))
    ours = [row | {"said": "{:.3g}<br>({:.3g} to {:.3g})".format(
        *(number(row[key]) for key in (value, "low", "high")))} for row in table]  # fmt: skip
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
        )  # fmt: skip
    return figure.update_layout(margin_l=110)


def false_steps(rows: Given, title: str = "") -> Figure:
    """Draw `pocket.false_steps_by_noise` as a map: of all traces, then of the verified ones."""
    table = read(rows)
    told = [
        row | {"noise": f"x {number(row['noise']):g}",
               "said": f"{number(row['false_all']):.0%} → {number(row['false_verified']):.0%}"}
        for row in table
    ]  # fmt: skip
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
    )  # fmt: skip


def self_correction(rows: Given, title: str = "") -> Figure:
    """Draw what is said again after a doubt word, by its outcome (`traces.corrections`).

    Args:
        rows: of `traces.measured`; a trace without a scene is left out.
    """
    x, y = "second thought", "per 100 traces"
    table = _made(rows, lambda rows: _per_hundred(rows, OUTCOMES, x))
    return bars(table, x, y, "model", title, "the second thought", "in 100 traces")


def _per_hundred(rows: Rows, columns: tuple[str, ...], name: str) -> list[dict[str, Any]]:
    """Count what several columns hold in 100 traces of each model; `name` heads the columns."""
    return [
        {"model": row["model"], name: column, "per 100 traces": 100 * row[column],
         "low": 100 * row["low"], "high": 100 * row["high"], "n": row["n"]}
        for column in columns for row in means(rows, ("model",), column)
    ]  # fmt: skip


def by_model(rows: Given, measure: str = "false_share", title: str = "") -> Figure:
    """Draw a measure's mean by model, for example step truth or hesitation.

    Args:
        rows: of `traces.measured`.
        measure: `false_share`, `hesitation`, `repetition`, `follows`, `helped`, ...
    """

    def make(rows: list[dict]) -> list[dict]:
        table = [row | {"of": f"{row['n']} traces"} for row in means(rows, ("model",), measure)]
        if measure == "false_share":  # a rate is worth as much as the steps it is of
            for row in table:
                mine = (r.get("checked_steps") or 0 for r in rows if r["model"] == row["model"])
                row["of"] = f"{sum(mine)} steps"
        return table

    table = _made(rows, make)
    return bars(table, "model", measure, None, title, "", MEASURES.get(measure, measure), "of")


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

    def make(rows: list[dict]) -> list[dict]:
        placed = [row | {"false steps": place(row)} for row in rows
                  if row.get("false_steps") is not None]  # fmt: skip
        return sorted(means(placed, ("false steps", "model"), "reward"),
                      key=lambda row: row["false steps"])  # fmt: skip

    table, axes = _made(rows, make), ("false steps of a trace", "mean reward")
    return bars(table, "false steps", "reward", "model", title, *axes)


def length_and_right(rows: Given, bins: int = 4, title: str = "") -> Figure:
    """Draw the share of right answers over the length of the trace, a line a model.

    Args:
        rows: of an evaluation's store or of `traces.measured`.
        bins: each model's traces are cut into so many parts of equal size, shortest first.
    """

    def make(rows: list[dict]) -> list[dict]:
        table = []
        told = [row | {"right": is_right(row)} for row in rows if row.get("words") is not None]
        for name in dict.fromkeys(row["model"] for row in told):
            mine = sorted((row for row in told if row["model"] == name), key=lambda r: r["words"])
            for i in range(bins):
                if part := mine[i * len(mine) // bins : (i + 1) * len(mine) // bins]:
                    found = {"model": name, "words": fmean(row["words"] for row in part)}
                    table += [found | row for row in means(part, (), "right")]
        return table

    table, axes = _made(rows, make), ("words of the trace", "right answers, share")
    return learning_curve(table, "words", "right", "model", title, *axes)
