"""One table of replies and what is read in them: every row of data/extract_cases.csv, a test."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from vlaa_lib import ROOT
from vlaa_lib.evaluate import score_rows
from vlaa_lib.evaluate.extract import extract
from vlaa_lib.evaluate.scoring import score_row
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
