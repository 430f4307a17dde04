"""Best-of-N: the table, the filter and its selection bias, the released files, the figures."""

import json
import math

import pytest

from test_process import pool_of
from vlaa_lib import ROOT, folders
from vlaa_lib.process import aggregate, best_of_n, filter, released
from vlaa_lib.records import RecordError
from vlaa_lib.show import process_figures

PAPER = process_figures.paper()
NAN = math.nan


# --- best of N ------------------------------------------------------------------------------------


def scored(pool, **values):
    """Give each candidate one step; values by question."""
    return {
        (pool.generator, i, row["sample"]): [score]
        for i, found in values.items()
        for row, score in zip(pool.candidates[i], found, strict=True)
    }


def pick(rows, **wanted):
    (row,) = [row for row in rows if all(row[k] == v for k, v in wanted.items())]
    return row


def test_the_table_by_hand():
    pool = pool_of(a="0" "1100", b="1" "0001", c="0" "00", d="1")
    scores = scored(pool, a=[0.5, NAN, 0.5, 0.2], b=[0.1, 0.2, 0.3, 0.9], c=[NAN, NAN], d=[])
    rows = best_of_n.table([pool], {"s": scores}, (2, 4, 8), {"mean": aggregate.mean}, 50)
    assert {row["n"] for row in rows} == {2, 4}  # nobody reaches 8
    four = pick(rows, n=4, scorer="s")
    assert four["questions"] == 4 and four["accuracy"] == (0.5 + 1 + 0 + 0) / 4
    assert (four["tie_rate"], four["mixed_tie_rate"]) == (0.5, 0.25)  # a and c; a
    assert (four["unscored"], four["unscored_steps"]) == (3, 3)
    assert (four["short"], four["empty"], four["no_correct"]) == (1, 1, 2)
    random = (0.5 + 0.25 + 0 + 0) / 4
    assert pick(rows, n=4, scorer="random")["accuracy"] == random
    assert four["over_random"] == pytest.approx(four["accuracy"] - random)
    assert four["over_greedy"] == pytest.approx(four["accuracy"] - 0.5)
    assert four["low"] <= four["accuracy"] <= four["high"] <= 1
    assert pick(rows, n=4, scorer="oracle")["accuracy"] == 0.5
    assert pick(rows, n=2, scorer="s")["accuracy"] == 0.25  # a: only its first is scored


def test_the_difference_is_paired():
    pool = pool_of(**{f"q{i}": "0" + ("10" if i % 2 else "00") for i in range(20)})
    better = scored(pool, **{i: [1.0, 0.0] for i in pool.candidates})
    worse = scored(pool, **{i: [0.0, 1.0] for i in pool.candidates})
    given = [pool], {"better": better, "worse": worse}, (2,), {"mean": aggregate.mean}
    row = pick(best_of_n.table(*given, against=("worse",)), scorer="better")
    assert row["over_worse"] == 0.5
    # as good as the oracle on every question: no doubt about that, whatever the questions are
    row = pick(best_of_n.table(*given, against=("oracle",)), scorer="better")
    assert (row["over_oracle"], row["over_oracle_low"], row["over_oracle_high"]) == (0, 0, 0)
    assert row["low"] < row["high"]


def test_averages_are_over_a_fixed_set_of_generators():
    one, two = pool_of("one", a="11000", b="00000", z="01111"), pool_of("two", a="001", b="111")
    rows = best_of_n.table([one, two], {}, (2, 4))
    average = pick(rows, generator="average", scorer="random", n=2)
    assert average["questions"] == 2 and average["accuracy"] == ((0.5 + 0.5) / 2 + (0 + 1) / 2) / 2
    assert {row["n"] for row in rows if row["generator"] == "average"} == {2}
    assert {row["n"] for row in rows if row["generator"] == "one"} == {2, 4}
    for wrong in ([], [one, one], [pool_of("average", a="11")]):
        with pytest.raises(ValueError, match="one pool of each generator"):
            best_of_n.table(wrong, {})


def test_a_candidate_that_was_never_scored_is_an_error():
    pool = pool_of(a="011")
    with pytest.raises(ValueError, match="score the whole pool first"):
        best_of_n.table([pool], {"s": {}}, (2,))
    scores = scored(pool, a=[1.0, 0.0])
    with pytest.raises(ValueError, match="scored in two places"):
        best_of_n.merged([{"s": scores}, {"s": scores}])
    assert best_of_n.merged([{"s": scores}, {"t": scores}]).keys() == {"s", "t"}


