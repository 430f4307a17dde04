"""Figures: they show the numbers given, in one look, the paper's in grey, text as text."""

import json
import sys
from xml.etree import ElementTree

import pytest

import chromium
from vlaa_lib import ROOT, VlaaError, traces
from vlaa_lib.show import figures, results, style
from vlaa_lib.show import model_figures as models
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
    lambda text: models.by_model(rows(text, hesitation=1.0), "hesitation", text),
    lambda text: models.false_steps(
        [{"source": text, "noise": 1, "false_all": 0.5, "false_verified": 0.2}], text),
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
    (tmp_path / "a.csv").write_text("step,loss\n1,2.5\n2,\n")
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


def test_relative_change_has_bars_intervals_and_one_grey_series():
    figure = models.relative_change(CHANGE, PAPER, "t")
    bars = bars_of(figure)
    assert [list(map(number, bar.y)) for bar in bars] == [[-0.5, None], [0.25, 0.5]]
    assert [list(bar.x) for bar in bars] == [["MathVista", "WeMath"]] * 2
    assert list(bars[0].error_y.array) == [0.25, 0] == list(bars[0].error_y.arrayminus)
    assert list(bars[1].error_y.array) == [0, 0.5]  # none where nobody knows it
    (grey,) = [mark for mark in figure.data if mark.type == "scatter"]
    assert (grey.marker.color, list(grey.y), grey.showlegend) == (style.PAPER_COLOR, [-0.336], True)
    assert grey.offsetgroup == bars[0].offsetgroup != bars[1].offsetgroup
    assert "instruct" in figure.layout.yaxis.title.text and figure.layout.width <= 640


def test_a_difference_is_filled_where_its_interval_misses_zero():
    triples = ((-0.2, -0.3, -0.1), (0.1, -0.1, 0.3), (0.2, 0.1, 0.4))
    rows = [{"name": f"pair {i}", "difference": d, "low": low, "high": high}
            for i, (d, low, high) in enumerate(triples)]
    (dots,) = models.differences(rows, "t").data
    assert list(dots.marker.symbol) == ["circle", "circle-open", "circle"]
    assert list(dots.x) == [-0.2, 0.1, 0.2] and list(dots.y) == ["pair 0", "pair 1", "pair 2"]
    assert round(dots.error_x.array[2], 9) == 0.2 and round(dots.error_x.arrayminus[2], 9) == 0.1


def test_flips_are_counted_up_and_down():
    rows = [{"benchmark": name, "gained": gained}
            for name, gained in (("micro-A", True), ("micro-A", True), ("micro-B", False))]
    gained, lost = models.flips(rows, "instruct", "grpo").data
    assert (list(gained.x), list(gained.y)) == (["A", "B"], [2, 0])
    assert (list(lost.y), gained.name, lost.name) == (
        [0, -1], "only GRPO right", "only instruct right",
    )
    assert list(gained.text) == ["2", ""]
    empty = models.flips([], "instruct", "grpo", ["micro-A"])
    assert [(list(bar.x), list(bar.y)) for bar in empty.data] == [(["A"], [0])] * 2, "it is shown"


# --- traces


def test_means_average_rollouts_of_a_record_before_records():
    given = [{"record_id": "a", "reward": 1.0}] * 9 + [{"record_id": "b", "reward": 0.0}]
    given.append({"record_id": "c", "reward": float("nan")})
    (found,) = models.means(given, (), "reward")
    assert found["reward"] == 0.5 and (found["n"], found["records"]) == (10, 2)
    assert (found["low"], found["high"]) == (0.0, 1.0)


def test_training_draws_reward_and_length_with_bands():
    given = [
        {"record_id": f"r{i}", "model": model, "optimizer_step": step, "reward": (i + step) % 3 / 2,
         "completion_tokens": 10 * step + i}
        for model in ("grpo", "sft_grpo") for step in (2, 0, 1) for i in range(4)
    ]
    figure = models.training(given, "Reward <b>rises</b>")
    assert [mark.yaxis for mark in figure.data] == ["y"] * 4 + ["y2"] * 4
    assert [mark.fill for mark in figure.data] == ["toself", None] * 4
    assert [list(mark.x) for mark in figure.data if not mark.fill] == [[0, 1, 2]] * 4
    assert figure.layout.title.text == "Reward &lt;b&gt;rises&lt;/b&gt;"
    first = figure.rows[0]
    assert (first["measure"], first["optimizer_step"]) == ("mean reward", 0)
    assert first["mean"] == pytest.approx(sum(i % 3 / 2 for i in range(4)) / 4)
    assert first["low"] < first["mean"] < first["high"]
    named = [mark.name for mark in figure.data if mark.showlegend is not False]
    assert "tokens a completion" in repr(figure) and named == ["GRPO", "SFT+GRPO"]


def test_the_aha_map_counts_per_hundred_traces_above_the_papers_in_grey():
    silent = dict.fromkeys(traces.FIGURE7_PHRASES, 0)
    given = [*rows("sft", **silent | {"wait": 2}), *rows("grpo", 4, **silent)]
    paper = {"columns": ["theirs"], **{key: [7] for key in traces.FIGURE7_PHRASES}}
    ours, theirs = models.aha_map(given, "Ours", paper).data
    assert len(ours.z) == 8 and "200<br>(200 to 200)" in list(ours.text)
    assert theirs.colorscale[-1][1] == style.PAPER_COLOR and list(theirs.z) == [7] * 4
    assert set(theirs.y) == {"paper: theirs"}
    figure = models.aha_map(given)
    (cell,) = [r for r in figure.rows if r["model"] == "sft" and r["phrase"] == "wait"]
    assert (cell["per 100 traces"], cell["n"], len(figure.data)) == (200, 8, 1)


