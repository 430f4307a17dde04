"""What people look at: nothing from a model becomes markup, in a table, a page or a report."""

import base64
import io
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from plotly.offline import get_plotlyjs

from vlaa_lib import folders, prompts, show, tables
from vlaa_lib.construct import AHA_KEYWORDS
from vlaa_lib.show import html, style
from vlaa_lib.show.style import picture, segments
from vlaa_lib.study import report

PAYLOADS = (
    "<img src=x onerror=alert(1)>",
    "</td><script>alert(1)</script>",
    "<svg/onload=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)",
    "<think><iframe src=javascript:alert(1)></iframe></think>",
    "wait<b>wait</b>&lt;b&gt;",
)


def tags(page: str) -> set[str]:
    """Return the tags of a page, none of which may run anything."""
    for attributes in re.findall(r"<\w+([^>]*)>", page):
        assert not re.search(r"[\s\"'/]on\w+\s*=|javascript:", attributes)
    return set(re.findall(r"<\s*([a-zA-Z][\w-]*)", page))


def side(text="", **more):
    return {"name": "sft", "text": text, "reward": 0.5, "reason": "ok", "tokens": 3} | more


# --- traces as HTML; hostile text in them: test_viewer.py


@given(st.text(alphabet=st.sampled_from("<>/&wait\"' \nthinkanswer3"), max_size=80))
def test_segments_lose_nothing(text):
    assert "".join(part for _, part in segments(text)) == text


def test_segments_mark_aha_words_and_the_answer():
    text = prompts.join_think_answer("Wait, let me double-check.", "3 again")
    kinds = list(segments(text))
    for word in AHA_KEYWORDS:
        assert ("aha", word.upper()) in list(segments(f"so {word.upper()} then"))
    assert ("aha", "Wait") in kinds and ("aha", "double-check") in kinds
    assert ("answer", "3 ") in kinds and ("aha", "again") in kinds
    assert [k for k, _ in kinds].count("tag") == 4
    page = html.render([{"question": "q", "gold": "3", "sides": [side(text)]}])
    assert ">Wait</mark>" in page and ">3 </strong>" in page and "&lt;answer&gt;" in page


@pytest.mark.parametrize(("more", "shown"), [
    ({"reward": 0.5}, "reward 0.5"), ({"reward": 0}, "reward 0"), ({"reward": None}, "not scored"),
    ({"reward": math.nan}, "not scored"), ({"text": "ab " * 5000}, "11,000 more characters"),
])
def test_what_is_missing_or_cut_is_said(more, shown):
    page = html.render([{"question": "q", "gold": "g", "sides": [side(**more)]}])
    assert shown in page and len(page) < 6000


