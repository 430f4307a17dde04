"""One look for every figure and for the viewer: a colour, a marker and a dash for each model."""

from __future__ import annotations

from typing import NamedTuple

PAPER_COLOR = "#999999"  # the paper's values: grey, always, and nothing else is grey
WIDTH_PX, HEIGHT_PX = 620, 360  # under 640 px: fits a notebook, GitHub and the report


class Style(NamedTuple):
    """How one model is drawn; `symbol`, `dash` and `pattern` are plotly's names."""

    label: str
    color: str
    symbol: str
    dash: str
    pattern: str


# Okabe and Ito's palette, told apart by colour-blind people; shapes serve print in grey
_STYLES = {
    "base": Style("base", "#E69F00", "square", "dot", "."),
    "instruct": Style("instruct", "#000000", "circle", "dash", ""),
    "sft": Style("SFT", "#D55E00", "diamond", "dashdot", "/"),
    "grpo": Style("GRPO", "#0072B2", "triangle-up", "solid", ""),
    "sft_grpo": Style("SFT+GRPO", "#009E73", "cross", "longdash", "x"),
    "teacher": Style("teacher", "#CC79A7", "star", "longdashdot", "-"),
    # of no model: what goes into a step or is left out, and what comes out or is kept
    **{name: Style(name, "#FFFFFF", "square", "dot", "") for name in ("in", "left out")},
    **{name: Style(name, "#56B4E9", "circle", "solid", "/") for name in ("out", "kept")},
    # what needs no model, told apart by the dash
    **{name: Style(name, "#000000", "circle", dash, "") for name, dash in (
        ("oracle", "solid"), ("majority", "longdash"), ("greedy", "dash"), ("random", "dot"),
        ("score = value", "dot"))},
}  # fmt: skip
_PAPERS = ("circle-open", "square-open", "diamond-open", "x-thin-open", "triangle-up-open")
_OTHERS = (
    Style("", "#56B4E9", "hexagon", "solid", "\\"),
    Style("", "#8C510A", "triangle-down", "dash", "+"),
    Style("", "#542788", "x", "dot", "|"),
)


def style_of(name: str, index: int = 0) -> Style:
    """Return a model's style, or the `index`-th of the others for any other name.

    Others are three colours with three shapes: nine in all, before they come again. Names that
    begin with "paper: " are grey.

    >>> style_of("sft_grpo").label, style_of("reward").label
    ('SFT+GRPO', 'reward')
    """
    if name.startswith("paper: "):
        return Style(name, PAPER_COLOR, _PAPERS[index % len(_PAPERS)], "solid", "")
    turn, place = divmod(index, len(_OTHERS))
    shape = _OTHERS[(place + turn) % len(_OTHERS)]
    other = shape._replace(label=name, color=_OTHERS[place].color)
    return _STYLES.get(name) or other
