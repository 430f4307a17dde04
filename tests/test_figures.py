"""Figures: they show the numbers given, in one look, the paper's in grey, text as text."""

import json
from xml.etree import ElementTree

import pytest

import chromium
from vlaa_lib import ROOT, VlaaError
from vlaa_lib.show import figures, style
from vlaa_lib.show import model_figures as models
from vlaa_lib.study import report
from vlaa_lib.tables import number, text_table

HOSTILE = '<a href="javascript:alert(1)">x</a><b>y</b></script><script>alert(1)</script>"'
ACCURACY = [
    {"model": m, "source": s, "accuracy": a, "low": a - 0.1, "high": a + 0.1, "blank_accuracy": 0.2}
    for m, a in (("instruct", 0.4), ("grpo", 0.6))
    for s in ("solids", "panel")
]


def rows(model="sft", n=8, **columns):
    return [{"record_id": f"r{i}", "model": model, **columns} for i in range(n)]


def bars_of(figure):
    return [mark for mark in figure.data if mark.type == "bar"]


def words(figure) -> str:
    return json.dumps(figure.to_plotly_json(), default=list, ensure_ascii=False)


# --- what all share


def test_models_look_alike_everywhere_and_unlike_each_other():
    names = ("base", "instruct", "sft", "grpo", "sft_grpo", "teacher")
    looks = [style.style_of(name) for name in names]
    for part in ("color", "symbol", "dash"):
        assert len({getattr(look, part) for look in looks}) == len(names)
    assert style.PAPER_COLOR not in {look.color for look in looks}
    drawn = figures.accuracy_bars(ACCURACY)
    colors = [mark.marker.color for mark in bars_of(drawn)]
    assert colors == [style.style_of(m).color for m in ("instruct", "grpo")]
    along = figures.bars([{"model": "sft", "v": 1}, {"model": "grpo", "v": 2}], "model", "v")
    assert [(mark.marker.color, *mark.x) for mark in along.data] == [
        (style.style_of(m).color, style.style_of(m).label) for m in ("sft", "grpo")]


def test_a_figure_is_a_table_as_well(tmp_path):
    figure = figures.accuracy_bars(ACCURACY, "A title")
    assert repr(figure) == text_table(ACCURACY) and figure.layout.width <= 640
    assert figure.save(tmp_path / "accuracy") is figure
    assert text_table(tmp_path / "accuracy.csv") == repr(figure)
    long = figures.learning_curve([{"step": i, "reward": i} for i in range(100)])
    assert "One row in 3 of 100." in repr(long) and len(long.data[0].x) == 100
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
        figure._ipython_display_()
    assert shown[0]["text/plain"] == repr(figure)  # where plotly draws nothing


@pytest.mark.parametrize("draw", [
    lambda text: figures.bars([{"x": text, "y": 1, "g": text}], "x", "y", "g", text, text, text),
    lambda text: figures.learning_curve(
        [{"s": 1, "v": 2, "g": text}, {"s": 2, "v": 2, "g": "b"}], "s", "v", "g", text, text, text),
    lambda text: figures.bars([{"model": text, "v": 1, "n": text}], "model", "v", title=text,
                              note="n"),
    lambda text: figures.accuracy_bars([{"model": text, "accuracy": 1, "blank_accuracy": 0}], text),
])
def test_text_stays_text(draw):
    figure = draw(HOSTILE)
    said = words(figure)
    assert "<a href" not in said and "<b>" not in said and "<script" not in said
    assert "&lt;a href=" in said and "&lt;b&gt;y" in said  # plotly shows it as it was written
    page = figures.html(figure)
    assert len(page) < 30_000
    assert page.count("<script") == page.count("</script") and "alert(1)</script>" not in page


# --- lines and bars


def test_learning_curve_draws_a_line_a_run_and_skips_gaps(tmp_path):
    given = [{"step": s, "reward": r, "run": n} for n in ("grpo", "sft_grpo")
             for s, r in ((1, "0.1"), (2, ""), (3, "nan"), (4, 0.4))]
    figure = figures.learning_curve(given, "step", "reward", "run", "A title")
    assert [list(line.x) for line in figure.data] == [[1, 4], [1, 4]]
    assert [line.name for line in figure.data] == ["GRPO", "SFT+GRPO"]
    assert figure.layout.title.text == "A title"
    assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text
    (tmp_path / "a.csv").write_text("step,loss\n1,2.5\n2,\n", encoding="utf-8")
    figure = figures.learning_curve(tmp_path / "a.csv", "step", "loss")
    assert list(figure.data[0].y) == [2.5] and figure.layout.yaxis.rangemode == "nonnegative"


