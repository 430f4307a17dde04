"""What trips other reward functions (notebook 03), and that ours is right there."""

import csv
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from scoring import record
from vlaa_lib import ROOT, prompts, rewards
from vlaa_lib.rewards import GoldError, maths

with (ROOT / "data" / "peer_rewards.csv").open(encoding="utf-8", newline="") as _stream:
    CASES = list(csv.DictReader(_stream))


def ours(case):
    made = record(case["reward"], case["gold"], case["question"], frame=case["frame"])
    try:
        return f"{rewards.score(made, case['completion']).value:g}"
    except GoldError:
        return "refused"


def test_ours_is_right_where_peers_are_not_and_in_a_thread_too(monkeypatch):
    monkeypatch.setattr(maths, "TIMEOUT_S", 1.0)
    with ThreadPoolExecutor(1) as pool:  # where timers by signal fail
        found = list(pool.map(ours, CASES))
    assert len(CASES) >= 20 and found == [case["right"] for case in CASES]
    assert all(said != case["theirs"] for said, case in zip(found, CASES, strict=True))
    assert set(found) == {"0", "1", "refused"}


def test_every_kind_of_peers_behaviour_has_a_row():
    assert {case["reward"] for case in CASES} == {"digit", "mcq", "math", "iou"}
    assert {case["theirs"] for case in CASES} == {"0", "1", "none", "error", "hangs"}
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", case["repository"]) for case in CASES)
    assert len({case["repository"] for case in CASES}) >= 10
    assert all(case["because"] for case in CASES)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c["repository"] == "huggingface/trl" and c["theirs"] != "hangs"],
    ids=lambda case: case["completion"],
)  # fmt: skip
def test_what_is_said_of_trl_holds_for_the_installed_one(case):
    from trl.rewards import accuracy_reward

    message = [{"role": "assistant", "content": case["completion"]}]
    (found,) = accuracy_reward([message], [case["gold"]])
    assert {"0": 0.0, "none": None}[case["theirs"]] == found


def test_what_is_said_of_math_verify_holds():
    """VLM-R1 parses the bare answer; MM-EUREKA leaves the tags on, and adds dollars to golds."""
    from math_verify import (
        ExprExtractionConfig,
        LatexExtractionConfig,
        StringExtractionConfig,
        parse,
        verify,
    )

    assert verify(parse("7"), parse("3 or 7")) and not verify(parse("3"), parse("3 or 7"))
    every = [StringExtractionConfig(), LatexExtractionConfig(), ExprExtractionConfig()]
    tagged = f"{prompts.ANSWER_OPEN}3{prompts.ANSWER_CLOSE}"
    assert parse(tagged, extraction_config=every) == [] != parse("3", extraction_config=every)
    assert parse("$$$$") == parse("$$", [LatexExtractionConfig()]) == []
