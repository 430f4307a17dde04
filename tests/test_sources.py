"""The public datasets: each file format as distributed, good and broken rows, sampling, writing."""

import io
import json
import tracemalloc

import pyarrow
import pytest
from pyarrow import parquet

from scoring import wrap
from vlaa_lib import ROOT, records, rewards, sources
from vlaa_lib.__main__ import main
from vlaa_lib.construct import steps
from vlaa_lib.images import open_image
from vlaa_lib.records import Record, RecordError
from vlaa_lib.sources import rows


def png(colour=0):
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def put(root, *paths):
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png(number))


def talk(*texts):
    said = zip(("human", "gpt") * len(texts), texts, strict=False)
    return [{"from": role, "value": text} for role, text in said]


def boxed(conclusion, tags=True):
    if not tags:
        return conclusion
    return (
        "<SUMMARY> I will look. </SUMMARY>\n\n<CAPTION> A dog on grass. </CAPTION>\n\n<REASONING> "
        f"It is left. </REASONING>\n\n<CONCLUSION> {conclusion} </CONCLUSION>"
    )


# --- one small file in each dataset's own format; the first row of each is good ------------------

CLEVR = {
    "split": "train", "image_filename": "CLEVR_train_000001.png", "image_index": 1, "program": [],
    "question": "Subtract all balls. How many objects are left?", "answer": 3,
    "template_filename": "subtraction.json", "question_index": 0,
}  # fmt: skip
THING = {"size": "large", "color": "blue", "material": "metal", "shape": "sphere", "rotation": 1.0}
GEOQA = {
    "id": "1", "image": "geoqa_plus/2905.png", "conversations": talk(
        "<image>\nFirst think, then choose.\nQuestion: What is tan(ADC)?\nChoices:\n"
        "A: \\frac{1}{2}\nB: 2\nC: 80°\nD: 4", "The half chord ...\nAnswer:C"),
}  # fmt: skip
PUMA = {
    "image_url": "", "image_url_2": "./Synthesis/images/gen_func/func_sine_1.png",
    "instruction": "The function y = a * sin(-5 * x) goes through (pi/10,5). What is the "
    "function's equation?", "instruction_2": "What is the function's equation?",
    "output": "Step 1: ...\n\n†Answer: y = -5 * sin(-5 * x).", "output_2": "Step 1: ...",
}  # fmt: skip
ARXIV = {
    "id": "cond-mat-23815", "image": "images/1907.10497_1.jpg", "question": "How does it grow?",
    "options": ["A) Fast.", "B) Not at all."], "label": "B)", "rationale": "It is flat.",
}  # fmt: skip
DOCVQA = {
    "questionId": 337, "question": "What is the date?", "question_types": ["form"], "docId": 279,
    "image": "documents/xnbl0037_1.png", "answers": ["1/8/93", "1-8-93"], "data_split": "train",
}  # fmt: skip
VIZWIZ = {
    "image": "VizWiz_train_00000001.jpg", "question": "What is this?", "answer_type": "other",
    "answerable": 1, "answers": [{"answer": text, "answer_confidence": "yes"} for text in
                                 ("unanswerable", "Soup", "soup", "can of soup")],
}  # fmt: skip
ALLAVA = {
    "id": "allava_laion_inst_77", "image": "allava_laion/images/77.jpeg",
    "conversations": talk("<image>\nWhy is it red?", "Because of paint."), "url": "http://x.y/z",
}  # fmt: skip
ASK = 'Please give the box of the region this sentence describes: "the dog".'
COCO = {
    "id": "c1", "image": "coco/train2017/000000000009.jpg", "conversations": talk(
        f"<image>\n{ASK}", boxed("[0.1, 0.25, 0.7, 0.5]"), "Where is the cat?",
        boxed("[0.0, 0.0, 1.0, 0.5]", tags=False)),
}  # fmt: skip


def lines(made):
    return "".join(json.dumps(row) + "\n" for row in made)


def under(key):
    return lambda made: json.dumps({"info": {"split": "train"}, key: made, "license": "CC BY 4.0"})


