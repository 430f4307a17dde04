r"""Texts of strangers (records, endpoints, models, files) made safe for the place that shows them.

`say` for a terminal, `markdown` for tables and cards, `in_figure` for plotly; HTML has
`html.escape`. Nothing in a text is ever read as markup, an address or a command.
"""

from __future__ import annotations

import re
import sys
from html import escape
from typing import Any

# what cannot be seen but turns, hides or breaks what is seen: controls, marks of direction,
# zero-width characters, halves of surrogate pairs
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff]"
)
# colours, cursor moves, titles and links of a terminal, whole: without ESC their rest is litter
_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)")
# of HTML in whose texts neither nbconvert nor Jupyter may look for formulas, which hold links too
AS_TEXT = 'class="tex2jax_ignore mathjax_ignore"'
# marks, and what makes an address of bare words: `http://`, `www.`
_MARKDOWN = re.compile(r"[\\`*_\[\]|!$~]|:(?=//)|(?<=www)\.", re.IGNORECASE)
# our own typography, for a terminal that has ASCII alone
_PLAIN = str.maketrans({"–": "-", "—": "-", "…": "...", "·": "-", "×": "x", "‹": "<", "›": ">",
                        "“": '"', "”": '"', "‘": "'", "’": "'", "→": "->", "†": "+"})  # fmt: skip


def visible(text: str) -> str:
    r"""Spell out characters that nobody sees, such as those that turn the direction of reading.

    >>> visible("3 \u202eabc")
    '3 ‹U+202E›abc'
    """
    return _UNSEEN.sub(lambda found: f"‹U+{ord(found[0]):04X}›", text.replace("\r\n", "\n"))


def printable(text: Any, encoding: str = "utf-8") -> str:
    r"""Take out what steers a terminal, and spell plainly what its encoding does not have.

    >>> printable("3 \x1b[31mred\x07"), printable("3 × é", "ascii")
    ('3 red', '3 x \\xe9')
    """
    text = _UNSEEN.sub("", _SEQUENCES.sub("", str(text)))
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return text


def say(*texts: Any, is_error: bool = False) -> None:
    """Print each text as `printable`, at once, on a line of its own: the only way to a terminal."""
    stream = sys.stderr if is_error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    for text in texts:
        print(printable(text, encoding), file=stream, flush=True)


def markdown(text: str) -> str:
    r"""Write a text so that Markdown shows it as it is: no HTML, picture, link, code or formula.

    >>> markdown("<b> ![x](y) a|b")
    '&lt;b&gt; \\!\\[x\\](y) a\\|b'
    """
    return _MARKDOWN.sub(r"\\\g<0>", escape(visible(text), quote=False))


def in_figure(value: Any) -> Any:
    """Return a text that plotly shows as it is: it reads some tags of HTML, and `$` as a formula.

    >>> in_figure("<b>$x$"), in_figure(3)
    ('&lt;b&gt;&#36;x&#36;', 3)
    """
    if not isinstance(value, str):
        return value
    return escape(visible(value), quote=False).replace("$", "&#36;")
