"""96 hostile strings through every page that is written, in a real browser: none is obeyed.

The pages are opened without their own policy (CSP), so that the escaping alone must hold.
"""

import json
import re

import nbformat
import pytest
from markdown_it import MarkdownIt
from nbconvert import HTMLExporter
from plotly.offline import get_plotlyjs

import chromium
import viewer_cases
from vlaa_lib import construct, folders, records, show, tables
from vlaa_lib.show import figures, html, process_figures
from vlaa_lib.study import report

pytestmark = pytest.mark.browser
STRINGS = (*viewer_cases.HOSTILE, *viewer_cases.MORE)
# an element that could only have come out of a string
FOREIGN = """img:not([src^="data:image/"]), iframe, object, embed, video, audio, form, base, frame,
    meta[http-equiv=refresh], link, marquee, details[open], input, textarea, xmp, plaintext, math,
    svg a, svg image:not([href^="data:"]), a[href*=evil], a[href^=javascript], [onerror], [onload],
    [onfocus], [ontoggle], [style*="evil"], script[src]"""
EXAMPLES = [
    {"id": f"e{n}", "source": text, "image": None, "question": text, "gold": text, "scene": None,
     "sides": [{"name": text or "none", "text": text, "reason": text, "reward": 0.5}]}
    for n, text in enumerate(STRINGS)
]


def rows(**more):
    return [{"text": text, text or "none": text, "n": n} | more for n, text in enumerate(STRINGS)]


def drawn():
    """Draw figures whose titles, axes, groups, places and notes are the strings."""
    for start in range(0, len(STRINGS), 16):
        some = STRINGS[start : start + 16]
        titles = [" ".join(some)] * 3
        places = [{"x": text, "y": 1, "g": text, "n": text} for text in some]
        yield figures.bars(places, "x", "y", "g", *titles, "n")
        lines = [{"s": s, "v": s, "g": text} for text in some for s in (1, 2)]
        yield figures.learning_curve(lines, "s", "v", "g", *titles)
        scored = [{"scorer": text, "aggregator": "mean", "generator": "average", "n": n,
                   "accuracy": 0.5} for text in some for n in (2, 4)]  # fmt: skip
        yield process_figures.accuracy_by_n(scored, titles[0])
    root = {"step": "", "right": 1, "rollouts": 2, "visits": 1, "is_end": False, "children": [
        {"step": text, "right": 1, "rollouts": 2, "visits": 1, "is_end": True, "children": []}
        for text in STRINGS if text]}  # fmt: skip
    yield process_figures.tree({"record_id": STRINGS[1], "question": STRINGS[1], "root": root,
                                "status": STRINGS[1]})  # fmt: skip


def page_of_figures(folder):
    pieces = "".join(map(figures.html, drawn()))
    return f"<meta charset=utf-8><script>{get_plotlyjs()}</script>{pieces}"


def page_of_tables(folder):
    return tables.html_table(rows()) + html.render(EXAMPLES)


def page_of_a_card(folder):
    """Render the card of a finished run, whose reasons and names are the strings."""
    row = {"id": "1", "image": "vg/a.png", "question": "q", "gt": "g", "answer": "a"}
    records.write([records.from_json(row)], folder / "sft.jsonl")
    folders.write_lines(folder / "rl.jsonl", [])
    zeros = dict.fromkeys(("in", "out", "dropped", "prompt_tokens", "completion_tokens", "seconds",
                           "cost"), 0)  # fmt: skip
    folders.write_csv(folder / "counts.csv", [
        {"step": "caption", "source": text, "reasons": f"{text}: 1"} | zeros for text in STRINGS])
    construct.export(folder)
    text = (folder / "hub/README.md").read_text(encoding="utf-8")
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text)


