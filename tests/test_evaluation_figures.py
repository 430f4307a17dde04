"""Figures of an evaluation: they show the numbers given, the paper's in grey, text as text."""

from vlaa_lib.show import evaluation_figures as figs
from vlaa_lib.show.style import PAPER_COLOR

CHANGE = [
    {"model": model, "baseline": "instruct", "benchmark": name, "change": change,
     "low": low, "high": high}
    for model, name, change, low, high in (
        ("sft", "micro-MathVista", -0.5, -0.75, -0.25), ("sft", "micro-WeMath", None, None, None),
        ("grpo", "micro-MathVista", 0.25, None, None), ("grpo", "micro-WeMath", 0.5, 0.0, 1.0),
    )
]  # fmt: skip
PAPER = [{"model": "sft", "named": "Qwen, SFT", "benchmark": "MathVista", "change": -0.336}]


def test_models_stand_in_lines_and_the_papers_under_them_in_grey():
    table = figs.by_benchmark(CHANGE, PAPER, "change")
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
    table = figs.by_benchmark([row])
    assert table.rows == [{"model": "m<b>", "LogicVista": "50.0 [40.0,60.0]"}]
    assert "<b>" not in table._repr_html_() and "#767676" not in table._repr_html_()


def test_relative_change_has_bars_intervals_and_one_grey_series():
    figure = figs.relative_change(CHANGE, PAPER, "t")
    bars = [mark for mark in figure.data if mark.type == "bar"]
    assert [list(bar.y) for bar in bars] == [[-0.5, None], [0.25, 0.5]]
    assert [list(bar.x) for bar in bars] == [["MathVista", "WeMath"]] * 2
    assert list(bars[0].error_y.array) == [0.25, 0] == list(bars[0].error_y.arrayminus)
    assert list(bars[1].error_y.array) == [0, 0.5]  # none where nobody knows it
    (grey,) = [mark for mark in figure.data if mark.type == "scatter"]
    assert (grey.marker.color, list(grey.y), grey.showlegend) == (PAPER_COLOR, [-0.336], True)
    assert grey.offsetgroup == bars[0].offsetgroup != bars[1].offsetgroup
    assert "instruct" in figure.layout.yaxis.title.text and figure.layout.width <= 640


def test_a_difference_is_filled_where_its_interval_misses_zero():
    triples = ((-0.2, -0.3, -0.1), (0.1, -0.1, 0.3), (0.2, 0.1, 0.4))
    rows = [{"name": f"pair {i}", "difference": d, "low": low, "high": high}
            for i, (d, low, high) in enumerate(triples)]  # fmt: skip
    (dots,) = figs.differences(rows, "t").data
    assert list(dots.marker.symbol) == ["circle", "circle-open", "circle"]
    assert list(dots.x) == [-0.2, 0.1, 0.2] and list(dots.y) == ["pair 0", "pair 1", "pair 2"]
    assert round(dots.error_x.array[2], 9) == 0.2 and round(dots.error_x.arrayminus[2], 9) == 0.1


def test_flips_are_counted_up_and_down():
    rows = [{"benchmark": name, "gained": gained}
            for name, gained in (("micro-A", True), ("micro-A", True), ("micro-B", False))]
    gained, lost = figs.flips(rows, "instruct", "grpo").data
    assert (list(gained.x), list(gained.y)) == (["A", "B"], [2, 0])
    assert (list(lost.y), gained.name, lost.name) == (
        [0, -1], "only GRPO right", "only instruct right",
    )  # fmt: skip
    assert list(gained.text) == ["2", ""]
    empty = figs.flips([], "instruct", "grpo", ["micro-A"])  # a benchmark without a flip is shown
    assert [(list(bar.x), list(bar.y)) for bar in empty.data] == [(["A"], [0])] * 2
