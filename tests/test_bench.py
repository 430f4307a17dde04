"""Benchmarks run, and say what they measured."""

import os
import re
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests import bench
from tests.bench import timing
from tests.bench.rewards import mix
from vlaa_lib import prompts, rewards
from vlaa_lib.rewards import maths
from vlaa_lib.train import shapes


def module(name):
    """Return a benchmark's module, whose name in the package is that of its function."""
    return sys.modules[f"tests.bench.{name}"]


def test_construction_is_measured_beside_a_bare_client_loop(monkeypatch):
    done = []

    def given(works, repeats):
        done.append([work() for work in works])
        return [3.0, 1.5]

    monkeypatch.setattr(module("construct"), "interleaved", given)
    row = bench.construct(n=6, concurrency=3, repeats=1, latency_s=0.0)
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


def test_rewards_are_measured_beside_two_peers():
    found = bench.rewards(n=64, repeats=1)
    assert [(row["items"], row["peer"].split()[0]) for row in found["speed"]] == [
        (items, peer) for items in ("all", "math", "math, none twice")
        for peer in ("TRL", "serial")
    ]
    whole, of_math = found["speed"][1], found["speed"][3]
    assert whole["n"] == 64 > of_math["n"] >= found["speed"][5]["n"] > 0
    assert all(row["agree"] <= row["peer scores"] <= row["n"] for row in found["speed"])
    # what differs is listed, all of it
    for peer, row in (("TRL accuracy_reward", found["speed"][0]), ("serial Math-Verify", whole)):
        listed = sum(kind["n"] for kind in found["disagreements"] if kind["peer"] == peer)
        assert listed == row["peer scores"] - row["agree"]
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


def rates():
    """Stand in for what a machine can do, which other work on it would change."""
    return {"TFLOP/s": 0.1, "GB/s": 20.0}


def test_grpo_is_measured_beside_stock_trl_at_equal_numbers(tiny_model, monkeypatch):
    monkeypatch.setattr(bench.roofline, "machine", rates)
    monkeypatch.setattr(module("grpo"), "_run", None)  # runs have processes of their own
    found = bench.grpo(
        generations=[2], sides=[112], prompts=2, rounds=1, repeats=1, tokens=8,
        model=str(tiny_model),
    )  # fmt: skip
    assert [row["steps a round"] for row in found["speed"]] == [1, 2]
    for row in found["speed"]:
        assert (row["G"], row["side px"], row["samples"]) == (2, 112, 4)
        assert row["same completions"] == 1 and row["difference"] < 1e-5
        assert row["ours tokens a second"] > row["ours a second"] * 30, "a picture alone has 16"
    least = {}
    for row in found["phases"]:
        if row["phase"] in ("generate", "old and reference", "policy"):
            assert row["TRL s"] > 0 and row["ours s"] > 0
            least[row["steps a round"], row["phase"]] = row["roofline s"]
    assert 0 < least[1, "old and reference"] < least[1, "policy"] and least[1, "generate"] > 0
    # the same completions, whose old log-probs are asked for only where the policy has moved
    assert least[1, "policy"] == least[2, "policy"]
    assert least[2, "old and reference"] == pytest.approx(2 * least[1, "old and reference"], 0.01)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_sft_is_measured_beside_stock_trl_at_equal_losses(tiny_model, mode, monkeypatch):
    monkeypatch.setattr(bench.roofline, "machine", rates)
    monkeypatch.setattr(module("sft"), "_run", None)  # runs have processes of their own
    found = bench.sft(batch=3, steps=3, repeats=1, mode=mode, model=str(tiny_model))
    (row,) = found["speed"]
    assert row["samples"] == 9 and row["difference"] < 1e-5
    assert row["of roofline"] > 0 and row["ours tokens a second"] > 30 * row["ours a second"]


def test_a_policy_that_nobody_has_is_measured_by_its_shape(tmp_path):
    place = bench.roofline.checkpoint("random:Qwen2.5-VL-3B/16", tmp_path)
    shape = shapes.shape_of(place)
    assert (shape.hidden, shape.mlp, shape.layers, shape.vocabulary) == (128, 688, 3, 9496)
    assert bench.roofline.checkpoint(place, tmp_path) == place
    for name, why in {
        "gpt-2": "not one of",
        "Qwen2.5-VL-3B/half": "as in random:",
        "Qwen2.5-VL-3B/0": "too narrow",
        "Qwen2.5-VL-3B/99": "too narrow",
    }.items():
        with pytest.raises(ValueError, match=why):
            bench.roofline.checkpoint(f"random:{name}", tmp_path)