VG = COCO | {"image": "vg/VG_100K/1.jpg"}
SCENE = {"image_filename": CLEVR["image_filename"], "objects": [THING, THING]}
CAPTION = ALLAVA | {"id": "allava_laion_cap_77", "conversations": talk("<image>\nD?", "Red.")}
BOX = "[0.1, 0.25, 0.7, 0.5]"
# source -> a good row, the file with the rows and how they stand in it, the picture's place;
# then what becomes of the row: number of records, and of the first: id, image, gold, reward
FORMATS = {
    "CLEVR-Math": (
        CLEVR, "clevr-math-train.json", under("questions"),
        "CLEVR_v1.0/images/train/CLEVR_train_000001.png", 1, "clevr_math-CLEVR_train_000001.png",
        "clevr_math/CLEVR_train_000001.png", "3", "digit"),
    "GeoQA170K": (
        GEOQA, "qa_tuning.json", json.dumps, "images/geoqa_plus/2905.png", 1,
        "geoqa170k-geoqa_plus-2905-", "geoqa170k/geoqa_plus-2905.png", "C", "mcq"),
    "Math PUMA": (
        PUMA, "train.json", json.dumps, "images/gen_func/func_sine_1.png", 1,
        "synthesis-gen_func-func_sine_1-", "synthesis/gen_func-func_sine_1.png",
        r"y = -5 * \sin(-5 * x).", "math"),
    "ArxivQA": (
        ARXIV, "arxivqa.jsonl", lines, "images/1907.10497_1.jpg", 1, "arxivqa-cond-mat-23815",
        "arxivqa/1907.10497_1.jpg", "B", "mcq"),
    "DocVQA": (
        DOCVQA, "train_v1.0_withQT.json", under("data"), "spdocvqa_images/xnbl0037_1.png", 1,
        "docvqa-337", "docvqa/xnbl0037_1.png", "1/8/93", "open"),
    "VizWiz": (
        VIZWIZ, "train.json", json.dumps, "train/VizWiz_train_00000001.jpg", 1,
        "vizwiz-VizWiz_train_00000001", "vizwiz/VizWiz_train_00000001.jpg", "soup", "open"),
    "ALLaVA-LAION": (
        ALLAVA, "ALLaVA-Instruct-LAION-4V.json", json.dumps, "images/77.jpeg", 1,
        "allava-allava_laion_77", "allava_laion/images/77.jpeg", "Because of paint.", "open"),
    "COCO": (
        COCO, "train.jsonl", lines, "image/coco/train2017/000000000009.jpg", 2,
        "coco-000000000009-", "coco/train2017/000000000009.jpg", BOX, "iou"),
    "VisualGenome": (
        VG, "train.jsonl", lines, "image/vg/VG_100K/1.jpg", 2, "vg-1-", "vg/VG_100K/1.jpg", BOX,
        "iou"),
}  # fmt: skip
SECOND = {
    "CLEVR-Math": ("scenes/CLEVR_train_scenes.json", under("scenes")([SCENE])),
    "ALLaVA-LAION": ("ALLaVA-Caption-LAION-4V.json", json.dumps([CAPTION])),
}


def make(folder, source, *extra):
    """Write the dataset's files: its good row, then others; return its root."""
    good, file, written, picture, *_ = FORMATS[source]
    root = folder / sources.READERS[source].folder
    put(root, picture)
    (root / file).write_text(written([good, *extra]), encoding="utf-8")
    if source in SECOND:
        name, text = SECOND[source]
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def read(source, root):
    rejects = []
    return list(sources.read(source, root, rejects.append)), rejects


def written(tmp_path, source):
    (row,) = sources.write(tmp_path / "out", {source: 9}, tmp_path)
    return row["written"], row["rejected"]


@pytest.mark.parametrize("source", FORMATS)
def test_each_format_becomes_records_whose_golds_score_1(tmp_path, source):
    made, rejects = read(source, make(tmp_path, source))
    number, name, image, gold, reward = FORMATS[source][4:]
    assert (len(made), rejects) == (number, [])
    first = made[0]
    assert first.id.startswith(name)
    assert (first.image, first.solution, first.reward) == (image, gold, reward)
    assert first.source == source and "<image>" not in first.question
    if reward != "open":
        assert {rewards.score(r, wrap(r.solution)).value for r in made} == {1.0}
        assert rewards.audit(made) == []


def test_math_golds_mean_their_functions(tmp_path):
    (record,), _ = read("Math PUMA", make(tmp_path, "Math PUMA"))
    assert rewards.score(record, wrap(r"$y = 5\sin(5x)$")).value == 1.0
    assert rewards.score(record, wrap(r"$y = 5\cos(5x)$")).value == 0.0
    assert record.gt == PUMA["output"]  # as distributed
    assert record.meta["text_question"] == PUMA["instruction"]


