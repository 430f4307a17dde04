"""Traces side by side: what the viewer is given, flips, and the curated set."""

import json

import pytest
from PIL import Image

from vlaa_lib import ROOT, folders, traces
from vlaa_lib.__main__ import main
from vlaa_lib.pocket import microworld
from vlaa_lib.prompts import join_think_answer
from vlaa_lib.show import html, prepare
from vlaa_lib.study import curation

SOURCES = ["solids", "slip", "locate"]


def row(name, completion="x", **columns):
    return {"record_id": name, "completion": completion, "model": "grpo"} | columns


def test_an_example_holds_what_is_known_and_nothing_else(tmp_path):
    sample = microworld.generate("locate", "dev", 0)
    sample.save(tmp_path)
    record, other = sample.record, microworld.record("solids", "dev", 0)
    nan = float("nan")
    part = {"name": "iou", "value": nan, "reason": "not scored"}
    runs = {
        "sft": [row(record.id, "one", reward=0.0, reason="no", correct=False),
                row(record.id, "grey", blank=True)],
        "grpo": [row(record.id, "old", optimizer_step=1, reward=1.0),
                 *(row(record.id, text, optimizer_step=2, reward=nan, advantage=0.0, parts=[part],
                       completion_tokens=3, clipped=True, mean_logp=-0.5) for text in "ab"),
                 row("unknown")],
    }  # fmt: skip
    (example,) = traces.examples([record, other], tmp_path, runs)
    sft, grpo = example.pop("sides")
    assert example == {
        "id": record.id, "source": "locate", "image": str(tmp_path / record.image),
        "question": record.question, "gold": record.solution, "scene": record.meta["scene"],
        "frame": "norm01"}  # fmt: skip
    assert sft == {"name": "sft", "text": "one", "reward": 0.0, "reason": "no", "correct": False}
    assert grpo == {
        "name": "grpo", "text": "a", "advantage": 0.0, "mean_logp": -0.5, "clipped": True,
        "tokens": 3, "parts": {"iou": None}, "reasons": {"iou": "not scored"},
        "group": [{"text": t, "reward": None, "advantage": 0.0, "tokens": 3} for t in "ab"],
    }  # fmt: skip
    (lost,) = traces.examples([other], tmp_path, {"sft": [row(other.id)]})
    assert lost["image"] is None and lost["frame"] is None
    assert json.loads(json.dumps(lost)) == lost


def test_rows_of_an_evaluation_bring_their_answer_and_parts():
    record = microworld.record("solids", "dev", 0)
    said = row(record.id, "It is 3.", answer="3", correct=True, part="digit", reward=0.0,
               reason="format: no think or answer tags", verdicts=[True])  # fmt: skip
    (example,) = traces.examples([record], None, {"sft": [said]})
    (side,) = example["sides"]
    assert side["answer"] == "3" and side["parts"] == {"format": 0.0}
    assert side["verdicts"] == [True], "a judge's, for pictures without a scene"
    assert prepare.prepare([example])["examples"][0]["sides"][0]["answer"] == "3"


def test_flips_are_wrong_before_and_right_after():
    wrong = [row("a", correct=False), row("b", correct=True), row("c", reward=0.2), row("d"),
             row("e", correct=False, blank=True), row("f", correct=False)]  # fmt: skip
    right = [row("d", reward=0.1), row("c", reward=0.9), row("b", correct=True), row("e"),
             row("a", correct=True, reward=0.0)]  # fmt: skip
    assert traces.flipped(wrong, right) == ["a", "c"]


@pytest.fixture
def run(tmp_path):
    """A run as the stages leave it: held-out records, rates, two evaluated models."""
    world = tmp_path / "run" / "world" / "test"
    made = microworld.write_split(world, SOURCES, "test", 6)
    rates = {"omit": 0.3, "confuse": 0.2, "miscount": 0.2, "hesitate": 0.9, "waver": 0.5}
    done = {"settings": {"rates": rates}}
    folders.write_text(tmp_path / "run" / "dataset" / "done.json", json.dumps(done))
    card = {"profile": "smoke", "seed": 4, "commit": "abc", "status": {}}
    folders.write_text(tmp_path / "run" / "run_card.json", json.dumps(card))
    for name in ("sft", "grpo"):
        rows = []
        for number, record in enumerate(made):
            flips = number % 6 == 2
            text = join_think_answer("There are 99 objects." if number % 6 == 4 else "Hm.", "x")
            common = {"record_id": record.id, "source": record.source, "part": record.reward,
                      "image": record.image, "completion": text, "reward": 0.0, "reason": "no",
                      "correct": flips and name == "grpo", "model": name}  # fmt: skip
            rows += [common | {"blank": False}, common | {"blank": True, "correct": True}]
        path = tmp_path / "run" / "evaluation" / name / "rows.jsonl"
        folders.write_lines(path, (json.dumps(row) + "\n" for row in rows))
    return tmp_path / "run"


