"""Rule verifiers: right answers in many writings, and near misses that must earn nothing."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring import COLON, record, score
from vlaa_lib import rewards
from vlaa_lib.pocket import microworld
from vlaa_lib.rewards import Score, choices, verifiers
from vlaa_lib.show import figures

# --- digit ---------------------------------------------------------------------------------------

@pytest.mark.parametrize(("gold", "answer", "said"), [
    *[("3", answer, "3 is right") for answer in ("3 objects left", "Answer: 3.", "3°")],
    (1000, "1,000", "1000 is right"), ("1,234,567.5", "1234567.5", "1234567.5 is right"),
    (0, "zero", "0 is right"), (0.5, "0.50", "0.50 is right"), ("three", "3", "3 is right"),
    ("21", "twenty-one", "21 is right"), ("90", "ninety", "90 is right"),
    *[("3", answer, "is not one number") for answer in (
        "3 4", "y3", "three hundred", "3 three", "3 thousand", "3\n4", "There are 3", "nothing",
    )],
    ("3", "3.01", "3.01 instead of 3"), ("3", "3,000", "3000 instead of 3"),
    ("3", "thirteen", "13 instead of 3"),
])
def test_digit_beyond_the_table(gold, answer, said):
    found = score("digit", gold, answer)
    assert found.reason.startswith("digit: ") and found.reason.endswith(said)
    assert (found.value, found.kind) == (float(said.endswith("is right")), "digit")


def test_a_unit_must_come_from_the_question():
    assert score("digit", "3", "3 apples").value == 0.0
    assert score("digit", "3", "3 apples", question="How many apples are there?").value == 1.0
    for trap in ("or", "not", "seven", "hundred"):
        asked = f"Are there 3 or not, or seven hundred, or {trap}?"
        assert score("digit", "3", f"3 {trap}", question=asked).value == 0.0


@given(st.integers(-10**12, 10**12))
def test_every_integer_reads_back(n):
    assert verifiers.read_number(f"{n:,}") == n == verifiers.read_number(f"$\\boxed{{{n}}}$")


@given(st.integers(0, 999), st.sampled_from(["or", "and", ",", "/", "-", "to", "x", "="]),
       st.integers(0, 999))
def test_two_numbers_are_never_one(a, between, b):
    assert verifiers.read_number(f"{a} {between} {b}", "Is it or and to x?") is None


# --- multiple choice -----------------------------------------------------------------------------

TWICE, SWAPPED = "Which?\nA. red\nB. Red\nC. blue", "Which?\nA: D\nB: C\nC: B\nD: A"


@pytest.mark.parametrize(("question", "answer", "reason"), [
    *[(COLON, answer, "B is right") for answer in (
        "B. 45", "B: 45", "(B) 45", "B) 45.", "$45$", "the answer is (B)", "\\boxed{B. 45}",
    )],
    (COLON, "30", "A instead of B"), (COLON, "D. Dark  red", "D instead of B"),
    (COLON, "\\frac{1}{2}", "C instead of B"), (COLON, "E", "E is none of the choices A, B, C, D"),
    *[(COLON, answer, f"{answer!r} names no single choice") for answer in (
        "A or B", "A cat sits", "not B", "B and 45", "450", "Β",
    )],
    (COLON, "B. 30", "letter B does not go with '30'"),
    (COLON, "B. 45 or C", "letter B does not go with '45 or C'"),
    (COLON, "A: 45", "letter A does not go with '45'"),
    (TWICE, "red", "'red' is the text of choices A, B"),
    (SWAPPED, "B", "B is right"), (SWAPPED, "C", "C instead of B"),  # letters count before texts
])
def test_mcq_beyond_the_table(question, answer, reason):
    found = score("mcq", "B", answer, question=question)
    assert found == Score(float(reason.endswith("is right")), f"mcq: {reason}", "mcq")


@pytest.mark.parametrize("gold", ["b", "B)", "(b)", "B. 45", "45", "$45$"])
def test_mcq_gold_may_be_written_in_many_ways(gold):
    assert score("mcq", gold, "B", question=COLON).value == 1.0


@pytest.mark.parametrize(("question", "found"), [
    ("Q?\nChoices:\nA: \\frac{1}{2}\nB: 2\nC: \\frac{√{3}}{3}\nD: √{3}",
     {"A": "\\frac{1}{2}", "B": "2", "C": "\\frac{√{3}}{3}", "D": "√{3}"}),
    ("Q?\nA) one\nB) two", {"A": "one", "B": "two"}),
    ("Q?\n(A) one\n(B) two.", {"A": "one", "B": "two."}),
    ("Q? A. In the a: b case B. two", {"A": "In the a: b case", "B": "two"}),
    ("Q? Options: A) one, B) two, C) three", {"A": "one", "B": "two", "C": "three"}),
    ("In figure A. what is shown?\nA. a cat\nB. a dog", {"A": "a cat", "B": "a dog"}),
    ("Q?\nA: one\ngoes on\nB: two", {"A": "one\ngoes on", "B": "two"}),
    ("Q?\nA:1\nB:2", {"A": "1", "B": "2"}),
    ("How many?", {}), ("A: only one", {}), ("B: no first\nC: letter", {}),
])
def test_options(question, found):
    assert rewards.options(question) == found


LINE = st.text(st.characters(whitelist_categories=("Ll", "Nd", "Zs")), min_size=1, max_size=12)


@given(st.lists(LINE.map(str.strip).filter(bool), min_size=2, max_size=6), st.sampled_from([
    "{}: {}", "{}) {}", "({}) {}", "{}. {}",
]))
def test_options_read_back_what_was_written(texts, style):
    lines = [style.format(chr(65 + i), text) for i, text in enumerate(texts)]
    assert list(rewards.options("Which?\n" + "\n".join(lines)).values()) == texts


@given(st.sampled_from("ABCD"), st.sampled_from([" or ", ", ", " and ", "/", " ", " not "]),
       st.sampled_from("ABCD"))
def test_two_letters_are_never_one(first, between, second):
    assert choices.choose(first + between + second, rewards.options(COLON))[0] is None


# --- boxes ---------------------------------------------------------------------------------------

@pytest.mark.parametrize(("frame", "text"), [
    *[("norm01", text) for text in (
        "[0.1, 0.2, 0.3, 0.4]", "The box is [0.1,0.2,0.3,0.4].", "(0.1, 0.2), (0.3, 0.4)",
        "The 2 cubes lie in [ .1 0.2 3e-1 +0.4 ]", "[[0.1, 0.2, 0.3, 0.4]]", "0.1, 0.2, 0.3, 0.4",
        '{"bbox_2d": [0.1, 0.2, 0.3, 0.4], "label": "cube"}', "(0.1, 0.2, 0.3, 0.4)",
        '```json\n[{"bbox_2d": [0.1, 0.2, 0.3, 0.4]}]\n```', "[0.3, 0.4, 0.1, 0.2]",
    )],
    ("norm1000", "[100, 200, 300, 400]"),
    *[(frame, "[20, 20, 60, 40]") for frame in ("pixel_original", "pixel_resized")],
])
def test_boxes_are_read(frame, text):
    assert rewards.parse_box(text, frame, (200, 100)) == pytest.approx((0.1, 0.2, 0.3, 0.4))


def test_boxes_are_clipped():
    assert rewards.parse_box("[-5, 0, 0.5, 7]") == (0.0, 0.0, 0.5, 1.0)


@pytest.mark.parametrize("text", [
    "not 0.1, 0.2, 0.3, 0.4", "(0.1, 0.2, 0.3)", "[2, 2, 3, 3]", "[0.1, 1e999, 0.3, 0.4]",
])
def test_no_box_beyond_the_table(text):
    found = score("iou", "[0.1, 0.2, 0.3, 0.4]", text, frame="norm01")
    assert found.value == 0.0 and "is not one box" in found.reason
    assert rewards.parse_box(text) is rewards.parse_box("") is None


@pytest.mark.parametrize(("answer", "value"), [
    ("[0.0, 0.0, 0.5, 0.5]", 1.0),
    ("[0.0, 0.0, 0.5, 0.25]", 0.5),
    ("[0.25, 0.25, 0.75, 0.75]", 1 / 7),
    ("[0.5, 0.0, 1.0, 0.5]", 0.0),
    ("[0.6, 0.6, 0.9, 0.9]", 0.0),
    ("[0, 0, 1, 1]", 0.25),
])
def test_iou_by_hand(answer, value):
    found = score("iou", "[0, 0, 0.5, 0.5]", answer, frame="norm01")
    assert found.value == pytest.approx(value)
    assert found.reason == f"iou: {value:.3f}"


@pytest.mark.parametrize("size", [
    None, [0, 5], [5], [5, 5, 5], "5x5", [math.nan, 5], ["5", 5], [True, 5],
])
def test_a_pixel_frame_without_a_size_is_a_data_error(size):
    made = record("iou", "[10, 10, 20, 20]", frame="pixel_original", meta={"image_size": size})
    (reject,) = rewards.audit([made])
    assert "needs meta.image_size = [width, height]" in reject.reason


UNIT = st.floats(0, 1)
BOX = st.tuples(UNIT, UNIT, UNIT, UNIT)


@given(BOX, BOX)
def test_iou_is_symmetric_and_bounded(a, b):
    a, b = rewards.parse_box(json.dumps(a)), rewards.parse_box(json.dumps(b))
    if a and b:
        assert 0 <= rewards.iou(a, b) <= 1 + 1e-9
        assert rewards.iou(a, b) == rewards.iou(b, a)
        if (a[2] - a[0]) * (a[3] - a[1]) > 1e-9:  # an area that floats can hold
            assert rewards.iou(a, a) == pytest.approx(1)


def test_boxes_are_drawn_one_panel_an_answer():
    sample = microworld.generate("locate", "train", 1)
    gold = rewards.parse_box(sample.record.gt)
    empty, same, other = (figures.overlaps(sample.image, gold, answers)
                          for answers in ([None], [gold], [(0.0, 0.0, 0.1, 0.1)] * 4))  # fmt: skip
    assert empty.size == same.size and other.height > same.height and other.width <= 640
    counts = [{c: n for n, c in p.getcolors(2**20)}.get(figures.ANSWER, 0)
              for p in (empty, same, other)]  # fmt: skip
    assert counts[0] == 0 < counts[1]
    assert counts[2] > 0
