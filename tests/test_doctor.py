"""The reward doctor: table, reasons, verdict, its command; what is wrong is named, none dropped."""

import json
import re

import pytest

from scoring import COLON, record, wrap
from vlaa_lib import prompts, rewards, traces
from vlaa_lib.__main__ import main
from vlaa_lib.pocket import microworld
from vlaa_lib.study import doctor


@pytest.fixture
def micro(tmp_path):
    """Two records that ask for a number (`solids`), on disk."""
    return tmp_path, microworld.write_split(tmp_path, ["solids"], "dev", 2)


def rows_of(made, *answers):
    """Return completion rows: each record with each answer; None stands for its gold."""
    return [
        {"id": r.id, "completion": wrap(r.solution if answer is None else answer)}
        for r in made for answer in answers
    ]  # fmt: skip


def run(folder, rows, *words):
    """Write the completions and call the doctor; text stands as it is."""
    lines = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "c.jsonl").write_text(lines, encoding="utf-8")
    return call(folder, "--completions", folder / "c.jsonl", *words)


def call(folder, *words):
    data = ("--records", folder / "records.jsonl", "--images", folder / "images")
    return main([str(word) for word in ("doctor", "rewards", *data, *words)])


def test_a_living_reward(micro, capsys):
    folder, made = micro
    rows = [*rows_of(made, None, "none at all"), {"id": made[0].id, "completion": "3"}]
    rows += [{"id": made[1].id, "completion": "<|im_start|>" + wrap("3 or 7"), "group": 2}]
    assert run(folder, rows) == 0
    out = capsys.readouterr().out
    assert "the reward is alive" in out and "gold audit: 0 of 2 records rejected" in out
    assert "completions: 6, for 2 of 2 usable records" in out
    assert "suspicious: 1 of 6; 1 offer several answers; 1 contain special tokens" in out
    assert "digit: '...' is not one number" in out and "'none at all'" in out
    assert re.search(r"\| digit +\| +6 \| +0.3333 ", out), "n and the rate of hits"


@pytest.mark.parametrize(("answer", "verdict"), [
    ("nothing", "take easier records"), (None, "nothing left to learn"),
])
def test_a_dead_reward_is_exit_code_1_with_its_remedy(micro, answer, verdict, capsys):
    folder, made = micro
    assert run(folder, rows_of(made, answer, answer)) == 1
    assert verdict in capsys.readouterr().out


def test_one_dead_part_among_others_is_a_warning(tmp_path, capsys):
    made = microworld.write_split(tmp_path, ["solids", "panel"], "dev", 2)
    rows = rows_of([r for r in made if r.reward == "digit"], None, "x")
    rows += rows_of([r for r in made if r.reward == "mcq"], "x", "y")
    assert {r.reward for r in made} == {"digit", "mcq"}
    assert run(tmp_path, rows) == 0
    out = capsys.readouterr().out
    assert "warning: mcq: every reward is 0" in out and "warning: digit" not in out


@pytest.mark.parametrize(("line", "reason"), [
    ('{"id": "x", "comple', "not valid JSON"),
    ("[1]", "expected a JSON object, found list"),
    ('{"completion": "x"}', "key 'id' is missing"),
    ('{"id": true, "completion": "x"}', "key 'id' is missing or no text"),
    ('{"id": "x"}', "key 'completion' is missing"),
    ('{"id": "x", "completion": ["a"]}', "put the sampled text there"),
    ('{"id": "x", "completion": "a", "group": [1]}', "key 'group' is list"),
])
def test_a_bad_line_is_named_with_file_line_and_remedy(micro, line, reason, capsys):
    folder, made = micro
    good = json.dumps(rows_of(made, None)[0]) + "\n"
    assert run(folder, good + line + "\n" + line) == 2
    said = capsys.readouterr().err
    for place, named in zip((2, 3), said.splitlines(), strict=False):
        assert named.startswith(f"error: c.jsonl:{place}: ") and reason in named
    assert "2 bad lines, named above; repair or delete them" in said