def test_curation_prefers_flips_and_loads_as_examples(run, tmp_path, capsys):
    out = tmp_path / "set"
    words = ["traces", "curate", "--run", str(run), "--out", str(out), "--per-source", "2"]
    assert main(words) == 0
    assert "6 records, 3 flips" in capsys.readouterr().out
    shown = traces.curated(out)
    assert [example["source"] for example in shown] == [s for s in SOURCES for _ in "12"]
    assert {side["name"] for example in shown for side in example["sides"]} == {
        "teacher", "sft", "grpo"}  # fmt: skip
    for example in shown:
        assert Image.open(example["image"]).size[0] <= curation.PICTURE_PX
        assert example["scene"] and example["image"].startswith(str(out))
    flips = [e["id"] for e in shown if any(side.get("correct") for side in e["sides"])]
    assert len(flips) == 3, "one a source, never by the grey twin"
    assert {row["profile"] for row in traces.load(out)} == {"smoke"}
    assert json.loads((out / "card.json").read_text())["commit"] == "abc"
    before = sorted((p.name, p.read_bytes()) for p in out.rglob("*.jsonl"))
    assert main(words) == 0  # again: the same set in the same place
    assert before == sorted((p.name, p.read_bytes()) for p in out.rglob("*.jsonl"))
    assert main([*words, "--seed", "1"]) == 0
    assert before != sorted((p.name, p.read_bytes()) for p in out.rglob("*.jsonl"))


def test_curation_shows_gain_and_damage_alike(run, tmp_path):
    path = run / "evaluation" / "sft" / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lost = {row["record_id"] for row in rows[:: 2 * 6]}  # the first of each source
    for row in rows:
        row["correct"] = row["record_id"] in lost and not row["blank"]
    folders.write_lines(path, (json.dumps(row) + "\n" for row in rows))
    card = curation.curate(run, tmp_path / "set", 2)
    assert (card["records"], card["flips"], card["losses"]) == (6, 3, 3)
    assert lost < {example["id"] for example in traces.curated(tmp_path / "set")}
    assert "--per-source 2 --seed 0" in card["command"]


def test_the_set_in_the_repository_opens_and_is_small():
    shown = traces.curated()
    assert len({example["source"] for example in shown}) == len(microworld.SOURCES)
    names = {side["name"] for example in shown for side in example["sides"]}
    assert names == {"teacher", "instruct", "sft", "grpo", "sft_grpo"}
    assert all(example["image"] and example["scene"] for example in shown)
    files = [path for path in curation.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    results = json.loads((ROOT / "data" / "results" / "laptop" / "run_card.json").read_text())
    card = json.loads((curation.FOLDER / "card.json").read_text())
    same = (card["commit"], card["finished"]) == (results["commit"], results["finished"])
    assert same, "curate again from the run that is now in data/results"


def test_to_html_writes_the_viewers_page(tmp_path):
    record = microworld.record("solids", "dev", 0)
    shown = traces.examples([record], tmp_path, {"sft": [row(record.id, "one <b>trace</b>")]})
    page = html.to_html(shown, tmp_path / "page.html", "A & B").read_text()
    assert "<title>A &amp; B</title>" in page and record.id in page
    assert "<b>trace" not in page


def test_a_set_that_is_too_large_leaves_the_old_one(run, tmp_path, monkeypatch):
    out = tmp_path / "set"
    curation.curate(run, out, 1)
    kept = sorted(path.name for path in out.rglob("*"))
    monkeypatch.setattr(curation, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100; take fewer records"):
        curation.curate(run, out, 2)
    assert kept == sorted(path.name for path in out.rglob("*"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_curation_refuses_a_foreign_folder_and_an_unfinished_run(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds other files"):
        curation.curate(run, tmp_path / "mine")
    (run / "evaluation" / "grpo" / "rows.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="grpo/rows.jsonl: not there; finish the run"):
        curation.curate(run, tmp_path / "set")
    with pytest.raises(FileNotFoundError, match="no curated traces; make them with"):
        traces.curated(tmp_path / "set")
