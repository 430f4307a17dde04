"""What the micro-world says of a trace: true steps, second thoughts, answers that follow."""

import json
from pathlib import Path

import pytest

from vlaa_lib import pocket, traces
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld import SOURCES, narrator
from vlaa_lib.pocket.microworld.narrator import Rates
from vlaa_lib.prompts import join_think_answer

BARS = {"kind": "bars", "bars": [{"color": "red", "value": 3}, {"color": "blue", "value": 5}]}
BOXES = ([0.0, 0.0, 0.23, 0.23], [0.5, 0.0, 0.73, 0.23], [0.5, 0.75, 0.73, 0.98])
THINGS = (("red", "cube"), ("red", "cube"), ("blue", "ball"))
CURVE = {"color": "green", "family": "line", "a": 2, "h": 0, "k": -1}
CORNERS = (("red", 50), ("blue", 60), ("green", 70))
SCENES = {scene["kind"]: scene for scene in (
    {"kind": "objects", "objects": [
        {"color": color, "shape": shape, "size": "big", "box": box}
        for (color, shape), box in zip(THINGS, BOXES, strict=True)]},
    {"kind": "bars", "bars": [{"color": "red", "value": 3}, {"color": "gray", "value": 7}]},
    {"kind": "line", "values": [2, 8, 5]},
    {"kind": "function", "curves": [CURVE]},
    {"kind": "triangle", "corners": [{"color": c, "angle": a} for c, a in CORNERS]},
    {"kind": "slip", "fields": {"name": "Ada", "total": "42"}},
    {"kind": "closeup", "color": "red", "shape": "cone", "clear": True},
)}
COUNT, CHOICES = "How many red cubes are there?", "\nChoices:\nA: red\nB: blue\nC: gray\nD: green"


# written by hand, mostly not in the narrator's words, and labelled by reading
@pytest.mark.parametrize(("kind", "sentence", "expected"), [
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
])
def test_steps_in_other_peoples_words(kind, sentence, expected):
    assert [step.truth for step in traces.check_steps(sentence, SCENES[kind])] == [expected]


def test_steps_that_policies_said():
    """Greedy, of a laptop run's models, and sampled from a half-trained one.

    Each step was read against its scene by hand.
    """
    rows = [json.loads(line) for line in (Path(__file__).parent / "data/policy_steps.jsonl").open(
        encoding="utf-8")]
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


# more than `checks.corrections` asks of a reader
@pytest.mark.parametrize(("text", "helped", "hurt", "unchanged"), [
    ("The red bar reaches 4. Hmm. The red bar reaches 9.", 0, 0, 1),
    ("The red bar reaches 3. Let me check. The red bar stands at 3.", 0, 0, 1),
    ("Wait. The red bar reaches 4. The red bar reaches 3.", 0, 0, 0),  # doubted before
    ("The tallest bar is red. Hmm. The tallest bar is blue.", 1, 0, 0),
    ("The red bar reaches 4. Wait. The red bar reaches 3. Hmm. The red bar reaches 4.", 1, 1, 0),
    ("Red it is. Wait. No, blue.", 0, 0, 0),
])
def test_corrections(text, helped, hurt, unchanged):
    found = pocket.corrections(text, BARS)
    assert found == {"helped": helped, "hurt": hurt, "unchanged": unchanged}


@pytest.mark.parametrize(("question", "think", "answer", "expected"), [
    (COUNT, "There are 3 red cubes.", "3", True),
    (COUNT, "There are 3 red cubes.", "4", False),
    (COUNT, "There are 4 red cubes. Wait. There are 3 red cubes.", "4", False),
    (COUNT, "There are 2 red cubes. 2 + 1 = 3.", "3", True),
    (COUNT, "2 + 1 = 3. Let me check. There are 2 red cubes.", "3", True),
    (COUNT, "I like cubes.", "3", None),
    (COUNT, "The red cube is at the top left.", "0", None),  # no cube was counted
    ("Which bar is the tallest?" + CHOICES, "The tallest bar is blue.", "B", True),
    ("Which bar is the tallest?" + CHOICES, "The tallest bar is blue.", "A", False),
    ("Which bar is the tallest?" + CHOICES, "The red bar reaches 3. The blue bar reaches 5.",
     "B", True),  # solved from what was stated
    ("What is the total on the slip?", "The total is 42.", "The total is 42.", True),
    ("What is the day on the slip?", "The day is Mon.", "Tue", False),
    ("What color is this?", "It is a red cone.", "red", True),
    ("What is this?", "It is too blurred to tell.", "unanswerable", True),
    ("Find the blue ball and give its box.", "The blue ball is at the top left.",
     "[0.0, 0.0, 0.2, 0.2]", True),
    ("Find the blue ball and give its box.", "The blue ball is at the top left.",
     "[0.7, 0.7, 0.9, 0.9]", False),
    ("Find the blue ball and give its box.", "The blue ball is at the top left.", "x", False),
    ("Describe the image.", "There are 3 objects.", "I see 2 red cubes. I see a ball.", True),
    ("Describe the image.", "There are 4 objects.", "I see 2 red cubes. I see a ball.", False),
    ("Who painted this?", "There are 3 red cubes.", "3", None),
])
def test_answers_that_follow(question, think, answer, expected):
    assert pocket.follows(join_think_answer(think, answer), question) is expected
    assert pocket.follows(f"{think} The answer is {answer}.", question) is None, "no format"


@pytest.mark.parametrize("source", SOURCES)
def test_the_narrators_answers_follow_from_its_words(source):
    for index in range(12):
        record = microworld.record(source, "dev", index)
        think, answer = narrator.plain_trace(record.meta["scene"], record.question)
        assert pocket.follows(join_think_answer(think, answer), record.question) is True, think