def without(row, key):
    return {k: v for k, v in row.items() if k != key}


BROKEN = [
    ("CLEVR-Math", without(CLEVR, "image_filename"), "field 'image_filename' is missing or empty"),
    ("CLEVR-Math", CLEVR | {"answer": "three or 4"}, "digit: gold 'three or 4' is not one number"),
    ("CLEVR-Math", CLEVR | {"answer": True}, "field 'answer' is bool"),
    ("CLEVR-Math", CLEVR | {"split": "val"}, "is not below"),
    ("GeoQA170K", GEOQA | {"conversations": talk("Question: x?\nAnswer it.", "Answer:A")},
     "the question has no 'Choices:'"),
    ("GeoQA170K", GEOQA | {"conversations": talk(GEOQA["conversations"][0]["value"], "So 2.")},
     "names no letter after 'Answer:'"),
    ("GeoQA170K", GEOQA | {"conversations": talk(GEOQA["conversations"][0]["value"], "Answer:F")},
     "mcq: gold: F is none of the choices"),
    ("GeoQA170K", GEOQA | {"conversations": [{"from": "human", "value": "x"}]}, "goes human;"),
    ("Math PUMA", without(PUMA, "instruction_2"), "field 'instruction_2' is missing or empty"),
    ("Math PUMA", PUMA | {"instruction_2": PUMA["instruction"]}, "no textual version"),
    ("Math PUMA", PUMA | {"output": "Step 1: it is 4."}, "has no '†Answer:' line"),
    ("ArxivQA", ARXIV | {"label": "C"}, "field 'label' 'C' names none of the 2 choices"),
    ("ArxivQA", ARXIV | {"options": ["A) x", "-", "B) y"]}, "marks do not go A, B, C"),
    ("ArxivQA", ARXIV | {"options": "A) x"}, "field 'options' is str; the row has: id, image"),
    ("DocVQA", DOCVQA | {"answers": []}, "field 'answers' is missing or empty"),
    ("DocVQA", DOCVQA | {"answers": [{"a": 1}]}, "field 'answers[0]' is dict"),
    ("VizWiz", without(VIZWIZ, "answers"), "field 'answers' is missing or empty"),
    ("ALLaVA-LAION", ALLAVA | {"conversations": talk("Why?")}, "goes human;"),
    ("ArxivQA", ARXIV | {"rationale": "\ud800"}, "half a character"),
    ("DocVQA", DOCVQA | {"question": "\ud800"}, "half a character"),
    ("COCO", COCO | {"conversations": talk("What is it?", boxed("A dog."))}, "is not one box"),
    ("COCO", COCO | {"conversations": talk(ASK, boxed("[10, 20, 70, 50]"))}, "is not one box"),
    ("COCO", COCO | {"conversations": talk(ASK, boxed("[0.7, 0.2, 0.1, 0.5]"))}, "is not one box"),
    ("COCO", without(COCO, "conversations"), "field 'conversations' is missing or empty"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "row", "reason"), BROKEN)
def test_broken_rows_are_rejected_with_file_line_and_reason(tmp_path, source, row, reason):
    made, rejects = read(source, make(tmp_path, source, row))
    assert len(made) == FORMATS[source][4]
    (reject,) = rejects
    assert reason in reject.reason
    assert reject.file == sorted(p.name for p in (tmp_path.glob("*/*.json*")))[-1]
    if reject.file.endswith(".jsonl"):
        assert reject.line == 2


@pytest.mark.parametrize("source", FORMATS)
def test_hostile_paths_are_refused(tmp_path, source):
    put(tmp_path, "secret.png")
    paths = ["../secret.png", "/secret.png", "a/../../secret.png", "x\0.png"]
    key = next(k for k in ("image_url_2", "image_filename", "image") if k in FORMATS[source][0])
    prefix = {"COCO": "coco/", "VisualGenome": "vg/"}.get(source, "")
    bad = [FORMATS[source][0] | {key: prefix + path} for path in paths]
    made, rejects = read(source, make(tmp_path, source, *bad))
    assert len(made) == FORMATS[source][4] and len(rejects) >= len(paths)
    assert all("image" in reject.reason for reject in rejects)


def test_a_link_out_of_the_root_is_refused(tmp_path):
    put(tmp_path, "secret.png")
    root = make(tmp_path, "ArxivQA", ARXIV | {"image": "images/link.png"})
    (root / "images/link.png").symlink_to(tmp_path / "secret.png")
    _, (reject,) = read("ArxivQA", root)
    assert "is a link that leaves" in reject.reason