def test_unknown_ids_are_listed_once_and_counted(micro, capsys):
    folder, made = micro
    rows = rows_of(made, None, "x") + [{"id": "\x1b[2J", "completion": "3"}] * 3
    assert run(folder, rows) == 0
    said = capsys.readouterr()
    assert said.err.count("unknown id: c.jsonl:5: '\\x1b[2J' is no usable record's") == 1
    assert "not scored: 3 completions of 1 unknown ids" in said.out
    assert "\x1b" not in said.err + said.out


def test_a_bad_gold_is_in_the_audits_count_and_its_completions_are_named(micro, capsys):
    folder, made = micro
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    bad = json.loads(lines[0]) | {"id": "bad", "gt": "a few", "solution": ""}
    (folder / "records.jsonl").write_text("\n".join([*lines, json.dumps(bad)]), encoding="utf-8")
    rows = [*rows_of(made, None, "x"), {"id": "bad", "completion": "3"}]
    assert run(folder, rows) == 0
    said = capsys.readouterr()
    assert "gold audit: 1 of 3 records rejected" in said.out and "'bad'" in said.err


@pytest.mark.parametrize(("content", "message"), [
    (None, "no such file"), (b"\x1f\x8b\xff", "not UTF-8"), (b"", "no completion of any"),
    (b'{"id": "other", "completion": "3"}', "do the files go together"),
])
def test_a_bad_file_is_exit_code_2(micro, content, message, capsys):
    folder, _ = micro
    if content is not None:
        (folder / "c.jsonl").write_bytes(content)
    assert call(folder, "--completions", folder / "c.jsonl") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last and "c.jsonl" in last


def test_a_model_or_completions_must_be_named(micro, capsys):
    assert call(micro[0]) == 2 and "--completions" in capsys.readouterr().err


def test_a_trace_store_is_read_with_its_groups(micro):
    folder, made = micro
    store = traces.TraceStore(folder / "traces")
    for step, answer in enumerate((made[0].solution, "x")):
        store.append([
            {"model": "grpo", "optimizer_step": step, "record_id": made[0].id,
             "completion": wrap(answer)}
        ] * 2)  # fmt: skip
    sampled = doctor.read(folder / "traces", made)
    assert sampled.groups == [f"grpo/{step}/{made[0].id}" for step in (0, 0, 1, 1)]
    assert call(folder, "--completions", folder / "traces") == 1  # each group is of one mind
    found = rewards.examine(sampled.records, sampled.completions)
    assert found.table[0]["zero_variance"] == 0.0


def test_an_id_that_is_a_number_and_an_array_are_read(tmp_path):
    made = [record("digit", "3", id="7")]
    rows = [{"id": 7, "completion": "a", "group": None}, {"record_id": "7", "completion": "b"}]
    (tmp_path / "c.json").write_text(json.dumps(rows), encoding="utf-8")
    sampled = doctor.read(tmp_path / "c.json", made)
    assert sampled.completions == ["a", "b"] and sampled.groups == ["7", "7"]


# --- reasons -------------------------------------------------------------------------------------

RIGHT = f"instead of {' '.join(prompts.TAGS)}"


def test_reasons_that_differ_in_what_was_said_are_one():
    made = [record("digit", "3")] * 6
    answers = ["3", "4", "15.5", "it's \x1b[2J", 'so "so"', "three or four"]
    texts = [wrap(answer) for answer in answers]
    found = rewards.reasons(made, texts, rewards.score_all(made, texts))
    assert [(r["reason"], r["count"], r["mean"]) for r in found] == [
        ("digit: '...' is not one number", 3, 0.0), ("digit: # instead of #", 2, 0.0),
        ("digit: # is right", 1, 1.0),
    ]
    assert found[0]["example"] == '"it\'s \\x1b[2J"' and found[0]["share"] == 0.5


