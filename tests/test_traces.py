"""Traces: step truth, aha and phrase counts, the parquet store."""

import pytest

from vlaa_lib import traces
from vlaa_lib.prompts import join_think_answer

SCENE = {"kind": "bars", "bars": [{"color": "red", "value": 3}, {"color": "blue", "value": 5}]}


def test_check_steps_marks_each_sentence():
    trace = join_think_answer(
        "The red bar reaches 3. Wait, the blue bar reaches 4. The tallest bar is blue. Nice.", "A"
    )
    steps = traces.check_steps(trace, SCENE)
    assert [step.truth for step in steps] == [True, False, True, None, None]
    assert steps[1].text == "Wait, the blue bar reaches 4"


@pytest.mark.parametrize(
    ("text", "aha"),
    [
        ("All fine.", False),
        ("WAIT, no.", True),
        ("I see it again", True),
        ("A checkered cloth", True),
        ("I should confirm this", True),
        ("Hm, alternative", False),
    ],
)
def test_aha_is_the_papers_substring_test(text, aha):
    assert traces.has_aha(text) is aha


def test_measure_and_summarise():
    good = join_think_answer("The red bar reaches 3.", "B")
    bad = "Wait, wait. The red bar reaches 4. Alternatively not."
    table = traces.summarise([(good, SCENE), (bad, SCENE), (bad, None)])
    assert table["n"] == 3 and table["wait"] == 4 and table["alternatively"] == 2
    assert table["aha_rate"] == pytest.approx(2 / 3) and table["format_rate"] == pytest.approx(
        1 / 3
    )
    assert table["checked_steps"] == 2 and table["false_step_rate"] == 0.5
    assert traces.summarise([]) == {"n": 0}
    assert traces.summarise([("no scene", None)])["false_step_rate"] is None


def test_store_appends_and_pairs(tmp_path):
    store = traces.TraceStore(tmp_path / "a")
    store.append([{"record_id": "r1", "reward": 0.0}, {"record_id": "r2", "reward": 1.0}])
    store.append([{"record_id": "r3", "reward": 0.5}])
    store.append([{"record_id": "r4", "reward": 0.5}], rank=1)
    rows = traces.load(tmp_path / "a")
    assert [row["record_id"] for row in rows] == ["r1", "r2", "r4", "r3"]
    both = traces.pair(rows, [{"record_id": "r3", "reward": 1.0}])
    assert [(a["reward"], b["reward"]) for a, b in both] == [(0.5, 1.0)]
    with pytest.raises(FileNotFoundError, match="no traces; train or evaluate first"):
        traces.load(tmp_path / "none")
