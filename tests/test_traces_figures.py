"""Figures of traces: the numbers behind them, their intervals, and SVG that holds no markup."""

import xml.etree.ElementTree as ET

import pytest

from vlaa_lib import traces
from vlaa_lib.show import style, svg
from vlaa_lib.show import trace_figures as figures


def rows(model="sft", n=8, **columns):
    return [{"record_id": f"r{i}", "model": model, **columns} for i in range(n)]


def drawn(figure):
    root = ET.fromstring(figure.svg)
    tags = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert "script" not in tags and "href" not in figure.svg
    return tags, " ".join(text for text in root.itertext() if text)


def test_means_average_rollouts_of_a_record_before_records():
    given = [{"record_id": "a", "reward": 1.0}] * 9 + [{"record_id": "b", "reward": 0.0}]
    (found,) = figures.means([*given, {"record_id": "c", "reward": float("nan")}], (), "reward")
    assert found["reward"] == 0.5 and (found["n"], found["records"]) == (10, 2)
    assert (found["low"], found["high"]) == (0.0, 1.0)


def test_training_draws_reward_and_length_with_bands():
    given = [
        {"record_id": f"r{i}", "model": model, "optimizer_step": step, "reward": (i + step) % 3 / 2,
         "completion_tokens": 10 * step + i}
        for model in ("grpo", "sft_grpo") for step in (2, 0, 1) for i in range(4)
    ]  # fmt: skip
    figure = figures.training(given, "Reward <b>rises</b>")
    tags, text = drawn(figure)
    assert tags.count("polyline") == 4 and "Reward <b>rises</b>" in text
    bands = [e for e in ET.fromstring(figure.svg).iter() if "fill-opacity" in e.attrib]
    assert len(bands) == 4
    first = figure.rows[0]
    assert (first["measure"], first["optimizer_step"]) == ("mean reward", 0)
    assert first["mean"] == pytest.approx(sum(i % 3 / 2 for i in range(4)) / 4)
    assert first["low"] < first["mean"] < first["high"]
    assert "tokens a completion" in repr(figure) and text.count("SFT+GRPO") == 2


def test_the_aha_map_counts_per_hundred_traces():
    silent = {"alternatively": 0, "double-check": 0, "i should check": 0, "wait": 0}
    loud = silent | {"wait": 2}
    figure = figures.aha_map([*rows("sft", **loud), *rows("grpo", 4, **silent)])
    tags, text = drawn(figure)
    assert tags.count("rect") == 1 + 8 and "200 (200 to 200)" in text
    (cell,) = [r for r in figure.rows if r["model"] == "sft" and r["phrase"] == "wait"]
    assert cell["per 100 traces"] == 200 and cell["n"] == 8


def test_hesitation_and_truth_by_model_leave_out_what_is_not_known():
    given = [*rows("sft", false_share=0.5), *rows("grpo", 2, false_share=None),
             *rows("grpo", 3, false_share=0.0)]  # fmt: skip
    figure = figures.by_model(given)
    assert [(r["model"], r["false_share"], r["n"]) for r in figure.rows] == [
        ("sft", 0.5, 8), ("grpo", 0.0, 3)]  # fmt: skip
    with pytest.raises(ValueError, match="no row has a number"):
        figures.by_model(rows(false_share=None))


def test_reward_by_truth_puts_many_false_steps_together():
    given = [row | {"reward": 1.0 / (1 + (k or 0))} for k in (5, 0, 3, None)
             for row in rows(n=2, false_steps=k)]  # fmt: skip
    figure = figures.reward_by_truth(given)
    found = [(r["false steps"], r["n"]) for r in figure.rows]
    assert found == [("0", 2), ("3 or more", 4)]
    assert figure.rows[0]["reward"] == 1.0
    drawn(figure)


def test_a_trace_without_a_checkable_step_is_no_true_one():
    given = [row | {"reward": 0.5, "checked_steps": k} for k in (0, 2)
             for row in rows(n=2, false_steps=0)]  # fmt: skip
    found = [row["false steps"] for row in figures.reward_by_truth(given).rows]
    assert found == ["0", "none checked"]


def test_step_truth_says_below_each_bar_of_how_many_steps_it_is():
    given = [*rows("sft", 3, false_share=0.5, checked_steps=4),
             *rows("sft", 2, false_share=None, checked_steps=0),
             *rows("grpo", 1, false_share=0.0, checked_steps=7)]  # fmt: skip
    _, text = drawn(figures.by_model(given))
    assert "12 steps" in text and "7 steps" in text and "SFT" in text
    _, text = drawn(figures.by_model(rows("sft", 3, hesitation=0.5), "hesitation"))
    assert "3 traces" in text


def test_second_thoughts_are_counted_by_outcome_and_model():
    given = [*rows("sft", 4, helped=1, hurt=0, unchanged=None), *rows("grpo", 2, helped=0, hurt=2)]
    figure = figures.self_correction(given)
    found = {(r["model"], r["second thought"]): r["per 100 traces"] for r in figure.rows}
    assert found == {("sft", "helped"): 100, ("grpo", "helped"): 0, ("sft", "hurt"): 0,
                     ("grpo", "hurt"): 200}  # fmt: skip
    assert "helped" in drawn(figure)[1]


def test_the_papers_counts_stand_below_in_grey():
    given = rows("sft", **dict.fromkeys(traces.FIGURE7_PHRASES, 1))
    paper = {"columns": ["theirs"], **{key: [7] for key in traces.FIGURE7_PHRASES}}
    figure = figures.aha_map(given, "Ours", paper)
    tags, text = drawn(figure)
    assert "theirs" in text and "paper" in text and tags.count("rect") == 2 * (1 + 4)
    assert figure.svg.count(f'fill="{style.PAPER_COLOR}"') == 4
    assert all(row["model"] == "sft" for row in figure.rows), "the paper's are no numbers of ours"


def test_a_saved_drawing_lies_beside_its_numbers(tmp_path):
    figure = figures.by_model(rows("sft", 3, hesitation=0.5), "hesitation")
    assert figure.save(tmp_path / "hesitation") is figure
    assert (tmp_path / "hesitation.svg").read_text().strip() == figure.svg
    (row,) = style.read(tmp_path / "hesitation.csv")
    assert (row["model"], float(row["hesitation"]), row["n"]) == ("sft", 0.5, "3")


def test_length_and_right_cuts_into_equal_parts():
    given = [row | {"record_id": f"r{i}", "words": i, "correct": i >= 6}
             for i, row in enumerate(rows(n=8))]  # fmt: skip
    figure = figures.length_and_right(given)
    assert [(r["words"], r["right"]) for r in figure.rows] == [
        (0.5, 0.0), (2.5, 0.0), (4.5, 0.0), (6.5, 1.0)]  # fmt: skip
    drawn(figure)


def test_a_hostile_model_name_stays_text():
    name = '<script>alert(1)</script>" onload="x'
    tags, text = drawn(figures.by_model(rows(name, hesitation=1.0), "hesitation"))
    assert name in text and "onload" not in "".join(tags)


def test_lines_without_intervals_have_no_band():
    assert "fill-opacity" not in svg.lines([{"x": 0, "y": 1}, {"x": 1, "y": 2}], "x", "y")