@pytest.mark.parametrize(("reason", "kind"), [
    ("mcq: B instead of C", "mcq: # instead of #"),
    ("mcq: E is none of the choices A, B, C", "mcq: # is none of the choices #"),
    ("mcq: letter A does not go with '2'", "mcq: letter # does not go with '...'"),
    ("iou: 0.532", "iou: #"),
    ("open: score -1e-05, reference 2", "open: score #, reference #"),
    ("math: timed out after 2 s of processor time", "math: timed out after # s of processor time"),
    ("open: score 1.5, reference 2", "open: score #, reference #"),
    (f"format: tags are <think> </think> {RIGHT}", "format: tags are <think> </think>"),
    (f"format: tags are <THINK> </think> {RIGHT}", "format: tags are <THINK> ..."),
    (f"format: tags are {RIGHT[11:]} <think> <think> {RIGHT}",
     f"format: tags are {RIGHT[11:]} <think> ..."),
    (f"format: tags are {'<think> ' * 20_000}{RIGHT}", "format: tags are <think> <think> ..."),
])
def test_kinds_of_reasons(reason, kind):
    score = rewards.Score(0.0, reason)
    assert rewards.reasons([record("digit", "3")], ["x"], [score])[0]["reason"] == kind


# --- table and verdict ---------------------------------------------------------------------------

GOOD = [record("digit", "3", id="d"), record("iou", "[0, 0, 0.5, 0.5]", id="i", frame="norm01")]


def test_doctor_sums_up_each_part():
    made = [GOOD[0]] * 4 + [GOOD[1]] * 2 + [record("digit", "many", id="bad")]
    texts = [wrap("3"), wrap("4"), "3", wrap("3"), *[wrap("[0, 0, 0.5, 0.25]")] * 2, wrap("1")]
    found = rewards.examine(made, texts)
    assert [text for _, text in found.usable] == texts[:-1]
    assert found.problem is None
    digit, box, everything = found.table
    assert digit == {
        "part": "digit", "n": 4, "hit_rate": 0.5, "format_rate": 0.75, "mean": 0.5, "low": 0.0,
        "high": 1.0, "zero_variance": 0.0, "bad_golds": 1,
    }
    assert (box["part"], box["mean"], box["hit_rate"]) == ("iou", 0.5, 1.0)
    assert (box["zero_variance"], box["bad_golds"]) == (1.0, 0)
    assert (everything["part"], everything["n"]) == ("all", 6)
    assert (everything["zero_variance"], everything["bad_golds"]) == (0.5, 1)


@pytest.mark.parametrize(("texts", "groups", "zero_variance", "reason"), [
    ([wrap("3"), wrap("4")], None, 0.0, None),
    ([wrap("4"), wrap("5")], None, 1.0, "every reward is 0 (format right in 100%)"),
    (["3", "3"], None, 1.0, "every reward is 0 (format right in 0%)"),
    ([wrap("3")] * 2, None, 1.0, "every reward is 1"),
    ([wrap("3")] * 2 + ["4"] * 2, [0, 0, 1, 1], 1.0, "in every group all rewards are equal"),
    ([wrap("3"), wrap("4")], [0, 1], None, None),
    ([], None, None, "no completion could be scored"),
])
def test_dead_rewards_are_named(texts, groups, zero_variance, reason):
    found = rewards.examine([GOOD[0]] * len(texts), texts, groups)
    assert found.problem is None if reason is None else found.problem.startswith(reason)
    assert found.table[0]["zero_variance"] == zero_variance


def test_tried_answers_keep_their_kind_and_say_why():
    table = rewards.tried(record("mcq", "B", COLON), {"right": ["(b)"], "hostile": ["B\x00" * 99]})
    assert [(row["kind"], row["reward"]) for row in table] == [("right", 1), ("hostile", 0)]
    assert all(row["reason"].startswith("mcq:") for row in table)
    shown = table[1]["answer"]
    assert "\x00" not in shown and "\\x00" in shown and shown.endswith("(198 characters)")
