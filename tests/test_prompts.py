"""The format: exactly one think block, then exactly one answer block, and nothing else."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_lib import prompts, records

GOOD = "<think>two and one</think><answer>3</answer>"


@pytest.mark.parametrize("text", [
    GOOD,
    f"\n  {GOOD}\n",
    "<think>two and one</think>\n\n<answer> 3 </answer>",
    "<think>\ntwo and one\n</think><answer>\n3\n</answer>",
])
def test_right_format(text):
    assert prompts.split_think_answer(text) == prompts.Parsed("two and one", "3")


def test_think_may_be_empty_and_hold_other_markup():
    assert prompts.split_think_answer("<think></think><answer>3</answer>").problem is None
    parsed = prompts.split_think_answer("<think>1 < 2 <b>x</b></think><answer>a<b</answer>")
    assert parsed == prompts.Parsed("1 < 2 <b>x</b>", "a<b")


@pytest.mark.parametrize(("text", "problem"), [
    ("", "no think or answer tags"),
    ("3", "no think or answer tags"),
    ("<thinking>a</thinking>", "no think or answer tags"),
    ("<answer>3</answer>", "tags are"),
    ("<think>a</think>3", "tags are"),
    ("<think>a<answer>3</answer>", "tags are"),
    ("<answer>3</answer><think>a</think>", "tags are"),
    (GOOD + "<answer>4</answer>", "tags are"),
    (GOOD + GOOD, "tags are"),
    ("<think><think>a</think></think><answer>3</answer>", "tags are"),
    ("<think>a</think><answer>3", "tags are"),
    ("<THINK>a</THINK><ANSWER>3</ANSWER>", "tags are"),
    ("< think>a</think><answer>3</answer>", "tags are"),
    ("<answer>4</answer>" + GOOD, "tags are"),
    (GOOD + "</answer>", "tags are"),
    ("<think>" + GOOD, "tags are"),
    (GOOD + "<THINK>", "tags are"),
    ("<think>a<answer>3</answer></think>", "tags are"),
    ("<answer><answer>3</answer></answer>", "tags are"),
    ("3</answer>", "tags are"),
    ("<Answer>3</answer>", "tags are"),
    ("so " + GOOD, "text outside"),
    (GOOD + ".", "text outside"),
    ("<think>a</think> hence <answer>3</answer>", "text outside"),
    ("<think>a</think><answer></answer>", "empty answer"),
    ("<think>a</think><answer> \n </answer>", "empty answer"),
])
def test_wrong_format_says_what_is_wrong(text, problem):
    parsed = prompts.split_think_answer(text)
    assert parsed.problem.startswith(problem)
    assert (parsed.think, parsed.answer) == ("", "")


PLAIN = st.text(st.characters(blacklist_categories=("Cs",))).filter(lambda s: "<" not in s)


@given(PLAIN, PLAIN.filter(str.strip))
def test_what_is_joined_splits_again(think, answer):
    parsed = prompts.split_think_answer(prompts.join_think_answer(think, answer))
    assert parsed == prompts.Parsed(think.strip(), answer.strip())


PIECES = st.lists(st.sampled_from([*prompts.TAGS, "3", " ", "\n", "<", "<ANSWER>"]), max_size=12)


@given(PIECES)
def test_only_one_order_of_tags_is_right(pieces):
    text = "".join(pieces)
    parsed = prompts.split_think_answer(text)
    if parsed.problem is None:
        assert [text.count(tag) for tag in prompts.TAGS] == [1, 1, 1, 1]
        assert text.strip().startswith("<think>") and text.strip().endswith("</answer>")
        assert parsed.answer and parsed.answer in text


@pytest.mark.parametrize("text", [
    "<think>" * 15_000, "<" * 100_000, " " * 100_000 + "<think>",
    "<think>a</think>" + " " * 100_000,
    "<think>" + "</think" * 15_000 + "</think><answer>3</answer>",
    "<think></think>" + "\n" * 100_000 + "x<answer>3</answer>",
])
def test_hostile_text_is_read_in_time(text):
    start = time.monotonic()
    prompts.split_think_answer(text)
    assert time.monotonic() - start < 2


def test_prompt_ends_with_the_instruction_of_its_reward():
    for reward in records.REWARDS:
        system, user = prompts.messages("How many?", reward)
        assert system == {"role": "system", "content": prompts.SYSTEM_PROMPT}
        assert user["content"] == f"How many?\n{prompts.TASK_INSTRUCTIONS[reward]}"
    with pytest.raises(KeyError):
        prompts.messages("How many?", "unknown")
