"""VLMEvalKit's prediction files and config entry."""

import json
import sys
from types import SimpleNamespace

import pytest

from benchmark_files import rows, write
from vlaa_lib.evaluate import files, interchange, prompting, runner
from vlaa_lib.records import RecordError

HARD = [
    "plain", "two\nlines\tand \"quotes\"", "=1+1", "", "nan", "a\r\nb", "7.0", "https://x " * 300,
    "é 数", "<answer>B</answer>",
]  # fmt: skip


@pytest.fixture
def bench(tmp_path):
    write(tmp_path / "b.tsv", rows("LogicVista"))
    return files.read("LogicVista", tmp_path / "b.tsv", tmp_path / "cache")


def answered(bench, texts):
    pairs = zip(bench.rows, texts, strict=True)
    return {row["index"]: {"index": row["index"], "prediction": text} for row, text in pairs}


@pytest.mark.parametrize("suffix", [".tsv", ".json", ".xlsx"])
def test_what_is_written_is_read_back(tmp_path, bench, suffix):
    wanted = answered(bench, HARD)
    interchange.write(tmp_path / f"p{suffix}", bench, wanted)
    found, notes = interchange.read(tmp_path / f"p{suffix}", bench)
    assert list(found) == list(wanted)
    for index, row in wanted.items():
        read = found[index]["prediction"]
        assert read == row["prediction"] or (suffix == ".xlsx" and read == "a\nb"), index
    assert [(note.id, "no prediction" in note.reason) for note in notes] == [("3", True)]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]  # no drafts


@pytest.mark.parametrize("suffix", [".tsv", ".json"])
def test_nothing_is_lost_of_a_long_trace(tmp_path, bench, suffix):
    long = "x" * 100_000 + "<answer>B</answer>"
    interchange.write(tmp_path / f"p{suffix}", bench, answered(bench, [long] * 10))
    found, _ = interchange.read(tmp_path / f"p{suffix}", bench)
    assert {row["prediction"] for row in found.values()} == {long}


def test_pandas_reads_the_columns_that_the_kit_reads(tmp_path, bench):
    import pandas
    texts = ["two\nlines", *HARD[1:]]
    interchange.write(tmp_path / "p.tsv", bench, answered(bench, texts))
    table = pandas.read_csv(tmp_path / "p.tsv", sep="\t")
    assert set(table.columns) == {"index", "question", "answer", "skill", "prediction"}
    assert len(table) == 10 and table["prediction"][0] == "two\nlines"


def test_xlsx_refuses_what_it_would_cut(tmp_path, bench):
    path = tmp_path / "p.xlsx"
    texts = ["x"] * 9
    interchange.write(path, bench, answered(bench, [*texts, "y" * 32_767]))
    _, notes = interchange.read(path, bench)
    assert [(n.id, n.reason[:6]) for n in notes] == [("9", "32,767")]  # may have been cut by others
    before = path.read_bytes()
    with pytest.raises(RecordError, match="index 9, 'prediction': 32,768 characters.*write .tsv"):
        interchange.write(path, bench, answered(bench, [*texts, "y" * 32_768]))
    with pytest.raises(RecordError, match="control character"):
        interchange.write(path, bench, answered(bench, [*texts, "\x01"]))
    assert path.read_bytes() == before


