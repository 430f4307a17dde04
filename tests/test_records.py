"""Records: two file shapes, bad rows with their line and reason, atomic writes."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlaa_lib import folders, images, records, rewards
from vlaa_lib.records import Record, RecordError, Reject

SAMPLES = Path(__file__).parents[2] / "shared/samples/vlaa_thinking"
ROW = {"id": "r1", "image": "clevr_math/a.png", "question": "How many?", "gt": 3}


def write_rows(path, rows, as_array=False):
    text = json.dumps(rows, indent=1) if as_array else "\n".join(json.dumps(r) for r in rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("as_array", [True, False])
def test_array_and_lines_are_told_apart_by_content(tmp_path, as_array):
    rows = [ROW | {"id": f"r{i}"} for i in range(3)]
    loaded = records.load(write_rows(tmp_path / "a.txt", rows, as_array))
    assert [r.id for r in loaded.records] == ["r0", "r1", "r2"] and loaded.rejects == []
    first = loaded.records[0]
    assert (first.source, first.reward, first.solution) == ("CLEVR-Math", "digit", "3")


@pytest.mark.parametrize(("reward", "names"), {
    "digit": "clevr_math", "mcq": "geoqa170k arxivqa", "math": "synthesis", "iou": "coco vg",
    "open": "docvqa vizwiz allava_laion chartqa",
}.items())  # fmt: skip
def test_reward_follows_from_the_image_folder(reward, names):
    for name in names.split():
        record = records.from_json(ROW | {"image": f"{name}/sub/a.png"})
        assert (record.reward, record.frame) == (reward, "norm01" if reward == "iou" else "")


@pytest.mark.parametrize(("change", "reason"), [
    ({"id": ""}, "key 'id' is missing or empty"),
    ({"id": [1]}, "key 'id' is list, expected text or a number"),
    ({"id": 1.5}, "key 'id' is float"),
    ({"image": None}, "key 'image' is missing or empty"),
    ({"question": 5}, "key 'question' is int, expected text"),
    ({"gt": ""}, "key 'gt' is missing or empty"),
    ({"meta": [1]}, "key 'meta' is list, expected an object"),
    ({"image": "../x.png"}, "image '../x.png' leaves the image root"),
    ({"image": "coco/../../x.png"}, "leaves the image root"),
    ({"image": "C:\\x.png"}, "leaves the image root"),
    ({"image": "/"}, "'image' is empty"),
    ({"image": "elsewhere/x.png"}, "no known source for image 'elsewhere/x.png'; set 'reward'"),
    ({"reward": "vibes"}, "unknown reward 'vibes'; set 'reward' to one of digit"),
    ({"reward": "iou", "frame": "inches"}, "unknown frame 'inches'; use one of norm01"),
])
def test_bad_rows_are_rejected_with_line_and_reason(tmp_path, change, reason):
    path = write_rows(tmp_path / "a.jsonl", [ROW, ROW | {"id": "bad"} | change])
    loaded = records.load(path)
    assert [r.id for r in loaded.records] == ["r1"]
    (reject,) = loaded.rejects
    assert (reject.file, reject.line) == ("a.jsonl", 2)
    assert reason in reject.reason
    assert str(reject).startswith("a.jsonl:2: ")


def lines(*rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def deep(levels, name="deep"):
    """Return the JSON of a record whose `meta` holds so many objects inside each other."""
    return json.dumps(ROW | {"id": name, "meta": {"x": 0}}).replace(
        '{"x": 0}', '{"x": ' * levels + "0" + "}" * levels)


HOSTILE = {  # a record -> the reason of its reject
    deep(600): "deeper than 64 levels", deep(100_000): "",
    json.dumps(ROW | {"id": "n", "meta": {"x": float("nan")}}): "holds NaN",
    json.dumps(ROW | {"id": "n", "gt": float("inf")}): "holds NaN, infinity",
    json.dumps(ROW | {"id": "n", "image": "clevr_math/" + "x/" * 3000}): "too long; fix",
    json.dumps(ROW | {"id": "n", "image": "clevr_math/" + "x" * 6000}): "too long; fix",
    json.dumps(ROW | {"id": "n", "image": "clevr_math/\0"}): "is not below",
    json.dumps(ROW).replace(": 3", ": " + "1" * 5000): "",
    json.dumps(ROW | {"id": "n"}).replace("many?", "m\udcff"): "",  # a byte that is no UTF-8
}  # fmt: skip


@pytest.mark.parametrize("as_array", [True, False])
@pytest.mark.parametrize("bad", HOSTILE, ids=lambda text: text[-40:].encode("ascii", "replace"))
def test_a_hostile_record_is_a_reject_and_the_others_go_on(tmp_path, bad, as_array):
    (tmp_path / "clevr_math").mkdir()
    (tmp_path / "clevr_math/a.png").write_bytes(b"x")
    texts = json.dumps(ROW), bad, json.dumps(ROW | {"id": "last"})
    text = f"[{', '.join(texts)}]" if as_array else "\n".join(texts)
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    loaded = records.load(tmp_path / "a.json", tmp_path)
    assert [record.id for record in loaded.records] == ["r1", "last"]
    (reject,) = loaded.rejects
    assert HOSTILE[bad] in reject.reason and len(str(reject)) < 400
    records.write([*loaded.records, *loaded.rejects], tmp_path / "b.jsonl")
    assert "NaN" not in (tmp_path / "b.jsonl").read_text(encoding="utf-8").replace("holds NaN", "")


def test_a_depth_that_is_allowed_goes_through(tmp_path):
    (tmp_path / "a.jsonl").write_text(deep(records.MAX_DEPTH - 1), encoding="utf-8")
    (record,) = records.load(tmp_path / "a.jsonl").records
    records.write([record], tmp_path / "b.jsonl")
    assert records.load(tmp_path / "b.jsonl").records == [record]


def test_a_line_is_what_a_line_break_ends(tmp_path):
    question = "two\u2028of\x85them\x0b\x0c\x1c?"
    rows = [ROW | {"id": f"r{i}", "question": question} for i in range(3)]
    text = "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8", newline="")
    loaded = records.load(tmp_path / "a.jsonl")
    assert [r.question for r in loaded.records] == [question] * 3 and not loaded.rejects
    records.write(loaded.records, tmp_path / "b.jsonl")
    assert records.load(tmp_path / "b.jsonl").records == loaded.records
    assert [row["question"] for row in folders.whole_lines(tmp_path / "b.jsonl")] == [question] * 3


def test_a_line_without_an_end_is_one_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_RECORD_CHARS", 1000)
    long = [ROW | {"id": "long", "question": "x" * n} for n in (950, 5000)]
    write_rows(tmp_path / "a.jsonl", [ROW, *long, ROW | {"id": "last"}])
    loaded = records.load(tmp_path / "a.jsonl")
    assert [r.id for r in loaded.records] == ["r1", "last"]
    assert [(r.line, r.reason[:23]) for r in loaded.rejects] == [
        (2, "longer than 1,000 chara"), (3, "longer than 1,000 chara")]


def test_a_long_first_element_costs_its_length_once(tmp_path):
    rows = [ROW | {"question": "x" * 2**22}, *({"n": i} for i in range(40_000))]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    start = time.process_time()
    assert sum(1 for _ in records.iter_file(tmp_path / "a.json")) == len(rows)
    assert time.process_time() - start < 5  # 0.1 s; a copy of what is left each time: a minute


def test_a_flat_folder_of_pictures_is_one_source(tmp_path):
    rows = [ROW | {"id": name, "image": f"{name}.png", "reward": "digit"} for name in "abc"]
    rows += [ROW | {"id": "d", "image": "mine/d.png", "reward": "digit"},
             ROW | {"id": "e", "image": "e.png", "reward": "digit", "source": "stated"}]
    sources = [r.source for r in records.load(write_rows(tmp_path / "a.jsonl", rows)).records]
    assert sources == [records.FLAT] * 3 + ["mine", "stated"]


@pytest.mark.parametrize(("text", "kept", "line", "reason"), [
    (lines(ROW, [1]), 1, 2, "expected a JSON object, found list"),
    (lines(ROW, "5"), 1, 2, "expected a JSON object, found int"),
    (lines(ROW, ROW | {"gt": 4}), 1, 2, "id already used on line 1"),
    (lines(ROW, json.dumps(ROW | {"id": "r2"})[:-9]), 1, 2, "not valid JSON"),  # half a line
    (json.dumps(ROW).replace(": 3", ": " + "1" * 5000), 0, 1, "not valid JSON"),
    (json.dumps(ROW).replace(": 3", r': "\ud800"'), 0, 1, "surrogate"),
    (f"[{json.dumps(ROW)}] [1]", 1, 1, "after the end of the array"),
    (json.dumps([ROW, ROW | {"id": "r2"}], indent=1)[:-1], 2, 14, "JSON array is broken"),
    (json.dumps([ROW, ROW | {"id": "r2"}], indent=1)[:-20], 1, 8, "JSON array is broken"),
    (json.dumps([ROW, ROW | {"id": "r2"}], indent=1)[:-60], 1, 8, "JSON array is broken"),
])
def test_what_is_whole_is_kept_and_the_rest_named(tmp_path, text, kept, line, reason):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    loaded = records.load(tmp_path / "a.json")
    assert len(loaded.records) == kept and (not kept or loaded.records[0].gt == 3)
    (reject,) = loaded.rejects
    assert reject.line == line and reason in reject.reason


def test_stray_leading_slash_means_the_root():
    assert records.from_json(ROW | {"image": "/vg/a.png"}).image == "vg/a.png"


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf", b"[]", b"[ ]\n"])
def test_empty_files_are_an_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(RecordError, match="holds no records"):
        records.load(tmp_path / "a.json")


def test_missing_file_and_archive_are_errors(tmp_path):
    with pytest.raises(RecordError, match="no such file"):
        records.load(tmp_path / "none.jsonl")
    for data in (b"\x1f\x8b\x08\x00\xff\xfe", b"PK\x03\x04", "[1]".encode("utf-16")):
        (tmp_path / "a.json").write_bytes(data)
        with pytest.raises(RecordError, match=r"a.json: not UTF-8 text; is it an archive"):
            records.load(tmp_path / "a.json")
    with pytest.raises(RecordError, match="a folder; name a file in it"):
        records.load(tmp_path)


def test_missing_image_is_a_reject(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [ROW, ROW | {"id": "r2", "image": "clevr_math/b.png"}])
    root = tmp_path / "images"
    (root / "clevr_math").mkdir(parents=True)
    Image.new("RGB", (30, 30)).save(root / "clevr_math" / "b.png")
    loaded = records.load(path, images=root)
    assert [r.id for r in loaded.records] == ["r2"]
    assert "image 'clevr_math/a.png' is not below" in loaded.rejects[0].reason


@pytest.mark.parametrize(("reward", "gt", "question"), [
    ("digit", "some", "How many?"),
    ("mcq", "E", "Which?\nChoices:\nA: 1\nB: 2"),
    ("math", "\\frac{1}{", "Solve."),
    ("iou", "[0.1, 0.2, 0.3]", "Where?"),
    ("open", "A lovely day.", "Describe."),
])
def test_unparseable_gold_is_found_by_the_audit(tmp_path, reward, gt, question):
    row = ROW | {"image": "x/a.png", "reward": reward, "gt": gt, "question": question}
    (record,) = records.load(write_rows(tmp_path / "a.jsonl", [row])).records
    (reject,) = rewards.audit([record], file="a.jsonl")
    assert (reject.file, reject.line, reject.id) == ("a.jsonl", None, "r1")
    assert reward in reject.reason and ";" in reject.reason  # what is wrong; what to do


def test_unknown_keys_survive_the_round_trip(tmp_path):
    row = ROW | {"gt": "3", "rating": 4.5, "tags": ["x"], "meta": {"scene": {"kind": "objects"}}}
    loaded = records.load(write_rows(tmp_path / "a.jsonl", [row]))
    assert loaded.records[0].extra == {"rating": 4.5, "tags": ["x"]}
    records.write(loaded.records, tmp_path / "b.jsonl")
    assert records.load(tmp_path / "b.jsonl").records == loaded.records
    assert json.loads((tmp_path / "b.jsonl").read_text(encoding="utf-8"))["rating"] == 4.5


@pytest.mark.parametrize(("gt", "solution"), [
    (3, "3"), (0.5, "0.5"), (" B ", "B"), ([0.1, 0.2, 0.3, 0.4], "[0.1, 0.2, 0.3, 0.4]"),
    ("We see ...\n†Answer: y = 2 x", "y = 2 x"),
    ("We see ...\n† answer : $x^2$ ", "$x^2$"),
])
def test_golds_are_normalised(gt, solution):
    assert records.from_json(ROW | {"gt": gt}).solution == solution


def test_rejects_are_written_as_a_table(tmp_path):
    records.write([Reject("a.jsonl", 2, "r", "why")], tmp_path / "rejects.jsonl")
    row = json.loads((tmp_path / "rejects.jsonl").read_text(encoding="utf-8"))
    assert row == {"file": "a.jsonl", "line": 2, "id": "r", "reason": "why"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("id", "image", "question", "gt", "solution", "source", "reward", "frame", "meta", "answer")
ROWS = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON))


@given(ROWS)
def test_any_object_becomes_a_record_or_a_record_error(row):
    try:
        record = records.from_json(row)
    except RecordError as error:
        assert str(error)
        return
    assert isinstance(record, Record) and record.reward in records.REWARDS


@given(st.lists(JSON.filter(lambda v: v is not None), max_size=6), st.integers(1, 40))
def test_arrays_are_streamed_whatever_the_chunk(values, chunk_chars):
    import io

    stream = io.StringIO(json.dumps(values, indent=1))
    assert [v for _, v in records.iter_json(stream, chunk_chars=chunk_chars)] == values


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the released samples are not beside the checkout")
def test_released_samples_load_and_pass_the_audit():
    loaded = records.load(SAMPLES / "records.jsonl", SAMPLES / "images")
    assert len(loaded.records) == 2 and loaded.rejects == []
    assert {r.reward for r in loaded.records} == {"digit", "mcq"}
    assert rewards.audit(loaded.records) == []
    for record in loaded.records:
        picture = images.fit_image(images.open_image(record.image, SAMPLES / "images"))
        assert picture.mode == "RGB"