# --- filter ---------------------------------------------------------------------------------------


def prm_or_orm(pool, **likes_prm):
    """Score the right candidate highest by mean, or by the last step, or by both."""
    steps_of = {
        "prm": {True: [1.0, 0.5], False: [0.0, 0.9]},
        "orm": {True: [0.0, 0.9], False: [1.0, 0.5]},
        "both": {True: [1.0, 1.0], False: [0.0, 0.0]},
    }
    return {
        (pool.generator, i, row["sample"]): steps_of[kind][row["correct"]]
        for i, kind in likes_prm.items()
        for row in pool.candidates[i]
    }


def test_the_indicator_and_top_k_by_hand():
    pool = pool_of(a="010", b="010", c="010", d="0")
    likes = prm_or_orm(pool, a="prm", b="orm", c="both")
    found = filter.preference([pool], {"s": likes})
    assert found == {"a": 1.0, "b": -1.0, "c": 0.0}  # d has no candidate
    other = prm_or_orm(pool, a="both", b="orm", c="prm")
    assert filter.preference([pool], {"s": likes, "t": other})["a"] == 0.5
    sources = dict.fromkeys("abc", "x")
    kept, rows = filter.top_k(found, sources, {"x": 2, "y": 1})
    assert kept == ["a", "c"]
    assert rows[0] == {"source": "x", "asked": 2, "there": 3, "kept": 2, "not_above_0": 1}
    assert rows[1]["there"] == rows[1]["kept"] == 0
    ties = dict.fromkeys(map(str, range(50)), 0.0)
    of_x = dict.fromkeys(ties, "x")
    chosen = [filter.top_k(ties, of_x, {"x": 25}, seed)[0] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert sum(filter.QUOTAS.values()) == 600
    assert {k: v[0] for k, v in PAPER["vilbench_sources"].items()} == filter.QUOTAS


def test_what_was_chosen_by_luck_is_lost_on_other_candidates():
    import random

    rng = random.Random(2)
    pool = pool_of(**{f"q{i}": "0" + "".join(rng.choices("01", k=8)) for i in range(200)})
    noise = {
        ("g", i, row["sample"]): [rng.random(), rng.random()]
        for i, found in pool.candidates.items() for row in found
    }  # fmt: skip
    sources = dict.fromkeys(pool.candidates, "x")
    rows = filter.selection_bias([pool], {"s": noise}, sources, {"x": 40})
    same, disjoint = (pick(rows, questions="chosen", measured_on=m) for m in ("same", "disjoint"))
    assert same["n"] == disjoint["n"] == 40 and same["low"] > 0.4 > disjoint["high"]
    assert disjoint["low"] <= 0 <= disjoint["high"]
    everything = pick(rows, questions="all", measured_on="same")
    assert everything["n"] == 200 and everything["low"] <= 0 <= everything["high"]


def test_the_choice_and_the_measurement_share_nothing():
    pool = pool_of(a="0101", b="0110")
    even, odd = pool.halves()
    filter.check_disjoint(([even], ["s"]), ([odd], ["t"]))
    with pytest.raises(ValueError, match="scorer 's' chose the questions"):
        filter.check_disjoint(([even], ["s"]), ([odd], ["s"]))
    with pytest.raises(ValueError, match=r"\('g', 'a', 0\) is in both pools"):
        filter.check_disjoint(([even], ["s"]), ([pool], ["t"]))
    noise = scored(pool, a=[0.1, 0.2, 0.3], b=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="measure with another"):
        filter.selection_bias([pool], {"s": noise}, {}, {}, held_out={"s": noise})


# --- released files -------------------------------------------------------------------------------

ROW = {"index": 7, "image_path": "a/b.png", "question": "Q?", "process": "Step 1: x", "value": 0.2}


@pytest.mark.parametrize("is_array", [True, False])
def test_vilreward_rows_are_read(tmp_path, is_array):
    rows = [ROW, ROW | {"value": 1, "process": "Step 1: y"}]
    text = json.dumps(rows) if is_array else "\n".join(map(json.dumps, rows))
    (tmp_path / "r.json").write_text(text)
    found = released.read_processes(tmp_path / "r.json")
    assert found.rejects == [] and [p.value for p in found.rows] == [0.2, 1.0]
    assert found.rows[0] == released.Process("7", "a/b.png", "Q?", "Step 1: x", 0.2)
    found = released.read_processes(tmp_path / "r.json", tmp_path)
    assert not found.rows and "not below" in found.rejects[1].reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": NAN}, "value nan is not between 0 and 1"),
        ({"value": 1.01}, "not between"), ({"value": "0.5"}, "expected a number"),
        ({"value": True}, "expected a number"), ({"value": None}, "'value' is missing"),
        ({"process": ["a"]}, "'process' is list, expected text"), ({"process": ""}, "missing"),
        ({"process": "\ud800"}, "lone surrogate"), ({"index": 1.5}, "'index' is float"),
        ({"image_path": "../x.png"}, "leaves the image root"), ({"question": "  "}, "'question'"),
    ],
)  # fmt: skip
def test_bad_vilreward_rows_are_rejected_with_reasons(tmp_path, change, said):
    (tmp_path / "r.json").write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW | change)}\n[]\n{{")
    found = released.read_processes(tmp_path / "r.json")
    assert len(found.rows) == 1 and [r.line for r in found.rejects] == [2, 3, 4]
    assert said in found.rejects[0].reason and str(found.rejects[1]).startswith("r.json:3: ")


def test_vilbench_questions_become_records(tmp_path):
    asked = {"id": "1", "image_path": "a.png", "question": "How many?", "answer": 3, "source": "x"}
    choice = "Which?\nChoices:\nA: 1\nB: 2"
    rows = [
        asked, asked | {"id": "2", "question": choice, "answer": "B"},
        asked | {"id": "3", "answer": "\\frac{1}{2}"}, asked,
        asked | {"id": "4", "question": choice, "answer": "7"}, {"id": "5", "image": "a.png"},
    ]  # fmt: skip
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = released.read_benchmark(tmp_path / "b.jsonl")
    assert [r.reward for r in found.records] == ["digit", "mcq", "math"]
    assert [(r.line, r.id) for r in found.rejects] == [(4, "1"), (5, "4"), (6, "5")]
    assert "already used" in found.rejects[0].reason and "columns=" in found.rejects[2].reason
    for name, text, said in (("none", None, "no such file"), ("empty", "", "holds no rows")):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(RecordError, match=said):
            released.read_benchmark(tmp_path / name)


# --- figures --------------------------------------------------------------------------------------


def test_figures_draw_every_line_and_the_paper_in_grey(tmp_path):
    one, two = pool_of("one", a="11010", b="00011"), pool_of("two", a="00110", b="11011")
    half = {"a": [0.9, 0.1, 0.2, 0.3], "b": [0.1, 0.2, 0.9, 0.1]}
    scores = {"s": scored(one, **half) | scored(two, **half)}
    rows = best_of_n.table([one, two], scores, (2, 4), resamples=20)
    folders.write_csv(tmp_path / "t.csv", rows)
    for source in (rows, tmp_path / "t.csv"):
        figure = process_figures.accuracy_by_n(source, with_paper=True)
        named = {line.name: line for line in figure.data}
        assert {"s", "oracle", "majority", "greedy", "random", "paper: ViLPRM-3B"} <= named.keys()
        assert list(named["s"].x) == [2, 4] and named["s"].error_y.array is not None
        assert list(named["paper: ViLPRM-3B"].y) == [0.315, 0.32, 0.31, 0.313]
        for name, line in named.items():
            is_grey = line.line.color == process_figures.PAPER_COLOR
            assert is_grey == name.startswith("paper: ")
        curve = process_figures.last_n_curve(source, n=4, with_paper=True)
        assert [len(line.x) for line in curve.data] == [5, 5, 5]
    with pytest.raises(ValueError, match="no rows of the generator 'three'"):
        process_figures.accuracy_by_n(rows, "three")
    with pytest.raises(ValueError, match="at N = 16"):
        process_figures.last_n_curve(rows)


def test_the_papers_tables_are_facts_with_caveats():
    shared = json.loads((ROOT / "data/paper/vilbench_digitised.json").read_text())
    assert len(shared["caveats"]) > 3 and "nothing measured by this project" in shared["source"]
    rows = {row["paper"]: row for row in process_figures.paper_rows()}
    assert rows["ViLPRM-3B"]["Avg"] == 31.5
    for *cells, average in list(PAPER["vilprm_avg"].values())[1:]:
        assert sum(cells) / 4 == pytest.approx(average, abs=0.1)
    with pytest.raises(ValueError, match="vilbench_digitised"):
        process_figures.paper_rows("fig1")
    assert process_figures.paper_rows("mathverse_split")[0]["text-dominant"] == 58.9
