"""Traces: what is measured in them, their store, several models side by side, the curated set."""

import json
import random
import subprocess
import sys

import pytest
from PIL import Image
from pyarrow.dataset import field

from vlaa_lib import ROOT, folders, traces
from vlaa_lib.__main__ import main
from vlaa_lib.pocket import microworld
from vlaa_lib.prompts import join_think_answer
from vlaa_lib.show import prepare
from vlaa_lib.study import curation
from vlaa_lib.traces import measures

BARS = {"kind": "bars", "bars": [{"color": "red", "value": 3}, {"color": "blue", "value": 5}]}
BOUND = 30_000
SAID = "<think>I count three.</think><answer>3</answer>"
SOURCES = ["solids", "slip", "locate"]


# --- measures


def test_check_steps_marks_each_sentence_and_counts_them():
    trace = join_think_answer(
        "The red bar reaches 3. Wait, the blue bar reaches 4. The tallest bar is blue. Nice.", "A"
    )
    steps = traces.check_steps(trace, BARS)
    assert [step.truth for step in steps] == [True, False, True, None, None]
    assert steps[1].text == "Wait, the blue bar reaches 4"
    assert traces.step_counts(trace, BARS) == {
        "steps": 5, "checked_steps": 3, "false_steps": 1, "first_false_step": 2}
    assert traces.step_counts("", BARS)["first_false_step"] is None


def test_keywords_are_counted_as_the_paper_tests_them():
    row = traces.measure("Wait, I double-check. Alternatively, I should check the checkers. Hmm.")
    assert [row[phrase] for phrase in traces.FIGURE7_PHRASES] == [1, 1, 1, 1]
    assert row["check"] == 3 and row["hmm"] == 1 and row["again"] == row["mistake"] == 0
    assert row["aha_words"] == 6  # double-check is one
    assert row["hesitation"] == pytest.approx(100 * 6 / 10)


@pytest.mark.parametrize(("text", "expected"), [
    ("", None), ("a b c d", 0.0), ("a b c d e a b c d", 1 / 6),
    ("Go on go on go on go on", 0.6),  # Go and go are one word
])
def test_repetition(text, expected):
    assert measures.repetition(text) == (expected if expected is None else pytest.approx(expected))


def test_without_a_scene_truth_is_unknown_and_says_so():
    row = traces.measure("The red bar reaches 9. Wait. The red bar reaches 3.", None)
    assert row["truth_from"] is None and row["steps"] == 3
    truths = ("checked_steps", "false_steps", "first_false_step", "helped", "hurt", "unchanged")
    assert [row[name] for name in truths] == [None] * 6
    assert traces.measure("Hm.", BARS)["truth_from"] == "scene"


def test_a_summary_averages_over_traces_and_sums_phrases():
    good = join_think_answer("There are 2 red cubes.", "2")
    question = "How many red cubes are there?"
    bad = "Wait, wait. The red bar reaches 4. The red bar reaches 3. Alternatively not."
    long = "The red bar reaches 3. " * 3
    table = traces.summarise([(good, None, question), (bad, BARS), (bad, None), (long, BARS)])
    assert (table["n"], table["wait"], table["alternatively"]) == (4, 4, 2)
    assert (table["aha_rate"], table["format_rate"], table["mean_steps"]) == (0.5, 0.25, 3.25)
    assert (table["follows_rate"], table["unchanged"], table["checked_steps"]) == (1.0, 0, 5)
    assert table["hesitation"] == pytest.approx(100 * 3 / 14 / 2)
    # a mean of traces, and pooled over steps
    assert (table["false_share"], table["false_step_rate"]) == (0.25, 0.2)
    assert traces.summarise([]) == {"n": 0}
    none = traces.summarise([("no scene", None)])
    assert none["false_step_rate"] is None and none["false_share"] is None


def test_measured_rows_need_their_records():
    record = microworld.record("panel", "dev", 0)
    row = {"record_id": record.id, "completion": "There are 900 objects.", "model": "sft"}
    (made,) = traces.measured([row], [record])
    assert made["model"] == "sft" and made["steps"] == 1
    with pytest.raises(KeyError, match="not among the records"):
        traces.measured([row], [])


# --- the store


