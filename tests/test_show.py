"""What people look at: nothing from a model becomes markup, and figures show the numbers given."""

import base64
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlaa_lib import folders, images, prompts, show, tables
from vlaa_lib.construct import AHA_KEYWORDS
from vlaa_lib.show import figures, html, style, svg
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
ACCURACY = [
    {"model": m, "source": s, "accuracy": a, "low": a - 0.1, "high": a + 0.1, "blank_accuracy": 0.2}
    for m, a in (("instruct", 0.4), ("grpo", 0.6))
    for s in ("solids", "panel")
]


def tags(page: str) -> set[str]:
    """Return every tag with attributes other than ours."""
    return set(re.findall(r"<\s*([a-zA-Z][\w-]*)", page))


def side(text="", **more):
    return {"name": "sft", "text": text, "reward": 0.5, "reason": "ok", "tokens": 3} | more


# --- traces as HTML


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("field", ["question", "gold", "name", "text", "reason", "tokens"])
def test_model_text_stays_text(payload, field):
    item = {"image": None, "question": "q", "gold": "g", "sides": [side("a"), side("b")]}
    clean = tags(html.render([item])) | {"code", "mark", "strong", "small", "br"}
    if field in item:
        item[field] = payload
    else:
        item["sides"][1][field] = payload
    page = html.render([item])
    assert tags(page) <= clean
    for attributes in re.findall(r"<\w+([^>]*)>", page):
        assert not re.search(r"on\w+\s*=|javascript:", attributes)


@given(st.text(alphabet=st.sampled_from("<>/&wait\"' \nthinkanswer3"), max_size=80))
def test_segments_lose_nothing(text):
    assert "".join(part for _, part in html.segments(text)) == text


def test_segments_mark_aha_words_and_the_answer():
    text = prompts.join_think_answer("Wait, let me double-check.", "3 again")
    kinds = list(html.segments(text))
    assert ("aha", "Wait") in kinds and ("aha", "double-check") in kinds
    assert ("answer", "3 ") in kinds and ("aha", "again") in kinds
    assert [k for k, _ in kinds].count("tag") == 4
    page = html.render([{"question": "q", "gold": "3", "sides": [side(text)]}])
    assert ">Wait</mark>" in page and ">3 </strong>" in page and "&lt;answer&gt;" in page


@pytest.mark.parametrize("word", AHA_KEYWORDS)
def test_every_aha_word_is_marked_whatever_its_case(word):
    assert ("aha", word.upper()) in list(html.segments(f"so {word.upper()} then"))


@pytest.mark.parametrize(
    ("reward", "shown"),
    [(0.5, "reward 0.5"), (0, "reward 0"), (None, "not scored"), (math.nan, "not scored")],
)
def test_rewards_are_shown_or_said_to_be_missing(reward, shown):
    page = html.render([{"question": "q", "gold": "g", "sides": [side(reward=reward)]}])
    assert shown in page


def test_a_long_trace_is_cut_and_says_so():
    page = html.render([{"question": "q", "gold": "g", "sides": [side("ab " * 5000)]}])
    assert len(page) < 6000 and "11,000 more characters" in page


