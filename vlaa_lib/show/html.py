"""Traces side by side as plain HTML: no script, so GitHub, nbconvert and the report show it too."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..construct.split import AHA_KEYWORDS
from ..images import open_image
from ..prompts import ANSWER_CLOSE, ANSWER_OPEN, TAGS
from .style import number

if TYPE_CHECKING:
    from PIL import Image

THUMB_PX = 192  # longest side of a picture in a page: about 18 kB as JPEG
MAX_CHARS = 4000  # ours: a trace that never ends must not fill the page

_PARTS = re.compile(
    f"(?P<tag>{'|'.join(map(re.escape, TAGS))})"
    # longest first: "double-check" is one word, not its parts
    f"|(?P<aha>{'|'.join(map(re.escape, sorted(AHA_KEYWORDS, key=len, reverse=True)))})",
    re.IGNORECASE,
)
# marks set both colours, so that they stay readable in a dark theme
_WRAP = {
    "text": "{}",
    "tag": '<code style="opacity:.55">{}</code>',
    "aha": '<mark style="background:#ffe08a;color:#000">{}</mark>',
    "answer": '<strong style="background:#cfe8ff;color:#000">{}</strong>',
}
_CELL = 'style="vertical-align:top;text-align:left;padding:6px;border:1px solid #bbb;min-width:8em"'


def segments(text: str) -> Iterator[tuple[str, str]]:
    """Cut a trace into (kind, text), kind being tag, aha, answer or text; nothing is lost.

    >>> list(segments("Wait, 3.<answer>3"))
    [('aha', 'Wait'), ('text', ', 3.'), ('tag', '<answer>'), ('answer', '3')]
    """
    kind, end = "text", 0
    for match in _PARTS.finditer(text):
        if match.start() > end:
            yield kind, text[end : match.start()]
        yield match.lastgroup or "text", match[0]
        if match["tag"]:
            opens = match["tag"].lower() == ANSWER_OPEN
            closes = match["tag"].lower() == ANSWER_CLOSE
            kind = "answer" if opens else "text" if closes else kind
        end = match.end()
    if end < len(text):
        yield kind, text[end:]


def thumbnail(image: Image.Image | str | Path, side_px: int = THUMB_PX) -> str:
    """Return an image as a small JPEG data URL.

    Raises:
        ImageError: no such file, or not a picture.
    """
    if isinstance(image, (str, Path)):
        image = open_image(Path(image).name, Path(image).parent)
    small = image.convert("RGB")
    small.thumbnail((side_px, side_px))
    stream = BytesIO()
    small.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _trace(text: str) -> str:
    shown = "".join(_WRAP[kind].format(_lines(part)) for kind, part in segments(text[:MAX_CHARS]))
    left = len(text) - MAX_CHARS
    return shown + (f" <em>({left:,} more characters)</em>" if left > 0 else "")


def _side(side: dict[str, Any]) -> str:
    """Draw one trace: text, then reward, reason and length, as far as they are known."""
    facts = []
    if "reward" in side:
        reward = number(side["reward"])
        facts.append("not scored" if reward is None else f"reward {reward:.3g}")
    if side.get("reason"):
        facts.append(str(side["reason"]))
    if side.get("tokens") is not None:
        facts.append(f"{side['tokens']} tokens")
    note = f"<br><small>{_lines(' · '.join(facts))}</small>" if facts else ""
    return f"<td {_CELL}>{_trace(str(side.get('text', '')))}{note}</td>"


def render(traces: Sequence[dict[str, Any]]) -> str:
    """Return the HTML of traces given as for `trace_html`; every text in it is escaped."""
    tables = []
    for item in traces:
        sides = item["sides"]
        picture = (
            f'<img src="{thumbnail(item["image"])}" alt="the picture asked about"><br>'
            if item.get("image") is not None
            else ""
        )
        asked = (
            f"{picture}{_lines(str(item.get('question', '')))}"
            f"<br><small>gold: {_lines(str(item.get('gold', '')))}</small>"
        )
        heads = "".join(f"<th {_CELL}>{escape(str(side.get('name', '')))}</th>" for side in sides)
        tables.append(
            f"<table><thead><tr><th {_CELL}>question</th>{heads}</tr></thead><tbody><tr>"
            f"<td {_CELL}>{asked}</td>{''.join(map(_side, sides))}</tr></tbody></table>"
        )
    return "\n".join(tables) or "<p>No traces to show.</p>"


def trace_html(traces: Sequence[dict[str, Any]]) -> Any:
    """Show pictures and questions beside their traces, aha words and answers marked.

    Args:
        traces: dicts with `image` (PIL or path), `question`, `gold` and `sides`, a list of dicts
            with `name`, `text` and, where known, `reward`, `reason` and `tokens`.
    Returns:
        An IPython HTML object; its `.data` is the HTML text.
    """
    from IPython.display import HTML

    return HTML(render(traces))
