"""Figures as inline SVG for static pages, where plotly shows nothing: bars, lines, heat maps.

All text is escaped and numbers are formatted by us, so that a CSV cannot inject markup.
"""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Any

from .style import HEIGHT_PX, PAPER_COLOR, WIDTH_PX, Rows, chosen, distinct, number, read, style_of

_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 15, 34, 78  # margins in px; the legend stands in the bottom one
_PLOT_W, _PLOT_H = WIDTH_PX - _LEFT - _RIGHT, HEIGHT_PX - _TOP - _BOTTOM
_BANDS = 4  # lines with a band each; more are a muddle
_APART_PX = 3  # then their markers stand side by side
_DASHES = {"solid": "", "dot": "2 3", "dash": "7 4", "dashdot": "7 3 2 3", "longdash": "11 4",
           "longdashdot": "11 3 2 3"}  # plotly's names, in px


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers that enclose [low, high].

    >>> ticks(0, 1), ticks(3, 3)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [3.0, 3.2, 3.4, 3.6, 3.8, 4.0])
    """
    if high - low <= max(1e-12, 1e-9 * max(abs(low), abs(high))):  # as good as one value
        high = low + (abs(low) / 3 if abs(low) > 1e-9 else 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 2 - round(math.log10(power))  # drops what float arithmetic adds, 0.6000000000000001
    return [round(i * step, digits) for i in range(first, last + 1)]


def lines(
    rows: str | Path | Rows,
    x: str,
    y: str,
    group: str | None = None,
    title: str = "",
    x_title: str = "",
    y_title: str = "",
    low: str = "low",
    high: str = "high",
) -> str:
    """Draw a line for each group, with markers; rows without a number are left out.

    Where rows hold them, intervals are drawn: as a band behind the line, or at its markers where
    so many lines would have bands that they lie on each other.

    Raises:
        ValueError: no row holds both numbers.
    """
    rows = read(rows)
    series, bands = {}, {}
    for name in distinct(rows, group):
        mine, keys = chosen(rows, group, name), (x, y, low, high)
        found = [[number(row.get(key)) for key in keys] for row in mine]
        series[name] = [(a, b) for a, b, *_ in found if None not in (a, b)]
        bands[name] = [(a, lo, hi) for a, _, lo, hi in found if None not in (a, lo, hi)]
    points = [pair for pairs in series.values() for pair in pairs]
    if not points:
        raise ValueError(f"no row has numbers in both {x!r} and {y!r}")
    reach = [end for band in bands.values() for _, lo, hi in band for end in (lo, hi)]
    heights = [b for _, b in points] + reach
    x_ticks = ticks(min(a for a, _ in points), max(a for a, _ in points))
    y_ticks = ticks(min(heights), max(heights))
    body = [_y_axis(y_ticks, y_title or y)]
    for tick in x_ticks:
        body.append(text(_x(tick, x_ticks), _TOP + _PLOT_H + 16, f"{tick:g}", "middle"))
    body.append(text(_LEFT + _PLOT_W / 2, _TOP + _PLOT_H + 34, x_title or x, "middle"))
    for index, (name, pairs) in enumerate(series.items()):
        style = style_of(name or y, index)
        places = [(_x(a, x_ticks), _y(b, y_ticks)) for a, b in pairs]
        if len(series) <= _BANDS:
            body.append(_band(bands[name], style.color, x_ticks, y_ticks))
        else:
            aside = _APART_PX * (index - (len(series) - 1) / 2)
            places = [(a + aside, b) for a, b in places]
            for a, lo, hi in bands[name]:
                path = _whisker(_x(a, x_ticks) + aside, lo, hi, y_ticks, 2)
                body.append(f'<path d="{path}" stroke="{style.color}" fill="none"/>')
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        body.append(
            f'<polyline points="{path}" fill="none" stroke="{style.color}" stroke-width="2" '
            f'stroke-dasharray="{_DASHES[style.dash]}"/>'
        )
        body += [_marker(style.symbol, a, b, style.color) for a, b in places]
    return _with_legend(title, body, list(series) if group else [])


def bars(
    rows: str | Path | Rows,
    x: str,
    y: str,
    group: str | None = None,
    title: str = "",
    x_title: str = "",
    y_title: str = "",
    low: str = "low",
    high: str = "high",
    note: str | None = None,
) -> str:
    """Draw bars from zero by `x`, side by side for each group, with intervals where rows have them.

    Args:
        note: column of a text that stands below each place of `x`, such as how many were counted.
    Raises:
        ValueError: no row holds a number in `y`.
    """
    rows = read(rows)
    places, names = distinct(rows, x), distinct(rows, group)
    known = [v for row in rows for key in (y, low, high) if (v := number(row.get(key))) is not None]
    if all(number(row.get(y)) is None for row in rows):
        raise ValueError(f"no row has a number in {y!r}")
    y_ticks = ticks(min(0.0, *known), max(0.0, *known))
    slot = _PLOT_W / len(places)
    width = slot * 0.8 / len(names)
    body = [_y_axis(y_ticks, y_title or y)]
    for i, place in enumerate(places):
        middle, mine = _LEFT + (i + 0.5) * slot, chosen(rows, x, place)
        label = style_of(place).label if x == "model" else place
        body.append(text(middle, _TOP + _PLOT_H + 16, label, "middle"))
        if note:
            body.append(text(middle, _TOP + _PLOT_H + 31, mine[0].get(note, ""), "middle"))
        for j, name in enumerate(names):
            left = _LEFT + i * slot + 0.1 * slot + j * width
            # models keep their colour also where they stand along the axis
            color = style_of(place if x == "model" else name or y, j).color
            for row in chosen(mine, group, name)[:1]:
                values = [number(row.get(key)) for key in (y, low, high)]
                body += _bar(left, width, color, values, y_ticks)
    below = _TOP + _PLOT_H + (50 if note else 34)
    body.append(text(_LEFT + _PLOT_W / 2, below, x_title or x, "middle"))
    return _with_legend(title, body, names if group else [])


def _band(band: list, color: str, x_ticks: list[float], y_ticks: list[float]) -> str:
    """Draw intervals (x, low, high) as one area; nothing where there are none."""
    ends = [(a, lo) for a, lo, _ in band] + [(a, hi) for a, _, hi in reversed(band)]
    places = " ".join(f"{_x(a, x_ticks):.1f},{_y(b, y_ticks):.1f}" for a, b in ends)
    return f'<polygon points="{places}" fill="{color}" fill-opacity=".18"/>' if band else ""


def heatmap(
    rows: str | Path | Rows, x: str, y: str, value: str, words: str, title: str = "",
    color: str = "#0072B2",
) -> str:
    """Draw a cell for each row, from white at 0 to `color` at the largest value, with a text in it.

    Raises:
        ValueError: no row holds a number in `value`.
    """
    rows = [row for row in read(rows) if number(row.get(value)) is not None]
    if not rows:
        raise ValueError(f"no row has a number in {value!r}")
    columns, names = distinct(rows, x), distinct(rows, y)
    largest = max(*(number(row[value]) for row in rows), 1e-9)
    left, width, height = 110, (WIDTH_PX - 125) / len(columns), (_PLOT_H + 30) / len(names)
    body = []
    for i, column in enumerate(columns):
        body.append(text(left + (i + 0.5) * width, _TOP + _PLOT_H + 48, column, "middle"))
    for j, name in enumerate(names):
        middle = _TOP + (j + 0.5) * height
        body.append(text(left - 6, middle + 4, style_of(name, j).label, "end"))
        for row in chosen(rows, y, name):
            at = left + columns.index(str(row[x])) * width
            share = max(0.0, number(row[value]) / largest)
            place = f'x="{at:.1f}" y="{middle - height / 2:.1f}"'
            size = f'width="{width - 2:.1f}" height="{height - 2:.1f}"'
            body.append(f'<rect {place} {size} fill="{color}" fill-opacity="{share:.3f}" '
                        'stroke="#bbb"/>')  # fmt: skip
            ink = 'fill="#fff"' if share > 0.6 and color != PAPER_COLOR else ""
            body.append(text(at + width / 2, middle + 4, row[words], "middle", ink))
    return svg(title, body)


def stack(*drawings: str) -> str:
    """Put drawings of this module below each other, as one."""
    height = HEIGHT_PX * len(drawings)
    inner = "".join(
        f'<g transform="translate(0 {i * HEIGHT_PX})">{drawing}</g>'
        for i, drawing in enumerate(drawings)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {height}" '
        f'width="{WIDTH_PX}" height="{height}">{inner}</svg>'
    )


def _whisker(x: float, low: float, high: float, y_ticks: list[float], half: int) -> str:
    """Return the path of an interval with ends of twice `half` px."""
    below, above = _y(low, y_ticks), _y(high, y_ticks)
    ends = "".join(f"M{x - half:.1f} {end:.1f}h{2 * half}" for end in (below, above))
    return f"M{x:.1f} {below:.1f}V{above:.1f}{ends}"


def _bar(left: float, width: float, color: str, values: list, y_ticks: list[float]) -> list[str]:
    """Draw one bar and its interval (value, low, high); nothing where there is no value."""
    value, low, high = values
    if value is None:
        return []
    zero, top = _y(0.0, y_ticks), _y(value, y_ticks)
    place = f'x="{left:.1f}" y="{min(zero, top):.1f}"'
    size = f'width="{width * 0.92:.1f}" height="{abs(zero - top):.1f}"'
    drawn = [f'<rect {place} {size} fill="{color}" stroke="#000" stroke-width=".5"/>']
    if low is not None and high is not None:
        path = _whisker(left + width * 0.46, low, high, y_ticks, 4)
        for stroke in ('stroke="#fff" stroke-width="3"', 'stroke="#333" stroke-width="1.2"'):
            drawn.append(f'<path d="{path}" {stroke} fill="none"/>')  # white rim, on dark bars
    return drawn


def _x(value: float, x_ticks: list[float]) -> float:
    return _LEFT + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * _PLOT_W


def _y(value: float, y_ticks: list[float]) -> float:
    return _TOP + (y_ticks[-1] - value) / (y_ticks[-1] - y_ticks[0]) * _PLOT_H


def _y_axis(y_ticks: list[float], y_title: str) -> str:
    drawn = [f'<path d="M{_LEFT} {_TOP}v{_PLOT_H}h{_PLOT_W}" stroke="#333" fill="none"/>']
    for tick in y_ticks:
        height = _y(tick, y_ticks)
        drawn.append(f'<path d="M{_LEFT} {height:.1f}h{_PLOT_W}" stroke="#e5e5e5"/>')
        drawn.append(text(_LEFT - 6, height + 4, f"{tick:g}", "end"))
    middle = _TOP + _PLOT_H / 2
    turn = f'transform="rotate(-90 14 {middle:.0f})"'
    return "".join(drawn) + text(14, middle, y_title, "middle", turn)


def _marker(symbol: str, x: float, y: float, color: str) -> str:
    """Draw plotly's symbol of that name, 7 px wide; a circle for those not drawn here."""
    shapes = {
        "square": "-3,-3 3,-3 3,3 -3,3",
        "diamond": "0,-4 4,0 0,4 -4,0",
        "triangle-up": "0,-4 4,3 -4,3",
        "triangle-down": "0,4 4,-3 -4,-3",
        "star": "0,-5 1.5,-1.5 5,-1.5 2,1 3,5 0,2.5 -3,5 -2,1 -5,-1.5 -1.5,-1.5",
        "x": "-4,-2.5 -2.5,-4 0,-1.5 2.5,-4 4,-2.5 1.5,0 4,2.5 2.5,4 0,1.5 -2.5,4 -4,2.5 -1.5,0",
        "cross": "-1,-4 1,-4 1,-1 4,-1 4,1 1,1 1,4 -1,4 -1,1 -4,1 -4,-1 -1,-1",
    }
    if symbol not in shapes:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>'
    move = f'transform="translate({x:.1f} {y:.1f})"'
    return f'<polygon points="{shapes[symbol]}" fill="{color}" {move}/>'


def _with_legend(title: str, body: list[str], names: list[str]) -> str:
    """Return a picture with a legend below it, in as many rows as the names take."""
    drawn, left, y = [], float(_LEFT), HEIGHT_PX - 14
    for index, name in enumerate(names):
        style = style_of(name, index)
        width = 34 + 7 * len(style.label)
        if left > _LEFT and left + width > WIDTH_PX:
            left, y = float(_LEFT), y + 18
        drawn.append(_marker(style.symbol, left + 4, y, style.color))
        drawn.append(text(left + 14, y + 4, style.label, "start"))
        left += width
    return svg(title, body + drawn, y + 14)


def text(x: float, y: float, words: Any, anchor: str, more: str = "") -> str:
    """Return an escaped text element."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(str(words))}</text>'
    )


def svg(title: str, body: list[str], height: int = HEIGHT_PX) -> str:
    """Return a whole picture with its title, which is escaped; `body` must be so already."""
    heading = f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH_PX} {height}" '
        f'width="{WIDTH_PX}" height="{height}" font-family="sans-serif" font-size="12">'
        f"<title>{escape(title)}</title>"
        f'<rect width="100%" height="100%" fill="#fff"/>{heading}{"".join(body)}</svg>'
    )