def page_of_a_run(folder):
    each = {text: text for text in STRINGS}
    card = {"profile": STRINGS[1], "versions": each, "status": each, "settings": each,
            "minutes": {}, "seed": STRINGS[1]}  # fmt: skip
    folders.write_json(folder / "run_card.json", card)
    shown = [{"model": text, "source": text, "accuracy": 0.5, "aha_rate": 0.5, "step": "1",
              "phrase": text, "per 100 traces": 1, "in": 1, "out": 1} for text in STRINGS[:40]]
    for name in ("accuracy", "aha", "traces_aha", "construct_counts", STRINGS[8][:9]):
        folders.write_csv(folder / "results" / f"{name}.csv", shown)
    page = report.write_report(folder).read_text(encoding="utf-8")
    return re.sub("<meta http-equiv=[^>]*>", "", page)


def page_of_a_notebook(folder):
    """Export a notebook whose cells have shown the strings, as `jupyter nbconvert` does."""
    shown = [tables.Table(rows()), show.trace_html(EXAMPLES)]
    outputs = [nbformat.v4.new_output("display_data", {
        "text/html": one._repr_html_(), "text/plain": repr(one)}) for one in shown]
    outputs += [nbformat.v4.new_output("stream", text=text) for text in STRINGS]
    cell = nbformat.v4.new_code_cell("1", outputs=outputs)
    page, _ = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="").from_notebook_node(
        nbformat.v4.new_notebook(cells=[cell]))
    return page


def page_of_the_viewer(folder):
    page = html.to_html(EXAMPLES, folder / "t.html", STRINGS[1]).read_text(encoding="utf-8")
    return re.sub("<meta http-equiv=[^>]*>", "", page)


PAGES = [page_of_figures, page_of_tables, page_of_a_card, page_of_a_run, page_of_a_notebook,
         page_of_the_viewer]


@pytest.fixture(scope="module")
def browser():
    with chromium.launched() as found:
        yield found


def opened(browser, folder, page):
    """Open a page from its file; what it asks for anywhere else is noted and refused."""
    (folder / "page.html").write_text(page, encoding="utf-8", errors="replace")
    watched = chromium.Watched(browser, (folder / "page.html").as_uri())
    watched.context.route(re.compile("^http"), lambda route: route.abort())
    watched.page.goto((folder / "page.html").as_uri())
    watched.page.wait_for_load_state("load")
    return watched


@pytest.mark.parametrize("made", PAGES, ids=lambda made: made.__name__)
def test_nothing_runs_and_nothing_leaves(browser, tmp_path, made):
    own = {"page_of_a_notebook": "script[src], link, [type=hidden]", "page_of_the_viewer":
           "input", "page_of_a_run": "details"}.get(made.__name__)  # fmt: skip
    watched = opened(browser, tmp_path, made(tmp_path))
    watched.page.wait_for_timeout(500)
    if made in (page_of_tables, page_of_a_notebook):  # where Jupyter would look for formulas
        assert watched.page.evaluate("""() => [...document.querySelectorAll("table")].every(
            (one) => one.matches(".tex2jax_ignore.mathjax_ignore"))""")
    foreign = watched.page.evaluate("""([all, own]) => [...document.querySelectorAll(all)]
        .filter((one) => !own || !one.matches(own)).map((one) => one.outerHTML.slice(0, 120))""",
        [FOREIGN, own])  # fmt: skip
    assert not watched.hits() and not foreign
    watched.context.close()


def test_figures_say_what_was_written(browser, tmp_path):
    text = "<b>b</b> $x$ &lt; <a href='http://evil.invalid'>c</a>"
    made = figures.html(figures.bars([{"x": text, "y": 1}], "x", "y", title=text))
    script = f"<meta charset=utf-8><script>{get_plotlyjs()}</script>"
    watched = opened(browser, tmp_path, script + made)
    said = watched.page.evaluate("""() => [...document.querySelectorAll("svg text")]
        .map((one) => one.textContent)""")
    assert said.count(text) == 2, "the title and the place, as they were written"
    watched.context.close()


def test_an_attack_that_did_run_would_be_seen(browser, tmp_path):
    for text in (viewer_cases.HOSTILE[1], viewer_cases.MORE[14], json.dumps(STRINGS)):
        watched = opened(browser, tmp_path, text)
        watched.page.wait_for_timeout(300)
        assert watched.hits() and watched.page.evaluate(
            "(all) => document.querySelectorAll(all).length", FOREIGN)
        watched.context.close()