def test_xlsx_without_openpyxl_says_what_to_do(tmp_path, bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    for call in (lambda p: interchange.write(p, bench, {}), lambda p: interchange.read(p, bench)):
        with pytest.raises(ValueError, match="pip install openpyxl"):
            call(tmp_path / "p.xlsx")


def test_a_sheet_with_numbers_and_holes(tmp_path, bench, monkeypatch):
    """What openpyxl hands over of a sheet that Excel or pandas wrote: numbers, None, few cells."""
    sheet = [("index", "prediction"), (1.0, 3.5), (2, None), (2, "B"), (99, "A"), ("3",)]
    book = SimpleNamespace(worksheets=[SimpleNamespace(iter_rows=lambda **_: iter(sheet))])
    fake = SimpleNamespace(load_workbook=lambda *_, **__: book)
    monkeypatch.setattr(interchange, "_openpyxl", lambda: fake)
    found, notes = interchange.read(tmp_path / "p.xlsx", bench)
    assert {k: v["prediction"] for k, v in found.items()} == {"1": "3.5", "2": "", "3": ""}
    assert [note.line for note in notes] == [3, 4, 5, 6]
    said = ["no prediction", "twice", "no row of LogicVista", "no prediction"]
    assert all(text in note.reason for text, note in zip(said, notes, strict=True))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "", "formats of VLMEvalKit"),
        ("p.tsv", "index\tanswer\n1\tA\n", "p.tsv:1: no column 'prediction'"),
        ("p.tsv", "index\tprediction\n99\tA\n", "no prediction for a row.*no row of LogicVista"),
        ("p.json", "[1, 2]", "no prediction for a row.*not a JSON object"),
        ("p.json", '[{"index": 1', "no prediction for a row.*cut off"),
        ("p.json", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path, bench, name, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        interchange.read(tmp_path / name, bench)


def test_a_broken_xlsx_is_one_clear_error(tmp_path, bench):
    (tmp_path / "p.xlsx").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(RecordError, match="not an xlsx file"):
        interchange.read(tmp_path / "p.xlsx", bench)


@pytest.mark.parametrize("name", [n for n in files.LAYOUTS if not n.startswith("micro-")])
def test_odd_predictions_are_scored_by_the_real_scorers(tmp_path, name):
    write(tmp_path / "b.tsv", rows(name))
    benchmark = files.read(name, tmp_path / "b.tsv", tmp_path / "cache")
    golds = [row["answer"] for row in benchmark.rows[5:]]
    odd = ["A" * 100_000, "", "nan", "<think>cut", "\x00", *golds]
    interchange.write(tmp_path / "p.json", benchmark, answered(benchmark, odd))
    found, _ = interchange.read(tmp_path / "p.json", benchmark)
    made, table = runner.finish(tmp_path, benchmark, found)
    assert [row["prediction"] for row in made] == odd
    assert not any(row["hit"] for row in made[:5]) and table
    assert all(row["hit"] or row["reason"] for row in made)
    assert any(row["hit"] for row in made[5:])
    assert (tmp_path / "scores-ours.csv").stat().st_size


def test_the_config_entry_registers_the_checkpoint(tmp_path):
    model = tmp_path / "Qwen2.5-VL-3B-grpo"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    chosen = prompting.settings(system_prompt="It's \"hard\"\n\\")
    text = interchange.kit_config("mine'", str(model), chosen)
    known = {}
    head, _, call = text.partition("\nsupported_VLM")
    assert "from vlmeval.vlm import VLAAThinkerChat" in head
    exec("supported_VLM" + call, {  # as the kit would, with stand-ins for its names
        "supported_VLM": known, "VLAAThinkerChat": "class",
        "partial": lambda cls, **more: (cls, more),
    })  # fmt: skip
    ((name, (cls, arguments)),) = known.items()
    assert (name, cls) == ("mine'", "class")
    assert arguments["system_prompt"] == "It's \"hard\"\n\\"
    assert arguments["model_path"] == str(model) and arguments["max_pixels"] == 262_144
    assert arguments["use_custom_prompt"] is False and arguments["max_new_tokens"] == 800


def test_a_path_that_the_kit_would_misread_is_refused(tmp_path):
    chosen = prompting.settings()
    for name, kind in (("outputs", "qwen2_5_vl"), ("qwen25-like", "qwen2_vl")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ValueError, match=f"this is {kind}; rename"):
            interchange.kit_config("m", str(tmp_path / name), chosen)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter"):
        interchange.kit_config("m", str(tmp_path), chosen)