@pytest.mark.parametrize("source", FORMATS)
def test_rows_of_any_shape_are_rejected_never_raised(tmp_path, source):
    bad = [None, 5, "x", [1], {}, {"conversations": [None]}, {"image": {}}]
    made, rejects = read(source, make(tmp_path, source, *bad))
    assert (len(made), len(rejects)) == (FORMATS[source][4], len(bad))


# --- files ---------------------------------------------------------------------------------------


def test_parquet_with_pictures_inside(tmp_path):
    root = tmp_path / "geoqa170k"
    root.mkdir()
    pictures = [png(1), png(2), png(1), b"not a picture"]
    table = [GEOQA | {"image": {"bytes": data, "path": None}} for data in pictures]
    parquet.write_table(pyarrow.Table.from_pylist(table), root / "train-00000-of-00001.parquet")
    made, (reject,) = read("GeoQA170K", root)
    assert [r.extra["origin"] for r in made] == [f"train-00000-of-00001.parquet#{n}" for n in
                                                 (1, 2, 3)]  # fmt: skip
    assert made[0].image == made[2].image != made[1].image  # named by content
    assert (reject.line, "holds no PNG" in reject.reason) == (4, True)
    assert written(tmp_path, "GeoQA170K") == (2, 1)
    loaded = records.load(tmp_path / "out/records.jsonl", tmp_path / "out/images")
    assert {open_image(r.image, tmp_path / "out/images").getpixel((0, 0))[0]
            for r in loaded.records} == {1, 2}  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 8, 64, 1 << 16])
def test_a_list_inside_an_object_streams(tmp_path, chunk):
    path = tmp_path / "a.json"
    whole = {"info": {"n": [1]}, "data": [{"a": i} for i in range(50)], "end": {"data": 1}}
    path.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    with path.open(encoding="utf-8") as stream:
        numbers, rows = zip(*records.iter_json(stream, "data", chunk), strict=True)
    assert list(rows) == whole["data"]
    assert list(numbers) == [
        i for i, text in enumerate(path.read_text(
            encoding="utf-8").splitlines(), 1) if text == "  {"
    ]


@pytest.mark.parametrize(("text", "reason"), [
    ('{"data": [{"a": 1}, {"a"', "broken or cut off"), ('{"other": []}', "no list under the key"),
    ("\x1f\x8b\xff", "not UTF-8 text"),
])  # fmt: skip
def test_broken_files_are_rejected(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    *_, (_, _, last) = sources.lines([path], "data")
    assert isinstance(last, RecordError) and reason in str(last)


def test_reading_holds_little_of_a_large_file(tmp_path):
    root = make(tmp_path, "DocVQA", *[DOCVQA | {"note": "x" * 20_000}] * 300)  # 6 MB
    tracemalloc.start()
    number = sum(1 for _ in sources.read("DocVQA", root, print))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (number, peak < 2_000_000) == (301, True)


def test_a_missing_file_says_where_it_comes_from(tmp_path):
    with pytest.raises(RecordError, match="no arxivqa.jsonl here; get it from .*MMInstruction"):
        read("ArxivQA", tmp_path)
    with pytest.raises(ValueError, match="unknown source 'X'; use one of CLEVR-Math, .*ArxivQA"):
        read("X", tmp_path)


# --- repairs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["B", "B)", "(b)", "b.", "B. dark red", "[B]", "Option B",
                                   "(B) dark  red", "dark red", "Answer: B"])  # fmt: skip
@pytest.mark.parametrize("form", ["{1}", "{0}) {1}", "({0}) {1}", "{0}. {1}", "{0}: {1}"])
def test_labels_and_options_of_arxivqa(label, form):
    texts = ["red", "dark red", "45"]
    choices = [form.format(letter, text) for letter, text in zip("abc", texts, strict=True)]
    question = rows.with_choices("Which is it?", choices)
    assert rewards.options(question) == {"A": "red", "B": "dark red", "C": "45"}
    assert rows.arxivqa_label(label, choices) == "B"


@pytest.mark.parametrize("label", ["", "D", "A, B", "red or 45", "C. red", "none"])
def test_labels_that_name_no_one_choice(label):
    with pytest.raises(RecordError, match="names none of the 3 choices"):
        rows.arxivqa_label(label, ["A) red", "B) dark red", "C) 45"])


