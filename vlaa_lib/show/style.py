"""One look for figures and the viewer: a model's colour and marker, a trace's text, a picture."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from vlaa_lib.escape import visible
from vlaa_lib.images import open_image
from vlaa_lib.prompts import AHA_KEYWORDS, ANSWER_CLOSE, ANSWER_OPEN, TAGS
from vlaa_lib.tables import known

PAPER_COLOR = "#999999"  # the paper's values: grey, always, and nothing else is grey
WIDTH_PX, HEIGHT_PX = 620, 360  # under 640 px: fits a notebook, GitHub and the report
MAX_NAME_CHARS = 200  # ours, of an id, a source or a name


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
}
_PAPERS = ("circle-open", "square-open", "diamond-open", "x-thin-open", "triangle-up-open")
_OTHERS = (
    Style("", "#56B4E9", "hexagon", "solid", "\\"),
    Style("", "#8C510A", "triangle-down", "dash", "+"),
    Style("", "#542788", "x", "dot", "|"),
)


def style_of(name: str, index: int = 0) -> Style:
    """Return a model's style, or the `index`-th of nine others; "paper: ..." is grey.

    >>> style_of("sft_grpo").label, style_of("reward").label
    ('SFT+GRPO', 'reward')
    """
    if name.startswith("paper: "):
        return Style(name, PAPER_COLOR, _PAPERS[index % len(_PAPERS)], "solid", "")
    turn, place = divmod(index, len(_OTHERS))  # each turn gives the colours other shapes
    shape = _OTHERS[(place + turn) % len(_OTHERS)]
    return _STYLES.get(name) or shape._replace(label=name, color=_OTHERS[place].color)


# --- a trace's text for the eye ------------------------------------------------------------------

_PARTS = re.compile(
    f"(?P<tag>{'|'.join(map(re.escape, TAGS))})"
    # longest first: "double-check" is one word, not its parts
    f"|(?P<aha>{'|'.join(map(re.escape, sorted(AHA_KEYWORDS, key=len, reverse=True)))})",
    re.IGNORECASE,
)


def beginning(text: Any, chars: int) -> str:
    """Return the first characters of what is not None as `visible` text, and how many are left out.

    >>> beginning("a question", 3), beginning(None, 3)
    ('a q… (7 more characters)', '')
    """
    text = "" if text is None else str(text)
    left = len(text) - chars
    return visible(text[:chars]) + (f"… ({left:,} more characters)" if left > 0 else "")


def segments(text: str) -> Iterator[tuple[str, str]]:
    """Cut a trace into (kind, text), kind being tag, aha, answer or text; nothing is lost.

    >>> list(segments("Wait, 3.<answer>3"))
    [('aha', 'Wait'), ('text', ', 3.'), ('tag', '<answer>'), ('answer', '3')]
    """
    kind, end, after = "text", 0, {ANSWER_OPEN: "answer", ANSWER_CLOSE: "text"}
    for match in _PARTS.finditer(text):
        if match.start() > end:
            yield kind, text[end : match.start()]
        yield match.lastgroup or "text", match[0]
        kind, end = after.get(match[0].lower(), kind), match.end()
    if end < len(text):
        yield kind, text[end:]


def picture(example: dict[str, Any], side_px: int) -> str:
    """Return an example's picture as a small JPEG data URL, or in its place why there is none."""
    image = known(example.get("image"))
    if isinstance(image, (str, Path)):
        try:
            image = open_image(Path(image).name, Path(image).parent)
        except ValueError as error:  # ImageError is one; a path may also hold a NUL
            return beginning(f"no picture: {error}", MAX_NAME_CHARS)
    if not hasattr(image, "convert"):
        said = f"{type(image).__name__} is neither a path nor a PIL image"
        return "no picture" if image is None else f"no picture: {said}"
    small, stream = image.convert("RGB"), BytesIO()
    small.thumbnail((side_px, side_px))
    small.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