def test_the_arithmetic_of_a_pass():
    """By hand: 3B has 2.775 billion weights in its layers, and a head of 2,048 x 151,936."""
    three = shapes.shape_of("Qwen/Qwen2.5-VL-3B-Instruct")
    assert bench.roofline.forward_flops(three, 1000, 0, 0) == pytest.approx(6.172e12, rel=1e-3)
    assert bench.roofline.training_flops(three, 1000, 0, 0) == pytest.approx(1.852e13, rel=1e-3)
    assert bench.roofline.training_flops(three, 1000, 0, 0, "lora") == pytest.approx(
        1.234e13, rel=1e-3
    )
    # 315 visual tokens are 1,260 patches, each through 0.669 billion weights
    assert bench.roofline.training_flops(three, 0, 1, 315) == pytest.approx(1.686e12, rel=1e-3)


def test_evaluation_is_measured_at_equal_answers(tiny_model):
    found = bench.evaluate(per_source=1, batch=4, tokens=6, repeats=1, model=str(tiny_model))
    (row,) = found["speed"]
    assert row["rows"] == 9 and row["same answers"] == 1 and row["times faster"] > 0


def test_notebooks_are_measured_beside_nbclient(tmp_path):
    cells = [new_code_cell('profile = run_dir = ""', metadata={"tags": ["parameters"]})]
    cells += [new_code_cell("assert profile == 'smoke' and run_dir")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path / "00_short.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    found = bench.notebooks("smoke", [str(path)], repeats=1)
    (row,) = found["speed"]
    assert row["notebook"] == "00_short"
    assert min(row["first s"], row["again s"], row["nbclient s"], row["ratio"]) > 0


def test_the_estimate_says_what_it_is_and_sharing_grows_with_the_group():
    found = bench.estimate(model="Qwen/Qwen2.5-VL-3B-Instruct")
    assert "estimate" in found["note"] and "published shape" in found["shape"]
    by = {(row["G"], row["mode"], row["phase"]): row for row in found["speed"]}
    for g in (4, 8):
        assert by[g, "full", "vision and prompts, sampling"]["times faster"] == g
        policy = [by[g, mode, "policy"]["ours s"] for mode in ("lora", "full")]
        assert policy[0] == pytest.approx(policy[1] * 3 / 4, rel=0.01), "no gradients of the base"
    for mode in ("full", "lora"):
        assert 1 < by[4, mode, "all"]["times faster"] < by[8, mode, "all"]["times faster"]
    alone = bench.estimate(longest=250, generations=[1], modes=["full"])
    assert alone["padding"] == [{"G": 1, "shared prompts": 1, "sorted step": 1}]
    saved = {row["phase"]: row["times faster"] for row in alone["speed"]}  # the second look
    assert saved["vision and prompts, sampling"] == 1 and 1 < saved["policy"] < 1.3


def test_the_estimates_lengths():
    lengths = module("estimate").lengths(256, 250, 800)
    assert sum(lengths) / 256 == pytest.approx(250, rel=0.01) and max(lengths) == 800
    with pytest.raises(ValueError, match="2 log-normal lengths of mean 10 with a longest of 800"):
        module("estimate").lengths(2, 10, 800)


def test_arguments_of_a_benchmark_are_checked():
    assert bench.arguments("grpo", ["generations=[4, 8]"]) == {"generations": [4, 8]}
    for given in ("generations=[8]", "generations=8"):
        assert bench.arguments("grpo", [given]) == {"generations": [8]}
    assert bench.arguments("grpo", ["fast=null"]) == {"fast": None}
    assert bench.arguments("grpo", ["fast=[]", "seed=0"]) == {"fast": [], "seed": 0}
    assert bench.arguments("notebooks", ["names=01"]) == {"names": ["01"]}
    for name, wrong in (
        ("grpo", "generations="), ("grpo", "generations=null"), ("grpo", "generations=[]"),
        ("rewards", "n=abc"), ("rewards", "n=0"), ("sft", "steps=-1"), ("estimate", "mfu=0"),
        ("estimate", "mfu=nan"), ("sft", "seed=-1"),
        ("sft", "batch=[1, 2]"), ("grpo", "sides=[[1]]"), ("grpo", "sides=[1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"bench {name}: {re.escape(repr(wrong))}: "):
            bench.arguments(name, [wrong])
    with pytest.raises(ValueError, match="grpo.fast: 'warp'"):
        module("grpo")._settings(4, 112, 1, 16, 1, 8, "full", "data/pocket/instruct", 0, ["warp"])
    with pytest.raises(ValueError, match="bench grpo reads generations, sides"):
        bench.arguments("grpo", ["speed=2"])
