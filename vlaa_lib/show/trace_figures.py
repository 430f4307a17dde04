"""Figures of traces: the paper's figures 6 and 7, step truth, self-correction; each with a table.

All are SVG of our own, so that GitHub, nbconvert and the report show them without a script.
Intervals are 95 % bootstrap intervals over records: rollouts of one prompt are averaged first,
since they are not independent.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from vlaa_lib.evaluate import bootstrap
from vlaa_lib.folders import write_csv, write_text
from vlaa_lib.tables import text_table
from vlaa_lib.traces import FIGURE7_PHRASES, is_right

from . import svg
from .style import PAPER_COLOR, Rows, number

OUTCOMES = ("helped", "hurt", "unchanged")  # of `traces.corrections`
MANY = 3  # false steps of one trace, from which on they are one column


class Drawing:
    """An SVG to look at; `rows` are its numbers, and as text it is their table."""

    def __init__(self, drawn: str, rows: list[dict[str, Any]]) -> None:
        self.svg, self.rows = drawn, rows

    def __repr__(self) -> str:
        return text_table(self.rows)

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Drawing:
        """Write `path`.svg and its numbers as `path`.csv, for the report; return the drawing."""
        write_text(Path(path).with_suffix(".svg"), self.svg + "\n")
        write_csv(Path(path).with_suffix(".csv"), self.rows)
        return self


def means(rows: Rows, by: tuple[str, ...], value: str, resamples: int = 1000) -> list[dict]:
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
        counted = {"n": sum(map(len, records.values())), "records": len(each)}
        table.append(
            dict(zip(by, key, strict=True))
            | {value: fmean(each), "low": low, "high": high}
            | counted
        )
    return table


def training(rows: Rows, title: str = "") -> Drawing:
    """Draw reward and length over training, a line a model (paper figure 6).

    Args:
        rows: of trace stores; `load(folder, ["model", "optimizer_step", "record_id", "reward",
            "completion_tokens"])` holds all that is needed.
    """
    rows, drawn, table = list(rows), [], []
    titles = {"reward": "mean reward", "completion_tokens": "tokens a completion"}
    for value, y_title in titles.items():
        made = sorted(
            means(rows, ("model", "optimizer_step"), value), key=lambda row: row["optimizer_step"]
        )
        axes = {"x_title": "optimizer step", "y_title": y_title}
        drawn.append(svg.lines(made, "optimizer_step", value, "model", title, **axes))
        table += [{"measure": y_title, "mean": row.pop(value)} | row for row in made]
        title = ""
    return Drawing(svg.stack(*drawn), table)


def aha_map(rows: Rows, title: str = "", paper: dict[str, list] | None = None) -> Drawing:
    """Draw how often each phrase occurs in 100 traces of each model (paper figure 7).

    Args:
        rows: of `traces.measured`.
        paper: its counts, `figure7_aha_counts` in `data/paper`, drawn below in grey; they are of
            answers whose number the paper does not say.
    """
    table = _per_hundred(rows, FIGURE7_PHRASES, "phrase")
    cells = [
        row | {"cell": "{per 100 traces:.3g} ({low:.3g} to {high:.3g})".format_map(row)}
        for row in table
    ]
    drawn = [svg.heatmap(cells, "phrase", "model", "per 100 traces", "cell", title)]
    if paper:
        counts = [
            {"phrase": phrase, "model": name, "count": count}
            for phrase in FIGURE7_PHRASES
            for name, count in zip(paper["columns"], paper[phrase], strict=True)
        ]
        heading = "The paper's figure 7: counts, of its models"
        keys = ("phrase", "model", "count", "count")
        drawn.append(svg.heatmap(counts, *keys, heading, PAPER_COLOR))
    return Drawing(svg.stack(*drawn), table)


def self_correction(rows: Rows, title: str = "") -> Drawing:
    """Draw what is said again after a doubt word, by its outcome (`traces.corrections`).

    Args:
        rows: of `traces.measured`; a trace without a scene is left out.
    """
    table = _per_hundred(rows, OUTCOMES, "second thought")
    axes = {"x_title": "the second thought", "y_title": "in 100 traces"}
    drawn = svg.bars(table, "second thought", "per 100 traces", "model", title, **axes)
    return Drawing(drawn, table)


def _per_hundred(rows: Rows, columns: tuple[str, ...], name: str) -> list[dict[str, Any]]:
    """Count what several columns hold in 100 traces of each model; `name` heads the columns."""
    rows, table = list(rows), []
    for column in columns:
        for row in means(rows, ("model",), column):
            found = {key: 100 * row[key] for key in ("low", "high")}
            first = {"model": row["model"], name: column, "per 100 traces": 100 * row[column]}
            table.append(first | found | {"n": row["n"]})
    return table


def by_model(rows: Rows, measure: str = "false_share", title: str = "") -> Drawing:
    """Draw a measure's mean by model, for example step truth or hesitation.

    Args:
        rows: of `traces.measured`.
        measure: `false_share`, `hesitation`, `repetition`, `follows`, `helped`, ...
    """
    names = {
        "false_share": "false among a trace's checked steps",
        "hesitation": "aha words per 100 words",
        "follows": "answers that follow, share",
    }
    rows = list(rows)
    made = [row | {"of": f"{row['n']} traces"} for row in means(rows, ("model",), measure)]
    if measure == "false_share":  # a rate is worth as much as the steps it is of
        for row in made:
            mine = (r.get("checked_steps") or 0 for r in rows if r["model"] == row["model"])
            row["of"] = f"{sum(mine)} steps"
    axes = {"y_title": names.get(measure, measure), "note": "of"}
    return Drawing(svg.bars(made, "model", measure, title=title, **axes), made)


def reward_by_truth(rows: Rows, title: str = "") -> Drawing:
    """Draw the reward of traces with no, one, two, or more false steps, by model.

    Args:
        rows: of a store or of `traces.measured`; a trace without a scene is left out, and one
            without a checkable step is no true one: it has a place of its own.
    """
    known = [row for row in rows if row.get("false_steps") is not None]
    binned = [row | {"false steps": _few(row)} for row in known]
    made = sorted(means(binned, ("false steps", "model"), "reward"), key=lambda r: r["false steps"])
    axes = {"x_title": "false steps of a trace", "y_title": "mean reward"}
    return Drawing(svg.bars(made, "false steps", "reward", "model", title, **axes), made)


def _few(row: dict[str, Any]) -> str:
    if row.get("checked_steps") == 0:
        return "none checked"
    return f"{row['false_steps']}" if row["false_steps"] < MANY else f"{MANY} or more"


def length_and_right(rows: Rows, bins: int = 4, title: str = "") -> Drawing:
    """Draw the share of right answers over the length of the trace, a line a model.

    Args:
        rows: of an evaluation's store or of `traces.measured`.
        bins: each model's traces are cut into so many parts of equal size, shortest first.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("words") is not None:
            groups.setdefault(row["model"], []).append(row | {"right": is_right(row)})
    made = []
    for name, mine in groups.items():
        mine.sort(key=lambda row: row["words"])
        for i in range(bins):
            part = mine[i * len(mine) // bins : (i + 1) * len(mine) // bins]
            mean_words = {"words": fmean(row["words"] for row in part)} if part else {}
            made += [{"model": name, **mean_words} | row for row in means(part, (), "right")]
    axes = {"x_title": "words of the trace", "y_title": "right answers, share"}
    return Drawing(svg.lines(made, "words", "right", "model", title, **axes), made)