def test_pictures_are_small_jpeg_data(tmp_path):
    image = Image.new("RGBA", (800, 400), (255, 0, 0, 128))
    image.save(tmp_path / "a.png")
    for given_image in (image, tmp_path / "a.png", str(tmp_path / "a.png")):
        head, data = picture({"image": given_image}, 192).split(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (192, 96)
    assert re.match(r"no picture: .*none\.png", picture({"image": tmp_path / "none.png"}, 192))


def test_trace_html_is_shown_by_notebooks_without_script():
    shown = show.trace_html([{"question": "q", "gold": "g", "sides": [side("Wait")] * 4}])
    assert shown._repr_html_() == shown.data and shown.data.count("<th ") == 5
    assert "script" not in shown.data and show.trace_html([]).data


# --- live source


def test_source_is_the_live_function_and_escaped():
    shown = show.source(segments)
    assert shown.data.startswith("# vlaa_lib/show/style.py, line ")
    assert "def segments(" in shown.data
    page = shown._repr_html_()
    assert "<answer>" not in page and "&lt;answer&gt;" in page
    assert "def machine" in show.source(folders.machine).data  # looks through decorators


# --- tables


def test_text_table_aligns_and_keeps_one_row_a_line():
    table = tables.text_table([{"a": "x\ny|z", "n": 1}, {"a": ["p", "q"], "n": 0.123456}])
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 4
    assert "x y\\|z" in lines[2] and "p, q" in lines[3] and "0.1235" in lines[3]
    assert lines[1].endswith("-: |")  # numbers to the right
    assert tables.text_table([{"a": 1, "b": 2}], ["b"]).splitlines()[0] == "|   b |"
    assert tables.text_table([]) == "(no rows)"


def test_a_table_is_html_on_a_page_and_text_elsewhere():
    table = show.table([{"said": "<b>|", "n": "0.123456"}, {"said": "3.0"}])
    page = table._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;|<" in page and ">3.0<" in page  # text stays as it is
    assert '<td style="text-align:right;white-space:nowrap">0.1235</td>' in page
    assert page.count("<tr>") == 3
    assert repr(table) == tables.text_table(table.rows) and "0.1235" in repr(table)
    assert show.table([])._repr_html_() == "<p>(no rows)</p>"
    assert ">said</th>" in page and ">said<" not in show.table(table.rows, ["n"])._repr_html_()


# --- report


def write_run(folder, payload="") -> str:
    """Write a small run with a text everywhere, and its report; return the page."""
    (folder / "results").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "00_tour.ipynb").write_text("{}", encoding="utf-8")
    card = {"profile": f"smoke{payload}", "status": {"00_tour": "done", f"01{payload}": "failed"},
            "minutes": {"00_tour": 1.25}, "versions": {"torch": payload},
            "settings": {"note": payload}, "machine": payload}
    (folder / "run_card.json").write_text(json.dumps(card), encoding="utf-8")
    quoted = '"' + payload.replace('"', '""') + '"'
    (folder / "results" / "accuracy.csv").write_text(
        f"model,source,accuracy,low,high\ngrpo,{quoted},0.61234567,0.5,0.7\n"
    , encoding="utf-8")
    (folder / "results" / "grpo_a.csv").write_text("step,reward,kl\n1,0.1,0\n2,0.4,0.01\n",
        encoding="utf-8")
    (folder / "results" / "own.csv").write_text(f"{quoted},b\n{quoted},2\n", encoding="utf-8")
    return without_plotly(report.write_report(folder))


def without_plotly(file) -> str:
    """Return a report without plotly's own script; what stays is ours, and the figures' numbers."""
    page = file.read_text(encoding="utf-8")
    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


def test_report_shows_numbers_and_names_what_is_missing(tmp_path):
    page = write_run(tmp_path / "run")
    for wanted in ("0.6123", "1.25", 'href="notebooks/00_tour.ipynb"', "own.csv",
                   "Plotly.newPlot", "default-src 'none'"):
        assert wanted in page
    for missing in ("results/construct_counts.csv", "results/sft_log.csv", "results/aha.csv",
                    "Completion tokens"):
        assert re.search(f'class="missing">missing: [^<]*{re.escape(missing)}', page), missing
    assert "not ours" in page and style.PAPER_COLOR in page
    assert not re.search(r"<script[^>]+src|<link|@import|https?://", page)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return tags(write_run(tmp_path_factory.mktemp("clean") / "run", "plain"))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_report_keeps_text_text(tmp_path, payload, clean):
    assert tags(write_run(tmp_path / "bad", payload)) == clean


def test_a_report_says_what_is_missing_and_what_is_thinned(tmp_path):
    page = without_plotly(report.write_report(tmp_path))
    assert "run_card.json" in page and page.count('class="missing"') >= 6
    lines = "".join(f"{i},{i}.5\n" for i in range(100))
    folders.write_text(tmp_path / "results" / "sft_log.csv", "step,loss\n" + lines)
    page = without_plotly(report.write_report(tmp_path))
    assert "One row in 3 of 100" in page and page.count("<tr>") < 60
