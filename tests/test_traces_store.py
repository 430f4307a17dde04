"""The trace store: one schema, filters and samples that do not read everything, no loss."""

import random
import subprocess
import sys

import pytest

from vlaa_lib import ROOT, traces
from vlaa_lib.pocket import microworld

BOUND = 30_000
SAID = "<think>I count three.</think><answer>3</answer>"


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
        ])  # fmt: skip
    return store.folder


# in a process of its own, where nothing else has moved pyarrow's high-water mark
PEAKS = """
import sys
import pyarrow
from vlaa_lib import traces
for asked in ({"columns": ["record_id", "reward"], "where": {"source": "solids"}}, {}):
    traces.table(sys.argv[1], **asked)
    print(pyarrow.default_memory_pool().max_memory())
"""


def test_a_filtered_read_holds_a_fraction_of_the_store(large):
    command = [sys.executable, "-c", PEAKS, str(large)]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    some, everything = map(int, said.split())
    assert 0 < some < everything / 4


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ({"source": "solids"}, 300),
        ({"source": {"solids", "plot"}}, BOUND),
        ({"reward": (0.5, None)}, BOUND // 2),
        ({"reward": (0.25, 0.5)}, BOUND // 2),
        ({"false_steps": (1, None)}, 10_000),  # unknown truth is neither true nor false
        ({"source": "solids", "optimizer_step": (0, 4)}, 150),
        ({"record_id": ["r7", "r9"]}, 2),
        ({"reward": (None, None)}, BOUND),
        ({"model": "sft"}, 0),
        ({"kl": None, "source": "solids"}, 300),
        ({"source": set()}, 0),
    ],
)
def test_filters(large, where, count):
    assert traces.table(large, ["record_id"], where).num_rows == count


def test_a_sample_is_seeded_and_in_order(large):
    def drawn(seed):
        asked = {"where": {"source": "plot"}, "sample": 50, "seed": seed}
        return [row["record_id"] for row in traces.load(large, ["record_id"], **asked)]

    first = drawn(1)
    assert first == drawn(1) != drawn(2)
    numbers = [int(name[1:]) for name in first]
    assert len(set(numbers)) == 50 and numbers == sorted(numbers)
    assert max(numbers) > BOUND // 2 and not any(n % 100 == 0 for n in numbers)
    assert len(traces.load(large, ["record_id"], {"source": "solids"}, sample=10**6)) == 300


def test_rows_are_typed_and_completed(tmp_path):
    store = traces.TraceStore(tmp_path)
    store.append([
        {"record_id": "a", "part": "digit", "completion": "half \ud800 a pair", "reward": 0.0,
         "reason": "format: no tags"},
        {"record_id": "b", "part": "digit", "completion": SAID, "reward": 1.0,
         "reason": "3 is it"},
        {"record_id": "c", "part": "digit", "completion": "x", "reward": float("nan")},
    ])  # fmt: skip
    a, b, c = traces.load(tmp_path)
    assert list(a) == traces.schema().names and a["kl"] is None
    assert a["completion"] == "half ? a pair" and (a["words"], b["words"]) == (4, 3)
    assert a["parts"] == [{"name": "format", "value": 0.0, "reason": "format: no tags"}]
    assert [(p["name"], p["value"], p["reason"]) for p in b["parts"]] == [
        ("format", 1.0, ""), ("digit", 1.0, "3 is it")]  # fmt: skip
    assert c["reward"] != c["reward"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"record_id": "a", "rewrad": 1.0}, "no such column: rewrad"),
        ({"record_id": "a", "reward": "high"}, "a value of a wrong type"),
        ({"record_id": 3}, "a value of a wrong type"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_part(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        traces.TraceStore(tmp_path).append([row])
    assert not list(tmp_path.iterdir())


def test_reading_names_what_is_wrong(tmp_path):
    traces.TraceStore(tmp_path).append([{"record_id": "a"}])
    with pytest.raises(ValueError, match="no such column: lenght; known are record_id"):
        traces.load(tmp_path, where={"lenght": 3})
    for wrong in ("long", [1, "a"], {"b"}, (1, 2, 3)):
        with pytest.raises(ValueError, match="where .words. is "):
            traces.load(tmp_path, where={"words": wrong})
    (tmp_path / "part-000001-0.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="part-000001-0.parquet.*delete that part"):
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
           "correct": True, "model": "sft", "blank": False}  # fmt: skip
    made = traces.from_evaluation([row], [record], profile="smoke", seed=3)
    traces.TraceStore(tmp_path).append(made)
    (kept,) = traces.load(tmp_path)
    assert (kept["profile"], kept["seed"], kept["correct"], kept["steps"]) == ("smoke", 3, True, 2)
    assert kept["false_steps"] == 0 and "question" not in kept
    (real,) = traces.from_evaluation([row], [])
    assert real["steps"] == 2 and real["false_steps"] is None
