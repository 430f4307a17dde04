"""One table of answers and what each is worth: every row of data/reward_cases.csv, a test."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from scoring import record, wrap
from vlaa_lib import rewards

FILE = Path(__file__).parent / "data" / "reward_cases.csv"
with FILE.open(encoding="utf-8", newline="") as _stream:
    CASES = list(csv.DictReader(_stream))


def made(case):
    """Build the record of a case; its frame may name the picture: `pixel_original 200x100`."""
    frame, _, size = case["frame"].partition(" ")
    meta = {"image_size": [int(side) for side in size.split("x")]} if size else {}
    solution = "" if "†" in case["gold"] else case["gold"]  # empty: the verifier normalises `gt`
    return record(case["reward"], case["gold"], case["question"], solution=solution,
                  frame=frame, meta=meta)  # fmt: skip


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{line}-{case['reward']}" for line, case in enumerate(CASES, 2)]
)
def test_case(case):
    found = rewards.score(made(case), wrap(case["answer"]))
    assert found.value == pytest.approx(float(case["expected"])), (case["note"], found.reason)


def test_the_table_is_large_has_no_row_twice_and_both_verdicts_for_each_reward():
    keys = [tuple(case[k] for k in ("reward", "question", "gold", "frame", "answer"))
            for case in CASES]
    assert len(CASES) >= 250 and len(set(keys)) == len(keys)
    counts = Counter(case["reward"] for case in CASES)
    assert set(counts) == {"digit", "mcq", "math", "iou"} and min(counts.values()) >= 50
    for reward in counts:
        right = sum(case["expected"] != "0" for case in CASES if case["reward"] == reward)
        assert 20 <= right <= counts[reward] - 20, reward


def test_every_gold_of_the_table_passes_the_audit():
    golds = {(case["reward"], case["question"], case["gold"], case["frame"]): made(case)
             for case in CASES}
    assert rewards.audit(list(golds.values())) == []