def test_choices_that_would_be_misread_are_refused():
    with pytest.raises(RecordError, match="cannot be told apart"):
        rows.with_choices("Which?", ["the options: A and B", "none"])
    with pytest.raises(RecordError, match="1 choices; a question needs 2 to 26"):
        rows.with_choices("Which?", ["one"])


EQUATION = "What is the function's equation?"


@pytest.mark.parametrize(("question", "text", "gold", "repaired", "how"), [
    (EQUATION, "The function y = a * sin(-5 * x) goes through (pi/10,5).", "a = -5",
     "y = (-5) * sin(-5 * x)", "rewritten"),
    ("Find the equation.", "The line y = kx + b passes (0,1).", "k = 2, b = 1.",
     "y = 2 * x + 1", "rewritten"),
    ("Find the expression.", "f(t) = a * t^2, f(1) = 3.", "a = 1/2", "f(t) = (1/2) * t^2",
     "rewritten"),
    (EQUATION, "y = a * x through (1, 2)", "y = 2 * x", None, "kept"),
    (EQUATION, "A level line through (1, 3)", "y = 3", None, "kept"),
    ("What is a?", "y = a * x through (1, 2)", "a = 2", None, "kept"),
    ("Which value of a fits the equation?", "y = a * x through (1, 2)", "a = 2", None, "kept"),
    ("What is the value of the function at 2?", "y = a * x", "6", None, "kept"),
    (EQUATION, "y = a * x through (1, 2)", "2", None, "left"),
    (EQUATION, "The line y = k * x + b", "k = 2", None, "left"),  # b unknown still
    (EQUATION, "y = a * x and y = b * x meet", "a = 2, b = 3", None, "left"),
    (EQUATION, "A line through (1, 2)", "a = 2", None, "left"),
])  # fmt: skip
def test_whole_expressions_of_math_puma(question, text, gold, repaired, how):
    assert rows.whole_expression(question, text, gold) == (repaired or gold, how)


def test_repairs_are_counted(tmp_path):
    other = PUMA | {"image_url_2": "images/b.png", "output": "†Answer: a = -5"}
    third = PUMA | {"image_url_2": "images/c.png", "output": "†Answer: -5"}
    root = make(tmp_path, "Math PUMA", other, third)
    put(root, "images/b.png", "images/c.png")
    (row,) = sources.write(tmp_path / "out", {"Math PUMA": 5}, tmp_path)
    assert row == {"source": "Math PUMA", "asked": 5, "written": 3, "rejected": 0, "rewritten": 1,
                   "left": 1}  # fmt: skip
    loaded = records.load(tmp_path / "out/records.jsonl")
    by_image = {record.image: record for record in loaded.records}
    assert rewards.score(by_image["synthesis/b.png"], wrap(r"5\sin(5x)")).value == 1.0


def test_boxes_bring_caption_and_trace(tmp_path):
    (first, second), _ = read("COCO", make(tmp_path, "COCO"))
    assert first.caption == "A dog on grass." and second.caption == second.answer == ""
    assert first.frame == "norm01"
    assert rewards.score(first, first.answer).value == 1.0
    assert "SUMMARY" not in first.answer and "It is left." in first.answer


# --- sampling ------------------------------------------------------------------------------------

MANY = [Record(f"r{i}", f"a/{i % 200}.png", f"q{i % 7}", "1") for i in range(1_000)]


def images(n, seed=0, made=MANY, **options):
    return [record.image for record in sources.sample(made, n, seed, **options)]


@pytest.mark.parametrize(("n", "is_whole", "number"), [
    (0, False, 0), (50, False, 50), (300, False, 200), (3, True, 15),
])
def test_samples_are_of_unique_pictures_whatever_their_order(n, is_whole, number):
    found = sources.sample(MANY, n, is_whole=is_whole)
    assert len(found) == number and found == sources.sample(MANY[::-1], n, is_whole=is_whole)
    assert len({record.image for record in found}) == (n if is_whole else number)
    assert not n or images(n) != images(n, seed=1)


def test_rows_added_later_move_few():
    more = [Record(f"n{i}", f"b/{i}.png", "q", "1") for i in range(20)]
    stayed = set(images(50)) & set(images(50, made=MANY + more))
    assert 35 <= len(stayed) < 50  # about one place in eleven goes to the new pictures
    assert set(images(20)) < set(images(50))  # and a smaller sample is part of a larger one


