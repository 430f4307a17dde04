"""Benchmarks run, and say what they measured."""

import json
import os
import subprocess
import sys

import pytest

from tests.bench import construct, evaluate, grpo, timing
from tests.bench import rewards as of_rewards
from tests.bench.__main__ import arguments, main
from tests.bench.rewards import mix
from vlaa_lib import ROOT, prompts, rewards
from vlaa_lib.rewards import maths


def test_construction_is_measured_beside_a_bare_client_loop(monkeypatch):
    done = []

    def given(works, repeats):
        done.append([work() for work in works])
        return [3.0, 1.5]

    monkeypatch.setattr(construct, "interleaved", given)
    row = construct.construct(n=6, concurrency=3, repeats=1, latency_s=0.0)
    assert row["records"] == 6 and row["peer"] == "openai client, bare loop" and done
    assert (row["seconds"], row["peer seconds"], row["ratio"]) == (3.0, 1.5, 2.0)
    assert row["ms a record beyond the peer"] == 250


def test_what_is_compared_are_medians():
    seconds = {timing.OURS: [1.0, 2.0, 9.0], timing.TRL: [6.0, 5.0, 4.0]}
    row = timing.compared(20, seconds, {timing.OURS: [10, 90, 20], timing.TRL: [30, 40, 50]})
    assert row == {
        "samples": 20, "ours a second": 10.0, "TRL a second": 4.0, "times faster": 2.5,
        "ours peak MiB": 20, "TRL peak MiB": 40,
    }  # fmt: skip
    row = timing.compared(20, seconds, {timing.OURS: [10, None, 20], timing.TRL: [30, 40, 50]})
    assert row["ours peak MiB"] is row["TRL peak MiB"] is None


def test_trainings_take_turns_and_each_begins_as_often():
    order = []
    runs = timing.in_turn(lambda who: order.append(who) or {"run": len(order)}, 4)
    assert order == [timing.TRL, timing.OURS, timing.OURS, timing.TRL] * 2
    assert [run["run"] for run in runs[timing.OURS]] == [2, 3, 6, 7]


def test_afresh_is_another_process_each_time():
    assert len({os.getpid(), timing.afresh(os.getpid), timing.afresh(os.getpid)}) == 3
    with pytest.raises(ZeroDivisionError):
        timing.afresh(divmod, 1, 0)


@pytest.mark.slow
def test_rewards_are_measured_beside_two_peers():
    found = of_rewards.rewards(n=64, repeats=1)
    assert [(row["items"], row["peer"].split()[0]) for row in found["speed"]] == [
        (items, peer) for items in ("all", "math", "math, none twice")
        for peer in ("TRL", "serial")
    ]
    whole, of_math = found["speed"][1], found["speed"][3]
    assert whole["n"] == 64 > of_math["n"] >= found["speed"][5]["n"] > 0
    assert all(row["agree"] <= row["peer scores"] <= row["n"] for row in found["speed"])
    assert [row["batches"] for row in found["tail"]] == ["clean", "1 % hostile", "ratio"]
    clean, hostile, ratio = found["tail"]
    assert ratio["mean"] > 0 and clean["p50"] <= clean["p95"] and hostile["p50"] <= hostile["p99"]


def test_the_mix_of_completions_is_seeded_and_holds_every_part_and_outcome():
    rows = mix(400)
    assert rows == mix(400) != mix(400, seed=1)
    assert {record.reward for record, _ in rows} == set(prompts.TASK_INSTRUCTIONS)
    scores = rewards.score_all([r for r, _ in rows], [text for _, text in rows])
    reasons = [score.reason.split(":")[0] for score in scores]
    assert 0.04 < reasons.count("format") / 400 < 0.2
    for part in ("digit", "mcq", "math", "iou"):
        values = [s.value for (r, _), s in zip(rows, scores, strict=True) if r.reward == part]
        assert min(values) == 0 and max(values) == 1


def test_the_measured_verdicts_are_those_of_one_completion_at_a_time():
    rows = [row for row in mix(400) if row[0].reward == "math"][:24]
    maths.forget()
    together = rewards.score_all([r for r, _ in rows], [text for _, text in rows])
    maths.forget()
    assert [rewards.score(r, text) for r, text in rows] == together


@pytest.mark.slow
def test_grpo_is_measured_beside_stock_trl_at_equal_numbers(tiny_model, monkeypatch):
    monkeypatch.setattr(grpo, "_run", None)  # runs have processes of their own
    found = grpo.grpo(
        generations=[2], sides=[112], prompts=2, rounds=1, repeats=1, tokens=8,
        model=str(tiny_model),
    )  # fmt: skip
    assert [row["steps a round"] for row in found["speed"]] == [1, 2]
    for row in found["speed"]:
        assert (row["G"], row["side px"], row["samples"]) == (2, 112, 4)
        assert row["same completions"] == 1 and row["difference"] < 1e-5
        assert row["ours tokens a second"] > row["ours a second"] * 30, "a picture alone has 16"
        assert row["ours a second"] > 0 < row["TRL a second"]


def test_evaluation_is_measured_at_equal_answers(tiny_model):
    found = evaluate.evaluate(per_source=1, batch=4, tokens=6, repeats=1, model=str(tiny_model))
    (row,) = found["speed"]
    assert row["rows"] == 9 and row["same answers"] == 1 and row["times faster"] > 0


def test_arguments_of_a_benchmark_are_checked(capsys):
    assert arguments("grpo", ["generations=[4, 8]"]) == {"generations": [4, 8]}
    assert arguments("grpo", ["generations=8", "fast=null"]) == {"generations": [8], "fast": None}
    assert arguments("grpo", ["fast=[]", "seed=0"]) == {"fast": [], "seed": 0}
    for given, said in (("speed=2", "grpo reads generations, sides"), ("seed", "KEY=VALUE")):
        assert main(["grpo", "--set", given]) == 2
        assert said in capsys.readouterr().err


def test_the_command_writes_what_was_found(tmp_path):
    out = tmp_path / "found.json"
    words = ["-m", "tests.bench", "rewards", "--set", "n=16", "repeats=1", "--out", str(out)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "serial Math-Verify" in done.stdout, done.stderr
    assert json.loads(out.read_text(encoding="utf-8"))["benchmark"] == "rewards"