def test_many_lines_have_whiskers_few_have_bands():
    given = [{"n": n, "v": 0.5, "low": 0.4, "high": 0.6, "s": f"scorer {i}"}
             for i in range(9) for n in (1, 2)]
    many = figures.learning_curve(given, "n", "v", "s")
    assert len(many.data) == 9 and all(len(line.error_y.array) == 2 for line in many.data)
    looks = {(line.line.color, line.marker.symbol) for line in many.data}
    assert len(looks) == 9, "told apart"
    few = figures.learning_curve(given[:8], "n", "v", "s")
    assert [mark.fill for mark in few.data] == ["toself", None] * 4
    assert list(few.data[0].y) == [0.4, 0.4, 0.6, 0.6]
    assert figures.learning_curve([{"n": 0, "v": 1}], "n", "v").data[0].fill is None


def test_accuracy_bars_have_intervals_and_the_blank_twin():
    figure = figures.accuracy_bars(ACCURACY, "t")
    bars = bars_of(figure)
    assert [list(bar.y) for bar in bars] == [[0.4, 0.4], [0.6, 0.6]]
    assert bars[0].error_y.array == pytest.approx((0.1, 0.1))
    assert bars[0].error_y.arrayminus == pytest.approx((0.1, 0.1))
    blank = [mark for mark in figure.data if mark.type == "scatter"]
    assert [list(mark.y) for mark in blank] == [[0.2, 0.2]] * 2
    assert [mark.offsetgroup for mark in blank] == [bar.offsetgroup for bar in bars]
    assert [mark.showlegend for mark in blank] == [True, False]


def test_counts_add_up_sources_once():
    counted = (("solids", "5", "4"), ("panel", "5", "5"), ("all", "10", "9"))
    given = [{"step": "caption", "source": s, "in": i, "out": o} for s, i, o in counted]
    into, out = figures.counts(given).data
    assert list(into.y) == [10] and list(out.y) == [9]


# --- evaluation

CHANGE = [
    {"model": model, "baseline": "instruct", "benchmark": name, "change": change,
     "low": low, "high": high}
    for model, name, change, low, high in (
        ("sft", "micro-MathVista", -0.5, -0.75, -0.25), ("sft", "micro-WeMath", None, None, None),
        ("grpo", "micro-MathVista", 0.25, None, None), ("grpo", "micro-WeMath", 0.5, 0.0, 1.0),
    )
]
PAPER = [{"model": "sft", "named": "Qwen, SFT", "benchmark": "MathVista", "change": -0.336}]


def test_models_stand_in_lines_and_the_papers_under_them_in_grey():
    table = models.by_benchmark(CHANGE, PAPER, "change")
    assert table.rows == [
        {"model": "SFT, micro", "MathVista": "-50.0 [-75.0,-25.0]", "WeMath": "no value"},
        {"model": "GRPO, micro", "MathVista": "25.0 [unknown]", "WeMath": "50.0 [0.0,100.0]"},
        {"model": "paper: Qwen, SFT", "MathVista": "-33.6"},
    ]
    assert "paper: Qwen, SFT" in repr(table)  # the text twin
    *before, ours, paper = table._repr_html_().split("<tr")
    assert len(before) == 3 and "GRPO" in ours and "#767676" not in ours
    assert "#767676" in paper and "-33.6" in paper and paper.endswith("</table>")


def test_a_benchmark_of_the_field_is_not_called_micro():
    row = {"model": "m<b>", "benchmark": "LogicVista", "value": 0.5, "low": 0.4, "high": 0.6}
    table = models.by_benchmark([row])
    assert table.rows == [{"model": "m<b>", "LogicVista": "50.0 [40.0,60.0]"}]
    assert "<b>" not in table._repr_html_() and "#767676" not in table._repr_html_()


def test_bars_go_down_and_have_an_interval_where_it_is_known():
    drawn = bars_of(figures.bars(CHANGE, "benchmark", "change", "model"))
    assert [list(map(number, bar.y)) for bar in drawn] == [[-0.5, None], [0.25, 0.5]]
    assert list(drawn[0].error_y.array) == [0.25, 0] == list(drawn[0].error_y.arrayminus)
    assert list(drawn[1].error_y.array) == [0, 0.5]  # none where nobody knows it


# --- traces


def test_means_average_rollouts_of_a_record_before_records():
    given = [{"record_id": "a", "reward": 1.0}] * 9 + [{"record_id": "b", "reward": 0.0}]
    given.append({"record_id": "c", "reward": float("nan")})
    (found,) = models.means(given, (), "reward")
    assert found["reward"] == 0.5 and (found["n"], found["records"]) == (10, 2)
    assert (found["low"], found["high"]) == (0.0, 1.0)


