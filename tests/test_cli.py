"""The command line on bad input: one clear line, exit code 2, and rejects that are kept."""

import json

import pytest
from PIL import Image

from commands import parsed
from vlaa_lib import evaluate, folders, records, traces
from vlaa_lib.__main__ import main
from vlaa_lib.pocket import microworld
from vlaa_lib.process import scorers


@pytest.fixture
def micro(tmp_path):
    """Four good records, then whatever a test appends."""
    microworld.write_split(tmp_path, ["solids", "panel"], "dev", 2)
    return tmp_path


def call(*words) -> int:
    return main([str(word) for word in words])


def construct(folder) -> int:
    return call("construct", "--records", folder / "records.jsonl", "--images", folder / "images",
                "--out", folder / "out")  # fmt: skip


def test_microworld_then_construct(tmp_path, capsys):
    assert call("microworld", "--out", tmp_path, "--n", 2, "--source", "solids") == 0
    assert construct(tmp_path) == 0
    out = capsys.readouterr().out
    assert "caption" in out and "dropped" in out
    assert (tmp_path / "out" / "rejects.jsonl").read_text(encoding="utf-8") == ""


def test_microworld_draws_each_source_once(tmp_path):
    assert call("microworld", "--out", tmp_path, "--n", 2, "--source", "solids", "solids") == 0
    assert len((tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()) == 2


BAD = {
    "half a line": ('{"id": "bad", "image": "solids/dev', "not valid JSON"),
    "missing image": ({"image": "solids/none.png"}, "is not below"),
    "gold that is no number": ({"gt": "a few", "solution": ""}, "a few"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_a_row_in_the_rejects_table(micro, name, capsys):
    change, reason = BAD[name]
    path = micro / "records.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    if isinstance(change, dict):
        change = json.dumps(json.loads(lines[0]) | {"id": "bad"} | change)
    path.write_text("\n".join([*lines, change]), encoding="utf-8")
    assert construct(micro) == 0
    rejects = folders.whole_lines(micro / "out" / "rejects.jsonl")
    assert len(rejects) == 1 and reason in rejects[0]["reason"]
    assert reason in capsys.readouterr().err


def test_a_corrupt_picture_drops_its_record(micro):
    first = json.loads((micro / "records.jsonl").read_text(encoding="utf-8").splitlines()[0])
    (micro / "images" / first["image"]).write_bytes(b"\x89PNG\r\n\x1a\nnope")
    assert construct(micro) == 0
    drops = folders.whole_lines(micro / "out" / "drops.jsonl")
    assert first["id"] in {drop["id"] for drop in drops}


SHOWS = {  # commands that show pictures to a model
    "evaluate": "evaluate {source} --model MODEL --out o --max-new-tokens 2",
    "pool": "process pool {source} --model MODEL --out o --candidates 1 --max-new-tokens 2",
    "doctor": "doctor {source} --model MODEL --n 2",
    "search": "process search {source} --model MODEL --out o --profile smoke --n 2 --set "
              "search.max_new_tokens=2",
    "judge": "process judge {source} --model MODEL --pools p --out o/scores.jsonl",
}  # fmt: skip


@pytest.mark.parametrize("command", SHOWS)
def test_a_picture_that_is_none_is_a_reject_and_the_others_go_on(
    micro, tiny_model, monkeypatch, capsys, command
):
    monkeypatch.chdir(micro)
    made = records.load(micro / "records.jsonl").records
    rows = evaluate.score_rows(made, ["One. Two."] * 4, model="m", sample=0)
    traces.TraceStore(micro / "p").append(traces.from_evaluation(rows, made))
    (micro / "images" / made[0].image).write_bytes(b"\x89PNG\r\n\x1a\nnope")
    Image.new("RGB", (1, 300)).save(micro / "images" / made[2].image)
    words = SHOWS[command].format(source="--records records.jsonl --images images")
    assert main(words.replace("MODEL", str(tiny_model)).split()) in (0, command == "doctor")
    said = capsys.readouterr().err
    assert f"rejected: {made[0].id}: image " in said and "is not one of PNG" in said
    assert f"rejected: {made[2].id}: an image of 1 x 300 px is more elongated" in said
    assert sum(line.startswith("rejected") for line in said.splitlines()) == 2
    if command == "judge":
        (scores,) = scorers.read(micro / "o" / "scores.jsonl").values()
        assert {key[1] for key in scores} == {record.id for record in made}
        assert "no record of question" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no records"),
        (b"\x1f\x8b\xff\xfe", "not UTF-8"),
        (None, "no such file"),
        ('{"id": 1', "no usable record"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, content, message, capsys):
    path = tmp_path / "records.jsonl"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content, encoding="utf-8")
    (tmp_path / "images").mkdir()
    assert construct(tmp_path) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last and "records.jsonl" in last


def test_a_run_that_stops_is_an_error_and_no_traceback(monkeypatch, capsys):
    import vlaa_lib.study.stages
    from vlaa_lib import Halted

    def stop(*given):
        raise Halted("step 3: lower the learning rate")

    monkeypatch.setattr(vlaa_lib.study.stages, "matrix", stop)
    assert call("matrix") == 2
    assert capsys.readouterr().err == "error: step 3: lower the learning rate\n"


def test_doctor_says_that_an_untrained_model_earns_nothing(micro, tiny_model, capsys):
    assert call("doctor", "--records", micro / "records.jsonl", "--images", micro / "images",
                "--model", tiny_model, "--n", 4) == 1  # fmt: skip
    assert "digit" in capsys.readouterr().out


def test_options_that_take_several_values_take_them_after_one_name():
    words = ["train", "sft", "--set", "sft.epochs=2", "seed=3", "--records", "r", "--images", "i",
             "--out", "o", "--set", "sft.mode=lora"]  # fmt: skip
    assert parsed(words).changes == ["sft.epochs=2", "seed=3", "sft.mode=lora"]
    assert parsed(["matrix", "--seeds", "1", "2", "--models", "sft"]).seeds == [1, 2]
    words = ["process", "best-of-n", "--pools", "a", "b", "--scores", "c", "--out", "d"]
    assert parsed(words).pools == ["a", "b"] and parsed(words).sizes == [2, 4, 8, 16]
    assert parsed(["doctor", "rewards", "--records", "r", "--images", "i"]).what == "rewards"


@pytest.mark.parametrize("words", [["trian"], ["train", "dpo"], ["run", "--profil", "smoke"], []])
def test_what_no_command_reads_is_a_usage_error(capsys, words):
    assert call(*words) == 2
    said = capsys.readouterr()
    assert "Usage: python -m vlaa_lib" in said.err + said.out and "Traceback" not in said.err


SOURCE = ["--records", "r", "--images", "i"]
MICRO = ["microworld", "--out", "none/a.tsv"]
REFUSED = [
    *[([*MICRO, "--n", text], "'--n': ") for text in ("0", "-1", "1.5", "²", "")],
    *[([*MICRO, "--benchmark", "micro-WeMath", *more], "has its own sources and split")
      for more in (["--source", "solids"], ["--split", "test"])],
    *[(["evaluate", "--out", "o", "--shard", text], "write i/n with i from 1 to n")
      for text in ("0/2", "3/2", "1", "a/b", "1/2/3", "-1/2")],
    *[(["doctor", *SOURCE, *more], "give exactly one of --completions --model")
      for more in ([], ["--model", "m", "--completions", "c"])],
    (["train", "sft", *SOURCE, "--out", "o", "--set", "sft.speed=3"], "sft.speed"),
    *[(["train", *method, *SOURCE, "--out", "o", "--held-out", "h"], "--held-out is for GRPO with")
      for method in (["sft"], ["grpo", "--set", "grpo.held_out_rounds=0"])],
    (["data", "prepare", "--root", "none", "--out", "x"], "no dataset's folder here"),
    (["data", "prepare", "--root", "none", "--out", "x", "--source", "Coco"],
     "unknown source 'Coco'"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    assert call(*words) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_missing_model_says_how_to_build_it(micro, capsys):
    assert call("evaluate", "--records", micro / "records.jsonl", "--images", micro / "images",
                "--model", "data/pocket/none", "--out", micro / "rows.jsonl") == 2  # fmt: skip
    assert "models build-pocket" in capsys.readouterr().err


# --- every reader, whatever the file is

RUBBISH = {
    "missing": None, "folder": None, "empty": b"", "nul": bytes(99), "gzip": b"\x1f\x8b\x08abc",
    "text": b"hello\n", "list": b"[1, 2]", "object": b"{}", "null": b"null", "half": b'{"a": [',
    "deep": b"[" * 5000, "utf16": '{"a": 1}'.encode("utf-16"), "latin": b'{"id": "\xe9"}\n',
    "types": b'{"id": [1], "image": {}, "settings": 3, "judge": 7, "template": 5, "scores": "x"}',
    "yaml": b"judge: {model: [1\n", "keys": b"? [a]\n: b\n", "csv": b'a,b\n1\n"x',
    "code": b"!!python/object/apply:os.mkdir ['owned']\n",
}
READERS = {  # what is given to each reader of the command line: FILE
    "records": "doctor --records FILE --images images --completions r.jsonl",
    "completions": "doctor --records r.jsonl --images images --completions FILE",
    "pictures": "data check --root images --records FILE",
    "endpoints": "process judge --records r.jsonl --images images --pools p --out s "
                 "--endpoints FILE",
    "prompts": "construct --plan --records r.jsonl --images images --out o --prompts-dir FILE",
    "a finished run": "construct card --out FILE",
    "pools": "process judge --records r.jsonl --images images --pools FILE --out s --truth steps",
    "scores": "process best-of-n --pools p --out s --scores FILE",
    "a benchmark": "evaluate --benchmark LogicVista --tsv FILE --predictions FILE --out o",
    "a judge": "evaluate --benchmark LogicVista --tsv t --predictions t --out o --judge FILE",
    "a template": "evaluate --benchmark LogicVista --tsv t --predictions t --out o --template FILE",
    "a profile": "plan --profile FILE.json",
    "a config": "plan --model FILE",
    "a launch file": "train sft --records r.jsonl --images images --out o --print "
                     "--launch FILE.yaml",
    "processes": "process train-prm --rows FILE --images images --out o --profile smoke",
}


@pytest.mark.parametrize("reader", READERS)
def test_any_file_is_read_or_refused_in_one_line(tmp_path, monkeypatch, capsys, reader):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (56, 56)).save("images/a.png")
    row = {"id": "r1", "image": "a.png", "question": "How many?", "gt": 3, "reward": "digit"}
    (tmp_path / "r.jsonl").write_text(json.dumps(row | {"completion": "3"}), encoding="utf-8")
    for name, data in RUBBISH.items():
        place = READERS[reader].partition("FILE")[2].partition(" ")[0]  # an extension, if any
        if name == "folder":
            (tmp_path / f"{name}{place}").mkdir()
        elif data is not None:
            (tmp_path / f"{name}{place}").write_bytes(data)
        code = main(READERS[reader].replace("FILE", name).split())  # an exception is a failure
        said = [line for line in capsys.readouterr().err.split("\n") if line.startswith("error: ")]
        assert bool(said) == (code == 2), name  # `doctor` names each bad line, too
    assert not (tmp_path / "owned").exists()
