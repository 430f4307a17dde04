"""Micro-ProcessBench: who finds the first false step."""

import math
import random

import pytest

from vlaa_lib.__main__ import main
from vlaa_lib.process import first_error, scorers

NAN = math.nan


def solutions(n: int, seed: int = 0) -> dict:
    rng = random.Random(seed)
    return {("g", f"q{i // 4}", i % 4): [float(rng.random() < 0.8) for _ in range(4)]
            for i in range(n)}  # fmt: skip


def test_a_perfect_scorer_finds_all_and_a_blind_one_none():
    truth = solutions(80)
    noisy = {key: [0.3 + 0.4 * t for t in steps] for key, steps in truth.items()}
    blind = {key: [0.5] * 4 for key in truth}
    table = first_error.table({"noisy": noisy, "blind": blind}, truth)
    rows = {row["scorer"]: row for row in table}
    wrong = sum(0.0 in steps for steps in truth.values())
    assert (rows["noisy"]["wrong"], rows["noisy"]["right"]) == (wrong, 80 - wrong)
    assert rows["noisy"]["found"] == rows["noisy"]["spared"] == rows["noisy"]["f1"] == 1.0
    assert rows["blind"]["f1"] == 0.0


def test_finding_every_error_is_worth_nothing_where_every_step_is_named():
    truth = {("g", "a", 0): [1.0, 0.0], ("g", "a", 1): [1.0, 1.0], ("g", "b", 0): [1.0, 0.0],
             ("g", "b", 1): [NAN, 1.0]}  # fmt: skip
    late = {key: [0.9, 0.1] for key in truth}  # names each second step
    (row,) = first_error.table({"late": late}, truth)
    assert row["f1"] == 0.0


def test_the_threshold_is_chosen_on_other_questions_and_generators_stand_apart():
    truth = {(name, f"q{i}", 0): [1.0, float(i % 3 > 0)]
             for name in ("one", "two") for i in range(12)}  # fmt: skip
    scores = {(name, q, s): [0.9, (0.8 if steps[1] else 0.1) if name == "one" else 0.5]
              for (name, q, s), steps in truth.items()}  # fmt: skip
    one, two = first_error.table({"s": scores}, truth)
    assert (one["generator"], two["generator"]) == ("one", "two")
    assert one["f1"] == 1.0 and two["f1"] == 0.0
    # ten times as large: the same, since no scale is asked for
    larger = {key: [10 * value for value in steps] for key, steps in scores.items()}
    assert first_error.table({"s": larger}, truth) == [one, two]


def test_files_that_do_not_go_together_are_named(tmp_path, capsys):
    truth = solutions(8)
    scorers.write(tmp_path / "truth.jsonl", "truth", truth)
    scorers.write(tmp_path / "some.jsonl", "some", dict(list(truth.items())[:3]))
    both = [(tmp_path / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("truth", "some")]
    (tmp_path / "two.jsonl").write_text("".join(both), encoding="utf-8")
    words = ["process", "first-error", "--out", str(tmp_path / "out.csv")]
    for exact, scored, said in (
        ("two", "truth", "scores by truth, some; give the truth alone"),
        ("truth", "some", "not in the scores; score the whole pool first"),
    ):
        files = ["--truth", f"{tmp_path}/{exact}.jsonl", "--scores", f"{tmp_path}/{scored}.jsonl"]
        assert main([*words, *files]) == 2
        assert said in capsys.readouterr().err
    files = ["--truth", f"{tmp_path}/truth.jsonl", "--scores", f"{tmp_path}/truth.jsonl"]
    assert main([*words, *files]) == 0 and (tmp_path / "out.csv").is_file()


@pytest.mark.parametrize(("truth", "place"), [
    ([1.0, 0.0, 0.0], 1), ([1.0, 0.5], 1), ([NAN, 1.0], None), ([], None), ([0.0], 0),
])  # fmt: skip
def test_the_first_step_that_is_not_wholly_true(truth, place):
    assert first_error.first_below(truth, first_error.TRUE) == place
