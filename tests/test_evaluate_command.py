"""`evaluate --benchmark` from file to scores: all fourteen files, bad input, a judge."""

import csv
import json
import re

import pytest

from benchmark_files import rows, write
from fault_server import endpoint
from vlaa_lib import ROOT
from vlaa_lib.__main__ import main
from vlaa_lib.evaluate import command, files
from vlaa_lib.evaluate.generate import Completion
from vlaa_lib.pocket.microworld import benchmarks as micro


def call(name, folder, *words):
    fixed = ["evaluate", "--benchmark", name, "--tsv", folder / "b.tsv", "--out", folder / "out"]
    return main([str(word) for word in (*fixed, *words)])


def read(folder, label="ours"):
    with (folder / "out" / f"scores-{label}.csv").open() as stream:
        scores = list(csv.DictReader(stream))
    lines = (folder / "out" / f"rows-{label}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], scores


@pytest.mark.parametrize("name", list(files.LAYOUTS))
def test_every_benchmark_runs_from_its_file_to_its_scores(name, tmp_path, tiny_model):
    """The micro ones with the pocket VLM, ten rows of each real schema with a tinier one."""
    is_micro = name.startswith("micro-")
    if is_micro:
        micro.write_tsv(name, tmp_path / "b.tsv", 10)
    else:
        write(tmp_path / "b.tsv", rows(name))
    model = ROOT / "data/pocket/instruct" if is_micro else tiny_model
    limit = 100 if is_micro else 4
    assert call(name, tmp_path, "--model", model, "--max-new-tokens", limit) == 0
    made, scores = read(tmp_path)
    assert 7 <= len(made) <= 10 and not (tmp_path / "out" / "rejects.jsonl").read_text()
    for row in made:
        assert row["benchmark"] == name and row["hit"] in (True, False) and row["path"]
        assert 0 < row["tokens"] <= limit and row["gold"] and row["reason"]
    assert {row["extraction"] for row in scores} == {"ours"}
    assert scores[0]["n"] and scores[0]["undecided"] == "0"
    if is_micro:  # it was asked as it was trained: some replies are answers
        assert any(row["extracted"] for row in made)


def replies(monkeypatch, texts):
    """Let the question with number i be answered by texts[i], the others by A."""

    def complete(asks):
        numbers = [int(re.search(r"Question (\d+):", ask.user)[1]) for ask in asks]
        return [Completion(texts.get(n, "A"), 3, False) for n in numbers]

    monkeypatch.setattr(command, "loaded", lambda *_: complete)


def test_bad_input_is_counted_and_named_and_never_right(tmp_path, monkeypatch, capsys, tiny_model):
    made = rows("MathVision")
    made[1]["image"] = "%" * 80
    made[3]["question"] = "nan"
    made[8]["answer"] = "Q"
    write(tmp_path / "b.tsv", made)
    odd = {0: "", 2: "C" * 100_000, 4: "nan", 5: "5 " * 50_000, 6: "<think>C", 8: "Q"}
    replies(monkeypatch, odd)
    assert call("MathVision", tmp_path, "--model", tiny_model) == 0
    shown = capsys.readouterr()
    assert "b.tsv:4: " in shown.err and "column 'image': not base64" in shown.err
    assert "column 'question' is empty or NaN" in shown.err
    assert "1 without verdict: gold 'Q' is none of the choices A, B, C, D (index 8)" in shown.err
    assert "8 rows (the paper's split has 3040); 2 cannot be asked" in shown.out
    scored, scores = read(tmp_path)
    found = {row["index"]: (row["hit"], row["path"]) for row in scored}
    assert found | {
        "0": (False, "empty"), "2": (False, "plain:none"), "4": (False, "plain:none"),
        "5": (False, "plain:none"), "6": (False, "unclosed"), "8": (None, "plain:none"),
    } == found  # fmt: skip
    assert "1 empty" in shown.out and "1 unclosed" in shown.out
    assert (scores[0]["n"], scores[0]["undecided"], scores[0]["full_rows"]) == ("8", "1", "3040")
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["1", "3"]
    assert [len(row["prediction"]) for row in scored if row["index"] in "25"] == [100_000, 100_000]


def test_wrong_columns_are_one_clear_line(tmp_path, capsys, tiny_model):
    write(tmp_path / "b.tsv", rows("LogicVista"))
    assert call("WeMath", tmp_path, "--model", tiny_model) == 2
    assert "b.tsv:1: no column 'ID', 'key', 'knowledge concept', 'A', 'B'; is it WeMath?" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_a_judge_reads_what_no_rule_can_and_is_paid_once(tmp_path, monkeypatch, capsys, tiny_model):
    write(tmp_path / "b.tsv", rows("WeMath"))
    replies(monkeypatch, {0: "as it has always been", 1: "who knows", 2: "<think>A"})

    def reply(body):
        text = str(body["messages"][0]["content"])
        return 200, "A" if "always" in text else "perhaps A or D", {}

    with endpoint(reply) as (url, bodies):
        (tmp_path / "j.yaml").write_text(f"judge: {{model: reader, base_url: '{url}'}}\n")
        words = ("--model", tiny_model, "--judge", tmp_path / "j.yaml")
        assert call("WeMath", tmp_path, *words) == 0
        assert len(bodies) == 2  # not what was cut off while thinking
        scored, scores = read(tmp_path, "ours-judge")
        assert (scored[0]["hit"], scored[0]["path"]) == (True, "plain:judge")
        assert [row["hit"] for row in scored[1:3]] == [False, False]
        assert scores[0]["extraction"].startswith("ours, then extraction by reader ")
        assert call("WeMath", tmp_path, *words) == 0 and len(bodies) == 2  # from the ledger
    assert call("WeMath", tmp_path, "--model", tiny_model) == 0  # without it: files of their own
    assert read(tmp_path)[0][0]["hit"] is False
    assert (tmp_path / "out" / "judge.sqlite").is_file()
