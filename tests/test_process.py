"""Process rewards: steps, aggregators, pools, scorers, judge, best-of-N, released files."""

import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fault_server import endpoint
from scoring import record, wrap
from vlaa_lib import ROOT, VlaaError, construct, folders, records
from vlaa_lib.__main__ import main
from vlaa_lib.evaluate import score_rows
from vlaa_lib.process import aggregate, best_of_n, pools, scorers, search, steps
from vlaa_lib.records import RecordError
from vlaa_lib.show import process_figures, style

PAPER = process_figures.paper()
NAN = math.nan
SCENE = {"kind": "bars", "bars": [{"color": "red", "value": 3}, {"color": "blue", "value": 5}]}


# --- steps ----------------------------------------------------------------------------------------

PIECES = ("Step 1 a", "\nStep 2: b", "a", ". ", ".", "\n", " ", "3", "; ", "<think>", "</think>",
          "<answer>", "</answer>")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        ("  \n ", []),
        ("3.", ["3."]),
        ("It is 3.5 wide. Yes!", ["It is 3.5 wide.", "Yes!"]),
        (wrap("It is 3."), ["<think>I look.", "</think><answer>It is 3.</answer>"]),
        ("1. Look.\n2. Count to 3.", ["1. Look.", "2. Count to 3."]),
        ("Sure.\n**Step 1:** a. b\nStep 2: c", ["Sure.", "**Step 1:** a. b", "Step 2: c"]),
        ("Step 1: a\nb</think> so 3", ["Step 1: a\nb", "</think> so 3"]),
    ],
)
def test_split(text, wanted):
    assert steps.split(text) == wanted


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_steps_hold_all_words_and_a_prefix_has_the_same_steps(text):
    found = steps.spans(text)
    outside = list(text)
    for start, end in found:
        assert text[start:end] == text[start:end].strip() != ""
        outside[start:end] = " " * (end - start)
    assert not found or not "".join(outside).strip()
    for i, (_, end) in enumerate(found):
        if i < len(found) - 1:  # the last takes the marks behind it
            assert steps.spans(text[:end]) == found[: i + 1]


# --- aggregators and ties -------------------------------------------------------------------------


def test_the_papers_worked_scores_are_means():
    example = PAPER["scoring_example"]
    assert set(example["printed"].values()) == {0.891, 0.759, 0.718, 0.82}
    for name, scores in example["steps"].items():
        assert round(aggregate.mean(scores), 3) == example["printed"][name]


def test_aggregators_by_hand():
    scores = [0.2, 0.4, NAN, 0.8, 0.6]
    found = {name: fn(scores) for name, fn in aggregate.AGGREGATORS.items()}
    wanted = {"last": 0.6, "last 2": 0.7, "last 4": 0.6, "last 8": 0.5, "mean": 0.5}
    assert found == pytest.approx(wanted | {"minimum": 0.2, "product": 0.2 * 0.4 * 0.8 * 0.6})
    assert list(found)[:5] == list(process_figures.WINDOWS)
    assert math.isnan(aggregate.last([0.5, NAN])) and aggregate.last_n([0.5, NAN], 2) == 0.5
    for aggregator in aggregate.AGGREGATORS.values():
        assert math.isnan(aggregator([])) and math.isnan(aggregator([NAN]))
    for wrong in ([0.5, 1.5], [-0.5, -0.5]):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            aggregate.product(wrong)
    with pytest.raises(ValueError, match="at least 1"):
        aggregate.last_n([1.0], 0)
    one, two = aggregate.mean([0.2, 0.2]), aggregate.mean([0.2, 0.2, 0.2])
    assert one != two and aggregate.choose([one, two], [True, False]).accuracy == 0.5, "a tie"


SCORES = st.lists(st.floats(0, 1) | st.just(NAN), max_size=12)


@given(SCORES, st.randoms(use_true_random=False))
def test_the_order_of_steps_matters_to_the_last_ones_only(scores, random):
    other = random.sample(scores, len(scores))
    for name, aggregator in aggregate.AGGREGATORS.items():
        one, two = aggregator(scores), aggregator(other)
        assert math.isnan(one) or 0 <= one <= 1
        assert "last" in name or one == two or (math.isnan(one) and math.isnan(two))


CANDIDATES = st.lists(st.tuples(st.sampled_from([0.2, 0.4, 1.0, NAN]), st.booleans()), min_size=1)


