"""Stages: each artefact is built once, rebuilt when its settings change, and the road is open."""

import json

import pytest
import torch
from safetensors.torch import load_file

from test_train import with_traces
from vlaa_lib import profiles, records
from vlaa_lib.study import stages
from vlaa_lib.train import launch


def test_once_builds_once_and_again_for_other_settings(tmp_path):
    calls = []

    def build(path):
        calls.append(sorted(p.name for p in path.iterdir()))
        (path / "made").write_text("x")

    target = tmp_path / "stage"
    for _ in range(2):
        stages.once(target, {"n": 1, "t": (1, 2)}, build)
    assert len(calls) == 1
    stages.once(target, {"n": 2}, build)
    assert len(calls) == 2 and "made" not in calls[1]  # the old artefact is gone first


def test_an_unfinished_build_keeps_what_it_has(tmp_path):
    """A ledger that was paid for must survive a kill, but not a change of settings."""

    def stop(path):
        (path / "ledger").write_text("paid")
        raise KeyboardInterrupt

    kept = []
    for settings, wanted in (({"n": 1}, True), ({"n": 2}, False)):
        with pytest.raises(KeyboardInterrupt):
            stages.once(tmp_path / "stage", {"n": 1}, stop)
        stages.once(
            tmp_path / "stage", settings, lambda path: kept.append((path / "ledger").exists())
        )
        assert kept[-1] is wanted
        (tmp_path / "stage" / "done.json").unlink()
        (tmp_path / "stage" / "begun.json").unlink()


def test_the_road_is_open_with_a_tiny_model(tiny_model, tmp_path):
    overrides = {"model.policy": str(tiny_model), "model.base": str(tiny_model)}
    cfg = profiles.load("smoke", **overrides, **{"evaluate.max_new_tokens": 8})
    run = stages.folder(cfg, tmp_path / "run")
    rows = {name: stages.evaluation(cfg, run, name) for name in ("sft", "sft_grpo")}
    per_model = 2 * len(cfg.data.sources) * cfg.data.eval_per_source  # each with its blank twin
    assert {len(found) for found in rows.values()} == {per_model}
    for made in ("construct_counts", "sft_log", "grpo_sft_grpo"):
        assert (run / "results" / f"{made}.csv").stat().st_size > 50
    done = json.loads((run / "models" / "sft_grpo" / "done.json").read_text())
    assert done["settings"]["start"].endswith("models/sft")
    assert not (run / "models" / "grpo").exists()  # nobody asked for it
    before = (run / "models" / "sft" / "model.safetensors").stat().st_mtime_ns
    assert stages.evaluation(cfg, run, "sft") == rows["sft"]
    assert (run / "models" / "sft" / "model.safetensors").stat().st_mtime_ns == before


def test_a_launched_training_leaves_what_one_here_leaves(tiny_model, micro_data, tmp_path):
    """After a failure too, whose last lines reach whoever called the stage."""
    folder, made = micro_data
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(folder / "images")
    (data / "rl.jsonl").write_text("")
    (data / "sft.jsonl").write_text("")
    settings = {"model.policy": str(tiny_model), "data.folder": str(data)}
    settings |= {"seed": 3, "sft.learning_rate": 1e-4}  # not the profile's: they have to travel
    cfg = profiles.load("smoke", launch="cpu2", gpus=1, **settings)
    run = stages.folder(cfg, tmp_path / "launched")
    with pytest.raises(launch.LaunchError, match="(?s)RecordError.*the file holds no records.*log"):
        stages.sft(cfg, run)
    assert not (run / "models" / "sft" / "done.json").exists()

    records.write(with_traces(made), data / "sft.jsonl")
    here = stages.folder(cfg, tmp_path / "here")
    out, other = stages.sft(cfg, run), stages.sft(profiles.load("smoke", **settings), here)
    logs = [(path / "results" / "sft_log.csv").read_text() for path in (run, here)]
    assert logs[0] == logs[1] and logs[0].count("\n") == 3
    weights = [load_file(path / "model.safetensors") for path in (out, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert "accelerate.commands.launch" in (out / "launch.log").read_text()


def test_unknown_model_is_refused(tmp_path):
    cfg = profiles.load("smoke")
    with pytest.raises(ValueError, match="unknown model 'x'"):
        stages.model_path(cfg, tmp_path, "x")
