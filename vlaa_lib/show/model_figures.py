"""What compares models: scores by benchmark, and the rows that figures of their traces show.

Rows of traces have 95 % bootstrap intervals over records: rollouts of one prompt are averaged
first, since they are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from vlaa_lib.evaluate import bootstrap
from vlaa_lib.tables import Rows, Table, number
from vlaa_lib.traces import is_right

from .style import style_of

MICRO = "micro-"  # benchmarks of the micro-world begin so; their axes say it once
MANY = 3  # false steps of one trace, from which on they are one column
PARTS = 4  # of equal size, into which a model's traces are cut by length


# --- scores --------------------------------------------------------------------------------------


def by_benchmark(rows: Rows, paper: Rows = (), y: str = "value") -> Table:
    """Set models in lines and benchmarks in columns, in points of a hundred (paper table 4).

    Args:
        rows: model, benchmark, `y`, low, high: of `stats.table4` or `stats.relative_change`.
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


def per_hundred(rows: Rows, columns: Sequence[str], name: str) -> list[dict[str, Any]]:
    """Count what several columns hold in 100 traces of each model; `name` heads the columns."""
    rows = list(rows)
    return [
        {"model": row["model"], name: column, "per 100 traces": 100 * row[column],
         "low": 100 * row["low"], "high": 100 * row["high"], "n": row["n"]}
        for column in columns for row in means(rows, ("model",), column)
    ]


def reward_by_truth(rows: Rows) -> list[dict[str, Any]]:
    """Average the reward of traces with no, one, two, or more false steps, by model.

    A trace without a scene is left out; one without a checkable step is no true one: it has a
    place of its own.
    """

    def place(row: dict[str, Any]) -> str:
        if row.get("checked_steps") == 0:
            return "none checked"
        return f"{row['false_steps']}" if row["false_steps"] < MANY else f"{MANY} or more"

    x = "false steps"
    placed = [row | {x: place(row)} for row in rows if row.get("false_steps") is not None]
    return sorted(means(placed, (x, "model"), "reward"), key=lambda row: row[x])


def right_by_length(rows: Rows) -> list[dict[str, Any]]:
    """Cut each model's traces by length into `PARTS`; say how many answers of each are right."""
    told = [row | {"right": is_right(row)} for row in rows if row.get("words") is not None]
    table = []
    for name in dict.fromkeys(row["model"] for row in told):
        mine = sorted((row for row in told if row["model"] == name), key=lambda row: row["words"])
        for i in range(PARTS):
            if part := mine[i * len(mine) // PARTS : (i + 1) * len(mine) // PARTS]:
                words = fmean(row["words"] for row in part)
                table += [{"model": name, "words": words} | row for row in means(part, (), "right")]
    return table