@given(CANDIDATES, st.randoms(use_true_random=False))
def test_the_order_of_candidates_never_matters(pairs, random):
    found = aggregate.choose(*zip(*pairs, strict=True))
    other = random.sample(pairs, len(pairs))
    assert found == aggregate.choose(*zip(*other, strict=True))
    known = [pair for pair in pairs if not math.isnan(pair[0])] or pairs
    best = [right for value, right in known if not value < max(known)[0]]
    assert found.accuracy == pytest.approx(sum(best) / len(best))
    assert found.is_mixed == (0 < found.accuracy < 1) and found.tied == len(best)


# --- pools ----------------------------------------------------------------------------------------


def candidate(record_id, sample, answer, correct, generator="g", source="s", text=""):
    return {
        "generator": generator, "record_id": record_id, "sample": sample, "source": source,
        "answer": answer, "correct": correct, "completion": text or f"So. {answer}",
    }  # fmt: skip


def pool_of(generator="g", **questions):
    """Make a pool of questions given as strings: 1 right, 0 wrong, in the order of sampling."""
    return pools.collect(
        candidate(i, k, f"{i}{mark}", mark == "1", generator)
        for i, marks in questions.items()
        for k, mark in enumerate(marks, pools.GREEDY)
    )


def test_lines_that_need_no_scorer_by_hand():
    rows = [candidate("a", k, *given) for k, given in enumerate([
        ("3", True), ("**3**.", True), ("4", False), ("4", False), ("", False), ("", False),
        ("", False), ("5", False),
    ])]  # fmt: skip
    assert pools.expected_random(rows) == 0.25
    assert pools.majority(rows) == 0.5  # 3 and 4 have two votes each, no answer has none
    assert pools.majority(rows[:3]) == 1.0 and pools.majority(rows[4:7]) == 0.0
    assert pools.oracle(rows) == 1.0 and pools.oracle(rows[2:]) == 0.0
    assert [line([]) for line in pools.LINES.values()] == [0.0] * 3


def test_prefixes_are_nested():
    pool = pool_of(a="11010", b="000")  # the first mark is the greedy answer
    assert pool.reach == 4 and pool.greedy["a"]["correct"] and not pool.greedy["b"]["correct"]
    assert [r["sample"] for r in pool.first(2).candidates["a"]] == [0, 1]
    assert list(pool.of(["b"]).candidates) == list(pool.of(["b"]).greedy) == ["b"]


ONE = candidate("a", 0, "3", True)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ONE, ONE], "record a: sample 0 is there 2 times"),
        ([ONE, ONE | {"generator": "h"}], "rows of g, h"),
        ([], "no rows"),
    ],
)
def test_rows_that_are_no_pool(rows, said, tmp_path):
    with pytest.raises(RecordError, match=said):
        pools.collect(rows)
    with pytest.raises(RecordError, match="no pool; `python -m vlaa_lib process pool`"):
        pools.load(tmp_path)


def test_a_pool_is_sampled_by_one_process(tmp_path, monkeypatch):
    generate = sys.modules["vlaa_lib.evaluate.generate"]  # the package's name is its function
    monkeypatch.setattr(generate, "fingerprint", lambda policy: {})
    with folders.lock(tmp_path), pytest.raises(VlaaError, match="in use by another process"):
        pools.sample(None, [], "images", tmp_path, "pocket")
    assert not (tmp_path / "pool.json").exists()


