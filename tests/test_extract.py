"""Extraction and verdicts: paths, rules, golds at fault, hostile texts, the kit, a judge."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_lib.evaluate.benchmarks import family, listed
from vlaa_lib.evaluate.extract import MODES, extract, extract_task
from vlaa_lib.evaluate.scoring import score_all, score_row
from vlaa_lib.evaluate.tasks import Task, letters, real, task
from vlaa_lib.pocket.microworld import benchmarks
from vlaa_lib.prompts import join_think_answer


def option(text, choices, mode="ours"):
    return extract_task("", Task("option", "", choices=choices), {}, text, mode).answer


CHOICES = {"A": "30", "B": "45", "C": "60", "D": "dark blue", "E": "blue"}
VISION = {"index": 1, "question": "Which?", "answer": "B", "choices": str(list(CHOICES.values()))}
FREE = {"index": 2, "question": "Find x.", "answer": r"\frac{1}{2}", "choices": "[]"}
VISTA = {
    "index": 3, "question": "How many cubes are left?", "question_type": "free_form",
    "answer_type": "integer", "answer": "3", "precision": "", "choices": "",
}  # fmt: skip
DYNA = {"index": 4, "qid": 4, "varid": 1, "question": "x?", "answer_type": "float", "answer": "2.5"}
WE = {"index": 5, "question": "Which?", "A": "red", "B": "blue", "C": "No correct answer",
      "answer": "B", "D": float("nan")}  # fmt: skip
LOGIC = {"index": 6, "question": "Which?", "answer": "A, C", "skill": "['deductive']"}
VERSE = {"index": 7, "question": "See.", "question_for_eval": "Find it.\nChoices:\nA:30\nB:45",
         "question_type": "multi-choice", "answer": "B"}  # fmt: skip
ROWS = {
    "MathVision": VISION, "MathVista_MINI": VISTA, "DynaMath": DYNA, "WeMath": WE,
    "LogicVista": LOGIC, "MathVerse_MINI_Vision_Only": VERSE,
}  # fmt: skip

# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "path"),
    [
        (join_think_answer("x", "B"), "B", "tags"),
        (join_think_answer("x", "I choose B"), "B", "tags:letter"),
        (join_think_answer("A?", "none of them"), "", "tags:none"),
        (join_think_answer("x", "B" * 5000), "", "tags:none"),
        ("<answer>B</answer>", "B", "answer-tag"),
        ("<ANSWER>B</ANSWER>", "B", "answer-tag"),
        ("<answer>B</answer> so <answer> B </answer>", "B", "answer-tag"),
        ("<answer>A</answer><answer>B</answer>", "", "repeated"),
        ("<answer></answer>", "", "answer-tag:none"),
        ("<think>so B", "", "unclosed"),
        ("<think>x</think><answer>B", "", "unclosed"),
        ("<think>A, no, B</think>", "", "after-think:none"),
        ("<think>A?</think> The answer is (B).", "B", "after-think"),
        ("B</answer>", "", "malformed"),
        ("", "", "empty"), ("  \n", "", "empty"), (None, "", "empty"), (float("nan"), "", "empty"),
        ("B" * 100_001, "", "too-long"),
        ("A" * 100_000, "", "plain:none"),
    ],
)  # fmt: skip
def test_the_path_names_what_was_read(text, answer, path):
    assert extract("MathVision", VISION, text) == (answer, path)
    found = score_row("MathVision", VISION, text)
    assert found["hit"] is (answer == "B") and found["path"] == path and found["reason"]


# a careful human and the kit of both times agree on these
AGREED = [
    ("B", "B"), ("(B)", "B"), ("B.", "B"), ("**B**", "B"), ("B. 45", "B"), ("B: 45", "B"),
    ("The answer is B.", "B"), ("Option C is correct.", "C"), (r"\boxed{B}", "B"), ("45", "B"),
    (r"$\boxed{\text{C}}$", "C"), ("Looking at the picture, C", "C"), ("It is 60.", "C"),
    ("The angles add up to 180, so the answer is (C) 60.", "C"), ("answer: D", "D"),
    ("We halve it.\nHence x is the other one.\n\nThe correct choice is **C**", "C"),
    ("So I choose B", "B"), ("Therefore option (D).", "D"), ("B) 45 degrees", "B"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "letter"), AGREED)
def test_where_all_agree_so_do_we(text, letter):
    assert {option(text, CHOICES, m) for m in ("ours", "kit-2025-04", "kit-2026-08")} == {letter}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("the answer is b.", "B"), ("The answer is B because C is too large.", "B"),
        ("The answer is A? No, the answer is C.", "C"), ("It could be A.\n\n**Answer:** C", "C"),
        ("The final answer is:\n\nC) 60", "C"), ("Dark blue", "D"), ("It is dark blue.", "D"),
        (r"\boxed{A} no, \boxed{C}", "C"), ("B, since A is smaller", "B"), ("As 30 < 45, C", "C"),
        # nothing is named, or two are
        ("B or C", ""), ("A or B", ""), ("The answer is A or B.", ""), ("A and B", ""),
        ("Here A is correct", "A"), ("The answer is B or C.", ""), ("A, C", ""),
        ("Not B", ""), ("B. 30", ""),
        ("The answer is not B.", ""), ("Because it is so", ""), ("Counting gives four", ""),
        ("A cube", ""), ("The answer is A cube", ""), ("point B is its centre", ""), ("F", ""),
        ("30 or 45", ""), ("345", ""), ("It is not blue", ""), ("I", ""), ("B = 3", ""),
        ("\\B", ""),
    ],
)  # fmt: skip
def test_options_by_letter_text_or_sentence(text, letter):
    assert option(text, CHOICES) == letter


@pytest.mark.parametrize(
    ("text", "hit", "path"),
    [
        ("3", True, "plain"), ("three", True, "plain"), ("3.0", True, "plain"),
        ("The answer is **3**.", True, "plain"), (r"\boxed{3} cubes", True, "plain"),
        ("2 + 1 = 3.", True, "plain:equals"), ("There are 3 cubes left.", True, "plain:number"),
        ("We count.\n\n3 cubes", True, "plain:line"),
        ("I see 5. The answer is 3.", True, "plain:phrase"),
        (r"So 2+1 is \boxed{3} in all", True, "plain:boxed"), ("4", False, "plain"),
        ("3 or 4", False, "plain:none"), ("The answer is 3, 4", False, "plain:none"),
        ("about 3", False, "plain:none"), ("more than 3", False, "plain:none"),
        ("-3", False, "plain"), ("13", False, "plain"), ("9" * 60, False, "plain:none"),
    ],
)  # fmt: skip
def test_numbers(text, hit, path):
    found = score_row("MathVista_MINI", VISTA, text)
    assert (found["hit"], found["path"]) == (hit, path)


def hit(benchmark, row, text, **columns):
    return score_row(benchmark, row | columns, text)["hit"]


def test_mathvista_golds_of_every_type():
    decimal = {"answer_type": "float", "answer": "3.14", "precision": "2.0"}
    assert hit("MathVista_MINI", VISTA, "3.14159", **decimal)
    assert not hit("MathVista_MINI", VISTA, "3.15", **decimal)
    assert not hit("MathVista_MINI", VISTA, "3.14159", **(decimal | {"precision": ""}))
    assert not hit("MathVista_MINI", VISTA, "3.4", precision="0")  # an integer is not rounded
    between = {"answer_type": "list", "answer": "[1, 2.5]"}
    assert hit("MathVista_MINI", VISTA, "From the plot, [1.0, 2.50].", **between)
    assert not hit("MathVista_MINI", VISTA, "[2.5, 1]", **between)
    assert hit("MathVista_MINI", VISTA, "Yes, it is larger.", answer_type="text", answer="Yes")
    assert hit("MathVista_MINI", VISTA, "No.\nIt is not.", answer_type="text", answer="no")
    for text in ("Yesterday", "No. 5", "Yes and no"):
        assert not hit("MathVista_MINI", VISTA, text, answer_type="text", answer=text[:2])
    choice = {"question_type": "multi_choice", "choices": "['1', '2']", "answer": "2"}
    assert hit("MathVista_MINI", VISTA, "B", **choice, answer_option="B")
    assert hit("MathVista_MINI", VISTA, "B", **choice, answer_option=float("nan"))
    assert not hit("MathVista_MINI", VISTA, "A", **choice)


@pytest.mark.parametrize(
    ("name", "text", "right"),
    [("DynaMath", *case) for case in (
        ('{"solution": "1 + 1.5", "short answer": "2.5"}', True),
        ('```json\n{"solution": "\\frac{5}{2}", "short answer": 2.5}\n```', True),
        ("2.5004", True), ("2.502", False), ("5/2", True), (r"\frac{5}{2}", True), ("2.5 cm", True),
        ('{"short answer": "2.6"}', False), ('{"short answer": ["2.5"]}', True), ("", False),
        ("{" * 9000, False), ("[" * 50_000, False),
    )] + [("LogicVista", *case) for case in (
        ("A, C", True), ("AC", True), ("(A) and (C)", True), ("The answer is A, C.", True),
        ("So it is\nC, A", True), ("A", False), ("A or C", False), ("A, B, C", False), ("", False),
    )],
)  # fmt: skip
def test_numbers_in_json_and_sets_of_letters(name, text, right):
    assert score_row(name, ROWS[name], text)["hit"] is right


def test_dynamath_text_and_choice():
    text = {"answer_type": "text", "answer": "May"}
    assert hit("DynaMath", DYNA, '{"short answer": "may."}', **text)
    assert not hit("DynaMath", DYNA, "M", **text)  # right by the kit: the gold contains it
    assert hit("DynaMath", DYNA, "M", **text) is not score_row(
        "DynaMath", DYNA | text, "M", "kit-2025-04")["hit"]  # fmt: skip
    assert hit("LogicVista", LOGIC, "I think that option B is right", answer="B")  # in words
    choice = {"answer_type": "multiple choice", "answer": "B", "question": "x? (A) 1 (B) 2"}
    assert hit("DynaMath", DYNA, '{"short answer": "2"}', **choice)
    assert score_row("DynaMath", DYNA | choice | {"answer": "A"}, "nan", "kit-2025-04")["hit"]
    assert score_row("DynaMath", DYNA | choice | {"answer": "A"}, "", "kit-2025-04")["hit"] is False


def test_expressions_are_compared_by_the_workers():
    texts = ["0.5", r"The answer is $\frac{2}{4}$.", r"So \boxed{1/2}", "2", "I cannot tell you"]
    rows = score_all("MathVision", [FREE] * 5, texts)
    assert [row["hit"] for row in rows] == [True, True, True, False, False]
    assert [row["path"] for row in rows][-1] == "plain:none"
    line = {"answer": "y = 2x + 1"}
    for text in ("The line is $y = 2x + 1$.", "Thus the line has the form y = 1 + 2x.", "2x+1"):
        assert hit("MathVision", FREE, text, **line)
    assert extract("MathVision", FREE, "The length is 5 cm.") == ("5 cm", "plain:equals")
    for text in ("The length is not 1/2", "The length is more than 1/2", "It lies between them"):
        assert extract("MathVision", FREE, text) == ("", "plain:none")
    words = FREE | {"answer": "half past five in the morning of the next day"}
    assert hit("MathVision", words, "the same") is False  # a gold in words stops nothing
    assert hit("MathVision", FREE, "Monday", answer="Monday")
    assert hit("MathVision", FREE, "Tuesday", answer="Monday") is False


# --- golds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ours", "strict", "kit-2025-04"])
@pytest.mark.parametrize(
    ("benchmark", "row", "words"),
    [
        ("WeMath", WE | {"answer": "G"}, "'G' is none of the choices A, B, C"),
        ("WeMath", WE | {"answer": float("nan")}, "'' is empty"),
        ("LogicVista", LOGIC | {"answer": "3x"}, "'3x' is no set of letters"),
        ("LogicVista", LOGIC | {"answer": ""}, "'' is empty"),
        ("MathVision", VISION | {"choices": "['a', "}, "cannot be read as a list"),
        ("MathVista_MINI", VISTA | {"answer": "many"}, "'many' is not one number"),
        ("MathVision", {}, "is empty"),
    ],
)
def test_a_gold_at_fault_has_no_verdict(benchmark, row, words, mode):
    for text in ("G", "3", "a", ""):
        found = score_row(benchmark, row, text, mode)
        assert found["hit"] is None and words in found["reason"]


def test_helpers():
    assert family("MathVista_MINI") == family("micro-MathVista") == "MathVista"
    for unknown in ("ScienceQA", "", "Math"):
        with pytest.raises(ValueError, match="unknown benchmark"):
            family(unknown)
    with pytest.raises(ValueError, match="unknown extraction mode 'kit'.*kit-2025-04"):
        extract("WeMath", WE, "B", "kit")
    with pytest.raises(ValueError, match="2 rows for 1 completions"):
        score_all("WeMath", [WE] * 2, ["B"])
    assert listed("__import__('os')") is None and listed("[" * 10_000) is None
    assert real("1/0") is None and real("1e99") is not None and real("") is None
    assert letters("A, I") and not letters("A, J")
    assert task("WeMath", WE).choices == {"A": "red", "B": "blue", "C": "No correct answer"}
    assert "image" not in score_row("WeMath", WE | {"image": "x" * 99}, "B")
    assert score_row("WeMath", WE, " B ")["prediction"] == " B "  # the raw completion


# --- hostile texts --------------------------------------------------------------------------------

HOSTILE = [
    "\\boxed{" * 14_000, "{" * 100_000, "answer is " * 10_000, "A " * 50_000, "<answer>" * 12_000,
    "<answer></answer>" * 5_800, "1," * 50_000, "is " * 33_000, "\n" * 99_999 + "B?", "9" * 100_000,
    "\\boxed{" + "{a}" * 30_000, "(A)" * 33_000, " " * 99_999 + "x", "=" * 100_000, "A\0\ud800" * 9,
    "not " * 25_000, "[" + "1, " * 30_000, "<think>" + "x" * 999_999, "b" * 1_000_000,
    "__import__('os').system('touch /tmp/x')",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_hostile_texts_take_no_time_and_earn_nothing(text):
    for benchmark, row in ROWS.items():
        for mode in MODES:
            start = time.process_time()
            found = score_row(benchmark, row, text, mode)
            assert time.process_time() - start < 1.0
            assert found["reason"] and (found["hit"] in (False, None) or text.startswith("\n"))


@given(st.text(alphabet="AB<>/answerthik \n.,()*{}\\=0123456789", max_size=200))
def test_every_text_has_a_path_and_the_same_one_again(text):
    for benchmark, row in ROWS.items():
        for mode in MODES:
            found = extract(benchmark, row, text, mode)
            assert found == extract(benchmark, row, text, mode)
            assert re.fullmatch(r"[a-z-]+(?::[a-z-]+){0,2}", found.path)
            assert found.answer or mode in MODES[2:] or re.search(
                "none|empty|unclosed|repeated|malformed", found.path)  # fmt: skip


# how people and models say a choice; L its letter, T its text
SHAPES = r"""L|(L)|L.|L)|L: T|L. T|(L) T|L - T|Answer: L|Answer:L|ANSWER: L|**Answer: L**
**Answer:** L. T|It is T.
The answer is **L**.|The answer is **L. T**.|The correct answer is (L) T.|Final answer: L|T|T.
So, the answer is L: T|Therefore, the correct option is L.|Option L|option L: T|I choose L.|→ L
I would go with L.|The answer is option L|### Answer~L|We see it.~~L. T|We see it.~~Answer: T
The right choice must be L|Hence, L is the correct answer.|$\boxed{L}$|\boxed{L. T}|\[\boxed{L}\]
The answer is $\boxed{\text{L}}$.|The value is T, which is L.|So the answer is~~**L. T**|<b>L</b>
Correct answer: L (T)|L, because it is larger.|L because it is larger.|The answer is L, as shown.
answer: "L"|I think the answer should be L.|This matches choice (L).|The answer is therefore L.
the correct answer is:~L|The answer, then, is L.|Answer: Option L – T
It is T, so option L is correct"""


@pytest.mark.parametrize("shape", [s for line in SHAPES.split("\n") for s in line.split("|")])
def test_a_choice_is_found_in_every_shape(shape):
    choices = {"A": "12 cm", "B": "Mercury", "C": "No correct answer", "D": "the left one"}
    for letter, said in choices.items():
        values = {"L": letter, "T": said, "~": "\n"}
        text = re.sub(r"\bL\b|\bT\b|~", lambda slot, own=values: own[slot[0]], shape)
        assert option(text, choices) == letter
        assert option(join_think_answer("It may be A, or rather B.", text), choices) == letter


# --- the kit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "then", "today"),
    [
        ("B, since the sea is never of any other colour", "B", ""),  # today: among the last four
        ("the answer is **b**", "", "B"),  # the rule of 2026
        ("the answer is awkward", "", "A"),  # without a word boundary
        ("A or B", "", ""), ("Z", "Z", "Z"), ("A Z", "A", "A"), ("`B`", "", ""),
        ("Failed to obtain answer via API. B", "", ""), ("dark blue", "", ""),
        ("It is BLUE", "E", "E"),
        ("It is the number 60 that I see in this picture here", "C", ""),  # too long today
        ("<answer>B</answer>", "", ""),
    ],
)  # fmt: skip
def test_the_kits_option_rules_of_two_times(text, then, today):
    choices = {"C": "60", "E": "blue"} | CHOICES
    assert option(text, choices, "kit-2025-04") == then
    assert option(text, choices, "kit-2026-08") == today


@pytest.mark.parametrize(
    ("text", "found"),
    [("<think>A</think><answer> B </answer>", "B"), ("<answer>A</answer><answer>B</answer>", ""),
     ("<ANSWER>B</ANSWER>", ""), ("<answer>B", ""), ("B", "B")],
)  # fmt: skip
def test_the_kits_tag_rule(text, found):
    assert option(text, CHOICES, "kit-2025-04-vlaa") == found


def kit(benchmark, row, text, mode="kit-2025-04", **columns):
    found = score_row(benchmark, row | columns, text, mode)
    return found["hit"], found["path"]


def test_the_kit_asks_its_judge_where_it_has_no_rule():
    undecided = (None, "kit-judge")
    assert kit("LogicVista", LOGIC, "A, C") == kit("MathVerse_MINI", VERSE, "B") == undecided
    assert kit("WeMath", WE, "no idea") == kit("MathVista_MINI", VISTA, "three") == undecided
    assert kit("MathVision", FREE, "0.5 cm") == kit("MathVision", FREE, "0.6") == undecided
    for text in ("0.5", "1/2", r"\dfrac{2}{4}", "0.75 - 0.25", r"50\%"):  # the same number
        assert kit("MathVision", FREE, text) == (True, "kit-whole")
    assert kit("MathVision", FREE, r" \FRAC{1}{2} ") == (True, "kit-whole")
    assert kit("MathVista_MINI", VISTA, "3") == (True, "kit-whole")
    assert kit("MathVista_MINI", VISTA, "3.0", answer_type="float") == (True, "kit-whole")
    assert kit("MathVista_MINI", VISTA, "3.0") == undecided
    assert kit("MathVista_MINI", VISTA, "[1]", answer_type="list", answer="[1]")[0] is False
    assert kit("WeMath", WE, "Z") == (False, "kit-infer")


def test_the_kits_dynamath_parser():
    said = '{{"short answer": {}}}'.format
    assert kit("DynaMath", DYNA, said('"2.5 cm"')) == (True, "kit-json")
    assert kit("DynaMath", DYNA, said("2.5")) == (False, "kit-json")
    assert kit("DynaMath", DYNA, said("1"), answer_type="text", answer="1") == (None, "kit-json")
    assert kit("DynaMath", DYNA, "2.5 or so") == (True, "kit-whole")
    assert kit("DynaMath", DYNA, said('"2π"'), answer="6.283") == (True, "kit-json")
    assert kit("DynaMath", DYNA, said('""'), answer_type="text", answer="May")[0] is True
    choice = {"answer_type": "multiple choice", "answer": "B", "question": "x? (A) 1 (B) 2"}
    assert kit("DynaMath", DYNA, said('"b"'), **choice) == (True, "kit-json")
    assert kit("DynaMath", DYNA, "B or A", **choice) == (True, "kit-whole")  # first three
    said_e = "The answer is E."  # of `The`, whose case it folds
    choice["question"] += " (C) 3 (D) 4 (E) 5"
    assert kit("DynaMath", DYNA, said_e, **choice | {"answer": "E"}) == (True, "kit-whole")
    assert kit("DynaMath", DYNA, said_e, **choice | {"answer": "A"}) == (False, "kit-whole")


# --- micro rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(benchmarks.BENCHMARKS))
def test_micro_golds_are_right_by_the_same_scorers(name):
    rows = benchmarks.rows(name, 12)
    golds = [str(row.get("answer_option") or row["answer"]) for row in rows]
    found = score_all(name, rows, [join_think_answer("x", gold) for gold in golds])
    assert all(row["hit"] is True and row["path"] == "tags" for row in found)
    wrong = score_all(name, rows, ["-77, A, B, C, D"] * len(rows), "ours")
    assert not any(row["hit"] for row in wrong)
