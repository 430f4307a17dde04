"""Texts of strangers on a terminal, in Markdown and in figures: shown as they are, never obeyed."""

import ast
import io
import json
import sys
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from viewer_cases import HOSTILE
from vlaa_lib import ROOT, escape, records, tables
from vlaa_lib.__main__ import main
from vlaa_lib.escape import printable

# --- a terminal


@pytest.mark.parametrize(("text", "shown"), [
    ("\x1b[2J\x1b[1;1Hgone", "gone"), ("\x1b]0;title\x07a", "a"), ("\x9b31mred", "31mred"),
    ("\x1b]8;;http://evil.invalid\x1b\\link\x1b]8;;\x1b\\", "link"), ("\x1bc", "c"),
    ("right\rwrong", "rightwrong"), ("a\bb\x7f\x00", "ab"), ("a\u202eb\u2066c\u200e", "abc"),
    ("\ud800x", "x"), ("one\ntwo\tthree", "one\ntwo\tthree"), ("3 × é – 👩‍🔬", "3 × é – 👩‍🔬"),
    ("line\u2028of\x85text", "lineoftext"), ("\x1b]0;never ended", "]0;never ended"),
])  # fmt: skip
def test_what_steers_a_terminal_is_taken_out(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(("encoding", "shown"), [
    ("utf-8", "“3 × é – 冰…”"), ("latin-1", '"3 x é - \\u51b0..."'),
    ("ascii", '"3 x \\xe9 - \\u51b0..."'), ("cp1252", '"3 x é - \\u51b0..."'),
])  # fmt: skip
def test_any_terminal_shows_something(monkeypatch, encoding, shown):
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding=encoding))
    escape.say("“3 × é – 冰…”", 4)
    assert held.getvalue().decode(encoding) == f"{shown}\n4\n"


def test_one_function_prints():
    for path in (ROOT / "vlaa_lib").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"]
        # `checks` speaks to the reader of a notebook, about the reader's own functions
        assert not calls or path.name in ("escape.py", "checks.py"), path


def test_no_text_is_read_or_written_as_the_locale_has_it():
    for path in (*(ROOT / "vlaa_lib").rglob("*.py"), *(ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "attr", "")
            if name in ("read_text", "write_text") and len(node.args) == (name == "write_text"):
                ours = getattr(node.func.value, "id", "") in ("folders", "prompting")
                given = [key.arg for key in node.keywords]
                assert ours or {"encoding", None} & {*given}, f"{path}:{node.lineno}"


def test_a_record_cannot_write_to_the_terminal(tmp_path, capsys):
    row = {"id": "\x1b]0;owned\x07r1\x1b[2J", "image": "a\x1b[31m.png", "question": "q", "gt": "3",
           "reward": "digit"}  # fmt: skip
    (tmp_path / "r.jsonl").write_text(json.dumps(row), encoding="utf-8")
    words = ["--records", str(tmp_path / "r.jsonl"), "--images", str(tmp_path)]
    assert main(["doctor", *words, "--completions", str(tmp_path / "none")]) == 2
    said = "".join(capsys.readouterr())
    assert "r1: image 'a" in said and not any(ord(c) < 32 and c != "\n" for c in said)


# --- Markdown

EVIL = (*HOSTILE, "![x](http://evil.invalid/a)", "[x](javascript:alert(1))", "\\<img src=x>",
        "\\\\![x](http://evil.invalid/b)", "`<img src=x>`", "| a | b |", "<http://evil.invalid/c>",
        "[x]: http://evil.invalid/d", "*a* _b_ ~~c~~ $\\href{x}{y}$", "&lt;b&gt; &amp;",
        "``` \n<img src=x>\n```", "<details><summary>x", "# heading", "---\nx: y\n---")  # fmt: skip


class Seen(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", EVIL)
def test_markdown_shows_a_text_as_it_is(text):
    table = tables.markdown_table([{text or "name": text, "n": 1}, {text or "name": "ok", "n": 2}])
    page = Seen(MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(table))
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert page.tags.count("tr") == 3 and page.tags.count("td") == 4
    assert page.text.count(escape.visible(" ".join(text.split()))) >= 2


def test_bare_addresses_are_no_links():
    assert escape.markdown("http://a.b www.a.b") == "http\\://a.b www\\.a.b"


def test_a_table_for_people_is_left_readable():
    assert "`x_1` <b> $2$" in tables.text_table([{"a": "`x_1` <b> $2$"}])


# --- figures


@pytest.mark.parametrize(("text", "shown"), [
    ("<a href='http://evil.invalid'>x</a>", "&lt;a href='http://evil.invalid'&gt;x&lt;/a&gt;"),
    ("a $\\href{javascript:x}{y}$", "a &#36;\\href{javascript:x}{y}&#36;"), ("&lt;b&gt;",
     "&amp;lt;b&amp;gt;"), ("a\u202eb", "a‹U+202E›b"), (3, 3), (None, None),
])  # fmt: skip
def test_plotly_shows_a_text_as_it_is(text, shown):
    assert escape.in_figure(text) == shown


def test_a_long_id_is_quoted_in_brief():
    assert len(str(records.Reject("a", 1, "x" * 10**6, "why"))) < 200
