"""Benchmark files and prompts: schemas, pictures, everything that can be wrong with them."""

import base64
import json

import pytest

from benchmark_files import picture, rows, write
from vlaa_lib import prompts
from vlaa_lib.evaluate import benchmarks, prompting
from vlaa_lib.images import open_image
from vlaa_lib.pocket.microworld import benchmarks as micro
from vlaa_lib.records import RecordError

NAMES = [name for name in benchmarks.LAYOUTS if not name.startswith("micro-")]


@pytest.fixture
def load(tmp_path):
    """Write rows as a file of a benchmark and read it."""

    def call(name, made, **more):
        write(tmp_path / "b.tsv", made)
        return benchmarks.read(name, tmp_path / "b.tsv", tmp_path / "cache", **more)

    return call


@pytest.mark.parametrize("name", NAMES)
def test_ten_rows_of_each_benchmark(load, name, monkeypatch):
    made = rows(name)
    found = load(name, made)
    assert not found.rejects and [row["index"] for row in found.rows] == [str(i) for i in range(10)]
    for row, wanted in zip(found.rows, made, strict=True):
        assert {k: row[k] for k in wanted if k != "image"} == {
            k: v for k, v in wanted.items() if k != "image"
        }
        assert open_image(row["images"][0], found.images).size == (40, 30)
    assert found.rows[2]["images"] == found.rows[0]["images"] != found.rows[1]["images"]
    assert len(list(found.images.iterdir())) == 9  # the shared picture once, no drafts
    monkeypatch.setattr(benchmarks.folders.os, "replace", lambda *_: pytest.fail("written again"))
    assert len(load(name, rows(name)).rows) == 10


@pytest.mark.parametrize("spell", [json.dumps, repr])
def test_lists_of_pictures_are_read_and_never_run(load, spell):
    made = rows("LogicVista")
    made[3]["image"] = spell([picture(3), picture(4)])
    made[4]["image"] = "[__import__('os').system('true')" + " " * 64 + "]"
    found = load("LogicVista", made)
    assert [len(row["images"]) for row in found.rows[:4]] == [1, 1, 1, 2]
    assert found.rows[3]["images"][1] != found.rows[3]["images"][0]
    assert [(r.line, r.id) for r in found.rejects] == [(10, "4")]  # two lines a question
    assert "is no list" in found.rejects[0].reason


def test_image_paths_below_the_root_and_nowhere_else(load, tmp_path):
    made = rows("LogicVista")
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "it's.png").write_bytes(base64.b64decode(picture(1)))
    (tmp_path / "secret.png").write_bytes(base64.b64decode(picture(2)))
    root = tmp_path / "pics"
    paths = ["it's.png", str(root / "it's.png"), '["it\'s.png", "it\'s.png"]', "../secret.png",
             str(tmp_path / "secret.png"), "none.png", ""]  # fmt: skip
    for row, path in zip(made, paths, strict=False):
        row |= {"image": "", "image_path": path}
    made[7:] = []
    found = load("LogicVista", made, image_root=root)
    assert [len(row["images"]) for row in found.rows] == [1, 1, 2]
    reasons = [reject.reason for reject in found.rejects]
    assert "leaves the image root" in reasons[0]
    assert "is not below" in reasons[1] and "is not below" in reasons[2]
    assert "has no picture" in reasons[3]


