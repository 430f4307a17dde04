"""Records: two file shapes, bad rows with their line and reason, atomic writes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlaa_lib import images, records, rewards
from vlaa_lib.records import Record, RecordError, Reject

SAMPLES = Path(__file__).parents[2] / "shared/samples/vlaa_thinking"
ROW = {"id": "r1", "image": "clevr_math/a.png", "question": "How many?", "gt": 3}


def write_rows(path, rows, as_array=False):
    text = json.dumps(rows, indent=1) if as_array else "\n".join(json.dumps(r) for r in rows)
    path.write_text(text, encoding="utf-8")
    return path


def reasons(path, **options):
    return [(r.line, r.id, r.reason) for r in records.load(path, **options).rejects]


@pytest.mark.parametrize("as_array", [True, False])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
def test_array_and_lines_are_told_apart_by_content(tmp_path, as_array, name):
    rows = [ROW | {"id": f"r{i}"} for i in range(3)]
    loaded = records.load(write_rows(tmp_path / name, rows, as_array))
    assert [r.id for r in loaded.records] == ["r0", "r1", "r2"] and loaded.rejects == []
    first = loaded.records[0]
    assert (first.source, first.reward, first.solution) == ("CLEVR-Math", "digit", "3")


@pytest.mark.parametrize(("folder", "reward", "frame"), [
    ("clevr_math", "digit", ""), ("geoqa170k", "mcq", ""), ("arxivqa", "mcq", ""),
    ("synthesis", "math", ""), ("coco", "iou", "norm01"), ("vg", "iou", "norm01"),
    ("docvqa", "open", ""), ("vizwiz", "open", ""), ("allava_laion", "open", ""),
    ("chartqa", "open", ""),
])
def test_reward_follows_from_the_image_folder(folder, reward, frame):
    record = records.from_json(ROW | {"image": f"{folder}/sub/a.png"})
    assert (record.reward, record.frame) == (reward, frame)


@pytest.mark.parametrize(("change", "reason"), [
    ({"id": ""}, "key 'id' is missing or empty"),
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


def test_rows_that_are_no_objects(tmp_path):
    assert reasons(write_rows(tmp_path / "a.jsonl", [ROW, [1], "x", 5])) == [
        (2, "", "expected a JSON object, found list"),
        (3, "", "expected a JSON object, found str"),
        (4, "", "expected a JSON object, found int"),
    ]


def test_stray_leading_slash_means_the_root():
    assert records.from_json(ROW | {"image": "/vg/a.png"}).image == "vg/a.png"


def test_duplicate_ids_keep_the_first(tmp_path):
    rows = [ROW, ROW | {"gt": 4}, ROW | {"id": "r2"}]
    loaded = records.load(write_rows(tmp_path / "a.json", rows))
    assert [(r.id, r.gt) for r in loaded.records] == [("r1", 3), ("r2", 3)]
    assert [r.reason for r in loaded.rejects] == ["id already used on line 1"]


def test_half_written_last_line(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [ROW])
    path.write_text(path.read_text() + "\n" + json.dumps(ROW | {"id": "r2"})[:-9])
    loaded = records.load(path)
    assert len(loaded.records) == 1
    assert [r.line for r in loaded.rejects] == [2]
    assert "not valid JSON" in loaded.rejects[0].reason


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_half_written_array_keeps_what_is_whole(tmp_path, cut):
    path = write_rows(tmp_path / "a.json", [ROW, ROW | {"id": "r2"}], as_array=True)
    path.write_text(path.read_text()[:-cut])
    loaded = records.load(path)
    assert [r.id for r in loaded.records] == (["r1"] if cut > 5 else ["r1", "r2"])
    (reject,) = loaded.rejects
    assert "JSON array" in reject.reason


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf", b"[]", b"[ ]\n"])
def test_empty_files_are_an_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(RecordError, match="holds no records"):
        records.load(tmp_path / "a.json")


def test_missing_file_and_archive_are_errors(tmp_path):
    with pytest.raises(RecordError, match="no such file"):
        records.load(tmp_path / "none.jsonl")
    (tmp_path / "a.json").write_bytes(b"\x1f\x8b\x08\x00\xff\xfe")
    with pytest.raises(RecordError, match="not UTF-8 text"):
        records.load(tmp_path / "a.json")


def test_missing_image_is_a_reject(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [ROW, ROW | {"id": "r2", "image": "clevr_math/b.png"}])
    root = tmp_path / "images"
    (root / "clevr_math").mkdir(parents=True)
    Image.new("RGB", (30, 30)).save(root / "clevr_math" / "b.png")
    loaded = records.load(path, images=root)
    assert [r.id for r in loaded.records] == ["r2"]
    assert "image 'clevr_math/a.png' is not below" in loaded.rejects[0].reason


def test_corrupt_image_is_named_when_opened(tmp_path):
    (tmp_path / "clevr_math").mkdir()
    (tmp_path / "clevr_math" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    (record,) = records.load(write_rows(tmp_path / "a.jsonl", [ROW]), images=tmp_path).records
    with pytest.raises(images.ImageError, match=r"clevr_math/a\.png"):
        images.open_image(record.image, tmp_path)


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
    assert (reject.file, reject.line, reject.id) == ("a.jsonl", 0, "r1")
    assert reward in reject.reason and ";" in reject.reason  # what is wrong; what to do


def test_unknown_keys_survive_the_round_trip(tmp_path):
    row = ROW | {"gt": "3", "rating": 4.5, "tags": ["x"], "meta": {"scene": {"kind": "objects"}}}
    loaded = records.load(write_rows(tmp_path / "a.jsonl", [row]))
    assert loaded.records[0].extra == {"rating": 4.5, "tags": ["x"]}
    records.write(loaded.records, tmp_path / "b.jsonl")
    assert records.load(tmp_path / "b.jsonl").records == loaded.records
    assert json.loads((tmp_path / "b.jsonl").read_text())["rating"] == 4.5


@pytest.mark.parametrize(("gt", "solution"), [
    (3, "3"), (0.5, "0.5"), (" B ", "B"), ([0.1, 0.2, 0.3, 0.4], "[0.1, 0.2, 0.3, 0.4]"),
    ("We see ...\n†Answer: y = 2 x", "y = 2 x"),
    ("We see ...\n† answer : $x^2$ ", "$x^2$"),
])
def test_golds_are_normalised(gt, solution):
    assert records.from_json(ROW | {"gt": gt}).solution == solution


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    record = records.from_json(ROW)
    records.write([record], path)
    before = path.read_bytes()

    def breaking():
        yield record
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        records.write(breaking(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_rejects_are_written_as_a_table(tmp_path):
    records.write([Reject("a.jsonl", 2, "r", "why")], tmp_path / "rejects.jsonl")
    row = json.loads((tmp_path / "rejects.jsonl").read_text())
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


@pytest.mark.parametrize(
    ("text", "match"),
    [("1" * 5000, "not valid JSON"), (json.dumps("\\ud800").replace("\\\\", "\\"), "surrogate")],
)
def test_a_text_that_python_or_a_file_cannot_hold_is_a_reject(tmp_path, text, match):
    row = '{"id": 1, "image": "docvqa/a.png", "question": "q", "gt": '
    (tmp_path / "r.jsonl").write_text(row + text + "}")
    (reject,) = records.load(tmp_path / "r.jsonl").rejects
    assert match in reject.reason and reject.line == 1


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the released samples are not beside the checkout")
def test_released_samples_load_and_pass_the_audit():
    loaded = records.load(SAMPLES / "records.jsonl", SAMPLES / "images")
    assert len(loaded.records) == 2 and loaded.rejects == []
    assert {r.reward for r in loaded.records} == {"digit", "mcq"}
    assert rewards.audit(loaded.records) == []
    for record in loaded.records:
        picture = images.fit_image(images.open_image(record.image, SAMPLES / "images"))
        assert picture.mode == "RGB"


def test_text_after_an_array_is_not_lost_silently(tmp_path):
    (tmp_path / "two.json").write_text('[{"id": 1}] [{"id": 2}]')
    reasons = [reject.reason for reject in records.load(tmp_path / "two.json").rejects]
    assert "after the end of the array" in reasons[-1]


@pytest.mark.parametrize("value", [{"a": 1}, [1], 1.5])
def test_an_id_that_is_no_name_is_refused(value):
    row = {"id": value, "image": "a.png", "question": "q", "gt": "1", "reward": "digit"}
    with pytest.raises(RecordError, match="key 'id' is"):
        records.from_json(row)
