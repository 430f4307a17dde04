"""Micro benchmarks: golds, splits, pictures, and one pass over all six with a model."""

import base64
import io
import json
import re
from collections import Counter

import pytest
from PIL import Image

from vlaa_lib import images, profiles, rewards
from vlaa_lib.evaluate import stats
from vlaa_lib.evaluate.benchmarks import read as read_benchmark
from vlaa_lib.evaluate.tasks import letters
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld import benchmarks, facts, questions, scenes, solve, truth
from vlaa_lib.pocket.microworld.benchmarks import BENCHMARKS, COLUMNS, NONE_RIGHT
from vlaa_lib.study import stages

MADE = {name: benchmarks.rows(name, 120) for name in BENCHMARKS}
NAMES = list(BENCHMARKS)


def scene_of(row):
    return json.loads(row["micro_scene"])


def content(scene):
    shown = {key: value for key, value in scene.items() if key not in ("style", "level")}
    return json.dumps(shown, sort_keys=True)


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
def test_same_arguments_same_rows_with_a_running_index(name):
    again = benchmarks.rows(name, 30)
    assert again == benchmarks.rows(name, 30) != benchmarks.rows(name, 30, seed=1)
    rows = MADE[name]
    assert all(tuple(row) == COLUMNS[name] for row in rows)
    assert [row["index"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(str(row["question"]) and str(row["answer"]) for row in rows)
    assert 100 < len(rows) <= 120
    assert len(benchmarks.rows(name, 1)) >= 1  # a whole group, even where fewer rows are wanted


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


def test_unknown_names_and_numbers_are_refused():
    with pytest.raises(ValueError, match="unknown benchmark 'MathVista'.*micro-MathVista"):
        benchmarks.generate("MathVista", 0)
    with pytest.raises(ValueError, match="at least one"):
        benchmarks.rows("micro-MathVista", 0)


# --- golds ----------------------------------------------------------------------------------------


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
    read = letters(text, ASKED)
    assert read == (frozenset(found) if found else None)


def test_choices_are_four_and_the_letters_are_mixed():
    for name in ("micro-MathVista", "micro-MathVision", "micro-MathVerse", "micro-DynaMath"):
        asked = [row for row in MADE[name] if row["micro_reward"] == "mcq"]
        assert all(len(set(choices(row).values())) == 4 for row in asked)
        golds = [row.get("answer_option") or row["answer"] for row in asked]
        assert all(golds.count(c) < len(golds) / 2 for c in "ABCD")
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


# --- files and models -----------------------------------------------------------------------------


def test_a_file_reads_back(tmp_path):
    made = benchmarks.write_tsv("micro-WeMath", tmp_path / "w.tsv", 7)
    found = read_benchmark("micro-WeMath", tmp_path / "w.tsv", tmp_path / "images")
    assert not found.rejects
    assert [row["index"] for row in found.rows] == [str(row["index"]) for row in made]
    for read, row in zip(found.rows, made, strict=True):
        assert {k: read[k] for k in row if k != "image"} == {
            k: str(v) for k, v in row.items() if k != "image"
        }
    first = found.rows[0]["images"]
    assert first == found.rows[1]["images"] != found.rows[3]["images"]
    shown = images.open_image(first[0], found.images)
    assert shown.tobytes() == picture(made[0]).convert("RGB").tobytes()
    again = benchmarks.write_tsv("micro-WeMath", tmp_path / "w.tsv", 7)
    assert again == made and [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_the_stage_answers_all_six_once(tiny_model, tmp_path):
    overrides = {"model.policy": str(tiny_model), "evaluate.max_new_tokens": 4}
    cfg = profiles.load("smoke", **overrides, **{"data.bench_rows": 4})
    run = stages.folder(cfg, tmp_path / "run")
    rows = stages.benchmarks(cfg, run, "instruct")
    counts = Counter((row["benchmark"], row["blank"]) for row in rows)
    sizes = {"micro-DynaMath": 10, "micro-WeMath": 3}
    assert counts == {(n, b): sizes.get(n, 4) for n in NAMES for b in (False, True)}
    assert {row["model"] for row in rows} == {"instruct"} and all(row["gold"] for row in rows)
    table = stats.table4(rows, resamples=20)
    assert [row["benchmark"] for row in table] == [*NAMES, "average"]
    assert None not in [row[key] for row in table for key in ("value", "blank_value")]
    out = run / "evaluation" / "instruct-micro"
    made = (out / "rows.jsonl").stat().st_mtime_ns
    assert stages.benchmarks(cfg, run, "instruct") == rows
    assert (out / "rows.jsonl").stat().st_mtime_ns == made
    (out / "done.json").unlink()  # cut off at its very end: nothing is answered again
    answered = (out / "seen" / "answers.jsonl").stat().st_mtime_ns
    assert stages.benchmarks(cfg, run, "instruct") == rows
    assert (out / "seen" / "answers.jsonl").stat().st_mtime_ns == answered