@pytest.mark.slow
def test_a_real_pool_resumes_and_is_scored(micro_data, tmp_path, monkeypatch, capsys):
    from vlaa_lib import evaluate, models

    folder, made = micro_data
    asked, images = made[:2], folder / "images"
    policy = models.load_policy("data/pocket/instruct")
    given = {"n": 3, "questions": 1, "batch": 3, "max_new_tokens": 12}
    whole = pools.sample(policy, asked, images, tmp_path / "whole", "pocket", **given)
    assert {i: len(rows) for i, rows in whole.candidates.items()} == {r.id: 3 for r in asked}
    assert whole.greedy.keys() == whole.candidates.keys()

    calls, real = [], evaluate.generate

    def dies(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:  # in the second question
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluate, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        pools.sample(policy, asked, images, tmp_path / "cut", "pocket", **given)
    assert len(pools.load(tmp_path / "cut").candidates) == 1
    assert pools.sample(policy, asked, images, tmp_path / "cut", "pocket", **given) == whole
    assert len(calls) == 5
    with pytest.raises(ValueError, match="other settings \\(seed 0 instead of 1\\)"):
        pools.sample(policy, asked, images, tmp_path / "cut", "pocket", seed=1, **given)

    records.write(asked, tmp_path / "asked.jsonl")
    where = ["--records", str(tmp_path / "asked.jsonl"), "--images", str(images)]
    found = [str(tmp_path / "scores.jsonl"), str(tmp_path / "table.csv")]
    judged = ["--pools", str(tmp_path / "cut"), "--truth", "steps+answer", "--out", found[0]]
    assert main(["process", "judge", *where, *judged]) == 0
    given = ["--pools", str(tmp_path / "cut"), "--scores", found[0], "--sizes", "2", "3"]
    assert main(["process", "best-of-n", *given, "--out", found[1]]) == 0
    assert "scores of 6 candidates by truth of steps+answer" in capsys.readouterr().out
    assert {row["n"] for row in process_figures.read(found[1])} == {"2", "3"}


# --- scorers --------------------------------------------------------------------------------------

BARS = record("digit", "3", meta={"scene": SCENE})
TRACES = ("The red bar reaches 3. Hm. The blue bar reaches 4.", wrap("3"), wrap("4"))


def test_step_truth_is_the_scenes():
    solutions = [steps.split(text) for text in TRACES]
    bare = scorers.step_truth([BARS] * 3, solutions)
    assert str(bare) == str([[1.0, NAN, 0.0], [NAN, NAN], [NAN, NAN]])
    told = scorers.step_truth([BARS] * 3, solutions, with_answer=True)
    assert str(told) == str([[1.0, NAN, 0.0], [NAN, 1.0], [NAN, 0.0]])
    long = "Step 1: Look. The red bar reaches 3. The blue bar reaches 4."
    assert scorers.step_truth([BARS], [[long]]) == [[0.5]]
    with pytest.raises(RecordError, match="record r1: no scene"):
        scorers.step_truth([record("digit", "3")], [["3"]])


def truth_pool():
    rows = score_rows([BARS] * 3, list(TRACES), generator="g")
    return pools.collect(row | {"sample": i} for i, row in enumerate(rows))


def test_scores_of_a_pool_go_through_a_file(tmp_path):
    found = scorers.score_pools(scorers.step_truth, [truth_pool()], [BARS])
    scorers.write(tmp_path / "s.jsonl", "truth", found)
    assert str(scorers.read(tmp_path / "s.jsonl")) == str({"truth": found})
    assert "NaN" not in (tmp_path / "s.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([[0.1]] * 2, "2 lists for 3"),
        ([[0.1]] * 3, "for 3 steps"),
        ([[math.inf] * 3, [1.0] * 2, [1.0] * 2], "scores \\[inf"),
    ],
)
def test_a_scorer_that_does_not_score_each_step_is_an_error(made, said):
    with pytest.raises(ValueError, match=said):
        scorers.score_pools(lambda *_: made, [truth_pool()], [BARS])
    with pytest.raises(RecordError, match="no record of question 'r1'"):
        scorers.score_pools(lambda *_: made, [truth_pool()], [])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ('{"scorer": "x"}', "expected scorer, generator"),
        ('{"scorer":"x","generator":"g","record_id":"a","sample":0,"scores":["b"]}', "expected"),
        ('{"scorer":"x","generator":"g","record_id":"a","sample":0,"scores":[1e999]}', "infinite"),
        ('{"scorer":"x","generator":"g","record_id":"a","sample":7,"scores":[]}', "scored above"),
    ],
)
def test_bad_lines_of_scores_are_named(tmp_path, line, said):
    good = '{"scorer":"x","generator":"g","record_id":"a","sample":7,"scores":[null]}\n'
    (tmp_path / "s.jsonl").write_text(good + line, encoding="utf-8")
    with pytest.raises(RecordError, match=f"s.jsonl:2: .*{said}"):
        scorers.read(tmp_path / "s.jsonl")


# --- the judge ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Sees both.\nScore: 4", 4), ("reason\n\n**Score:** 5\n", 5), ("Score: [2/5].", 2),
        ("3", 3), ("Score: 0", None), ("Score: 6", None), ("Score: 4.5", None),
        ("4\nOr not.", None), ("Score: 4\nOr not.", None), ("Score: 4\nScore: 4", None),
        ("", None), ("3 or 4", None), ("Score:", None),
        ("I would say score 4", None), ("Score: ٤", None),
    ],
)  # fmt: skip
def test_a_judges_reply_is_read_strictly(text, score):
    assert scorers.read_score(text) == score


