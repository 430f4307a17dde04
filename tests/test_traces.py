"""Traces: step truth, aha and phrase counts, the parquet store."""

import json
from pathlib import Path

import pytest

from vlaa_lib import pocket, traces
from vlaa_lib.pocket.microworld import SOURCES
from vlaa_lib.pocket.microworld.narrator import Rates
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


SCENES = {
    "objects": {
        "kind": "objects",
        "objects": [
            {"color": "red", "shape": "cube", "size": "big", "box": [0.0, 0.0, 0.23, 0.23]},
            {"color": "red", "shape": "cube", "size": "big", "box": [0.5, 0.0, 0.73, 0.23]},
            {"color": "blue", "shape": "ball", "size": "big", "box": [0.5, 0.75, 0.73, 0.98]},
        ],
    },
    "bars": {"kind": "bars", "bars": [{"color": "red", "value": 3}, {"color": "gray", "value": 7}]},
    "line": {"kind": "line", "values": [2, 8, 5]},
    "function": {
        "kind": "function",
        "curves": [{"color": "green", "family": "line", "a": 2, "h": 0, "k": -1}],
    },
    "triangle": {
        "kind": "triangle",
        "corners": [
            {"color": color, "angle": angle}
            for color, angle in (("red", 50), ("blue", 60), ("green", 70))
        ],
    },
    "slip": {"kind": "slip", "fields": {"name": "Ada", "total": "42"}},
    "closeup": {"kind": "closeup", "color": "red", "shape": "cone", "clear": True},
}


# written by hand, mostly not in the narrator's words, and labelled by reading
@pytest.mark.parametrize(
    ("kind", "sentence", "expected"),
    [
        ("objects", "We see two red cubes.", True),
        ("objects", "The image shows 3 objects.", True),
        ("objects", "I can see that there are three red cubes.", False),
        ("objects", "In the image, there is one blue sphere.", True),
        ("objects", "There are exactly 2 red blocks, and there is 1 blue ball.", True),
        ("objects", "There are 2 red cubes and 2 blue balls.", False),
        ("objects", "Two red cubes are visible.", True),
        ("objects", "The blue ball is near the bottom.", True),
        ("objects", "The blue ball is located at the top left.", False),
        ("objects", "A red cube is left of the blue ball.", None),
        ("objects", "The red cube is above the blue ball.", True),
        ("objects", "The blue ball is above the red cube.", False),
        ("objects", "2 + 1 gives 3.", True),
        ("objects", "2 + 1 = 4.", False),
        ("objects", "Maybe there are 4 cubes?", None),
        ("objects", "I am not sure.", None),
        ("objects", "There are 2 red cubes red cubes.", None),
        ("bars", "The red bar is at 3.", True),
        ("bars", "The gray bar has a height of 6.", False),
        ("bars", "Gray is the tallest.", True),
        ("bars", "So the red bar is the highest.", False),
        ("bars", "The blue bar reaches 3.", False),
        ("line", "At x = 2, the value is 8.", True),
        ("line", "The line is at 4 when x = 3.", False),
        ("line", "The peak is at x = 2.", True),
        ("line", "At x = 9 the line is at 2.", False),
        ("function", "The slope of the green line is 2.", True),
        ("function", "The green graph crosses the y-axis at 1.", False),
        ("function", "The red graph is a parabola.", False),
        ("triangle", "The blue angle equals 60 degrees.", True),
        ("triangle", "The red and blue angles are equal.", False),
        ("triangle", "180 - 50 - 60 = 70.", True),
        ("triangle", "The green angle is 60°.", False),
        ("slip", "The total on the slip is 42.", True),
        ("slip", "name: Tom", False),
        ("slip", "The day is Mon.", False),
        ("closeup", "This seems to be a red cone.", True),
        ("closeup", "It is a red ball.", False),
        ("closeup", "It is too blurred to tell.", False),
    ],
)
def test_steps_in_other_peoples_words(kind, sentence, expected):
    assert [step.truth for step in traces.check_steps(sentence, SCENES[kind])] == [expected]


def test_steps_that_policies_said():
    """Greedy, of a laptop run's models, and sampled from a half-trained one.

    Each step was read against its scene by hand.
    """
    rows = [json.loads(line) for line in (Path(__file__).parent / "data/policy_steps.jsonl").open()]
    read = [truth for row in rows for truth in row["truths"]]
    assert read.count(True) >= 80 and read.count(False) >= 30
    missed = []
    for row in rows:
        found = traces.check_steps(row["trace"], row["scene"])
        for step, truth in zip(found, row["truths"], strict=True):
            if step.truth is None and truth is not None:
                missed.append(step.text)
            else:
                assert step.truth == truth, (step, row["trace"])
    assert missed == ["It seems that the image shows a yellow cylinder"]  # of a close-up


def test_the_checker_finds_the_teachers_false_steps():
    """Known errors at the usual rates and far above them."""
    for rates in (Rates(), Rates(0.2, 0.3, 0.3, hesitate=1, waver=0.8)):
        found = pocket.checker_quality(SOURCES, rates, n=20)
        assert found["false"] > 30
        assert found["precision"] >= 0.98 and found["recall"] >= 0.98


def test_verification_keeps_answers_and_not_steps():
    rows = pocket.false_steps_by_noise(["solids"], Rates(), factors=(0.0, 2.0), n=60)
    clean, noisy = rows
    assert clean["verified"] == 1.0 and clean["false_all"] == clean["false_verified"]
    assert noisy["verified"] < 0.9
    assert 0 < noisy["false_verified"] < noisy["false_all"]
