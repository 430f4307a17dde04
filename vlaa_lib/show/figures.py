"""Interactive figures for the notebooks (plotly), and tables, which are their text twins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .style import HEIGHT_PX, WIDTH_PX, Rows, chosen, distinct, number, read, style_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def learning_curve(
    rows: str | Path | Rows,
    x: str = "step",
    y: str = "reward",
    group: str | None = None,
    title: str = "",
    x_title: str = "optimizer step",
    y_title: str | None = None,
) -> Figure:
    """Draw a logged value over steps, one line a group; rows without a value are left out."""
    import plotly.graph_objects as go

    rows, lines = read(rows), []
    for index, name in enumerate(distinct(rows, group)):
        pairs = [(number(row.get(x)), number(row.get(y))) for row in chosen(rows, group, name)]
        pairs = [pair for pair in pairs if None not in pair]
        style = style_of(name or y, index)
        lines.append(
            go.Scatter(
                x=[pair[0] for pair in pairs],
                y=[pair[1] for pair in pairs],
                name=style.label,
                mode="lines+markers",
                line={"color": style.color, "dash": style.dash, "width": 2},
                marker={"symbol": style.symbol, "size": 6},
            )
        )
    figure = go.Figure(lines)
    if all(value >= 0 for line in lines for value in line.y):
        figure.update_yaxes(rangemode="nonnegative")  # not -1 below a flat 0
    return finish(figure, title, x_title, y_title or y, legend=len(lines) > 1)


def accuracy_bars(
    rows: str | Path | Rows, title: str = "", y: str = "accuracy", y_title: str | None = None,
    x_title: str = "source",
) -> Figure:
    """Draw accuracy by source and model with its interval (columns `low`, `high`).

    Where rows hold `blank_accuracy`, a bar-wide line shows what the model gets right with a blank
    picture: what lies below it can be guessed.
    """
    import plotly.graph_objects as go

    rows = read(rows)
    marks: list[Any] = []
    for index, name in enumerate(distinct(rows, "model")):
        mine, style = chosen(rows, "model", name), style_of(name, index)
        place = {"x": [row.get("source", "all") for row in mine], "offsetgroup": name}
        marks.append(bar(style, [number(row.get(y)) for row in mine], place, error_bars(mine, y)))
        blank = [number(row.get("blank_accuracy")) for row in mine]
        if y == "accuracy" and any(value is not None for value in blank):
            marks.append(
                go.Scatter(
                    **place,
                    y=blank,
                    name="blank picture",
                    legendgroup="blank",
                    showlegend=index == 0,
                    legendrank=2000,  # behind the models
                    mode="markers",
                    # white below black: seen on dark and on light bars
                    marker={
                        "symbol": "diamond-wide",
                        "size": 9,
                        "color": "white",
                        "line": {"color": "black", "width": 1.5},
                    },
                )
            )
    figure = go.Figure(marks)
    figure.update_layout(barmode="group", scattermode="group", yaxis_range=[0, 1])
    return finish(figure, title, x_title, y_title or f"{y} (share of records)")


def bar(style: Any, values: list, place: dict[str, Any], reach: dict[str, Any] | None) -> Any:
    """Draw one model's bars, with intervals where there are some."""
    import plotly.graph_objects as go

    return go.Bar(
        **place,
        y=values,
        name=style.label,
        error_y=reach,
        marker={
            "color": style.color,
            "line": {"color": "black", "width": 0.5},
            "pattern": {"shape": style.pattern, "fgcolor": "white", "size": 5},
        },
    )


def error_bars(rows: Rows, y: str) -> dict[str, Any] | None:
    """Turn `low` and `high` into plotly's distances above and below; None without intervals."""
    triples = [[number(row.get(key)) for key in (y, "low", "high")] for row in rows]
    if not any(None not in triple for triple in triples):
        return None
    known = [(v, lo, hi) if None not in (v, lo, hi) else (0.0, 0.0, 0.0) for v, lo, hi in triples]
    return {
        "type": "data",
        "symmetric": False,
        "array": [hi - v for v, _, hi in known],
        "arrayminus": [v - lo for v, lo, _ in known],
        "color": "#555555",
        "thickness": 1.2,
    }


def false_steps(rows: str | Path | Rows, title: str = "") -> Figure:
    """Draw `traces.false_steps_by_noise` as a map: of all traces, then of the verified ones."""
    import plotly.graph_objects as go

    rows = read(rows)
    sources, noises = distinct(rows, "source"), distinct(rows, "noise")
    cells = {(row["source"], str(row["noise"])): row for row in rows}
    after = [[number(cells[s, n]["false_verified"]) for n in noises] for s in sources]
    both = [
        [f"{number(cells[s, n]['false_all']):.0%} → {value:.0%}"
         for n, value in zip(noises, line, strict=True)]
        for s, line in zip(sources, after, strict=True)
    ]  # fmt: skip
    grid = go.Heatmap(
        x=[f"x {number(n):g}" for n in noises], y=sources, z=after, text=both,
        texttemplate="%{text}", zmin=0, zmax=1, colorscale="Blues",
        colorbar={"title": "verified", "tickformat": ".0%"},
    )  # fmt: skip
    figure = go.Figure(grid)
    figure.update_yaxes(autorange="reversed")
    return finish(figure, title, "caption noise, times the profile's rates", "")