def test_a_line_has_a_band_of_its_records():
    given = [
        {"record_id": f"r{i}", "model": model, "optimizer_step": step, "reward": (i + step) % 3 / 2}
        for model in ("grpo", "sft_grpo") for step in (0, 1, 2) for i in range(4)
    ]
    curve = models.means(given, ("model", "optimizer_step"), "reward")
    figure = figures.learning_curve(curve, "optimizer_step", "reward", "model", "Reward <b>rises")
    assert [mark.fill for mark in figure.data] == ["toself", None] * 2
    assert [list(mark.x) for mark in figure.data if not mark.fill] == [[0, 1, 2]] * 2
    assert figure.layout.title.text == "Reward &lt;b&gt;rises"
    first = figure.rows[0]
    assert first["reward"] == pytest.approx(sum(i % 3 / 2 for i in range(4)) / 4)
    assert first["low"] < first["reward"] < first["high"]


def test_what_is_counted_is_told_in_100_traces_of_each_model():
    given = [*rows("sft", 4, helped=1, hurt=0, unchanged=None), *rows("grpo", 2, helped=0, hurt=2)]
    found = models.per_hundred(given, ("helped", "hurt", "unchanged"), "second thought")
    assert {(r["model"], r["second thought"]): r["per 100 traces"] for r in found} == {
        ("sft", "helped"): 100, ("grpo", "helped"): 0, ("sft", "hurt"): 0, ("grpo", "hurt"): 200}
    assert [(r["n"], r["low"], r["high"]) for r in found[:2]] == [(4, 100, 100), (2, 0, 0)]


def test_means_by_model_leave_out_what_is_not_known_and_say_of_how_many():
    given = [*rows("sft", 3, false_share=0.5), *rows("sft", 2, false_share=None),
             *rows("grpo", 1, false_share=0.0)]
    shares = models.means(given, ("model",), "false_share")
    figure = figures.bars(shares, "model", "false_share", note="n")
    assert [(r["model"], r["false_share"], r["n"]) for r in figure.rows] == [
        ("sft", 0.5, 3), ("grpo", 0.0, 1)]
    assert [mark.x[0] for mark in figure.data] == ["SFT<br>of 3", "GRPO<br>of 1"]
    with pytest.raises(ValueError, match="no row has a number"):
        figures.bars([{"model": "sft", "false_share": None}], "model", "false_share")
    with pytest.raises(ValueError, match="no row has numbers in both"):
        figures.learning_curve(models.right_by_length(rows(words=None)), "words", "right")


def test_reward_by_truth_puts_many_false_steps_together():
    given = [row | {"reward": 1.0 / (1 + (k or 0))} for k in (5, 0, 3, None)
             for row in rows(n=2, false_steps=k)]
    found = models.reward_by_truth(given)
    assert [(r["false steps"], r["n"]) for r in found] == [("0", 2), ("3 or more", 4)]
    assert found[0]["reward"] == 1.0
    unchecked = [row | {"reward": 0.5, "checked_steps": k} for k in (0, 2)
                 for row in rows(n=2, false_steps=0)]
    found = [row["false steps"] for row in models.reward_by_truth(unchecked)]
    assert found == ["0", "none checked"], "a trace without a checkable step is no true one"


def test_right_by_length_cuts_into_equal_parts():
    given = [row | {"words": i, "correct": i >= 6} for i, row in enumerate(rows(n=8))]
    assert [(r["words"], r["right"]) for r in models.right_by_length(given)] == [
        (0.5, 0.0), (2.5, 0.0), (4.5, 0.0), (6.5, 1.0)]


# --- results of a run


def test_results_of_the_laptop_run_are_drawn():
    files = (ROOT / "data" / "results" / "laptop").glob("*.csv")
    drawn = {file.name: [figure for _title, figure in report.drawn(file)] for file in files}
    assert all(isinstance(figure, figures.Figure) for made in drawn.values() for figure in made)
    assert len(drawn["grpo_grpo.csv"]) == 3 and len(drawn["traces_truth.csv"]) == 1
    assert drawn["benchmarks.csv"] == []  # has no figure of its own
    assert {"aha.csv", "construct_counts.csv", "process_reward.csv"} <= drawn.keys()


def test_an_export_without_numbers_says_so(tmp_path):
    with pytest.raises(VlaaError, match="no traces_.*csv with numbers to draw"):
        report.export(tmp_path, pattern="traces_*.csv")


@pytest.mark.browser
def test_export_writes_svg(tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    monkeypatch.setenv("BROWSER_PATH", chromium.program())
    (tmp_path / "aha.csv").write_text(f"model,aha_rate\n{'<script>'},0.5\n", encoding="utf-8")
    (file,) = report.export(tmp_path)
    assert file.name == "aha.svg"
    drawing = ElementTree.fromstring(file.read_text(
        encoding="utf-8"))  # well-formed: no text became markup
    tags = {element.tag.rpartition("}")[2] for element in drawing.iter()}
    assert "script" not in tags and "<script>" in "".join(drawing.itertext())
