"""Metrics by hand, on data that is whole, partial, doubled and shuffled; models side by side."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_lib.evaluate import stats
from vlaa_lib.evaluate.benchmarks import LAYOUTS, family
from vlaa_lib.evaluate.metrics import HEADLINES
from vlaa_lib.evaluate.stats import summarise
from vlaa_lib.prompts import join_think_answer


def table(benchmark, rows, **options):
    return {row["metric"]: row for row in summarise(benchmark, rows, **options)}


def numbered(rows):
    return [{"index": i, **row} for i, row in enumerate(rows, 1)]


# --- accuracies -----------------------------------------------------------------------------------


def test_mathvista_tasks_and_skills():
    rows = numbered([
        {"hit": True, "task": "t", "skills": "['a', 'b']"},
        {"hit": False, "task": "t", "skills": ["b"]},
        {"hit": None, "task": "u", "skills": float("nan")},
    ])
    found = table("MathVista_MINI", rows)
    assert (found["overall"]["points"], found["overall"]["n"]) == (1, 3)
    assert found["overall"]["undecided"] == 1 and found["overall"]["full_rows"] == 1000
    assert (found["task: t"]["value"], found["task: u"]["value"]) == (0.5, 0.0)
    assert (found["skills: b"]["points"], found["skills: b"]["n"]) == (1, 2)
    assert found["skills: (none)"]["n"] == 1
    assert next(iter(found)) == "overall" and found["overall"]["low"] is None


def test_mathvision_has_its_sixteen_subjects():
    rows = numbered({"hit": k % 2 == 0, "category": f"c{k % 16:02}"} for k in range(48))
    found = table("MathVision", rows, resamples=50)
    assert len(found) == 17 and found["category: c03"]["value"] == 0.0
    assert found["overall"]["low"] < found["overall"]["value"] == 0.5 < found["overall"]["high"]


def test_mathverse_by_version_and_subject():
    told = "{'subject': 'Plane Geometry', 'subfield': \"Euler's line\"}"
    rows = numbered([
        {"hit": True, "problem_version": "Vision Only", "metadata": told},
        {"hit": False, "problem_version": "Vision Only", "metadata": "{'subject': "},
        {"hit": True, "problem_version": "Text Lite", "metadata": told},
    ])
    found = table("MathVerse_MINI", rows)
    values = [found[f"problem_version: {v}"]["value"] for v in ("Vision Only", "Text Lite")]
    assert values == [0.5, 1.0]
    assert found["subfield: Euler's line"]["n"] == 2 and found["subject: (none)"]["n"] == 1
    assert found["overall"]["full_rows"] == 3940


def test_an_index_that_is_there_twice_counts_for_nothing():
    rows = [{"index": i, "hit": hit} for i, hit in [(1, True), (1, False), (2, True), (3, False)]]
    found = table("LogicVista", rows)["overall"]
    assert (found["n"], found["points"], found["duplicated"]) == (2, 1, 2)
    # a spreadsheet's 1.0 is the same index
    assert table("LogicVista", [*rows, {"index": 2.0, "hit": True}])["overall"]["n"] == 1


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_nothing_has_no_value(name):
    found = summarise(name, [], resamples=10)
    head = next(r for r in found if r["metric"] == HEADLINES[family(name)])
    assert (head["n"], head["value"], head["low"]) == (0, None, None)
    with pytest.raises(ValueError, match="unknown benchmark"):
        summarise("x", [])


# --- DynaMath -------------------------------------------------------------------------------------


def seed(qid, *wrong, **columns):
    return [{"qid": qid, "varid": v, "hit": v not in wrong, "subject": "s"} | columns
            for v in range(1, 11)]  # fmt: skip


def test_dynamath_average_and_worst_in_any_order():
    # qid is not the index of its first variant, which the kit's worst case needs
    rows = numbered([*seed("q7"), *seed("q8", 4), *seed("q9", 1, 2, subject="t")])
    for _ in range(3):
        found = table("DynaMath", rows)
        assert found["average"]["value"] == pytest.approx(27 / 30)
        assert (found["worst case"]["points"], found["worst case"]["n"]) == (1, 3)
        assert found["subject: t"]["value"] == 0.8
        assert found["worst case, subject: s"]["value"] == 0.5
        assert found["worst case"]["left_out"] == found["worst case"]["missing"] == 0
        random.Random(0).shuffle(rows)


MIXED = [row | {"varid": kind(v), "qid": kind(1)} for row, v, kind in zip(
    seed(1), range(1, 11), [str, float, int, str, float] * 2, strict=True)]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "points", "n", "left_out", "missing", "undecided"),
    [  # what is there of the worst case; the average has every row
        ([*seed(1), *seed(2, 1)[1:]], 1, 1, 1, 1, 0),  # a missing variant makes no seed easier
        ([*seed(1), *seed(2, 10)[:9]], 1, 1, 1, 1, 0),
        ([*seed(1), *seed(2), seed(2, 3)[2]], 1, 1, 1, 0, 0),  # doubled
        ([*seed(1), {"qid": 1, "varid": 11, "hit": True}], 0, 0, 1, 0, 0),  # unknown
        (MIXED, 1, 1, 0, 0, 0),  # texts and floats, as spreadsheets have them
        ([*seed(1)[1:], seed(1)[0] | {"hit": None}], 0, 1, 0, 0, 1),
    ],
)
def test_a_seed_counts_where_each_variant_is_there_once(
    rows, points, n, left_out, missing, undecided
):
    found = table("DynaMath", numbered(rows))
    keys = ("points", "n", "left_out", "missing", "undecided")
    assert [found["worst case"][k] for k in keys] == [points, n, left_out, missing, undecided]
    assert found["average"]["n"] == len(rows)


# --- We-Math --------------------------------------------------------------------------------------


def problem(ID, *hits):
    keys = [*range(1, len(hits)), "multi"]
    return [
        {"ID": ID, "key": f"{ID.split('_')[0]}_{k}", "hit": hit, "knowledge concept": f"c{k}"}
        for k, hit in zip(keys, hits, strict=True)
    ]


def by_the_kit(problems, is_loose):
    """Work the formula as the original writes it: (n - IG / 2 - RM - IK) / n."""
    CM = RM = IG = IK = 0
    for *steps, multi in problems:
        right = any(steps) if is_loose else all(steps)
        CM += multi and right
        RM += multi and not right
        IG += not multi and all(steps)
        IK += not multi and not all(steps)
    return {"CM": CM, "RM": RM, "IG": IG, "IK": IK}, CM + RM + IG + IK


@given(st.lists(st.one_of(st.tuples(*[st.booleans()] * 3), st.tuples(*[st.booleans()] * 4)),
                min_size=1, max_size=12), st.randoms())  # fmt: skip
def test_wemath_equals_the_original_on_whole_problems(problems, rng):
    named = ((f"{len(hits) - 1}steps_{i}", *hits) for i, hits in enumerate(problems))
    rows = numbered(row for one in named for row in problem(*one))
    rng.shuffle(rows)
    found = table("WeMath", rows)
    for label, is_loose in (("strict", False), ("loose", True)):
        counts, n = by_the_kit(problems, is_loose)
        score = (n - 0.5 * counts["IG"] - counts["RM"] - counts["IK"]) / n
        assert found[label]["value"] == pytest.approx(score) and found[label]["n"] == n
        assert {c: found[f"{label} {c}"]["points"] for c in counts} == counts
        solved = counts["CM"] + counts["RM"]
        share = counts["RM"] / solved if solved else None  # the kit divides by zero here
        assert found[f"{label} RM"]["value"] == share
    steps = [hit for hits in problems for hit in hits[:-1]]
    assert (found["S1"]["points"], found["S1"]["n"]) == (sum(steps), len(steps))


@pytest.mark.parametrize("gone", range(4))
def test_a_problem_that_lacks_a_row_is_left_out(gone):
    lacking = problem("3steps_1", True, True, True, True)
    there = lacking[:gone] + lacking[gone + 1 :]
    rows = numbered([*problem("2steps_1", True, True, False), *there])
    found = table("WeMath", rows)["strict"]
    assert (found["value"], found["n"], found["left_out"], found["missing"]) == (0.5, 1, 1, 1)
    assert found["full_rows"] == 1740


def test_odd_and_doubled_problems_are_left_out_and_counted():
    whole, other = (problem(f"2steps_{i}", True, True, True) for i in (1, 2))
    assert table("WeMath", numbered([*whole, *other, other[0]]))["strict"]["left_out"] == 1
    odd = [{"ID": "x", "key": "x", "hit": True}, {"ID": float("nan"), "key": None, "hit": True},
           {"ID": "²steps_1", "key": "steps", "hit": True}]  # fmt: skip
    found = table("WeMath", numbered([*whole, *odd]))
    assert (found["strict"]["n"], found["strict"]["left_out"]) == (1, 3)
    assert found["key: (none)"]["n"] == 3 and found["knowledge concept: c1"]["n"] == 1


# --- two models -----------------------------------------------------------------------------------


def run(*hits):
    return numbered({"hit": hit} for hit in hits)


def test_mcnemar_by_hand():
    worked = {(0, 0): 1.0, (0, 1): 1.0, (0, 5): 2 / 32, (5, 0): 2 / 32, (2, 8): 112 / 1024,
              (4, 4): 1.0}  # fmt: skip
    assert {pair: stats.mcnemar(*pair) for pair in worked} == pytest.approx(worked)
    assert 0 < stats.mcnemar(1000, 1500) < 1e-20  # no overflow


def test_two_models_on_the_same_rows():
    first, second = run(*[False] * 8, True, True), run(*[True] * 8, True, False)[::-1]
    found = stats.compare("LogicVista", [first], [second])
    assert (found["n"], found["unshared"], found["difference"]) == (10, 0, pytest.approx(0.7))
    assert (found["only_first"], found["only_second"]) == (1, 8)
    assert found["p_mcnemar"] == pytest.approx(20 / 512)
    assert 0 < found["low"] < 0.7 < found["high"] <= 1
    assert stats.compare("LogicVista", [first], [second]) == found  # the same again
    part = stats.compare("LogicVista", [first], [second[:4]])
    assert (part["n"], part["unshared"]) == (4, 6)


def test_pairing_takes_the_rows_difficulty_out():
    rng = random.Random(0)
    hits = [rng.random() < 0.5 for _ in range(200)]
    better = [hit or k < 10 for k, hit in enumerate(hits)]
    values = [{str(k): float(v) for k, v in enumerate(run)} for run in (hits, better)]
    low, high = stats.paired_bootstrap(values[:1], values[1:])
    assert high - low < 0.08  # two separate intervals are about 0.14 wide each
    assert stats.paired_bootstrap(values[:1], values[:1]) == (0.0, 0.0)


def test_seeds_widen_the_interval():
    good, bad = run(*[True] * 40), run(*[False] * 40)
    one = stats.compare("LogicVista", [bad], [good])
    assert (one["low"], one["high"]) == (1.0, 1.0)
    some = stats.compare("LogicVista", [bad, bad], [good, bad])
    assert (some["first"], some["second"], some["p_mcnemar"]) == (0.0, 0.5, None)
    assert (some["low"], some["high"]) == (0.0, 1.0)


def test_groups_are_the_units_where_the_metric_is_over_groups():
    first, second = numbered([*seed(1), *seed(2, 3)]), numbered([*seed(1), *seed(2)])
    found = stats.compare("DynaMath", [first], [second])
    assert (found["metric"], found["n"], found["only_second"]) == ("worst case", 2, 1)
    assert stats.compare("DynaMath", [first], [second], "average")["n"] == 20
    half = [numbered(problem("2steps_1", True, True, hit)) for hit in (False, True)]
    strict = stats.compare("WeMath", half[:1], half[1:])
    assert (strict["difference"], strict["p_mcnemar"]) == (0.5, None)  # half a point is no hit


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="no row in common"):
        stats.compare("LogicVista", [run(True)], [[{"index": 9, "hit": True}]])
    with pytest.raises(ValueError, match="has no metric 'x'; use one of overall"):
        stats.compare("LogicVista", [run(True)], [run(True)], "x")
    with pytest.raises(ValueError, match="without runs"):
        stats.compare("LogicVista", [], [run(True)])


# --- several models -------------------------------------------------------------------------------


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
    table = stats.table4(ROWS, resamples=200)
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
    table = stats.table4(rows, resamples=20)
    assert found(table, benchmark="micro-WeMath")["value"] is None
    mean = found(table, benchmark="average")
    assert (mean["value"], mean["low"]) == (None, None)
    change = stats.relative_change([*rows, *logic("n", [True])], "m")
    assert [(r["benchmark"], r["change"]) for r in change] == [("LogicVista", 0.0), ("average", 0)]
    change = stats.relative_change([*rows, *[r | {"model": "n"} for r in rows]], "m", 20)
    assert found(change, benchmark="average")["change"] is None


def test_relative_change_is_of_the_baselines_score():
    table = stats.relative_change(ROWS, "base", resamples=400)
    assert [row["benchmark"] for row in table] == ["LogicVista", "micro-WeMath", "average"]
    assert found(table, benchmark="LogicVista")["change"] == pytest.approx(0.25 / 0.5 - 1)
    solved = found(table, benchmark="micro-WeMath")
    assert solved["change"] == pytest.approx(1 / 0.75 - 1) and solved["n"] == 2
    assert solved["low"] == pytest.approx(0.0) and solved["high"] == pytest.approx(1.0)
    mean = found(table, benchmark="average")
    assert mean["change"] == pytest.approx((0.25 + 1) / (0.5 + 0.75) - 1)
    nothing = [*logic("a", [False, False]), *logic("b", [True, False])]
    assert stats.relative_change(nothing, "a")[0]["change"] is None  # nothing to lose
    less = [*logic("a", [True, False]), *logic("b", [True, True])]  # nothing in one of the draws
    (one, _) = stats.relative_change(less, "a", resamples=200)
    assert (one["change"], one["low"], one["high"]) == (1.0, None, None)
    with pytest.raises(ValueError, match="no rows of 'sft'; there are base, grpo"):
        stats.relative_change(ROWS, "sft")


def test_flips_are_the_rows_on_which_two_models_differ():
    rows = [*logic("a", [True, False, None, True]), *logic("b", [False, True, True, True])]
    rows += [*logic("b", [True] * 4, blank=True), *logic("b", [True] * 4, name="MathVision")]
    first, second = stats.flips(rows, "a", "b")
    assert (first["index"], first["gained"], second["index"], second["gained"]) == (
        "0", False, "1", True,
    )  # fmt: skip
    assert (second["first"], second["second"]) == ("a 1", "b 1")
    assert (second["first_answer"], second["second_answer"], second["gold"]) == ("", "B", "B")
    assert second["images"] == ["a.png"] and stats.flips(rows, "a", "a") == []


def test_the_same_completions_under_four_rules():
    texts = ["B", join_think_answer("A or C", "B"), "I think that it is (B) in the end", "A"]
    rows = [
        {"benchmark": "WeMath", "model": "m", "blank": False, "index": str(i), "ID": "2steps_1",
         "key": f"2steps_{key}", "question": "Which?", "A": "30", "B": "45", "C": "60",
         "answer": "B", "prediction": text}
        for i, (key, text) in enumerate(zip((1, 2, "multi"), texts, strict=False))
    ]  # fmt: skip
    table = stats.by_rule(rows, resamples=0)
    # strict reads no sentence, so the problem itself is wrong; the kit asks its judge of a step
    for metric in ("strict", "average"):
        assert {row["rule"]: row["value"] for row in table if row["metric"] == metric} == {
            "ours": 1.0, "strict": 0.5, "kit-2025-04": 0.0, "kit-2026-08": 0.0
        }  # fmt: skip
    assert found(table, rule="kit-2025-04", metric="strict")["undecided"] == 1
    (tagged, _) = stats.by_rule(rows, ["kit-2025-04-vlaa"], resamples=0)
    assert (tagged["value"], tagged["undecided"]) == (1.0, 0)
    with pytest.raises(ValueError, match="unknown extraction mode 'kit'"):
        stats.by_rule(rows, ["kit"])