def counts(rows: str | Path | Rows, title: str = "") -> Figure:
    """Draw how many records enter and leave each step (columns `step`, `in`, `out`), all sources.

    Rows named `all` or `total` in `source` are sums themselves and are left out.
    """
    import plotly.graph_objects as go

    rows = [row for row in read(rows) if row.get("source") not in ("all", "total")]
    steps = distinct(rows, "step")
    sums = {
        key: [sum(number(row.get(key)) or 0 for row in chosen(rows, "step", s)) for s in steps]
        for key in ("in", "out")
    }
    looks = {"in": ("#FFFFFF", ""), "out": ("#56B4E9", "/")}  # no model's colour
    bars = [
        go.Bar(
            x=steps,
            y=values,
            name=key,
            text=[f"{value:g}" for value in values],
            textposition="outside",
            marker={
                "color": looks[key][0],
                "line": {"color": "black", "width": 1},
                "pattern": {"shape": looks[key][1], "fgcolor": "white", "size": 5},
            },
        )
        for key, values in sums.items()
    ]
    return finish(go.Figure(bars), title, "step", "records")


def perplexity(
    rows: str | Path | Rows, top_k: int, source: str | None = None, title: str = ""
) -> Figure:
    """Draw how perplexity is distributed, the `top_k` highest in colour, on a log axis.

    Args:
        rows: as `subsets.average` returns them, or their CSV.
        source: draw this source only; bins and threshold stay those of all rows.
    Raises:
        ValueError: there are fewer than `top_k` rows, or none.
    """
    import numpy as np
    import plotly.graph_objects as go

    rows = read(rows)
    values = np.array([float(row["perplexity"]) for row in rows])
    if not 1 <= top_k <= len(rows):
        raise ValueError(f"top_k {top_k} is not between 1 and the {len(rows)} rows")
    threshold = np.sort(values)[-top_k]
    mine = np.array([source in (None, row["source"]) for row in rows])
    logs = np.log10(values)
    # bins are counted from the threshold, so that no bar is half kept
    width = max(np.ptp(logs) / 40, 1e-3)
    bins = np.floor((logs - np.log10(threshold)) / width).astype(int)
    first, number = bins.min(), np.ptp(bins) + 1
    edges = np.log10(threshold) + width * (first + np.arange(number + 1))
    parts = {"left out": mine & (values < threshold), "kept": mine & (values >= threshold)}
    looks = {"left out": ("#FFFFFF", ""), "kept": ("#56B4E9", "/")}  # as in `counts`
    figure = go.Figure([
        go.Bar(
            x=edges[:-1] + width / 2, width=width,
            y=np.bincount(bins[part] - first, minlength=number),
            name=f"{name}: {part.sum():,}", customdata=10 ** edges[:-1],
            hovertemplate="from %{customdata:.3g}: %{y} records",
            marker={"color": looks[name][0], "line": {"color": "black", "width": 1},
                    "pattern": {"shape": looks[name][1], "fgcolor": "white", "size": 5}},
        )
        for name, part in parts.items()
    ])  # fmt: skip
    figure.add_vline(x=np.log10(threshold), line_dash="dash",
                     annotation_text=f"threshold {_three_digits(threshold)}")  # fmt: skip
    ticks = np.linspace(edges[0], edges[-1], 6)
    figure.update_xaxes(tickvals=ticks, ticktext=[_three_digits(10**tick) for tick in ticks])
    figure.update_layout(barmode="stack", bargap=0)
    return finish(figure, title, "perplexity of the trace (log scale)", "records")


def calibration(rows: str | Path | Rows, title: str = "") -> Figure:
    """Draw the scores of each kind of answer, right ones in one colour, wrong ones in another.

    Args:
        rows: as in `rewards.Calibration.rows`, or their CSV; unscored rows are left out.
    """
    import plotly.graph_objects as go

    rows = [row for row in read(rows) if number(row.get("score")) is not None]
    looks = {"True": ("right", "#0072B2", "circle"), "False": ("wrong", "#D55E00", "x")}
    boxes = []
    for is_right, (name, color, symbol) in looks.items():
        mine = chosen(rows, "is_right", is_right)
        boxes.append(
            go.Box(
                x=[number(row["score"]) for row in mine],
                y=[row["kind"] for row in mine],
                orientation="h",
                text=[f"{row['record_id']}, {row['length_chars']} characters" for row in mine],
                name=name,
                boxpoints="all",
                jitter=0.4,
                pointpos=0,
                marker={"color": color, "symbol": symbol, "size": 5},
            )
        )
    figure = go.Figure(boxes)
    figure.update_yaxes(autorange="reversed")  # the first kind on top
    return finish(figure, title, "score of the reward model", "")


def _three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.15g}"


def finish(figure: Figure, title: str, x_title: str, y_title: str, legend: bool = True) -> Figure:
    """Give a figure the house's size, title, axes and legend."""
    figure.update_layout(
        template="simple_white",
        width=WIDTH_PX,
        height=HEIGHT_PX,
        title={"text": title, "font": {"size": 15}},
        xaxis_title=x_title,
        yaxis_title=y_title,
        showlegend=legend,
        legend={"orientation": "h", "y": -0.32},
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
    )
    return figure
