"""One table of replies and what is read in them: every row of data/extract_cases.csv, a test."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from vlaa_lib import ROOT
from vlaa_lib.evaluate import score_rows
from vlaa_lib.evaluate.extract import extract
from vlaa_lib.evaluate.scoring import score_all, score_row
from vlaa_lib.records import Record

FILE = Path(__file__).parent / "data" / "extract_cases.csv"
with FILE.open(encoding="utf-8", newline="") as _stream:
    CASES = list(csv.DictReader(_stream))
DEGREES = ["30°", "45°", "60°", "90°"]
LATEX = [r"\frac{√{3}}{3}", r"\frac{1}{2}", "15", r"2\sqrt{3}"]
PROSE = ["The ratio increases", "The ratio decreases", "It stays", "None of these"]


def choice(texts, answer):
    return "WeMath", {"index": 1, "question": "Which?", "answer": answer} | dict(
        zip("ABCD", texts, strict=True)
    )


def dynamath(question, answer):
    return "DynaMath", {"index": 4, "qid": 4, "varid": 1, "question": question,
                        "answer_type": "text", "answer": answer}  # fmt: skip


ROWS = {
    "deg": choice(DEGREES, "B"), "latex": choice(LATEX, "A"), "prose": choice(PROSE, "B"),
    "nums": choice(["12", "15", "20", "none"], "A"),
    "maths": ("MathVision", {"index": 2, "question": "Find AB.", "answer": "5", "choices": "[]"}),
    "age": ("MathVista_MINI", {
        "index": 3, "question": "What is the age gap between these two people?",
        "question_type": "free_form", "answer_type": "integer", "answer": "1", "choices": "",
    }),
    "logic": ("LogicVista", {"index": 6, "question": "Which?", "answer": "A, C", "skill": "[]"}),
    "month": dynamath("Which month?", "May"), "vertex": dynamath("Which vertex?", "(3, -5)"),
    "line": dynamath("Which axis?", "x = 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{c['row']}" for n, c in enumerate(CASES, 2)])
def test_case(case):
    benchmark, row = ROWS[case["row"]]
    found = score_row(benchmark, row, case["text"].replace("†", "\n"))
    assert found["extracted"] == case["extracted"], (case["kind"], found["path"])
    assert found["hit"] is (case["hit"] == "1"), found["reason"]


@pytest.mark.parametrize("name", ["MathVision", "MathVista_MINI", "MathVerse_MINI", "DynaMath"])
def test_a_choice_is_read_alike_in_every_benchmark(name):
    lines = (f"{c}: {t}" for c, t in zip("ABCD", DEGREES, strict=True))
    asked = "\n".join(["Which?", "Choices:", *lines])
    row = {"index": 1, "question": asked, "question_for_eval": asked, "choices": str(DEGREES),
           "question_type": "multi_choice", "answer_type": "multiple choice", "answer": "B"}
    made = Record("r", "a.png", asked, "B", reward="mcq", solution="B")
    told = [case for case in CASES if case["row"] == "deg"]
    texts = [case["text"].replace("†", "\n") for case in told]
    wanted = [case["extracted"] for case in told]
    assert [extract(name, row, text).answer for text in texts] == wanted
    assert [found["answer"] for found in score_rows([made] * len(texts), texts)] == wanted


REWARDS = FILE.with_name("reward_cases.csv")
# evaluation takes the box as what a reply ends in; the reward wants the answer alone
BOXED = ("4, \\boxed{3}", "7, hence \\boxed{3}")


@pytest.mark.parametrize("name", ["MathVision", "MathVerse_MINI"])
def test_mathematics_has_the_same_verdicts_as_in_the_rewards(name):
    with REWARDS.open(encoding="utf-8", newline="") as stream:
        told = [case for case in csv.DictReader(stream)
                if case["reward"] == "math" and "†" not in case["gold"]]  # fmt: skip
    rows = [{"index": 2, "question": case["question"], "choices": "[]", "question_type": "free",
             "answer": case["gold"]} for case in told]  # fmt: skip
    scored = score_all(name, rows, [case["answer"] for case in told])
    other = [case["answer"] for case, row in zip(told, scored, strict=True)
             if row["hit"] is not (case["expected"] == "1")]  # fmt: skip
    assert len(told) > 400 and tuple(other) == BOXED


NUMBERS = {
    "DynaMath": {"index": 4, "qid": 4, "varid": 1, "question": "x?", "answer_type": "float"},
    "MathVista_MINI": {"index": 3, "question": "x?", "question_type": "free_form",
                       "answer_type": "float", "precision": "1.0", "choices": ""},
    "LogicVista": {"index": 6, "question": "Which?", "skill": "[]"},
}  # fmt: skip


@pytest.mark.parametrize(("name", "gold", "right", "wrong"), [
    ("DynaMath", "0.0000012", ("1.2e-6", r"1.2 \times 10^{-6}"), ("0.0000013", "0", "1.2e6")),
    ("DynaMath", "1.6e-19", ("1.6e-19", "1.60e-19"), ("9.1e-31", "0", "1.6e19")),
    ("DynaMath", "0.333", ("1/3", "0.3333"), ("0.335", "1/4")),
    ("DynaMath", "45", ("45 degrees", r"45^{\circ}", "45°"), ("54 degrees", "4.5°", "45 or 46")),
    ("DynaMath", "12 m", ("12m", "12 metres", "12"), ("12 cm", "21 m", "12 m^2")),
    ("DynaMath", "12.5", ("$12.50", "12.50"), ("$12.05", "1250", "$12 or 13")),
    ("MathVista_MINI", "3.14", ("3.1", "3.14159"), ("3.2", "3")),
    ("MathVista_MINI", "0.0012", ("0.0012", "1.2e-3"), ("0.0013", "0")),
    ("LogicVista", "3", ("3", "(3)", "The answer is 3."), ("4", "C", "3 or 4")),
])  # fmt: skip
def test_numbers_are_compared_by_their_size_and_unit(name, gold, right, wrong):
    row = NUMBERS[name] | {"answer": gold}
    for text in (*right, *wrong):
        assert score_row(name, row, text)["hit"] is (text in right), text


def test_the_table_has_both_verdicts_of_each_kind_and_no_row_twice():
    assert len({(case["row"], case["text"]) for case in CASES}) == len(CASES) >= 100
    right = Counter(case["kind"] for case in CASES if case["hit"] == "1")
    for kind, number in Counter(case["kind"] for case in CASES).items():
        assert right[kind] >= 1 and number - right[kind] >= 2, kind


# the question of each kind in the table of data/EVALUATION.md; all others choose among degrees
SHOWN = {"equal LaTeX": "latex", "number": "age", "expression": "maths", "set of letters": "logic",
         "words": "month"}  # fmt: skip


def test_the_page_shows_what_the_rules_read():
    page = (ROOT / "data" / "EVALUATION.md").read_text(encoding="utf-8")
    head, _, *lines = page.partition("| kind of reply |")[2].partition("\n\n")[0].split("\n")
    modes = [cell.strip(" `") for cell in head.split("|")[1:-1]]
    assert len(lines) >= 25 and {"strict", "ours", "kit-2026-08"} < set(modes)
    for line in lines:
        kind, reply, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        row = ROWS[SHOWN.get(kind, "deg")]
        found = [score_row(*row, reply.strip("`"), mode) for mode in modes]
        read = ["judge" if one["path"] == "kit-judge" else one["extracted"] or "–" for one in found]
        assert read == cells, line
