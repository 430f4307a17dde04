"""Traces side by side as plain HTML: a table without a script, or the viewer as a page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlaa_lib import folders
from vlaa_lib.escape import AS_TEXT, visible
from vlaa_lib.tables import known, number

from .prepare import prepare
from .style import beginning, picture, segments

HERE = Path(__file__).parent
STYLE = (HERE / "viewer.css").read_text(encoding="utf-8")
# one script of two files: what is drawn, and the controls
SCRIPT = "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("trace.js", "viewer.js"))
MAX_CHARS = 4000  # ours, of any text: a trace that never ends must not fill the page
THUMB_PX = 192  # longest side of a picture in a table: about 18 kB as JPEG
PAGE_PX = 384  # in a page of its own: 30 kB, to be zoomed

# marks set both colours, so that they stay readable in a dark theme
_WRAP = {
    "text": "{}",
    "tag": '<code style="opacity:.55">{}</code>',
    "aha": '<mark style="background:#ffe08a;color:#000">{}</mark>',
    "answer": '<strong style="background:#cfe8ff;color:#000">{}</strong>',
}
_CELL = 'style="vertical-align:top;text-align:left;padding:6px;border:1px solid #bbb;min-width:8em"'


# --- a table, for GitHub, nbconvert and every page where no widget runs ---------------------------


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


def render(traces: Sequence[dict[str, Any]]) -> str:
    """Return the HTML of traces given as for `trace_html`; every text in it is escaped."""
    tables = []
    for item in traces:
        found = "" if known(item.get("image")) is None else picture(item, THUMB_PX)
        if found.startswith("data:"):
            found = f'<img src="{found}" alt="the picture asked about"><br>'
        elif found:
            found = f"<em>{_lines(found)}</em><br>"
        asked = (f"{found}{_lines(item.get('question'))}"
                 f"<br><small>gold: {_lines(item.get('gold'))}</small>")
        heads = "".join(f"<th {_CELL}>{_lines(side.get('name'))}</th>" for side in item["sides"])
        tables.append(
            f"<table {AS_TEXT}><thead><tr><th {_CELL}>question</th>{heads}</tr></thead><tbody><tr>"
            f"<td {_CELL}>{asked}</td>{''.join(map(_side, item['sides']))}</tr></tbody></table>"
        )
    return "\n".join(tables) or "<p>No traces to show.</p>"


def _side(side: dict[str, Any]) -> str:
    """Draw one trace: text, then reward, reason and length, as far as they are known."""
    text = str(side.get("text", ""))
    left = len(text) - MAX_CHARS
    shown = "".join(_WRAP[kind].format(_lines(part)) for kind, part in segments(text[:MAX_CHARS]))
    shown += f" <em>({left:,} more characters)</em>" if left > 0 else ""
    facts = []
    if "reward" in side:
        reward = number(side["reward"])
        facts.append("not scored" if reward is None else f"reward {reward:.3g}")
    if side.get("reason"):
        facts.append(str(side["reason"]))
    if side.get("tokens") is not None:
        facts.append(f"{side['tokens']} tokens")
    note = f"<br><small>{_lines(' · '.join(facts))}</small>" if facts else ""
    return f"<td {_CELL}>{shown}{note}</td>"


def _lines(text: Any) -> str:
    return escape(beginning(text, MAX_CHARS)).replace("\n", "<br>")


# --- the viewer as a page -------------------------------------------------------------------------


def to_html(examples: Sequence[dict[str, Any]], path: str | Path, title: str = "Traces") -> Path:
    """Write the viewer as one page that needs no network, no server and no Jupyter.

    The page forbids itself everything but its own script and style (Content-Security-Policy by
    hash), whatever the traces hold. It is written whole or not at all.

    Args and errors are those of `prepare.prepare`.
    """
    state = prepare(examples)
    state["pictures"] = {made["id"]: picture(example, PAGE_PX)
                         for made, example in zip(state["examples"], examples, strict=True)}
    data = json.dumps(state, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":  # so that the data end no script block
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    script = SCRIPT + _BOOT
    page = _PAGE.format(
        title=escape(visible(title)), style=STYLE, script=script, data=data,
        style_hash=_hash(STYLE), script_hash=_hash(script),
    )
    folders.write_text(path, page)
    return Path(path)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


_BOOT = """
const data = JSON.parse(document.getElementById("traces").textContent);
mount(document.getElementById("viewer"), data, true);
"""
_PAGE = """<!doctype html>
<html lang="en" class="vlaa-page">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src '{style_hash}'; script-src '{script_hash}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<div id="viewer"></div>
<noscript><p>This page draws its traces with a script of its own; allow it to run.</p></noscript>
<script type="application/json" id="traces">{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""