@given(st.text(max_size=300))
def test_any_reply_is_a_score_from_1_to_5_or_none(text):
    assert scorers.read_score(text) in (None, 1, 2, 3, 4, 5)


def test_what_the_judge_is_shown():
    given = ["Two {input}.", "One.", "Three."]
    assert scorers.shown(given, 1, "step") == "One."
    assert scorers.shown(given, 1, "prefix") == "Two {input}.\nOne."
    context = scorers.shown(given, 1, "context")
    assert context.index("Two {input}.") < context.index("to grade)\nOne.")
    assert "Three" not in context
    assert scorers.shown(given, 0, "context") == "Two {input}."
    with pytest.raises(ValueError, match="use one of step, prefix, context"):
        scorers.StepJudge("j", "all", list)


def graded(body):
    """Grade by the step that is to be graded."""
    text = body["messages"][0]["content"][1]["text"]
    step = text.partition("### Work to grade\n")[2].partition("\n\n###")[0].splitlines()[-1]
    if step == "refused":
        return 400, "moderation", {}
    return 200, {"good": "Right.\nScore: 5", "odd": "Score: high", "poor": "Score: 1"}[step], {}


def test_an_endpoint_judges_steps_counts_failures_and_is_paid_once(micro_data, tmp_path):
    folder, made = micro_data
    solutions = [["good", "poor", "good"], [], ["odd", "refused"]]
    asked = [made[0]] * 3
    with endpoint(graded) as (url, bodies):
        teacher = construct.Endpoint("grader", url)
        limits = construct.Limits(concurrency=2, max_retries=0)
        given = teacher, tmp_path / "j.sqlite", folder / "images", "step", limits
        found = scorers.endpoint_judge(*given)
        scores = found(asked, solutions)
        assert str(scores) == str([[1.0, 0.2, 1.0], [], [NAN, NAN]])
        assert found.unusable == {
            "no score from 1 to 5": 1, "refused by the endpoint (HTTP 400)": 1
        }  # fmt: skip
        assert found.failure_rate == 0.4 and found.name == "judge grader step"
        assert len(bodies) == 4 and all(body["temperature"] == 0.0 for body in bodies)
        again = scorers.endpoint_judge(*given)
        assert str(again(asked, solutions)) == str(scores)
        assert len(bodies) == 5  # what was refused is asked again


def test_a_local_policy_judges_and_its_replies_are_kept(micro_data, tmp_path, monkeypatch):
    from vlaa_lib import models

    folder, made = micro_data
    policy, calls = models.load_policy("data/pocket/instruct"), []
    given = policy, tmp_path / "j.sqlite", folder / "images"
    found = scorers.policy_judge(*given, batch=2, max_new_tokens=4)
    # a step may spell the picture's token, which would ask for a second picture
    solutions = [["Look <|image_pad|>.", "3", "3"], ["No."]]
    scores = found([made[0], made[1]], solutions)
    assert [len(s) for s in scores] == [3, 1] and found.asked == 4
    assert sum(math.isnan(x) for s in scores for x in s) == sum(found.unusable.values())

    monkeypatch.setattr(scorers, "answer", lambda *args, **_: calls.append(args))
    again = scorers.policy_judge(*given, batch=2, max_new_tokens=4)
    assert str(again([made[0], made[1]], solutions)) == str(scores) and not calls

    replies = iter([["Fine.\nScore: 4", "", "Score: 9"]])
    monkeypatch.setattr(scorers, "answer", lambda *_, **__: next(replies))
    other = scorers.policy_judge(*given, view="step", max_new_tokens=9)
    gone = made[0].__class__("x", "gone.png", "Q?", "3", reward="digit")
    scores = other([made[0], gone], [["a", "b", "c"], ["d"]])
    assert str(scores) == str([[0.8, NAN, NAN], [NAN]])
    assert other.unusable == {"empty reply": 1, "no score from 1 to 5": 1, "unusable image": 1}


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
    rows = best_of_n.table([pool], {"s": scores}, aggregators={"mean": aggregate.mean})
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
    with pytest.raises(ValueError, match="score the whole pool first"):
        best_of_n.table([one], {"s": {}}, (2,))