def test_a_store_appends(tmp_path):
    store = traces.TraceStore(tmp_path / "a")
    store.append([{"record_id": "r1", "reward": 0.0}, {"record_id": "r2", "reward": 1.0}])
    store.append([{"record_id": "r3", "reward": 0.5}])
    store.append([{"record_id": "r4", "reward": 0.5}], rank=1)
    rows = traces.load(tmp_path / "a")
    assert [row["record_id"] for row in rows] == ["r1", "r2", "r4", "r3"]
    with pytest.raises(FileNotFoundError, match="no traces; train or evaluate first"):
        traces.load(tmp_path / "none")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Thirty thousand rows in ten parts, their completions of random letters."""
    store = traces.TraceStore(tmp_path_factory.mktemp("large"))
    rng = random.Random(0)
    for part in range(10):
        store.append([
            {"record_id": f"r{i}", "source": "solids" if i % 100 == 0 else "plot", "model": "grpo",
             "optimizer_step": part, "completion": rng.randbytes(200).hex(), "reward": i % 4 / 4,
             "false_steps": None if i % 2 else i % 6}
            for i in range(part * BOUND // 10, (part + 1) * BOUND // 10)
        ])
    return store.folder


# in a process of its own, where nothing else has moved pyarrow's high-water mark
PEAKS = """
import sys
import pyarrow
from pyarrow.dataset import field
from vlaa_lib import traces
for asked in ({"columns": ["record_id", "reward"], "where": field("source") == "solids"}, {}):
    traces.table(sys.argv[1], **asked)
    print(pyarrow.default_memory_pool().max_memory())