def test_pictures_are_small_jpeg_data(tmp_path):
    picture = Image.new("RGBA", (800, 400), (255, 0, 0, 128))
    picture.save(tmp_path / "a.png")
    for given_image in (picture, tmp_path / "a.png", str(tmp_path / "a.png")):
        url = html.thumbnail(given_image)
        head, data = url.split(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (192, 96)
    with pytest.raises(images.ImageError, match=r"none\.png"):
        html.thumbnail(tmp_path / "none.png")


def test_trace_html_is_shown_by_notebooks_without_script():
    shown = show.trace_html([{"question": "q", "gold": "g", "sides": [side("Wait")] * 4}])
    assert shown._repr_html_() == shown.data and shown.data.count("<th ") == 5
    assert "script" not in shown.data and show.trace_html([]).data


# --- live source


def test_source_is_the_live_function_and_escaped():
    shown = show.source(html.segments)
    assert shown.data.startswith("# vlaa_lib/show/prepare.py, line ")
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


def test_rows_may_come_from_a_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,loss\n1,2.5\n2,\n")
    assert "2.5" in tables.text_table(path)
    figure = figures.learning_curve(path, "step", "loss")
    assert list(figure.data[0].y) == [2.5] and figure.layout.yaxis.rangemode == "nonnegative"


# --- plotly figures


def test_learning_curve_draws_a_line_a_run_and_skips_gaps():
    rows = [{"step": s, "reward": r, "run": n} for n in ("grpo", "sft_grpo")
            for s, r in ((1, "0.1"), (2, ""), (3, "nan"), (4, 0.4))]  # fmt: skip
    figure = figures.learning_curve(rows, "step", "reward", "run", "A title")
    assert [list(line.x) for line in figure.data] == [[1, 4], [1, 4]]
    assert [line.name for line in figure.data] == ["GRPO", "SFT+GRPO"]
    assert figure.layout.width <= 640 and figure.layout.title.text == "A title"
    assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text


def test_accuracy_bars_have_intervals_and_the_blank_twin():
    figure = figures.accuracy_bars(ACCURACY, "t")
    bars = [mark for mark in figure.data if mark.type == "bar"]
    assert [list(bar.y) for bar in bars] == [[0.4, 0.4], [0.6, 0.6]]
    assert bars[0].error_y.array == pytest.approx((0.1, 0.1))
    assert bars[0].error_y.arrayminus == pytest.approx((0.1, 0.1))
    blank = [mark for mark in figure.data if mark.type == "scatter"]
    assert [list(mark.y) for mark in blank] == [[0.2, 0.2]] * 2
    assert [mark.offsetgroup for mark in blank] == [bar.offsetgroup for bar in bars]


def test_counts_add_up_sources_once():
    counted = (("solids", "5", "4"), ("panel", "5", "5"), ("all", "10", "9"))
    rows = [{"step": "caption", "source": s, "in": i, "out": o} for s, i, o in counted]
    into, out = figures.counts(rows).data
    assert list(into.y) == [10] and list(out.y) == [9]


def test_models_look_alike_everywhere_and_unlike_each_other():
    models = ("base", "instruct", "sft", "grpo", "sft_grpo", "teacher")
    looks = [style.style_of(m) for m in models]
    for part in ("color", "symbol", "dash"):
        assert len({getattr(look, part) for look in looks}) == len(models)
    assert style.PAPER_COLOR not in {look.color for look in looks}
    page = svg.bars(ACCURACY, "source", "accuracy", "model")
    assert all(style.style_of(m).color in page for m in ("instruct", "grpo"))


def test_models_along_the_axis_keep_their_colour():
    page = svg.bars([{"model": "sft", "v": 1}, {"model": "grpo", "v": 2}], "model", "v")
    filled = [found.get("fill") for found in elements(page, "rect")[1:]]
    assert filled == [style.style_of(m).color for m in ("sft", "grpo")]


# --- SVG and report


def elements(drawing: str, name: str) -> list:
    root = ElementTree.fromstring(drawing)  # fails where the drawing is not well-formed
    return root.findall(f".//{{http://www.w3.org/2000/svg}}{name}")


def test_svg_bars_are_as_tall_as_their_numbers():
    rows = [{"x": n, "y": v, "low": v - 1, "high": v + 1} for n, v in (("a", 2), ("b", 4))]
    first, second = (float(r.get("height")) for r in elements(svg.bars(rows, "x", "y"), "rect")[1:])
    assert second == pytest.approx(2 * first, rel=0.01)
    assert len(elements(svg.bars(rows, "x", "y"), "path")) > len(
        elements(svg.bars([{"x": "a", "y": 2}, {"x": "b", "y": 5}], "x", "y"), "path")
    )  # the intervals


def test_svg_lines_keep_order_and_skip_gaps():
    rows = [{"s": 1, "v": 0}, {"s": 2, "v": "nan"}, {"s": 3, "v": 1}]
    line = elements(svg.lines(rows, "s", "v"), "polyline")[0].get("points").split()
    points = [tuple(map(float, p.split(","))) for p in line]
    assert len(points) == 2 and points[0][0] < points[1][0] and points[0][1] > points[1][1]
    for draw in (svg.lines, svg.bars):
        with pytest.raises(ValueError, match="no row"):
            draw([{"s": 1, "v": ""}], "s", "v")


def test_svg_many_lines_are_told_apart_and_all_named():
    names = [f"scorer number {i}" for i in range(9)]
    rows = [{"n": n, "v": 0.5, "low": 0.4, "high": 0.6, "s": s} for s in names for n in (1, 2)]
    page = svg.lines(rows, "n", "v", "s")
    height = float(ElementTree.fromstring(page).get("height"))
    words = {found.text: found for found in elements(page, "text")}
    for name in names:
        x, y = (float(words[name].get(axis)) for axis in ("x", "y"))
        assert x + 7 * len(name) <= style.WIDTH_PX and y < height
    looks = [(e.get("stroke"), e.get("stroke-dasharray")) for e in elements(page, "polyline")]
    assert len(set(looks)) == len(names)
    starts = {e.get("points").split(",")[0] for e in elements(page, "polyline")}
    assert len(starts) == len(names) and "fill-opacity" not in page  # whiskers side by side
    assert page.count("V") == len(rows)
    assert "fill-opacity" in svg.lines(rows[:8], "n", "v", "s")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_svg_text_stays_text(payload):
    rows = [{"x": payload, "y": 1, "g": payload}]
    for draw, x in ((svg.bars, "x"), (svg.lines, "y")):
        drawing = draw(rows, x, "y", "g", title=payload, x_title=payload, y_title=payload)
        assert payload in [found.text for found in elements(drawing, "text")]
        assert tags(drawing) <= {"svg", "title", "rect", "text", "path", "polyline", "circle"}


@given(
    st.floats(-1e9, 1e9, allow_nan=False), st.floats(-1e9, 1e9, allow_nan=False), st.integers(2, 9)
)
def test_ticks_enclose_and_rise(a, b, count):
    low, high = sorted((a, b))
    found = svg.ticks(low, high, count)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert found[0] <= low + slack and found[-1] >= high - slack
    assert found == sorted(set(found)) and 2 <= len(found) <= 3 * count + 3


def write_run(folder, payload="") -> str:
    """Write a small run with a text everywhere, and its report; return the page."""
    (folder / "results").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "00_tour.ipynb").write_text("{}")
    card = {"profile": f"smoke{payload}", "status": {"00_tour": "done", f"01{payload}": "failed"},
            "minutes": {"00_tour": 1.25}, "versions": {"torch": payload},
            "settings": {"note": payload}, "machine": payload}  # fmt: skip
    (folder / "run_card.json").write_text(json.dumps(card))
    quoted = '"' + payload.replace('"', '""') + '"'
    (folder / "results" / "accuracy.csv").write_text(
        f"model,source,accuracy,low,high\ngrpo,{quoted},0.61234567,0.5,0.7\n"
    )
    (folder / "results" / "grpo_a.csv").write_text("step,reward,kl\n1,0.1,0\n2,0.4,0.01\n")
    (folder / "results" / "own.csv").write_text(f"{quoted},b\n{quoted},2\n")
    return report.write_report(folder).read_text()