BAD_ROWS = {
    "not base64": (lambda m: m[3].update(image="%" * 80), "column 'image': not base64"),
    "not a picture": (lambda m: m[3].update(image="aGVsbG8g" * 20), "holds no PNG"),
    "half a picture": (lambda m: m[3].update(image=picture(3)[:400]), "column 'image'"),
    "too long": (lambda m: m[3].update(image=picture(1, (300, 1))), "more elongated"),
    "an unknown index": (lambda m: m[3].update(image="77"), "'77' is neither a picture nor"),
    "an index of an index": (lambda m: m[3].update(image="2"), "'2' is neither a picture nor"),
    "its own index": (lambda m: m[3].update(image="3"), "'3' is neither a picture nor"),
    "NaN question": (lambda m: m[3].update(question="nan"), "column 'question' is empty or NaN"),
    "empty gold": (lambda m: m[3].update(answer=" "), "column 'answer' is empty or NaN"),
    "an index twice": (lambda m: m[3].update(index="1"), "'1' is used on line 4"),
    "no index": (lambda m: m[3].update(index=""), "is no index"),
    "a special token": (lambda m: m[3].update(question="<|image_pad|>"), "special token"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_and_the_others_stay(load, name):
    made = rows("MathVision")
    change, reason = BAD_ROWS[name]
    change(made)
    found = load("MathVision", made)
    assert len(found.rows) == 9 and len(found.rejects) == 1
    reject = found.rejects[0]
    assert reason in reject.reason and (reject.file, reject.line) == ("b.tsv", 8)
    assert not [path for path in found.images.iterdir() if "-" in path.name]  # no drafts


@pytest.mark.parametrize(("broken", "reason"), [
    (b"3\tx\ty\xff\t4\t5", "not UTF-8 text"), (b'3\tx\t"y"z\t4\t5', "not a row of a TSV"),
    (b"3\tx", "header's 5 columns"), (b'3\tx\t"y\xfe\ny"\t4\t5', "not UTF-8 text"),
])  # fmt: skip
def test_a_line_that_is_no_row_is_a_reject_and_the_others_stay(load, tmp_path, broken, reason):
    load("LogicVista", [{k: row[k] for k in ("index", "image", "question", "answer", "skill")}
                        for row in rows("LogicVista")])  # fmt: skip
    head, first, second, *rest = (tmp_path / "b.tsv").read_bytes().split(b"\n", 3)
    (tmp_path / "b.tsv").write_bytes(b"\n".join([head, first, second, broken, *rest]))
    found = benchmarks.read("LogicVista", tmp_path / "b.tsv", tmp_path / "cache")
    assert [(r.line, reason in r.reason) for r in found.rejects] == [(4, True)]
    assert len(found.rows) == 10 and [row["index"] for row in found.rows][-1] == "9"


def test_mathvista_needs_the_letter_only_where_there_are_choices(load):
    made = rows("MathVista_MINI")
    made[2]["answer_option"] = "NaN"
    found = load("MathVista_MINI", made)
    assert [r.id for r in found.rejects] == ["2"]
    assert "'answer_option' is empty" in found.rejects[0].reason


def test_only_the_vision_only_rows_are_asked_and_the_others_counted(load):
    made = rows("MathVerse_MINI_Vision_Only")
    for row in made[4:]:
        row["problem_version"] = "Text Lite"
    made[5]["image"] = ""  # of another split: no reject
    found = load("MathVerse_MINI_Vision_Only", made)
    assert (len(found.rows), found.num_other_split, found.rejects) == (4, 6, [])
    whole = load("MathVerse_MINI", made)  # asked for by name, all versions are
    assert (len(whole.rows), whole.num_other_split, [r.id for r in whole.rejects]) == (9, 0, ["5"])


@pytest.mark.parametrize("name", NAMES)
def test_each_missing_column_is_named(tmp_path, name):
    layout = benchmarks.LAYOUTS[name]
    for column in ("index", "question", *layout.columns, *layout.asked):
        made = [{k: v for k, v in row.items() if k != column} for row in rows(name)]
        write(tmp_path / "b.tsv", made)
        with pytest.raises(RecordError, match=f"b.tsv:1: no column '{column}'; is it {name}"):
            benchmarks.read(name, tmp_path / "b.tsv", tmp_path / "cache")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "no column"),
        (b"index\timage\tquestion\tanswer\tskill\n", "holds no rows"),
        (b"\xff\xfe\x00", "not a TSV file in UTF-8"),
        (b'index\timage\tquestion\tanswer\tskill\n1\t2\t"open', "b.tsv:2: .*never closed"),
        (b"index\timage\tquestion\tanswer\tskill\n1\t2\n", "no row can be asked.*5 columns"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "b.tsv").write_bytes(content)
    with pytest.raises(RecordError, match=message):
        benchmarks.read("LogicVista", tmp_path / "b.tsv", tmp_path / "cache")


# --- prompts --------------------------------------------------------------------------------------


def asked(load, name, **more):
    return [ask.user for ask in prompting.asks(load(name, rows(name)), prompting.settings(**more))]


def test_benchmarks_ask_what_the_kit_asks(load):
    for name in ("MathVista_MINI", "MathVision", "LogicVista", "MathVerse_MINI_Vision_Only"):
        assert asked(load, name) == [row["question"] for row in rows(name)]
    assert asked(load, "MathVerse_MINI_Vision_Only_cot")[1] == "Think first, then solve 1."
    plain, cot = asked(load, "WeMath"), asked(load, "WeMath_COT")
    question = rows("WeMath")[1]["question"]
    # a missing option is none, and "None" is one
    assert plain[1] == (
        f"Hint: Look.\nQuestion: {question}\nOptions:\nA. 1\nB. None\nD. No correct answer\n"
    )
    assert plain[0].startswith("Question: ") and cot[0] == plain[0] + "Step by step."
    made = rows("WeMath")
    made[0]["question"] = r"\frac{question}{options}"  # a slot inside a value stays text
    user = prompting.asks(load("WeMath", made), prompting.settings())[0].user
    assert r"Question: \frac{question}{options}" in user


def test_dynamath_asks_for_its_two_keys_and_one_sentence_by_type(load):
    said = asked(load, "DynaMath")
    for i, kind in enumerate(("float", "multiple choice", "other")):
        assert prompting.INSTRUCTIONS[kind] in said[i]
        assert sum(text in said[i] for text in prompting.INSTRUCTIONS.values()) == 1
    example = json.loads(said[0][said[0].index("{") :])
    assert list(example) == ["solution", "short answer"]


def test_a_users_own_template(load, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("template: 'Q {question} {x} {instruction}'\ninstructions: {float: Digits.}\n",
        encoding="utf-8")
    said = asked(load, "DynaMath", template_file=path)
    assert said[0] == f"Q {rows('DynaMath')[0]['question']} {{x}} Digits."
    assert said[1].endswith(prompting.INSTRUCTIONS["multiple choice"])
    for bad in ("template: nothing", "a: [", "just text"):
        path.write_text(bad, encoding="utf-8")
        with pytest.raises(ValueError, match="t.yaml"):
            prompting.settings(template_file=path)


@pytest.mark.parametrize("name", [name for name in benchmarks.LAYOUTS if name.startswith("micro-")])
def test_micro_rows_are_asked_as_training_asks(tmp_path, name):
    made = micro.write_tsv(name, tmp_path / "b.tsv", 8)
    found = benchmarks.read(name, tmp_path / "b.tsv", tmp_path / "cache")
    said = [ask.user for ask in prompting.asks(found, prompting.settings())]
    options = [micro.lettered([r[c] for c in "ABCDE"]) if "E" in r else "" for r in made]
    assert said == [
        prompts.user_text(row["question"] + more, row["micro_reward"])
        for row, more in zip(made, options, strict=True)
    ]
    assert not found.rejects


def test_presets_are_the_papers_and_the_kits():
    paper, kit = prompting.settings("paper"), prompting.settings("vlmevalkit")
    assert (paper.max_pixels, paper.max_new_tokens, paper.temperature) == (262_144, 800, 0.0)
    assert (kit.min_pixels, kit.max_pixels, kit.max_new_tokens) == (1_003_520, 12_845_056, 2048)
    assert paper.system_prompt == prompts.SYSTEM_PROMPT
    assert prompting.settings(system_prompt="").system_prompt == ""
    # the paper's upper bound with the kit's lower one, as its table would have it
    with pytest.raises(ValueError, match="min_pixels 1003520 is above max_pixels 262144"):
        prompting.settings("vlmevalkit", max_pixels=262_144)
    with pytest.raises(ValueError, match="unknown preset 'fast'"):
        prompting.settings("fast")


def test_the_digest_sees_prompts_and_pictures(load):
    def digest(made, **more):
        chosen = prompting.settings(**more)
        return prompting.digest(prompting.asks(load("MathVision", made), chosen))

    made = rows("MathVision")
    assert digest(made) == digest(made) != digest(made, system_prompt="Be brief.")
    assert digest(made) != digest([made[0], made[1] | {"image": picture(99)}, *made[2:]])