# --- released files -------------------------------------------------------------------------------

ROW = {"index": 7, "image_path": "a/b.png", "question": "Q?", "process": "Step 1: x", "value": 0.2}


@pytest.mark.parametrize("is_array", [True, False])
def test_vilreward_rows_are_read(tmp_path, is_array):
    rows = [ROW, ROW | {"value": 1, "process": "Step 1: y"}]
    text = json.dumps(rows) if is_array else "\n".join(map(json.dumps, rows))
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    found = search.read_processes(tmp_path / "r.json")
    assert found.rejects == [] and [p.value for p in found.rows] == [0.2, 1.0]
    assert found.rows[0] == search.Process("7", "a/b.png", "Q?", "Step 1: x", 0.2)
    found = search.read_processes(tmp_path / "r.json", tmp_path)
    assert not found.rows and "not below" in found.rejects[1].reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": NAN}, "it holds NaN"),
        ({"value": 1.01}, "1.01 is not"), ({"value": "0.5"}, "expected a number"),
        ({"value": True}, "True is not a number"), ({"value": None}, "'value' is missing"),
        ({"process": ["a"]}, "'process' is list, expected text"), ({"process": ""}, "missing"),
        ({"process": "\ud800"}, "lone surrogate"), ({"index": 1.5}, "'index' is float"),
        ({"image_path": "../x.png"}, "leaves the image root"), ({"question": "  "}, "'question'"),
    ],
)  # fmt: skip
def test_bad_vilreward_rows_are_rejected_with_reasons(tmp_path, change, said):
    (tmp_path / "r.json").write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW | change)}\n[]\n{{",
        encoding="utf-8")
    found = search.read_processes(tmp_path / "r.json")
    assert len(found.rows) == 1 and [r.line for r in found.rejects] == [2, 3, 4]
    assert said in found.rejects[0].reason and str(found.rejects[1]).startswith("r.json:3: ")


@pytest.mark.parametrize(("text", "said"), [
    (None, "no such file"), ("", "holds no rows"), (b"\xff\xfe\x00", "not UTF-8"),
])  # fmt: skip
def test_a_file_without_rows_is_named(tmp_path, text, said):
    if text is not None:
        (tmp_path / "r.json").write_bytes(text or b"")
    with pytest.raises(RecordError, match=f"r.json: .*{said}"):
        search.read_processes(tmp_path / "r.json")


# --- figures --------------------------------------------------------------------------------------


def test_figures_draw_every_line_and_the_paper_in_grey(tmp_path):
    one, two = pool_of("one", a="11010", b="00011"), pool_of("two", a="00110", b="11011")
    half = {"a": [0.9, 0.1, 0.2, 0.3], "b": [0.1, 0.2, 0.9, 0.1]}
    scores = {"s": scored(one, **half) | scored(two, **half)}
    rows = best_of_n.table([one, two], scores, (2, 4), resamples=20)
    folders.write_csv(tmp_path / "t.csv", rows)
    for source in (rows, tmp_path / "t.csv"):
        figure = process_figures.accuracy_by_n(source)
        named = {line.name: line for line in figure.data}
        assert {"s", "oracle", "majority", "greedy", "random"} <= named.keys()
        assert list(named["s"].x) == [2, 4] and named["s"].error_y.array is not None
        curve = process_figures.last_n_curve(source, n=4)
        assert [len(line.x) for line in curve.data if not line.fill] == [5, 5, 5]
        for line in curve.data:
            is_grey = line.line.color == style.PAPER_COLOR
            assert is_grey == (line.name or "").startswith("paper: ")
    with pytest.raises(ValueError, match="at N = 16"):
        process_figures.last_n_curve(rows)


def test_the_papers_tables_are_facts_with_caveats():
    shared = json.loads((ROOT / "data/paper/vilbench_digitised.json").read_text(encoding="utf-8"))
    assert len(shared["caveats"]) > 3 and "nothing measured by this project" in shared["source"]
    rows = {row["paper"]: row for row in process_figures.paper_rows()}
    assert rows["ViLPRM-3B"]["Avg"] == 31.5
    for *cells, average in list(PAPER["vilprm_avg"].values())[1:]:
        assert sum(cells) / 4 == pytest.approx(average, abs=0.1)
    assert process_figures.paper_rows("mathverse_split")[0]["text-dominant"] == 58.9