def test_counts_are_the_papers_scaled():
    counts = sources.paper_counts()
    assert counts["DocVQA"] == 10_194 and counts["COCO"] == 3_000 and counts["GeoQA170K"] == 14_019
    assert sources.paper_counts(0.01)["ArxivQA"] == 544
    assert min(sources.paper_counts(1e-9).values()) == 1
    with pytest.raises(ValueError, match="scale 0 is not a positive number"):
        sources.paper_counts(0)


# --- writing -------------------------------------------------------------------------------------


@pytest.fixture
def everything(tmp_path):
    """All sources below one root; LLaVA-CoT's one file serves two of them."""
    for source in FORMATS:
        if source == "COCO":
            root = make(tmp_path, source, VG, {"image": "chartqa/1.png"})
            put(root, FORMATS["VisualGenome"][3])
        elif source != "VisualGenome":
            make(tmp_path, source)
    return tmp_path


def test_prepare_writes_all_sources(everything, capsys):
    out = everything / "out"
    command = ["data", "prepare", "--root", str(everything), "--out", str(out), "--scale", "0.01"]
    assert main(command) == 0
    loaded = records.load(out / "records.jsonl", out / "images")
    assert loaded.rejects == [] and {r.source for r in loaded.records} == set(FORMATS)
    assert len(loaded.records) == 11
    assert (out / "rejects.jsonl").read_text(encoding="utf-8") == ""
    by_source = {record.source: record for record in loaded.records}
    assert "2 objects" not in by_source["CLEVR-Math"].question
    assert by_source["CLEVR-Math"].meta["rationale"].endswith(
        "2; a large blue metal sphere, a large blue metal sphere."
    )
    assert by_source["ALLaVA-LAION"].caption == "Red."
    assert "origin" not in json.dumps([record.to_json() for record in loaded.records])
    assert "| VisualGenome |    30 |       2 |" in capsys.readouterr().out
    # what the construction then asks of them
    captioned = {record.source for record in loaded.records if steps.ask_caption(record)}
    assert captioned == set(FORMATS) - {"Math PUMA", "ALLaVA-LAION"}
    extra = {record.source for record in loaded.records if steps.extra_context(record)}
    assert extra == {"CLEVR-Math", "Math PUMA"}
    traced = {record.source for record in loaded.records if steps.ask_distil(record) is None}
    assert traced == {"COCO", "VisualGenome"}


def test_a_second_file_that_does_not_know_the_picture(tmp_path):
    root = make(tmp_path, "CLEVR-Math", CLEVR | {"image_filename": "CLEVR_train_000002.png"})
    put(root, "CLEVR_v1.0/images/train/CLEVR_train_000002.png")
    assert written(tmp_path, "CLEVR-Math") == (1, 1)
    reject = json.loads((tmp_path / "out/rejects.jsonl").read_text(encoding="utf-8"))
    assert reject["file"] == "CLEVR_train_scenes.json" and "000002" in reject["reason"]


def test_a_failure_leaves_the_old_tables(tmp_path, monkeypatch):
    make(tmp_path, "ArxivQA")
    out = tmp_path / "out"
    sources.write(out, {"ArxivQA": 1}, tmp_path)
    before = (out / "records.jsonl").read_bytes()
    monkeypatch.setattr(sources, "place", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sources.write(out, {"ArxivQA": 1}, tmp_path, seed=1)
    assert (out / "records.jsonl").read_bytes() == before
    left = {path.name for path in out.iterdir()} - {".lock"}
    assert left == {"images", "records.jsonl", "rejects.jsonl"}


def test_broken_text_reaches_no_table(tmp_path):
    root = make(tmp_path, "ALLaVA-LAION", ALLAVA | {"id": "\ud800"})
    caption = ALLAVA | {"conversations": talk("D?", "\ud800")}
    (root / "ALLaVA-Caption-LAION-4V.json").write_text(json.dumps([caption]), encoding="utf-8")
    assert written(tmp_path, "ALLaVA-LAION") == (0, 2)


def test_ids_used_twice_are_rejected(tmp_path):
    root = make(tmp_path, "ArxivQA", ARXIV | {"image": "images/2.jpg"})
    put(root, "images/2.jpg")
    assert written(tmp_path, "ArxivQA") == (1, 1)


def test_the_page_names_what_is_read():
    page = (ROOT / "data/SOURCES.md").read_text(encoding="utf-8")
    for name, reader in sources.READERS.items():
        for part in (name, f"`{reader.folder}/`", reader.home.split(" ")[0]):
            assert part in page
