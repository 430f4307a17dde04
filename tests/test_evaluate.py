"""Evaluation: extraction paths, correctness, intervals, the summary table."""

import pytest

from vlaa_lib import evaluate
from vlaa_lib.pocket import microworld
from vlaa_lib.prompts import join_think_answer


@pytest.mark.parametrize(
    ("text", "answer", "path"),
    [
        (join_think_answer("2 + 1", " 3 "), "3", "tags"),
        ("3", "3", "plain"),
        ("  the answer is B ", "the answer is B", "plain"),
        ("<think>2 + 1</think>", "", "malformed"),
        ("<answer>3</answer>", "", "malformed"),
        ("<THINK>a</THINK><ANSWER>3</ANSWER>", "", "malformed"),
        ("", "", "plain"),
    ],
)
def test_extract_answer(text, answer, path):
    assert evaluate.extract_answer(text) == (answer, path)


def test_correct_counts_direct_answers_that_the_strict_reward_refuses():
    record = next(
        r
        for i in range(50)
        if (r := microworld.generate("solids", "test", i).record).solution not in ("7", "0")
    )
    texts = [record.solution, join_think_answer("x", record.solution), "7", ""]
    rows = evaluate.score_rows([record] * 4, texts, model="m", blank=False)
    assert [row["correct"] for row in rows] == [True, True, False, False]
    assert [row["reward"] for row in rows] == [0.0, 1.0, 0.0, 0.0]
    assert all(row["reason"] for row in rows)


def test_boxes_are_correct_from_one_half():
    record = microworld.generate("locate", "test", 0).record
    far = "[0.00, 0.00, 0.01, 0.01]"
    rows = evaluate.score_rows([record] * 2, [record.solution, far], model="m", blank=False)
    assert [row["correct"] for row in rows] == [True, False]


def test_bootstrap_covers_the_mean_and_shrinks_with_rows():
    few, many = [0.0, 1.0] * 10, [0.0, 1.0] * 1000
    low, high = evaluate.bootstrap(few)
    assert low < 0.5 < high
    tight = evaluate.bootstrap(many)
    assert tight[1] - tight[0] < (high - low) / 3
    assert evaluate.bootstrap(few) == (low, high)  # same seed, same interval


def test_summary_sets_each_score_beside_its_blank_twin():
    def row(source, correct, blank):
        return {
            "model": "m",
            "source": source,
            "correct": correct,
            "blank": blank,
            "reward": float(correct),
            "path": "tags",
        }

    rows = [
        row("a", True, False),
        row("a", False, False),
        row("b", True, False),
        row("a", False, True),
        row("b", True, True),
    ]
    by_source = {r["source"]: r for r in evaluate.summary(rows, resamples=50)}
    assert by_source["a"]["accuracy"] == 0.5 and by_source["a"]["blank_accuracy"] == 0.0
    assert by_source["all"]["n"] == 3 and by_source["all"]["accuracy"] == pytest.approx(2 / 3)
    assert by_source["all"]["blank_accuracy"] == 0.5
