"""Tables of several models: table 4, relative change, flips, extraction rules; all by hand."""

import pytest

from vlaa_lib.evaluate import benchmarks
from vlaa_lib.evaluate.metrics import HEADLINES
from vlaa_lib.prompts import join_think_answer


def logic(model, hits, blank=False, name="LogicVista"):
    return [
        {"benchmark": name, "model": model, "blank": blank, "index": str(i), "hit": hit,
         "question": "Which?", "images": ["a.png"], "gold": "B", "answer": "B", "skill": "['s']",
         "prediction": f"{model} {i}", "extracted": "B" if hit else ""}
        for i, hit in enumerate(hits)
    ]  # fmt: skip


def problems(model, *multi):
    """Two-step We-Math problems whose steps are right; only the problem itself may be wrong."""
    return [
        {"benchmark": "micro-WeMath", "model": model, "blank": False, "index": f"{n}{key}",
         "ID": f"2steps_{n}", "key": f"2steps_{key}", "hit": key != "multi" or hit}
        for n, hit in enumerate(multi) for key in (1, 2, "multi")
    ]  # fmt: skip


ROWS = [
    *logic("base", [True, True, False, False]),
    *logic("base", [True, False, False, False], blank=True),
    *problems("base", True, False),
    *logic("grpo", [False, True, False, False]),
    *problems("grpo", True, True),
]


def found(table, **wanted):
    (row,) = (r for r in table if all(r[k] == v for k, v in wanted.items()))
    return row


def test_table_4_has_headlines_and_their_plain_mean():
    table = benchmarks.table4(ROWS, resamples=200)
    assert [(row["model"], row["benchmark"], row["metric"]) for row in table] == [
        (model, *line) for model in ("base", "grpo")
        for line in (("LogicVista", "overall"), ("micro-WeMath", "strict"), ("average", "average"))
    ]  # fmt: skip
    base = found(table, model="base", benchmark="LogicVista")
    assert (base["value"], base["blank_value"], base["n"]) == (0.5, 0.25, 4)
    assert base["low"] < 0.5 < base["high"]
    assert found(table, model="base", benchmark="micro-WeMath")["value"] == 0.75  # CM, IG
    mean = found(table, model="base", benchmark="average")
    assert (mean["value"], mean["n"], mean["blank_value"]) == (0.625, 2, None)
    # narrower than that of either benchmark, as both are drawn
    assert base["low"] < mean["low"] < 0.625 < mean["high"] < 1
    assert {key for row in table for key in row} == set(table[0])  # one shape: a CSV


def test_a_benchmark_without_a_whole_problem_has_no_average():
    rows = [*logic("m", [True]), *problems("m", True)[:2]]
    table = benchmarks.table4(rows, resamples=20)
    assert found(table, benchmark="micro-WeMath")["value"] is None
    mean = found(table, benchmark="average")
    assert (mean["value"], mean["low"]) == (None, None)
    change = benchmarks.relative_change([*rows, *logic("n", [True])], "m")
    assert [(r["benchmark"], r["change"]) for r in change] == [("LogicVista", 0.0), ("average", 0)]
    change = benchmarks.relative_change([*rows, *[r | {"model": "n"} for r in rows]], "m", 20)
    assert found(change, benchmark="average")["change"] is None


def test_relative_change_is_of_the_baselines_score():
    table = benchmarks.relative_change(ROWS, "base", resamples=400)
    assert [row["benchmark"] for row in table] == ["LogicVista", "micro-WeMath", "average"]
    assert found(table, benchmark="LogicVista")["change"] == pytest.approx(0.25 / 0.5 - 1)
    solved = found(table, benchmark="micro-WeMath")
    assert solved["change"] == pytest.approx(1 / 0.75 - 1) and solved["n"] == 2
    assert solved["low"] == pytest.approx(0.0) and solved["high"] == pytest.approx(1.0)
    mean = found(table, benchmark="average")
    assert mean["change"] == pytest.approx((0.25 + 1) / (0.5 + 0.75) - 1)
    nothing = [*logic("a", [False, False]), *logic("b", [True, False])]
    assert benchmarks.relative_change(nothing, "a")[0]["change"] is None  # nothing to lose
    with pytest.raises(ValueError, match="no rows of 'sft'; there are base, grpo"):
        benchmarks.relative_change(ROWS, "sft")


def test_a_draw_in_which_the_baseline_has_nothing_gives_no_interval():
    rows = [*logic("a", [True, False]), *logic("b", [True, True])]
    (one, _) = benchmarks.relative_change(rows, "a", resamples=200)
    assert (one["change"], one["low"], one["high"]) == (1.0, None, None)


def test_flips_are_the_rows_on_which_two_models_differ():
    rows = [*logic("a", [True, False, None, True]), *logic("b", [False, True, True, True])]
    rows += [*logic("b", [True] * 4, blank=True), *logic("b", [True] * 4, name="MathVision")]
    first, second = benchmarks.flips(rows, "a", "b")
    assert (first["index"], first["gained"], second["index"], second["gained"]) == (
        "0", False, "1", True,
    )  # fmt: skip
    assert (second["first"], second["second"]) == ("a 1", "b 1")
    assert (second["first_answer"], second["second_answer"], second["gold"]) == ("", "B", "B")
    assert second["images"] == ["a.png"] and benchmarks.flips(rows, "a", "a") == []


def test_the_same_completions_under_four_rules():
    texts = ["B", join_think_answer("A or C", "B"), "I think that it is (B) in the end", "A"]
    rows = [
        {"benchmark": "WeMath", "model": "m", "blank": False, "index": str(i), "ID": "2steps_1",
         "key": f"2steps_{key}", "question": "Which?", "A": "30", "B": "45", "C": "60",
         "answer": "B", "prediction": text}
        for i, (key, text) in enumerate(zip((1, 2, "multi"), texts, strict=False))
    ]  # fmt: skip
    table = benchmarks.by_rule(rows, resamples=0)
    # strict reads no sentence, so the problem itself is wrong; the kit asks its judge of a step
    for metric in ("strict", "average"):
        assert {row["rule"]: row["value"] for row in table if row["metric"] == metric} == {
            "ours": 1.0, "strict": 0.5, "kit-2025-04": 0.0, "kit-2026-08": 0.0
        }  # fmt: skip
    assert found(table, rule="kit-2025-04", metric="strict")["undecided"] == 1
    (tagged, _) = benchmarks.by_rule(rows, ["kit-2025-04-vlaa"], resamples=0)
    assert (tagged["value"], tagged["undecided"]) == (1.0, 0)
    with pytest.raises(ValueError, match="unknown extraction mode 'kit'"):
        benchmarks.by_rule(rows, ["kit"])


def test_every_family_has_a_headline_that_the_metrics_know():
    for name, headline in HEADLINES.items():
        real = {"MathVista": "MathVista_MINI", "MathVerse": "MathVerse_MINI"}.get(name, name)
        table = benchmarks.metrics([{"benchmark": real, "model": "m", "blank": False, "hit": True,
                                     "index": "1"}], resamples=0)  # fmt: skip
        assert [row["metric"] for row in table if benchmarks.is_headline(row)] == [headline]