def test_report_shows_numbers_and_names_what_is_missing(tmp_path):
    page = write_run(tmp_path / "run")
    for wanted in ("0.6123", "1.25", 'href="notebooks/00_tour.ipynb"', "own.csv", "<svg"):
        assert wanted in page
    for missing in ("results/construct_counts.csv", "results/sft_log.csv", "results/aha.csv",
                    "completion tokens"):  # fmt: skip
        assert re.search(f'class="missing">missing: [^<]*{re.escape(missing)}', page), missing
    assert "not ours" in page and style.PAPER_COLOR in page
    assert not re.search(r"<script|<link|@import|https?://(?!www\.w3\.org/2000/svg)", page)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_report_keeps_text_text(tmp_path, payload):
    clean = tags(write_run(tmp_path / "clean", "plain"))
    page = write_run(tmp_path / "bad", payload)
    assert tags(page) == clean
    for attributes in re.findall(r"<\w+([^>]*)>", page):
        assert not re.search(r"\son\w+\s*=|javascript:", attributes)


def test_report_of_an_empty_folder_says_so(tmp_path):
    page = report.write_report(tmp_path).read_text()
    assert "run_card.json" in page and page.count('class="missing"') >= 6


def test_a_long_table_is_thinned_and_says_so(tmp_path):
    (tmp_path / "results").mkdir()
    lines = "".join(f"{i},{i}.5\n" for i in range(100))
    (tmp_path / "results" / "sft_log.csv").write_text("step,loss\n" + lines)
    page = report.write_report(tmp_path).read_text()
    assert "One row in 3 of 100" in page and page.count("<tr>") < 60


def test_a_drawing_beside_its_numbers_is_shown_as_an_image(tmp_path):
    results = tmp_path / "results"
    drawing = svg.bars([{"model": "sft", "v": 1}], "model", "v", "", '<script>"')
    results.mkdir()
    (results / "traces_truth.csv").write_text("model,v\nsft,1\n")
    (results / "traces_truth.svg").write_text(drawing)
    page = report.write_report(tmp_path).read_text()
    (data,) = re.findall(r'alt="traces_truth" src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert base64.b64decode(data).decode() == drawing


def test_a_note_stands_below_each_place():
    rows = [{"model": m, "v": 1, "of": f"{n} steps"} for m, n in (("sft", 3), ("sft_grpo", 4))]
    found = {e.text: e for e in elements(svg.bars(rows, "model", "v", note="of"), "text")}
    for label, note in (("SFT", "3 steps"), ("SFT+GRPO", "4 steps")):
        assert found[label].get("x") == found[note].get("x")
        assert float(found[note].get("y")) > float(found[label].get("y"))
