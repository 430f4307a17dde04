"""A trace's text for the eye: aha words, tags and answer marked, unseen characters spelt out."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib.images import open_image
from vlaa_lib.prompts import AHA_KEYWORDS, ANSWER_CLOSE, ANSWER_OPEN, TAGS
from vlaa_lib.tables import known

if TYPE_CHECKING:
    from PIL import Image

MAX_NAME_CHARS = 200  # ours, of an id, a source or a name
# what cannot be seen but turns, hides or breaks what is seen: controls, marks of direction,
# zero-width characters, halves of surrogate pairs
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff]"
)
_PARTS = re.compile(
    f"(?P<tag>{'|'.join(map(re.escape, TAGS))})"
    # longest first: "double-check" is one word, not its parts
    f"|(?P<aha>{'|'.join(map(re.escape, sorted(AHA_KEYWORDS, key=len, reverse=True)))})",
    re.IGNORECASE,
)


def visible(text: str) -> str:
    r"""Spell out characters that nobody sees, such as those that turn the direction of reading.

    >>> visible("3 \u202eabc")
    '3 ‹U+202E›abc'
    """
    return _UNSEEN.sub(lambda found: f"‹U+{ord(found[0]):04X}›", text.replace("\r\n", "\n"))


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


def thumbnail(image: Image.Image | str | Path, side_px: int = 192) -> str:
    """Return an image as a small JPEG data URL.

    Raises:
        ValueError: no such file, or not a picture.
    """
    if isinstance(image, (str, Path)):
        image = open_image(Path(image).name, Path(image).parent)
    if not hasattr(image, "convert"):
        raise ValueError(f"{type(image).__name__} is neither a path nor a PIL image")
    small = image.convert("RGB")
    small.thumbnail((side_px, side_px))
    stream = BytesIO()
    small.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def picture(example: dict[str, Any], side_px: int) -> str:
    """Return an example's picture as a data URL, or in its place the words why there is none."""
    if (image := known(example.get("image"))) is None:
        return "no picture"
    try:
        return thumbnail(image, side_px)
    except ValueError as error:  # ImageError is one; a path may also hold a NUL
        return beginning(f"no picture: {error}", MAX_NAME_CHARS)
