"""Figures of process rewards: accuracy against N, last-n, calibration, trees; the paper in grey."""

from __future__ import annotations

import textwrap
from functools import cache
from typing import Any

import plotly.graph_objects as go

from vlaa_lib import ROOT, folders
from vlaa_lib.escape import in_figure
from vlaa_lib.process.best_of_n import AVERAGE
from vlaa_lib.tables import Rows, number, read

from .figures import Figure, Given, finish, kept, learning_curve
from .style import HEIGHT_PX

PAPER = ROOT / "data" / "paper" / "vilbench_digitised.json"
WINDOWS = ("last", "last 2", "last 4", "last 8", "mean")  # the paper's axis, from ORM to PRM
LINES = ("oracle", "majority", "greedy", "random")  # need no scorer
_APART = 1.03  # ours: scorers stand a little apart, so that their intervals can be told apart


@cache
def paper() -> dict[str, Any]:
    """Return the authors' published numbers, in percent, and what is wrong with them."""
    return folders.read_json(PAPER)


def paper_rows(table: str = "vilprm_avg") -> list[dict[str, Any]]:
    """Return one of the authors' tables as rows, each marked as the paper's."""
    found = dict(paper()[table])
    columns = found.pop("cols")
    return [{"paper": name} | dict(zip(columns, row, strict=True)) for name, row in found.items()]


def accuracy_by_n(rows: Given, title: str = "") -> Figure:
    """Draw accuracy against N: each scorer with its interval, between the lines without a scorer.

    Args:
        rows: as `process.best_of_n.table` returns them, or their CSV; drawn are the mean of step
            scores and the average of generators.
    """
    mine = _average(rows)
    scored = [row for row in mine if row["aggregator"] == "mean"]
    names = list(dict.fromkeys(row["scorer"] for row in scored))
    lines = [row | {"n": number(row["n"]) * _APART ** names.index(row["scorer"])} for row in scored]
    lines += [{key: row[key] for key in ("scorer", "n", "accuracy")}
              for name in LINES for row in mine if row["scorer"] == name]
    figure = _drawn(lines, "n", "N, candidates of a question", mine, title)
    sizes = sorted({int(number(row["n"])) for row in mine})
    return figure.update_xaxes(type="log", tickvals=sizes, ticktext=list(map(str, sizes)))


def last_n_curve(rows: Given, n: int = 16, title: str = "") -> Figure:
    """Draw accuracy against how many of the last steps' scores are averaged, a line a scorer.

    In grey the means printed on the paper's figure, of other questions.

    Args:
        rows: as for `accuracy_by_n`.
    Raises:
        ValueError: no scored row at this n.
    """
    place = {window: at for at, window in enumerate(WINDOWS)}
    mine = [row for row in _average(rows) if number(row["n"]) == n and row["aggregator"] in place]
    if not mine:
        raise ValueError(f"no scored rows at N = {n}")
    lines = [row | {"window": place[row["aggregator"]]} for row in mine]
    lines.sort(key=lambda row: row["window"])
    lines += [{"scorer": f"paper: {name}", "window": window, "accuracy": value / 100}
              for name, values in paper()["fig3_printed_mean"].items()
              for window, value in enumerate(values)]
    x_title = "which step scores are averaged (last: ORM, mean: PRM)"
    figure = _drawn(lines, "window", x_title, mine, title)
    return figure.update_xaxes(tickvals=list(place.values()), ticktext=WINDOWS)


def _average(rows: Given) -> list[dict[str, Any]]:
    return [row for row in read(rows) if row["generator"] == AVERAGE]


def _drawn(lines: Rows, x: str, x_title: str, rows: Rows, title: str) -> Figure:
    axes = x_title, "chosen answers that are right"
    figure = learning_curve(lines, x, "accuracy", "scorer", title, *axes)
    figure.rows = kept(rows, "scorer", "aggregator", "n", "accuracy")
    figure.update_yaxes(tickformat=".0%", rangemode="normal")
    return figure.update_layout(height=HEIGHT_PX + 90)  # many lines: a long legend


def calibration(rows: Given, title: str = "") -> Figure:
    """Draw the mean value of steps against their mean score, a line a seed, beside the diagonal.

    Args:
        rows: as `process.prm.calibration` returns them, with a column `seed`.
    """
    named = [row | {"seed": f"seed {row['seed']}"} for row in read(rows)]
    table = kept(named, "seed", "score", "value", "steps")  # low and high are a bin's edges
    diagonal = [{"seed": "score = value", "score": end, "value": end} for end in (0, 1)]
    axes = ("mean score", "share of right rollouts (value)")
    figure = learning_curve(diagonal + table, "score", "value", "seed", title, *axes)
    figure.rows = table
    return figure


def tree(found: dict[str, Any]) -> Figure:
    """Draw a stored tree of `process.search` from left to right, a box a step.

    A box's colour goes from red (no rollout right) to blue (all right), its number says the same;
    a square marks where an answer ended. A click on a box zooms into it.
    """
    table: list[dict[str, Any]] = []

    def walk(node: dict[str, Any], depth: int, above: str) -> None:
        value = node["right"] / node["rollouts"] if node["rollouts"] else 0.0
        said = f"{value:.2f}, {node['visits']} visits" + (" ■" if node["is_end"] else "")
        step, name = node["step"] or "the question", str(len(table))
        table.append({"depth": depth, "step": step, "value": value, "visits": node["visits"],
                      "said": said, "name": name, "above": above})
        for child in node["children"]:
            walk(child, depth + 1, name)

    walk(found["root"], 0, "")
    column = {key: [row[key] for row in table] for key in table[0]}
    boxes = go.Icicle(
        ids=column["name"], parents=column["above"], sort=False, tiling_pad=2, textfont_size=12,
        labels=["<br>".join(map(in_figure, textwrap.wrap(step, 26, max_lines=4)))  # fit the box
                for step in column["step"]],
        text=column["said"], texttemplate="%{text}<br>%{label}",
        hovertext=list(map(in_figure, column["step"])), hoverinfo="text",
        marker={"colors": column["value"], "cmin": 0, "cmax": 1,
                # vermilion to blue through white, told apart by colour-blind people
                "colorscale": ["#D55E00", "#FFFFFF", "#0072B2"],
                "line": {"color": "#333333", "width": 1}},
    )
    title = f"Search tree of {found['record_id']}"
    figure = finish([boxes], kept(table, "depth", "step", "value", "visits"), title, "", "")
    root, leaves = found["root"], len(set(column["name"]) - set(column["above"]))
    question = textwrap.shorten(found["question"], 90)
    total = f"{found['status']}; {root['right']} of {root['rollouts']} answers right at the root"
    subtitle = {"text": f"{in_figure(question)}<br>{in_figure(total)}", "font": {"size": 12}}
    margin = {"l": 5, "r": 5, "t": 90, "b": 5}
    return figure.update_layout(title_subtitle=subtitle, height=100 + 70 * leaves, margin=margin)
