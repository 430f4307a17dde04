"""Micro benchmarks: golds, splits, pictures, files that are broken, and the metrics' formulas."""

import base64
import csv
import io
import json
import re

import pytest
from PIL import Image

from vlaa_lib import evaluate, images, microworld, models, profiles, rewards, stages
from vlaa_lib.evaluate import benchmarks as scoring
from vlaa_lib.microworld import benchmarks, facts, questions, scenes, solve, truth
from vlaa_lib.microworld.benchmarks import BENCHMARKS, COLUMNS, NONE_RIGHT
from vlaa_lib.prompts import join_think_answer
from vlaa_lib.records import RecordError

MADE = {name: benchmarks.rows(name, 120) for name in BENCHMARKS}
NAMES = list(BENCHMARKS)


def scene_of(row):
    return json.loads(row["micro_scene"])


def content(scene):
    return json.dumps({k: v for k, v in scene.items() if k != "style"}, sort_keys=True)


def picture(row):
    return Image.open(io.BytesIO(base64.b64decode(row["image"], validate=True)))


def choices(row):
    """Return the choices of a row by letter."""
    if "E" in row:
        return {letter: row[letter] for letter in "ABCDE"}
    return rewards.options(row.get("question_for_eval") or row["question"])


def bare_answer(row):
    """Return the answer itself, also where the row's answer is a letter."""
    gold = row.get("answer_option") or row["answer"]
    return choices(row)[gold] if row["micro_reward"] == "mcq" else gold


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_same_arguments_same_rows(name):
    again = benchmarks.rows(name, 30)
    assert again == benchmarks.rows(name, 30)
    assert benchmarks.generate(name, 3, seed=0) == benchmarks.generate(name, 3, seed=0)
    assert again != benchmarks.rows(name, 30, seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_rows_have_the_columns_and_a_running_index(name):
    rows = MADE[name]
    assert all(tuple(row) == COLUMNS[name] for row in rows)
    assert [row["index"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(str(row["question"]) and str(row["answer"]) for row in rows)
    assert 100 < len(rows) <= 120
    assert len(benchmarks.rows(name, 1)) >= 1  # a whole group, even where fewer rows are wanted


def test_columns_are_those_that_the_kit_reads():
    assert {"question_type", "answer_type", "choices", "answer_option", "task", "skills"} <= set(
        COLUMNS["micro-MathVista"]
    )
    assert {"choices", "category"} <= set(COLUMNS["micro-MathVision"])
    assert {"question_for_eval", "problem_version", "metadata"} <= set(COLUMNS["micro-MathVerse"])
    assert {"qid", "varid", "answer_type", "subject"} <= set(COLUMNS["micro-DynaMath"])
    assert {"ID", "key", "knowledge concept", "A", "E"} <= set(COLUMNS["micro-WeMath"])
    assert "skill" in COLUMNS["micro-LogicVista"]


def test_no_scene_is_in_another_split_or_twice_in_a_benchmark():
    ours = set()
    for name, rows in MADE.items():
        shown = [content(scene_of(row)) for row in rows]
        groups = len({row["ID"] for row in rows}) if name == "micro-WeMath" else len(rows)
        assert len(set(shown)) == groups
        ours |= set(shown)
        for row in rows:
            assert scenes.bucket(scene_of(row)) in microworld.SPLITS["bench"]
    for split in set(microworld.SPLITS) - {"bench"}:
        for source in microworld.SOURCES:
            for index in range(40):
                record = microworld.generate(source, split, index).record
                assert content(record.meta["scene"]) not in ours


@pytest.mark.parametrize("name", NAMES)
def test_pictures_decode_at_a_readable_size(name):
    for row in MADE[name]:
        if len(row["image"]) <= 64:
            continue
        width, height = picture(row).size
        assert width % 28 == height % 28 == 0
        if name == "micro-MathVerse":
            assert (width, height >= 112 + 28, height <= 224) == (168, True, True)
        else:
            assert (width, height) == (112, 112)


def test_drawn_questions_are_inked_inside_the_sheet():
    plain = Image.new("RGB", (112, 112), "white")
    short, long = (
        benchmarks.draw_question(plain, text)
        for text in ("How many?", "What is the number of red cylinders in the image? " * 4)
    )
    assert long.height > short.height
    for made in (short, long):
        inked = made.convert("L").point(lambda v: 255 * (v < 128)).getbbox()
        assert inked[1] >= 112 and inked[3] <= made.height - 2 and inked[2] <= made.width - 2
    for row in MADE["micro-MathVerse"]:
        below = picture(row).convert("L").crop((0, 112, 168, picture(row).height))
        assert below.getextrema()[0] < 100  # dark ink on white
        assert row["question_for_eval"].split("\n")[0] not in row["question"]


def test_unknown_names_and_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown benchmark 'MathVista'.*micro-MathVista"):
        benchmarks.generate("MathVista", 0)
    with pytest.raises(ValueError, match="at least one"):
        benchmarks.rows("micro-MathVista", 0)
    with pytest.raises(ValueError, match="unknown benchmark"):
        scoring.read("x", tmp_path / "x.tsv", tmp_path)
    with pytest.raises(ValueError, match="unknown benchmark"):
        scoring.metrics("x", [])


# --- golds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_gold_scores_and_the_next_best_does_not(name, tmp_path):
    benchmarks.write_tsv(name, tmp_path / "b.tsv", 40)
    asked = scoring.read(name, tmp_path / "b.tsv", tmp_path)
    right = scoring.score(asked, [join_think_answer("x", r.gt) for r in asked], model="m")
    assert all(row["correct"] and row["reward"] == 1.0 for row in right)
    said = {"digit": "-77", "math": "x^9", "mcq": "A, B, C, D"}
    wrong = scoring.score(asked, [said[r.reward] for r in asked], model="m")
    assert not any(row["correct"] or row["reward"] for row in wrong)


def test_training_questions_are_answered_by_their_own_solver():
    for name in ("micro-MathVista", "micro-MathVerse", "micro-DynaMath"):
        for row in MADE[name]:
            text = str(row.get("question_for_eval") or row["question"])
            text = re.sub(r"^Hint: .*\nQuestion: ", "", text).split("\nChoices:")[0]
            asked, scene = questions.read(text), scene_of(row)
            if asked.kind in ("field", "hue", "what"):
                stated = facts.extract(questions.as_sentence(asked, bare_answer(row)))
                blurred = scene.get("clear") is False
                assert blurred or truth.holds(stated[0], scene), row["question"]
                assert not blurred or bare_answer(row) == "too blurred to tell"
            else:
                _, answer = solve.found(asked, truth.knowledge(scene))
                assert bare_answer(row) == answer, row["question"]


def objects(scene, **wanted):
    return [o for o in scene["objects"] if all(o[k] == v for k, v in wanted.items())]


def bar(scene, color):
    return next(b["value"] for b in scene["bars"] if b["color"] == color)


def corner(scene, color):
    return next(c["angle"] for c in scene["corners"] if c["color"] == color)


def graph(scene, color):
    """Return y as a function of x, by way of the curve's written equation."""
    curve = next(c for c in scene["curves"] if c["color"] == color)
    text = scenes.expression(curve).removeprefix("y = ").replace("^", "**")
    text = re.sub(r"\|(.*)\|", r"abs(\1)", text)
    text = re.sub(r"(\d)([xa(])", r"\1*\2", text)
    return lambda x: eval(text, {"abs": abs, "x": x})


def beside(scene, relation, color, shape):
    (anchor,) = objects(scene, color=color, shape=shape)
    ways = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
    axis, sign = ways[relation]
    middle = [(o["box"][axis] + o["box"][axis + 2]) / 2 for o in (anchor, *scene["objects"])]
    return sum(sign * (m - middle[0]) > 0.12 for m in middle[1:])


# a second way to each answer: pattern of the question -> function of the scene and its groups
SECOND = {
    r"How many objects are (\w+), or (\w+)s, or both\?": lambda s, c, k: len(objects(s, color=c))
    + len(objects(s, shape=k)) - len(objects(s, color=c, shape=k)),
    r"How many objects are neither (\w+) nor (\w+)s\?": lambda s, c, k: len(s["objects"])
    - len(objects(s, color=c)) - len(objects(s, shape=k)) + len(objects(s, color=c, shape=k)),
    r"Take away the (\w+) objects, then add (\d) \w+\. How .*": lambda s, c, n: len(s["objects"])
    - len(objects(s, color=c)) + int(n),
    r"How many (\w+)s, (\w+)s and (\w+)s are there together\?": lambda s, *shapes: sum(
        len(objects(s, shape=k)) for k in shapes),
    r"How many objects are ([\w ]+?) the (\w+) (\w+)\?": beside,
    r"What is the sum of the (\w+) bar and the (\w+) bar\?": lambda s, a, b: bar(s, a) + bar(s, b),
    r"How much higher is the (\w+) bar than the (\w+) bar\?": lambda s, a, b: bar(s, a) - bar(s, b),
    r"What do all bars together add up to\?": lambda s: sum(bar(s, b["color"]) for b in s["bars"]),
    r"By how much do the values of the line at x = (\d) and at x = (\d) differ\?": lambda s, a, b:
        abs(s["values"][int(a) - 1] - s["values"][int(b) - 1]),
    r"Which y does the (\w+) graph have at x = (-?\d)\?": lambda s, c, x: graph(s, c)(int(x)),
    r"The (\w+) line goes on .* at x = (\d)\?": lambda s, c, x: graph(s, c)(int(x)),
    r"One side is drawn out past the (\w+) corner\. .*": lambda s, c: sum(
        other["angle"] for other in s["corners"] if other["color"] != c),
    r"How many degrees larger is the largest .*": lambda s: max(
        a["angle"] - b["angle"] for a in s["corners"] for b in s["corners"]),
    r"What is the circumference of the circle, .*": lambda s: rf"{s['radius'] + s['radius']}\pi",
    r"Which area does the circle have, .*": lambda s: rf"{s['radius'] * s['radius']}\pi",
    r"The rectangle is made twice as wide\. .*": lambda s: s["width"] * s["height"] * 2,
    r"Two such rectangles are put side by side\. .*": lambda s: 4 * s["width"] + 2 * s["height"],
    # in several steps
    r"The (\w+) bar is put on top of the (\w+) bar\. .*": lambda s, a, b: bar(s, a) + bar(s, b),
    r"How large is the angle outside .* the (\w+) angle\?": lambda s, c: 180 - corner(s, c),
    r"A square fits exactly around the circle\. .*": lambda s: 8 * s["radius"],
    r"A diagonal cuts this rectangle .*": lambda s: s["width"] * s["height"] / 2,
    r"In how many ways can you choose one (\w+) and one (\w+)\?": lambda s, a, b: len(
        [1 for _ in objects(s, shape=a) for _ in objects(s, shape=b)]),
    r"How far is it from the top of the shortest .*": lambda s: max(
        a["value"] - b["value"] for a in s["bars"] for b in s["bars"]),
    r"How far apart along x .*": lambda s: abs(
        s["values"].index(max(s["values"])) - s["values"].index(min(s["values"]))),
    r"A line cuts the (\w+) angle into two equal parts\. .*": lambda s, c: corner(s, c) / 2,
}  # fmt: skip


def test_compositions_by_a_second_way():
    used = set()
    multi = [row for row in MADE["micro-WeMath"] if row["key"].endswith("multi")]
    for row in MADE["micro-MathVision"] + multi:
        stem, scene, found = row["question"].split("\n")[0], scene_of(row), bare_answer(row)
        if match := re.fullmatch(r"At which x does the (\w+) graph meet the x axis\?", stem):
            assert graph(scene, match[1])(int(found)) == 0
            continue
        ((pattern, way, match),) = [
            (p, way, m) for p, way in SECOND.items() if (m := re.fullmatch(p, stem))
        ]
        used.add(pattern)
        answer = way(scene, *match.groups())
        assert found == (answer if isinstance(answer, str) else f"{answer:g}"), stem
    assert used == set(SECOND)


def test_compositions_and_statements_are_never_asked_in_training():
    multi = [row for row in MADE["micro-WeMath"] if row["key"].endswith("multi")]
    for row in MADE["micro-MathVision"] + MADE["micro-LogicVista"] + multi:
        with pytest.raises(solve.CannotAnswer, match="no known question"):
            questions.read(row["question"])


def test_statements_are_true_exactly_where_the_answer_says():
    sizes = set()
    for row in MADE["micro-LogicVista"]:
        said = choices(row)
        true = [c for c, text in said.items() if truth.holds(facts.read(text), scene_of(row))]
        assert row["answer"] == ", ".join(true) and len(true) < len(said)
        sizes.add((len(said), len(true)))
    assert {size for size, _ in sizes} == {4, 5} and {n for _, n in sizes} == {1, 2, 3}
    skills = {row["skill"] for row in MADE["micro-LogicVista"]}
    assert skills == {f"['{s}']" for s in ("numerical", "spatial", "inductive", "deductive")}


def test_choices_are_four_and_the_letters_are_mixed():
    for name in ("micro-MathVista", "micro-MathVision", "micro-MathVerse", "micro-DynaMath"):
        asked = [row for row in MADE[name] if row["micro_reward"] == "mcq"]
        assert all(len(set(choices(row).values())) == 4 for row in asked)
        letters = [row.get("answer_option") or row["answer"] for row in asked]
        assert all(letters.count(c) < len(letters) / 2 for c in "ABCD")
    assert {r["question_type"] for r in MADE["micro-MathVista"]} == {"multi_choice", "free_form"}
    assert {r["level"] for r in MADE["micro-MathVision"]} == {1, 2, 3}


def test_dynamath_variants_share_the_words_and_not_the_scene():
    seeds = {}
    for row in MADE["micro-DynaMath"]:
        seeds.setdefault(row["qid"], []).append(row)
    for qid, rows in seeds.items():
        assert [row["varid"] for row in rows] == list(range(1, 11))
        assert rows[0]["index"] == qid  # what the kit's worst case relies on
        assert len({row["question"].split("\n")[0] for row in rows}) == 1
        assert len({(row["answer_type"], row["subject"]) for row in rows}) == 1
        assert len({content(scene_of(row)) for row in rows}) == 10
        assert len({bare_answer(row) for row in rows}) > 1


def test_wemath_groups_are_whole_and_share_a_picture():
    groups = {}
    for row in MADE["micro-WeMath"]:
        groups.setdefault(row["ID"], []).append(row)
    assert {ID.split("_")[0] for ID in groups} == {"2steps", "3steps"}
    for ID, rows in groups.items():
        kind = ID.split("_")[0]
        numbers = [*range(1, int(kind[0]) + 1), "multi"]
        assert [row["key"] for row in rows] == [f"{kind}_{number}" for number in numbers]
        assert len({content(scene_of(row)) for row in rows}) == 1
        assert [row["image"] for row in rows[1:]] == [str(rows[0]["index"])] * (len(rows) - 1)
        for row in rows:
            options = [row[letter] for letter in "ABCDE"]
            assert options[-1] == NONE_RIGHT and len(set(options)) == 5 and row["answer"] != "E"


# --- files ----------------------------------------------------------------------------------------


def write(path, rows, columns=None):
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(
            stream, columns or list(rows[0]), delimiter="\t", extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_file_reads_back(tmp_path):
    made = benchmarks.write_tsv("micro-WeMath", tmp_path / "w.tsv", 7)
    asked = scoring.read("micro-WeMath", tmp_path / "w.tsv", tmp_path)
    assert [r.id for r in asked] == [f"micro-WeMath-{row['index']}" for row in made]
    assert [r.gt for r in asked] == [row["answer"] for row in made]
    assert asked[0].image == asked[1].image != asked[3].image
    shown = images.open_image(asked[0].image, tmp_path)
    assert shown.tobytes() == picture(made[0]).convert("RGB").tobytes()
    assert rewards.options(asked[0].question)["E"] == NONE_RIGHT
    assert asked[0].meta["columns"]["key"] == "2steps_1"
    again = benchmarks.write_tsv("micro-WeMath", tmp_path / "w.tsv", 7)
    assert again == made and [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_short_image_names_a_row_and_must_find_it(tmp_path):
    rows = benchmarks.rows("micro-WeMath", 3)
    rows[1]["image"] = "9"
    with pytest.raises(RecordError, match=r"w.tsv:3: column 'image': '9' is neither a picture nor"):
        scoring.read("micro-WeMath", write(tmp_path / "w.tsv", rows), tmp_path)


BROKEN = {
    "image": [
        ("!" * 80, "not base64"),
        (base64.b64encode(b"no picture" * 20).decode(), "is not one of PNG"),
        ("", "'' is neither a picture nor an index above"),
        ("half", "is broken or cut short"),
    ],
    "index": [("../../x", "'../../x' is not a number"), ("1", "1 is used above")],
    "answer": [("", "is empty"), ("many", "'many' is not one number")],
    "question": [(" ", "is empty")],
    "micro_reward": [("open", "'open' is not digit, mcq or math")],
    "micro_scene": [("{", "not JSON")],
}
CASES = [(c, value, words) for c, cases in BROKEN.items() for value, words in cases]


@pytest.mark.parametrize(("column", "value", "words"), CASES)
def test_a_broken_cell_is_named_by_file_line_and_column(column, value, words, tmp_path):
    free = [row for row in MADE["micro-MathVision"] if row["micro_reward"] == "digit"]
    rows = [{**row, "index": number} for number, row in enumerate(free[:3], 1)]
    value = rows[1]["image"][: len(rows[1]["image"]) // 8 * 4] if value == "half" else value
    rows[1][column] = value
    path = write(tmp_path / "b.tsv", rows)
    with pytest.raises(RecordError, match=f"b.tsv:3: column '{column}'") as error:
        scoring.read("micro-MathVision", path, tmp_path / "images")
    assert words in str(error.value)
    assert not (tmp_path.parent / "x.png").exists()


def test_lines_are_counted_through_quoted_line_breaks(tmp_path):
    rows = benchmarks.rows("micro-LogicVista", 2)
    rows[1]["answer"] = "A, Z"
    line = 3 + rows[0]["question"].count("\n")
    with pytest.raises(RecordError, match=f"b.tsv:{line}: column 'answer': 'A, Z' is no set"):
        scoring.read("micro-LogicVista", write(tmp_path / "b.tsv", rows), tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"b.tsv:1: no column 'index', 'image'"),
        ("index\timage\n1\tx\n", r"b.tsv:1: no column 'question', 'answer', 'skill'"),
        ("\t".join(COLUMNS["micro-LogicVista"]) + "\n", "holds no rows"),
        ("\t".join(COLUMNS["micro-LogicVista"]) + "\n1\tx\n", r"b.tsv:2: .* header's 7 columns"),
        ("\t".join(COLUMNS["micro-LogicVista"]) + '\n1\t"x', "not a TSV file in UTF-8"),
        (b"\xff\xfe\x00", "not a TSV file in UTF-8"),
    ],
)
def test_a_broken_file_is_refused(text, words, tmp_path):
    path = tmp_path / "b.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecordError, match=words):
        scoring.read("micro-LogicVista", path, tmp_path)
    with pytest.raises(RecordError, match="no such file"):
        scoring.read("micro-LogicVista", tmp_path / "none.tsv", tmp_path)


# --- scores and metrics ---------------------------------------------------------------------------

ASKED = "Which?\nChoices:\nA: 1\nB: 2\nC: 3\nD: 4"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A, C", "AC"), ("AC", "AC"), ("CA", "AC"), ("A and C", "AC"), ("A,C", "AC"),
        ("A, B and C", "ABC"), ("A, B, and D", "ABD"), ("B", "B"), ("The answer is A, C.", "AC"),
        (r"$\boxed{A, C}$", "AC"), ("a, c", None), ("A, A", None), ("A or C", None),
        ("A, E", None), ("AND", None), ("A C", None), ("not A, C", None), ("", None),
        ("A, C, maybe B", None), ("A: 1", None), ("(A), (C)", None), ("A" * 9999, None),
    ],
)  # fmt: skip
def test_letters_are_read_strictly(text, found):
    read = scoring.letters(text, ASKED)
    assert read == (frozenset(found) if found else None)


def test_letter_sets_are_paid_in_the_format_and_counted_without(tmp_path):
    benchmarks.write_tsv("micro-LogicVista", tmp_path / "b.tsv", 20)
    asked = scoring.read("micro-LogicVista", tmp_path / "b.tsv", tmp_path)
    record = next(r for r in asked if len(r.gt) == 4)  # two letters
    first, last = record.gt.split(", ")
    texts = [f"{last}, {first}", join_think_answer("x", first + last), first, "<think>"]
    rows = scoring.score([record] * 4, texts, model="m")
    assert [row["correct"] for row in rows] == [True, True, False, False]
    assert [row["reward"] for row in rows] == [0.0, 1.0, 0.0, 0.0]
    assert rows[2]["reason"] == f"letters: {first}, gold {record.gt}"
    assert {row["gold"] for row in rows} == {record.gt}


def row(correct, blank=False, model="m", **columns):
    return {"model": model, "blank": blank, "correct": correct, "columns": columns}


def values(name, rows, **wanted):
    table = scoring.metrics(name, rows, resamples=20)
    chosen = [r for r in table if all(r[k] == v for k, v in wanted.items())]
    return {r["metric"]: r for r in chosen}


def problem(ID, *correct, **more):
    """Return a problem's rows: the steps, and the whole last."""
    kind = ID.split("_")[0]
    keys = [*range(1, len(correct)), "multi"]
    return [row(c, ID=ID, key=f"{kind}_{k}", **more) for k, c in zip(keys, correct, strict=True)]


def test_wemath_equals_the_hand_computation():
    rows = [
        *problem("2steps_1", True, True, True),  # CM
        *problem("2steps_2", True, False, True),  # strict RM, loose CM
        *problem("2steps_3", False, False, True),  # RM
        *problem("3steps_1", True, True, True, False),  # IG
        *problem("3steps_2", True, True, False, False),  # IK
    ]
    found = values("micro-WeMath", rows)
    assert found["strict"]["value"] == pytest.approx((1 + 0.5) / 5)
    assert found["loose"]["value"] == pytest.approx((2 + 0.5) / 5)
    assert {k: found[f"strict {k}"]["points"] for k in ("CM", "RM", "IG", "IK")} == {
        "CM": 1, "RM": 2, "IG": 1, "IK": 1}  # fmt: skip
    assert {k: found[f"loose {k}"]["points"] for k in ("CM", "RM", "IG", "IK")} == {
        "CM": 2, "RM": 1, "IG": 1, "IK": 1}  # fmt: skip
    assert found["strict RM"]["value"] == pytest.approx(2 / 3)  # of the problems solved
    assert found["strict IG"]["value"] == pytest.approx(1 / 5)
    assert (found["S1"]["points"], found["S1"]["n"]) == (8, 12)
    assert (found["S2"]["value"], found["S3"]["value"]) == (1.0, 0.0)
    assert found["strict"]["n"] == 5 and found["strict"]["left_out"] == 0
    # the formula as the original writes it, over the problems that are there
    n, ig, rm, ik = 5, 1, 2, 1
    assert found["strict"]["value"] == pytest.approx((n - 0.5 * ig - rm - ik) / n)


def test_wemath_never_takes_a_missing_row_for_a_right_one():
    whole = problem("2steps_1", True, True, False)
    lacking = problem("3steps_1", True, True, True, True)
    for gone in range(4):
        found = values("micro-WeMath", whole + lacking[:gone] + lacking[gone + 1 :])
        assert (found["strict"]["value"], found["strict"]["n"]) == (0.5, 1)
        assert found["strict"]["left_out"] == 1
    twice = values("micro-WeMath", whole + lacking + lacking[:1])
    assert (twice["strict"]["n"], twice["strict"]["left_out"]) == (1, 1)
    nothing = values("micro-WeMath", problem("2steps_1", False, False, False))
    assert nothing["strict"]["value"] == 0 and nothing["strict RM"]["value"] is None


def variants(qid, *wrong):
    return [
        row(v not in wrong, qid=qid, varid=str(v), subject="s", knowledge_level="k")
        for v in range(1, 11)
    ]


def test_dynamath_counts_a_seed_only_when_all_its_variants_are_right():
    rows = [*variants("1"), *variants("2", 4), *variants("3", 1, 2, 3)]
    for order in (rows, rows[::-1]):
        found = values("micro-DynaMath", order)
        assert found["worst case"]["value"] == pytest.approx(1 / 3)
        assert found["average"]["value"] == pytest.approx(26 / 30)
    found = values("micro-DynaMath", [*rows, *variants("4")[1:]])  # its first variant is missing
    assert (found["worst case"]["n"], found["worst case"]["left_out"]) == (3, 1)
    assert found["worst case"]["value"] == pytest.approx(1 / 3)


def test_plain_accuracies_by_part_and_beside_the_blank_twin():
    rows = [
        row(True, level="1", category="angle"),
        row(False, level="1", category="area"),
        row(True, level="2", category="area"),
        row(False, blank=True, level="1", category="angle"),
        row(False, model="other", level="1", category="angle"),
    ]
    found = values("micro-MathVision", rows, model="m")
    assert found["overall"]["value"] == pytest.approx(2 / 3)
    assert (found["overall"]["n"], found["overall"]["blank_value"]) == (3, 0.0)
    assert found["level: 1"]["value"] == 0.5 and found["category: area"]["value"] == 0.5
    assert values("micro-MathVision", rows, model="other")["overall"]["value"] == 0.0
    both = [row(True, task="t", skills="['a', 'b']"), row(False, task="t", skills="['b']")]
    found = values("micro-MathVista", both)
    assert (found["skills: a"]["value"], found["skills: b"]["value"]) == (1.0, 0.5)
    assert scoring.metrics("micro-MathVista", []) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_has_its_headline(name, tmp_path):
    benchmarks.write_tsv(name, tmp_path / "b.tsv", 20)
    asked = scoring.read(name, tmp_path / "b.tsv", tmp_path)
    texts = [join_think_answer("x", record.gt) for record in asked]
    rows = scoring.score(asked, texts, model="m", blank=False)
    (head,) = scoring.headline(name, rows)
    assert head["value"] == 1.0 and head["left_out"] == 0 and head["blank_value"] is None


def test_a_model_answers_a_benchmark_once_with_and_once_without_the_picture(tiny_model, tmp_path):
    policy = models.load_policy(tiny_model, min_pixels=112 * 112)
    for name in ("micro-MathVerse", "micro-LogicVista"):
        benchmarks.write_tsv(name, tmp_path / "b.tsv", 3)
        asked = scoring.read(name, tmp_path / "b.tsv", tmp_path)
        rows = scoring.answer(policy, asked, tmp_path, "tiny", batch=2, max_new_tokens=4)
        assert [row["blank"] for row in rows] == [False] * 3 + [True] * 3
        assert [row["gold"] for row in rows] == [r.gt for r in asked] * 2
        assert scoring.headline(name, rows)[0]["blank_value"] is not None
        plain = evaluate.generate(policy, asked, tmp_path, 2, 4)
        assert [row["completion"] for row in rows[:3]] == plain


def test_the_stage_answers_all_six_once(tiny_model, tmp_path):
    overrides = {"model.policy": str(tiny_model), "evaluate.max_new_tokens": 4}
    cfg = profiles.load("smoke", **overrides, **{"data.bench_rows": 4})
    run = stages.folder(cfg, tmp_path / "run")
    rows = stages.benchmarks(cfg, run, "instruct")
    found = {name: [row for row in rows if row["source"] == name] for name in NAMES}
    assert [len(found[name]) for name in NAMES] == [8, 8, 8, 20, 6, 8]  # with blank twins
    for name in NAMES:
        (head,) = scoring.headline(name, found[name])
        assert head["model"] == "instruct" and head["n"] >= 1 and head["left_out"] == 0
    answered = run / "evaluation" / "instruct-benchmarks" / "rows.jsonl"
    made = answered.stat().st_mtime_ns
    assert stages.benchmarks(cfg, run, "instruct") == rows
    assert answered.stat().st_mtime_ns == made
    assert {p.stem for p in (run / "benchmarks").glob("*.tsv")} == set(NAMES)