"""


def test_a_filtered_read_holds_a_fraction_of_the_store(large):
    command = [sys.executable, "-c", PEAKS, str(large)]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    some, everything = map(int, said.split())
    assert 0 < some < everything / 4


@pytest.mark.parametrize(("where", "count"), [
    (field("reward") >= 0.5, BOUND // 2),
    (field("false_steps") >= 1, 10_000),  # unknown truth is neither true nor false
    ((field("source") == "solids") & (field("optimizer_step") <= 4), 150),
    (field("kl").is_null() & (field("source") == "solids"), 300),
    (field("model") == "sft", 0),
])
def test_filters(large, where, count):
    assert traces.table(large, ["record_id"], where).num_rows == count


def test_a_sample_is_seeded_and_in_order(large):
    def drawn(seed):
        asked = {"where": field("source") == "plot", "sample": 50, "seed": seed}
        return [row["record_id"] for row in traces.load(large, ["record_id"], **asked)]

    first = drawn(1)
    assert first == drawn(1) != drawn(2)
    numbers = [int(name[1:]) for name in first]
    assert len(set(numbers)) == 50 and numbers == sorted(numbers)
    assert max(numbers) > BOUND // 2 and not any(n % 100 == 0 for n in numbers)
    assert len(traces.load(large, ["record_id"], field("source") == "solids", sample=10**6)) == 300


def test_rows_are_typed_and_completed(tmp_path):
    store = traces.TraceStore(tmp_path)
    store.append([
        {"record_id": "a", "part": "digit", "completion": "half \ud800 a pair", "reward": 0.0,
         "reason": "format: no tags"},
        {"record_id": "b", "part": "digit", "completion": SAID, "reward": 1.0,
         "reason": "3 is it"},
        {"record_id": "c", "part": "digit", "completion": "x", "reward": float("nan")},
    ])
    a, b, c = traces.load(tmp_path)
    assert list(a) == traces.schema().names and a["kl"] is None
    assert a["completion"] == "half ? a pair" and (a["words"], b["words"]) == (4, 3)
    assert a["parts"] == [{"name": "format", "value": 0.0, "reason": "format: no tags"}]
    assert [(p["name"], p["value"], p["reason"]) for p in b["parts"]] == [
        ("format", 1.0, ""), ("digit", 1.0, "3 is it")]
    assert c["reward"] != c["reward"]


@pytest.mark.parametrize(("row", "message"), [
    ({"record_id": "a", "rewrad": 1.0}, "no such column: rewrad"),
    ({"record_id": "a", "reward": "high"}, "a value of a wrong type"),
    ({"record_id": 3}, "a value of a wrong type"),
])
def test_what_does_not_fit_is_refused_and_leaves_no_part(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        traces.TraceStore(tmp_path).append([row])
    assert not list(tmp_path.iterdir())


def test_reading_names_what_is_wrong(tmp_path):
    traces.TraceStore(tmp_path).append([{"record_id": "a"}])
    with pytest.raises(ValueError, match="no such column: lenght; known are record_id"):
        traces.load(tmp_path, ["lenght"])
    with pytest.raises(ValueError, match="lenght"):
        traces.load(tmp_path, where=field("lenght") == 3)
    (tmp_path / "part-000001-0.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="part-000001-0.parquet.*delete a part"):
        traces.load(tmp_path)


def test_a_part_is_never_overwritten(tmp_path):
    store = traces.TraceStore(tmp_path)
    for name in "abc":
        store.append([{"record_id": name, "optimizer_step": ord(name)}])
    (tmp_path / "part-000000-0.parquet").unlink()
    store.append([{"record_id": "d"}])
    assert [row["record_id"] for row in traces.load(tmp_path)] == ["b", "c", "d"]
    store.forget(ord("c"))
    assert [row["record_id"] for row in traces.load(tmp_path)] == ["b", "d"]  # d has no step


def test_evaluation_rows_fit_the_schema(tmp_path):
    record = microworld.record("panel", "dev", 0)
    row = {"record_id": record.id, "source": "panel", "part": "mcq", "image": record.image,
           "question": record.question, "gold": "A", "completion": "Hmm. It is red.",
           "answer": "A", "path": "plain", "reward": 0.0, "reason": "format: x", "score": 1.0,
           "correct": True, "model": "sft", "blank": False}
    made = traces.from_evaluation([row], [record], profile="smoke", seed=3)
    traces.TraceStore(tmp_path).append(made)
    (kept,) = traces.load(tmp_path)
    assert (kept["profile"], kept["seed"], kept["correct"], kept["steps"]) == ("smoke", 3, True, 2)
    assert kept["false_steps"] == 0 and "question" not in kept
    (real,) = traces.from_evaluation([row], [])
    assert real["steps"] == 2 and real["false_steps"] is None


# --- side by side


def row(name, completion="x", **columns):
    return {"record_id": name, "completion": completion, "model": "grpo"} | columns


def test_an_example_holds_what_is_known_and_nothing_else(tmp_path):
    sample = microworld.generate("locate", "dev", 0)
    sample.save(tmp_path)
    record, other = sample.record, microworld.record("solids", "dev", 0)
    nan = float("nan")
    part = {"name": "iou", "value": nan, "reason": "not scored"}
    runs = {
        "sft": [row(record.id, "one", reward=0.0, reason="no", correct=False),
                row(record.id, "grey", blank=True)],
        "grpo": [row(record.id, "old", optimizer_step=1, reward=1.0),
                 *(row(record.id, text, optimizer_step=2, reward=nan, advantage=0.0, parts=[part],
                       completion_tokens=3, clipped=True, mean_logp=-0.5) for text in "ab"),
                 row("unknown")],
    }
    (example,) = traces.examples([record, other], tmp_path, runs)
    sft, grpo = example.pop("sides")
    assert example == {
        "id": record.id, "source": "locate", "image": str(tmp_path / record.image),
        "question": record.question, "gold": record.solution, "scene": record.meta["scene"],
        "frame": "norm01"}
    assert sft == {"name": "sft", "text": "one", "reward": 0.0, "reason": "no", "correct": False}
    assert grpo == {
        "name": "grpo", "text": "a", "advantage": 0.0, "mean_logp": -0.5, "clipped": True,
        "tokens": 3, "parts": {"iou": None}, "reasons": {"iou": "not scored"},
        "group": [{"text": t, "reward": None, "advantage": 0.0, "tokens": 3} for t in "ab"],
    }
    (lost,) = traces.examples([other], tmp_path, {"sft": [row(other.id)]})
    assert lost["image"] is None and lost["frame"] is None
    assert json.loads(json.dumps(lost)) == lost


def test_rows_of_an_evaluation_bring_their_answer_and_parts():
    record = microworld.record("solids", "dev", 0)
    said = row(record.id, "It is 3.", answer="3", correct=True, part="digit", reward=0.0,
               reason="format: no think or answer tags", verdicts=[True])
    (example,) = traces.examples([record], None, {"sft": [said]})
    (side,) = example["sides"]
    assert side["answer"] == "3" and side["parts"] == {"format": 0.0}
    assert side["verdicts"] == [True], "a judge's, for pictures without a scene"
    assert prepare.prepare([example])["examples"][0]["sides"][0]["answer"] == "3"


def test_flips_are_wrong_before_and_right_after():
    wrong = [row("a", correct=False), row("b", correct=True), row("c", reward=0.2), row("d"),
             row("e", correct=False, blank=True), row("f", correct=False)]
    right = [row("d", reward=0.1), row("c", reward=0.9), row("b", correct=True), row("e"),
             row("a", correct=True, reward=0.0)]
    assert traces.flipped(wrong, right) == ["a", "c"]


# --- the curated set


@pytest.fixture
def run(tmp_path):
    """A run as the stages leave it: held-out records, rates, two evaluated models."""
    world = tmp_path / "run" / "world" / "test"
    made = microworld.write_split(world, SOURCES, "test", 6)
    rates = {"omit": 0.3, "confuse": 0.2, "miscount": 0.2, "hesitate": 0.9, "waver": 0.5}
    done = {"settings": {"rates": rates}}
    folders.write_text(tmp_path / "run" / "dataset" / "done.json", json.dumps(done))
    card = {"profile": "smoke", "seed": 4, "commit": "abc", "status": {}}
    folders.write_text(tmp_path / "run" / "run_card.json", json.dumps(card))
    for name in ("sft", "grpo"):
        rows = []
        for number, record in enumerate(made):
            flips = number % 6 == 2
            text = join_think_answer("There are 99 objects." if number % 6 == 4 else "Hm.", "x")
            common = {"record_id": record.id, "source": record.source, "part": record.reward,
                      "image": record.image, "completion": text, "reward": 0.0, "reason": "no",
                      "correct": flips and name == "grpo", "model": name}
            rows += [common | {"blank": False}, common | {"blank": True, "correct": True}]
        path = tmp_path / "run" / "evaluation" / name / "rows.jsonl"
        folders.write_lines(path, (json.dumps(row) + "\n" for row in rows))
    return tmp_path / "run"


def test_curation_prefers_flips_and_loads_as_examples(run, tmp_path, capsys):
    out = tmp_path / "set"
    words = ["traces", "curate", "--run", str(run), "--out", str(out), "--per-source", "2"]
    assert main(words) == 0
    assert "6 records, 3 flips" in capsys.readouterr().out
    shown = traces.curated(out)
    assert [example["source"] for example in shown] == [s for s in SOURCES for _ in "12"]
    assert {side["name"] for example in shown for side in example["sides"]} == {
        "teacher", "sft", "grpo"}
    for example in shown:
        assert Image.open(example["image"]).size[0] > 50
        assert example["scene"] and example["image"].startswith(str(out))
    flips = [e["id"] for e in shown if any(side.get("correct") for side in e["sides"])]
    assert len(flips) == 3, "one a source, never by the grey twin"
    assert {row["profile"] for row in traces.load(out)} == {"smoke"}
    assert json.loads((out / "card.json").read_text(encoding="utf-8"))["commit"] == "abc"
    before = sorted((p.name, p.read_bytes()) for p in out.rglob("*.jsonl"))
    assert main(words) == 0  # again: the same set in the same place
    assert before == sorted((p.name, p.read_bytes()) for p in out.rglob("*.jsonl"))
    assert main([*words, "--seed", "1"]) == 0
    assert before != sorted((p.name, p.read_bytes()) for p in out.rglob("*.jsonl"))


def test_curation_shows_gain_and_damage_alike(run, tmp_path):
    path = run / "evaluation" / "sft" / "rows.jsonl"
    rows = folders.whole_lines(path)
    lost = {row["record_id"] for row in rows[:: 2 * 6]}  # the first of each source
    for row in rows:
        row["correct"] = row["record_id"] in lost and not row["blank"]
    folders.write_lines(path, (json.dumps(row) + "\n" for row in rows))
    card = curation.curate(run, tmp_path / "set", 2)
    assert (card["records"], card["flips"], card["losses"]) == (6, 3, 3)
    assert lost < {example["id"] for example in traces.curated(tmp_path / "set")}
    assert "--per-source 2 --seed 0" in card["command"]


def test_the_set_in_the_repository_opens_and_is_small():
    shown = traces.curated()
    assert len({example["source"] for example in shown}) == len(microworld.SOURCES)
    names = {side["name"] for example in shown for side in example["sides"]}
    assert names == {"teacher", "instruct", "sft", "grpo", "sft_grpo"}
    assert all(example["image"] and example["scene"] for example in shown)
    files = [path for path in curation.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    results = json.loads((ROOT / "data" / "results" / "laptop" / "run_card.json").read_text(
        encoding="utf-8"))
    card = json.loads((curation.FOLDER / "card.json").read_text(encoding="utf-8"))
    same = (card["commit"], card["finished"]) == (results["commit"], results["finished"])
    assert same, "curate again from the run that is now in data/results"


def test_curation_refuses_a_foreign_folder_and_an_unfinished_run(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x", encoding="utf-8")
    folders.write_text(tmp_path / "records" / "records.jsonl", "")  # of ours, but no curated traces
    (tmp_path / "records" / "images").mkdir()
    for name in ("mine", "records"):
        with pytest.raises(ValueError, match="holds other files"):
            curation.curate(run, tmp_path / name)
    rows = run / "evaluation" / "grpo" / "rows.jsonl"
    before = rows.read_text(encoding="utf-8")
    for text in ("{}\n", before.replace('"completion"', '"said"')):
        rows.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="run: its evaluation or its dataset is broken"):
            curation.curate(run, tmp_path / "set")
    rows.unlink()
    with pytest.raises(FileNotFoundError, match="grpo/rows.jsonl: not there; finish the run"):
        curation.curate(run, tmp_path / "set")
    with pytest.raises(FileNotFoundError, match="no curated traces; make them with"):
        traces.curated(tmp_path / "set")