def test_means_by_model_leave_out_what_is_not_known_and_say_of_how_many():
    given = [*rows("sft", 3, false_share=0.5, checked_steps=4),
             *rows("sft", 2, false_share=None, checked_steps=0),
             *rows("grpo", 1, false_share=0.0, checked_steps=7)]
    figure = models.by_model(given)
    assert [(r["model"], r["false_share"], r["n"]) for r in figure.rows] == [
        ("sft", 0.5, 3), ("grpo", 0.0, 1)]
    assert [mark.x[0] for mark in figure.data] == ["SFT<br>12 steps", "GRPO<br>7 steps"]
    figure = models.by_model(rows("sft", 3, hesitation=0.5), "hesitation")
    assert figure.data[0].x[0] == "SFT<br>3 traces"
    with pytest.raises(ValueError, match="no row has a number"):
        models.by_model(rows(false_share=None))
    with pytest.raises(ValueError, match="no row has numbers in both"):
        models.length_and_right(rows(words=None))


def test_reward_by_truth_puts_many_false_steps_together():
    given = [row | {"reward": 1.0 / (1 + (k or 0))} for k in (5, 0, 3, None)
             for row in rows(n=2, false_steps=k)]
    figure = models.reward_by_truth(given)
    assert [(r["false steps"], r["n"]) for r in figure.rows] == [("0", 2), ("3 or more", 4)]
    assert figure.rows[0]["reward"] == 1.0 and list(figure.data[0].x) == ["0", "3 or more"]
    unchecked = [row | {"reward": 0.5, "checked_steps": k} for k in (0, 2)
                 for row in rows(n=2, false_steps=0)]
    found = [row["false steps"] for row in models.reward_by_truth(unchecked).rows]
    assert found == ["0", "none checked"], "a trace without a checkable step is no true one"


def test_second_thoughts_are_counted_by_outcome_and_model():
    given = [*rows("sft", 4, helped=1, hurt=0, unchanged=None), *rows("grpo", 2, helped=0, hurt=2)]
    figure = models.self_correction(given)
    found = {(r["model"], r["second thought"]): r["per 100 traces"] for r in figure.rows}
    assert found == {("sft", "helped"): 100, ("grpo", "helped"): 0, ("sft", "hurt"): 0,
                     ("grpo", "hurt"): 200}
    assert [list(mark.x) for mark in figure.data] == [["helped", "hurt"]] * 2


def test_length_and_right_cuts_into_equal_parts():
    given = [row | {"words": i, "correct": i >= 6} for i, row in enumerate(rows(n=8))]
    figure = models.length_and_right(given)
    assert [(r["words"], r["right"]) for r in figure.rows] == [
        (0.5, 0.0), (2.5, 0.0), (4.5, 0.0), (6.5, 1.0)]


# --- results of a run


def test_a_figure_is_drawn_again_from_the_csv_that_it_saved(tmp_path):
    given = rows("sft", 3, hesitation=0.5, false_share=0.5, checked_steps=2, words=3, reward=1.0,
                 false_steps=1, helped=1, hurt=0, unchanged=0, optimizer_step=1, follows=True,
                 completion_tokens=5, **dict.fromkeys(traces.FIGURE7_PHRASES, 1))
    made = {
        "traces_training": models.training(given),
        "traces_aha": models.aha_map(given),
        "traces_hesitation": models.by_model(given, "hesitation"),
        "traces_truth": models.by_model(given),
        "traces_follows": models.by_model(given, "follows"),
        "traces_reward_by_truth": models.reward_by_truth(given),
        "traces_length": models.length_and_right(given),
        "traces_second_thoughts": models.self_correction(given),
    }
    assert set(made) == {name[:-4] for name in results.RESULTS if name.startswith("traces_")}
    for name, figure in made.items():
        figure.save(tmp_path / name)
        ((title, again),) = results.drawn(tmp_path / f"{name}.csv")
        assert again.layout.title.text == title
        again.layout.title = figure.layout.title
        assert words(again) == words(figure)


def test_results_of_the_laptop_run_are_drawn():
    drawn = {file.name: [figure for _title, figure in results.drawn(file)]
             for file in (ROOT / "data" / "results" / "laptop").glob("*.csv")}
    assert all(isinstance(figure, figures.Figure) for made in drawn.values() for figure in made)
    assert len(drawn["grpo_grpo.csv"]) == 3 and len(drawn["traces_truth.csv"]) == 1
    assert drawn["benchmarks.csv"] == []  # has no figure of its own


def test_an_export_without_numbers_or_kaleido_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    with pytest.raises(VlaaError, match="no traces_.*csv with numbers to draw"):
        results.export(tmp_path, pattern="traces_*.csv")
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(VlaaError, match=r"pip install .*figures.*BROWSER_PATH"):
        results.export(tmp_path)


@pytest.mark.browser
def test_export_writes_svg(tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    monkeypatch.setenv("BROWSER_PATH", chromium.program())
    (tmp_path / "aha.csv").write_text(f"model,aha_rate,false_share\n{'<script>'},0.5,\n")
    (file,) = results.export(tmp_path)
    assert file.name == "aha.svg"
    drawing = ElementTree.fromstring(file.read_text())  # well-formed: no text became markup
    tags = {element.tag.rpartition("}")[2] for element in drawing.iter()}
    assert "script" not in tags and "<script>" in "".join(drawing.itertext())
