"""What notebook 03 shows: answers tried, formats ignored, peers' behaviours, advantages, boxes."""

import csv
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from scoring import COLON, record, wrap
from vlaa_lib import prompts, rewards
from vlaa_lib.pocket import microworld
from vlaa_lib.rewards import examples, maths
from vlaa_lib.show import boxes

with examples.PEERS.open(encoding="utf-8", newline="") as _stream:
    CASES = list(csv.DictReader(_stream))


def test_tried_answers_keep_their_kind_and_say_why():
    table = rewards.tried(record("mcq", "B", COLON), {"right": ["(b)"], "hostile": ["B\x00" * 99]})
    assert [(row["kind"], row["reward"]) for row in table] == [("right", 1), ("hostile", 0)]
    assert all(row["reason"].startswith("mcq:") for row in table)
    shown = table[1]["answer"]
    assert "\x00" not in shown and "\\x00" in shown and shown.endswith("(198 characters)")


@pytest.mark.parametrize("text", [
    "3", wrap("3"), wrap("4") + wrap("3"), f"Sure. {wrap('3')}", wrap("3").upper(),
    wrap("3").removesuffix(prompts.ANSWER_CLOSE), f"{wrap('3')} I am sure.",
])  # fmt: skip
def test_without_its_format_a_right_answer_scores(text):
    scores = [rewards.score(record("digit", "3"), t).value
              for t in (text, rewards.without_format(text))]
    assert scores == [float(text == wrap("3")), 1.0]


@pytest.mark.parametrize("text", ["4", "", wrap("3") + wrap("4"), "3" + wrap("3 or 4")])
def test_without_its_format_a_wrong_answer_stays_wrong(text):
    assert rewards.score(record("digit", "3"), rewards.without_format(text)).value == 0


def test_ours_is_right_where_peers_are_not_and_in_a_thread_too(monkeypatch):
    monkeypatch.setattr(maths, "TIMEOUT_S", 1.0)
    with ThreadPoolExecutor(1) as pool:  # where timers by signal fail
        table = pool.submit(rewards.peers).result()
    assert len(table) == len(CASES) >= 20
    assert [row for row in table if not row["is_right"]] == []
    assert all(row["ours"] != row["theirs"] for row in table)
    assert {row["ours"] for row in table} == {"0", "1", "refused"}


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


def test_boxes_are_drawn_one_panel_an_answer():
    sample = microworld.generate("locate", "train", 1)
    gold = rewards.parse_box(sample.record.gt)
    empty, same, other = (boxes.overlaps(sample.image, gold, answers)
                          for answers in ([None], [gold], [(0.0, 0.0, 0.1, 0.1)] * 4))  # fmt: skip
    assert empty.size == same.size and other.height > same.height and other.width <= 640
    counts = [{c: n for n, c in p.getcolors(2**20)}.get(boxes.ANSWER, 0)
              for p in (empty, same, other)]  # fmt: skip
    assert counts[0] == 0 < counts[1]
    assert counts[2] > 0
