"""A search tree as inline SVG: steps from left to right, their values as colours and numbers."""

from __future__ import annotations

from typing import Any

from .style import WIDTH_PX
from .svg import svg, text

_ROW, _INDENT, _TOP = 34, 26, 64  # px
_SHOWN = 58  # ours: characters of a step that fit a line


def tree(found: dict[str, Any]) -> str:
    """Draw a stored tree of `process.search`: one line a step, indented by its depth.

    A disc's colour goes from red (no rollout right) to blue (all right), its number says the same;
    a square is where an answer ended. Everything is escaped.
    """
    lines: list[str] = []
    _draw(found["root"], 0, lines, None)
    root = found["root"]
    total = f"{found['status']}; {root['right']} of {root['rollouts']} answers right at the root"
    heading = [text(14, 40, _short(found["question"], 90), "start"), text(14, 55, total, "start")]
    return svg(f"Search tree of {found['record_id']}", heading + lines, _TOP + _ROW * _count(root))


def _count(node: dict[str, Any]) -> int:
    return 1 + sum(map(_count, node["children"]))


def _draw(node: dict[str, Any], depth: int, lines: list[str], above: float | None) -> None:
    """Draw a node and what is below it; `lines` grows by one piece a node."""
    x, y = 20 + _INDENT * depth, _TOP + _ROW * len(lines) + 12
    value = node["right"] / node["rollouts"] if node["rollouts"] else 0.0
    drawn = ""
    if above is not None:
        drawn = f'<path d="M{x - _INDENT} {above:.1f}V{y}H{x}" stroke="#777" fill="none"/>'
    fill = "#{:02x}{:02x}{:02x}".format(*_mixed(value))
    shape = (
        f'<rect x="{x - 8}" y="{y - 8}" width="16" height="16"'
        if node["is_end"]
        else f'<circle cx="{x}" cy="{y}" r="9"'
    )
    drawn += f'{shape} fill="{fill}" stroke="#333"/>'
    drawn += text(x + 16, y + 4, f"{value:.2f}", "start")
    drawn += text(x + 48, y + 4, _short(node["step"] or "the question", _SHOWN), "start")
    if depth:
        drawn += text(WIDTH_PX - 8, y + 4, f"{node['visits']} visits", "end")
    lines.append(drawn)
    for child in node["children"]:
        _draw(child, depth + 1, lines, y)


def _mixed(value: float) -> list[int]:
    """Mix vermilion and blue, told apart by colour-blind people, through white."""
    end = (0, 114, 178) if value >= 0.5 else (213, 94, 0)
    share = abs(2 * value - 1)
    return [round(255 + (c - 255) * share) for c in end]


def _short(words: str, most: int) -> str:
    words = " ".join(words.split())
    return words if len(words) <= most else words[: most - 1] + "…"
