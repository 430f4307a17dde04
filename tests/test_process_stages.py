"""The road of process rewards: its stages, what the report shows, the command line."""

import csv
import json
from dataclasses import replace

import pytest

import scoring
from test_prm import settings
from test_process import candidate
from vlaa_lib import folders, prompts, records
from vlaa_lib.__main__ import main
from vlaa_lib.process import best_of_n, pools, prm, search
from vlaa_lib.show import process_figures
from vlaa_lib.study import process_stages as road
from vlaa_lib.study import report, stages

TINY = {"evaluate.max_new_tokens": 8, "search.max_new_tokens": 8, "process.pool_questions": 3}
TINY |= {"process.candidates": 3, "process.questions": 6, "process.generators": ["instruct"]}
TINY |= {"process.judged": 1, "grpo.max_completion_tokens": 8, "grpo.max_steps": 1}


def test_questions_are_spread_over_sources():
    made = [scoring.record("digit", "3", id=f"{s}{i}", source=s) for s in "aab" for i in range(2)]
    found = [record.source for record in road.spread(made, 4)]
    assert found == ["a", "b", "a", "b"]
    assert len(road.spread(made, 99)) == 6 and road.spread(made, 0) == []


def half_right(made, completions):
    """Judge by the text's length, so that an untrained policy has right and wrong rollouts."""
    return [len(text) % 2 == 0 for text in completions]


@pytest.mark.slow
def test_the_road_from_search_to_a_reward_of_steps(tiny_model, tmp_path, monkeypatch):
    """Each stage once; a second call reads what is there, another seed trains another ViLPRM."""
    monkeypatch.setattr(search, "is_right", half_right)
    cfg = settings(tiny_model, **TINY)
    run = stages.folder(cfg, tmp_path / "run")
    rows = road.best_of_n(cfg, run)
    assert {row["n"] for row in rows} == {2}, "no N above the candidates"
    assert {row["scorer"] for row in rows} >= {"ViLPRM 0", "truth of steps", "oracle", "greedy"}
    judged, replies = road.judged(cfg, run)
    assert sum(row["steps"] for row in replies) > 0
    assert {row["questions"] for row in judged} == {1}
    arms = road.rewarded(cfg, run)
    assert [row["reward"] for row in arms] == [road.BEFORE, road.ANSWERS, road.STEPS]
    with (run / "results" / "grpo_answers_and_steps.csv").open(encoding="utf-8") as stream:
        assert "rewards/process/mean" in next(csv.reader(stream))
    with (run / "results" / "search.csv").open(encoding="utf-8") as stream:
        assert list(csv.DictReader(stream))[-1]["source"] == "sum"

    marks = {path: path.stat().st_mtime_ns for path in run.rglob("done.json")}
    assert road.best_of_n(cfg, run) == rows and road.judged(cfg, run)[1] == replies
    assert road.vilprm(cfg, run, seed=1) != road.vilprm(cfg, run)
    assert {path: path.stat().st_mtime_ns for path in marks} == marks

    off = replace(cfg, process=replace(cfg.process, judged=0, reward_rounds=0))
    assert road.judged(off, run) == ([], []) and road.rewarded(off, run) == []


def test_the_arms_are_compared_on_the_same_questions():
    scene = {"kind": "bars", "bars": [{"color": "red", "value": 3}, {"color": "blue", "value": 5}]}
    made = [scoring.record("digit", "3", id=i, meta={"scene": scene}) for i in "ab"]
    true, false = "The red bar reaches 3.", "The red bar reaches 4."

    def rows(*texts):
        done = [prompts.join_think_answer(text, "3") for text in texts]
        pairs = zip(made, done, strict=True)
        return [{"record_id": r.id, "completion": t, "correct": True} for r, t in pairs]

    told = {road.ANSWERS: rows(false, f"{true} {false}"), road.STEPS: rows(true, "Hm.")}
    first, second = road.compared(told, made, 50)
    assert first["false_share"] == pytest.approx(0.75) and first["fewer_false"] == 0
    assert second["false_share"] == 0 and second["checked_steps"] == 1
    assert second["fewer_false"] == 1.0, "question b has no checkable step there and is no pair"


def test_calibration_is_drawn_beside_the_diagonal():
    table = prm.calibration([(0.1, 0.0), (0.9, 0.5), (0.95, 1.0)])
    figure = process_figures.calibration([{"seed": s, **row} for s in (0, 1) for row in table])
    named = {line.name: line for line in figure.data if line.name}
    assert list(named) == ["score = value", "seed 0", "seed 1"]
    assert list(named["seed 0"].x) == pytest.approx([0.1, 0.925])
    assert list(named["seed 0"].y) == pytest.approx([0.0, 0.75])


def test_the_report_draws_what_notebook_07_leaves(tmp_path):
    found = [pools.collect([candidate(i, k, "3", k == 1, generator=g) for i in "ab"
                            for k in range(2)]) for g in ("one", "two")]  # fmt: skip
    (tmp_path / "results").mkdir()
    rows = best_of_n.table(found, {}, (2,), resamples=20)
    folders.write_csv(tmp_path / "results" / "best_of_n.csv", rows)
    arms = [{"reward": "before", "false_share": 0.5}, {"reward": "answers", "false_share": 0.25}]
    folders.write_csv(tmp_path / "results" / "process_reward.csv", arms)
    page = report.write_report(tmp_path).read_text(encoding="utf-8")
    assert "Accuracy of the chosen answer" in page and '"text":"Share of false steps"' in page
    assert "oracle" in page and "missing: results/vilprm.csv; notebook 07 writes it" in page


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.slow
def test_search_and_train_prm_through_the_command_line(
    tiny_model, micro_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(search, "is_right", half_right)
    folder, made = micro_data
    images, out = str(folder / "images"), tmp_path / "search"
    records.write(made, tmp_path / "r.jsonl")
    small = ["--profile", "smoke", "--set", f"model.policy={tiny_model}"]
    words = ["process", "search", "--records", str(tmp_path / "r.jsonl"), "--images", images]
    words += ["--out", str(out), "--n", "12", *small, "search.max_new_tokens=8"]
    assert main(words) == 0
    rows = json.loads((out / "processes.json").read_text(encoding="utf-8"))
    assert rows and f"{len(rows)} rows of 12 questions" in capsys.readouterr().out
    (out / "processes.json").write_text(json.dumps([*rows, rows[0] | {"value": float("nan")}]),
        encoding="utf-8")
    words = ["process", "train-prm", "--rows", str(out / "processes.json"), "--images", images]
    assert main([*words, "--out", str(tmp_path / "prm"), *small, "prm.max_steps=1"]) == 0
    said = capsys.readouterr().out
    assert "rejected:" in said and "it holds NaN" in said and "mse_constant" in said
    assert prm.load(tmp_path / "prm").model.step_head.out_features == 1
