"""Measures of a trace, each on cases made by hand."""

import pytest

from vlaa_lib import pocket, traces
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld import SOURCES, narrator
from vlaa_lib.prompts import join_think_answer
from vlaa_lib.traces import measures

BARS = {"kind": "bars", "bars": [{"color": "red", "value": 3}, {"color": "blue", "value": 5}]}


def test_keywords_are_counted_as_the_paper_tests_them():
    row = traces.measure("Wait, I double-check. Alternatively, I should check the checkers. Hmm.")
    assert [row[phrase] for phrase in traces.FIGURE7_PHRASES] == [1, 1, 1, 1]
    assert row["check"] == 3 and row["hmm"] == 1 and row["again"] == row["mistake"] == 0
    assert row["aha_words"] == 6  # double-check is one
    assert row["hesitation"] == pytest.approx(100 * 6 / 10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", None), ("one two three", None), ("a b c d", 0.0), ("a b c d e a b c d", 1 / 6),
     ("Go on go on go on go on", 0.6)],  # GO and go are one word
)  # fmt: skip
def test_repetition(text, expected):
    assert measures.repetition(text) == (expected if expected is None else pytest.approx(expected))


def test_compression_tells_a_loop_from_prose():
    prose = "The red bar is at three and the blue one goes up to five, so blue must be the tallest."
    assert measures.compression("") is None
    assert measures.compression("So blue. " * 10) < 0.4 < measures.compression(prose)


def test_steps_are_counted_and_the_first_false_one_is_numbered():
    text = "Okay. The red bar reaches 3. The blue bar reaches 4. The red bar reaches 9."
    assert traces.step_counts(text, BARS) == {
        "steps": 4, "checked_steps": 3, "false_steps": 2, "first_false_step": 3}  # fmt: skip
    assert traces.step_counts("", BARS)["first_false_step"] is None


def test_without_a_scene_truth_is_unknown_and_says_so():
    row = traces.measure("The red bar reaches 9. Wait. The red bar reaches 3.", None)
    assert row["truth_from"] is None and row["steps"] == 3
    truths = ("checked_steps", "false_steps", "first_false_step", "helped", "hurt", "unchanged")
    assert [row[name] for name in truths] == [None] * 6
    assert traces.measure("Hm.", BARS)["truth_from"] == "scene"


@pytest.mark.parametrize(
    ("text", "helped", "hurt", "unchanged"),
    [
        ("The red bar reaches 4. Wait. The red bar reaches 3.", 1, 0, 0),
        ("The red bar reaches 3. Wait, the red bar reaches 4.", 0, 1, 0),
        ("The red bar reaches 4. Hmm. The red bar reaches 9.", 0, 0, 1),
        ("The red bar reaches 3. Let me check. The red bar stands at 3.", 0, 0, 1),
        ("The red bar reaches 4. The red bar reaches 3.", 0, 0, 0),  # nobody doubted
        ("Wait. The red bar reaches 4. The red bar reaches 3.", 0, 0, 0),  # doubted before
        ("The red bar reaches 4. Wait. The blue bar reaches 5.", 0, 0, 0),  # another bar
        ("The tallest bar is red. Hmm. The tallest bar is blue.", 1, 0, 0),
        ("The red bar reaches 4. Wait. The red bar reaches 3. Hmm. The red bar reaches 4.",
         1, 1, 0),
        ("Red it is. Wait. No, blue.", 0, 0, 0),
    ],
)  # fmt: skip
def test_corrections(text, helped, hurt, unchanged):
    found = pocket.corrections(text, BARS)
    assert found == {"helped": helped, "hurt": hurt, "unchanged": unchanged}


COUNT, CHOICES = "How many red cubes are there?", "\nChoices:\nA: red\nB: blue\nC: gray\nD: green"


@pytest.mark.parametrize(
    ("question", "think", "answer", "expected"),
    [
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
    ],
)  # fmt: skip
def test_answers_that_follow(question, think, answer, expected):
    assert pocket.follows(join_think_answer(think, answer), question) is expected


def test_without_the_format_nothing_follows():
    assert pocket.follows("There are 3 red cubes. The answer is 3.", COUNT) is None


@pytest.mark.parametrize("source", SOURCES)
def test_the_narrators_answers_follow_from_its_words(source):
    for index in range(12):
        record = microworld.record(source, "dev", index)
        think, answer = narrator.plain_trace(record.meta["scene"], record.question)
        assert pocket.follows(join_think_answer(think, answer), record.question) is True, think


def test_the_share_of_false_steps_is_a_mean_over_traces_and_not_pooled():
    long = "The red bar reaches 3. " * 3
    rows = [("The red bar reaches 4.", BARS), (long, BARS), ("Hmm.", BARS)]
    table = traces.summarise(rows)
    assert (table["false_share"], table["false_step_rate"]) == (0.5, 0.25)
    assert traces.summarise(rows[2:])["false_share"] is None


def test_summary_pools_steps_and_averages_the_rest():
    good = join_think_answer("There are 2 red cubes.", "2")
    rows = [(good, None, COUNT), ("Wait. The red bar reaches 4. The red bar reaches 3.", BARS)]
    table = traces.summarise(rows)
    assert (table["follows_rate"], table["false_step_rate"]) == (1.0, 0.5)
    assert table["hesitation"] == pytest.approx(100 / 11 / 2)
    assert table["mean_steps"] == 2.5 and table["unchanged"] == 0


def test_measured_rows_need_their_records():
    record = microworld.record("panel", "dev", 0)
    row = {"record_id": record.id, "completion": "There are 900 objects.", "model": "sft"}
    (made,) = traces.measured([row], [record])
    assert made["model"] == "sft" and made["steps"] == 1
    with pytest.raises(KeyError, match="not among the records"):
        traces.measured([row], [])
