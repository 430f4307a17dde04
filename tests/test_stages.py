"""Stages: each artefact is built once, several at a time, and the road from data to answers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

from staged import noted, process_of
from test_run import is_alive, wait_for
from test_train import with_traces
from vlaa_lib import ROOT, Halted, VlaaError, folders, profiles, records, study
from vlaa_lib.__main__ import main
from vlaa_lib.study import artefacts, stages
from vlaa_lib.train import launch

# --- built once -----------------------------------------------------------------------------------


def test_once_builds_once_and_again_for_other_settings(tmp_path):
    calls = []

    def build(path):
        calls.append(sorted(p.name for p in path.iterdir()))
        (path / "made").write_text("x", encoding="utf-8")

    target = tmp_path / "stage"
    for _ in range(2):
        artefacts.once(target, {"n": 1, "t": (1, 2)}, build)
    assert len(calls) == 1
    artefacts.once(target, {"n": 2}, build)
    assert len(calls) == 2 and "made" not in calls[1]  # the old artefact is gone first


def test_an_unfinished_build_keeps_what_it_has(tmp_path):
    """A ledger that was paid for must survive a kill, but not a change of settings."""

    def stop(path):
        (path / "ledger").write_text("paid", encoding="utf-8")
        raise KeyboardInterrupt

    kept = []
    for settings, wanted in (({"n": 1}, True), ({"n": 2}, False)):
        with pytest.raises(KeyboardInterrupt):
            artefacts.once(tmp_path / "stage", {"n": 1}, stop)
        artefacts.once(
            tmp_path / "stage", settings, lambda path: kept.append((path / "ledger").exists())
        )
        assert kept[-1] is wanted
        shutil.rmtree(tmp_path / "stage")


FOREIGN = {
    "a file": ("thesis.txt", "mine"), "a folder": ("chapter/thesis.txt", "mine"),
    "a marker of theirs": ("done.json", '{"status": "finished"}'),
    "a broken marker": ("begun.json", "{"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_what_bears_no_marker_of_ours_is_never_removed(tmp_path, case):
    name, text = FOREIGN[case]
    theirs = tmp_path / "models" / "sft" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text(text, encoding="utf-8")
    with pytest.raises(VlaaError, match=f"not built by us|{name}: not a JSON object"):
        artefacts.once(tmp_path / "models" / "sft", {"n": 1}, lambda path: None)
    assert theirs.read_text(encoding="utf-8") == text
    elsewhere = tmp_path / "link"
    elsewhere.symlink_to(tmp_path / "models")
    with pytest.raises(VlaaError, match="link: not built by us"):
        artefacts.once(elsewhere, {"n": 1}, lambda path: None)


def test_a_run_stays_out_of_a_folder_of_others(tmp_path, capsys):
    for name in ("notebooks/00_tour.ipynb", "results/mine.csv", "settings.json"):
        folders.write_text(tmp_path / name, "{}")
    before = sorted(tmp_path.rglob("*"))
    for command in (["run", "--profile", "smoke", "--notebooks", "00"], ["stage", "dataset"]):
        assert main([*command, "--run-dir", str(tmp_path)]) == 2
        assert "holds other files than a run's" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_and_the_draft_of_a_killed_process_are_in_nobodys_way(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "stage").mkdir()
    draft = f".begun.json.{folders._here()}-{dead.pid}.0123456789ab"
    (tmp_path / "stage" / draft).write_text("{", encoding="utf-8")
    artefacts.once(tmp_path / "stage", {"n": 1}, lambda path: None)
    assert {p.name for p in (tmp_path / "stage").iterdir()} == {"begun.json", "done.json"}


def test_what_two_need_is_built_by_one(tmp_path):
    built = []

    def build(path):
        time.sleep(0.5)
        built.append(path)

    given = tmp_path / "base", {}, build
    both = [Thread(target=artefacts.once, args=given) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert built == [tmp_path / "base"]


# --- at once --------------------------------------------------------------------------------------


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_stages_at_once_share_the_cores(cores, tmp_path, capsys):
    cfg = profiles.load("smoke", seed=3)
    one, two = artefacts.at_once(noted, cfg, tmp_path, ("one", "two"))
    assert (one["which"], two["which"], one["seed"]) == ("one", "two", 3)
    assert len({one["pid"], two["pid"], os.getpid()}) == 3
    assert one["threads"] == two["threads"] == "2"
    logs = [(tmp_path / "logs" / f"noted-{name}.log").read_text(
        encoding="utf-8") for name in ("one", "two")]
    assert "".join(logs).count("the base") == 1  # what both need: by the first of them
    assert "noted two is there after" in capsys.readouterr().out
    assert artefacts.at_once(noted, cfg, tmp_path, ["one"]) == [one]


def test_a_failure_lets_the_others_end_and_names_its_log(cores, tmp_path):
    """What trained for an hour beside it is not lost."""
    with pytest.raises(Halted, match=r"(?s)LookupError: no more paper.*noted-fails.log"):
        artefacts.at_once(noted, profiles.load("smoke"), tmp_path, ("fails", "other"))
    assert (tmp_path / "other" / "done.json").is_file()
    assert not (tmp_path / "fails" / "done.json").exists()
    assert "Traceback" in (tmp_path / "logs" / "noted-fails.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("where", ["one core", "a GPU", "a launch"])
def test_where_one_stage_fills_the_machine_they_are_built_here(cores, tmp_path, monkeypatch, where):
    cfg = profiles.load("smoke", launch="ddp" if where == "a launch" else "none")
    if where == "one core":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: where == "a GPU")
    assert artefacts.at_once(process_of, cfg, tmp_path, ("one", "two")) == [os.getpid()] * 2


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_or_the_end_of_the_asking_process_ends_them(tmp_path, sent):
    code = (
        "import signal, sys; sys.path.append('tests')\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "import torch; from pathlib import Path; from staged import sleeps\n"
        "from vlaa_lib import profiles; from vlaa_lib.study import artefacts\n"
        "torch.get_num_threads = lambda: 2; torch.cuda.is_available = lambda: False\n"
        f"run = Path({str(tmp_path)!r})\n"
        "artefacts.at_once(sleeps, profiles.load('smoke'), run, ['a', 'b'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    pids = [int(wait_for(tmp_path / f"{name}.pid", process)) for name in "ab"]
    process.send_signal(sent)
    assert process.wait(30) == -sent
    end = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_alive, pids))


# --- the road -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_models_answer_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small = {"data.eval_per_source": 1, "data.bench_rows": 2, "evaluate.max_new_tokens": 8}
    cfg = profiles.load("smoke", **small)
    artefacts.at_once(stages.answers, cfg, tmp_path, ("base", "instruct"))
    for model in ("base", "instruct"):
        log = (tmp_path / "logs" / f"answers-{model}.log").read_text(encoding="utf-8")
        assert f"evaluation/{model}-micro in" in log
    assert len(stages.evaluation(cfg, tmp_path, "base")) == 2 * len(cfg.data.sources)


def test_a_stage_by_its_name(tmp_path, capsys):
    assert main(["stage", "model:base", "--run-dir", str(tmp_path), "--profile", "smoke"]) == 0
    for name in ("model:gone", "soup"):
        assert main(["stage", name, "--run-dir", str(tmp_path), "--profile", "smoke"]) != 0
        said = capsys.readouterr().err
        assert f"unknown stage {name!r}; use one of dataset" in said and "rewarded:answers" in said
    assert {"model:grpo", "answers:sft", "pool:instruct", "vilprm:1"} <= study.named(2).keys()


@pytest.mark.slow
def test_the_road_is_open_with_a_tiny_model(tiny_model, tmp_path):
    overrides = {"model.policy": str(tiny_model), "model.base": str(tiny_model)}
    cfg = profiles.load("smoke", **overrides, **{"evaluate.max_new_tokens": 8})
    run = stages.folder(cfg, tmp_path / "run")
    rows = {name: stages.evaluation(cfg, run, name) for name in ("sft", "sft_grpo")}
    per_model = 2 * len(cfg.data.sources) * cfg.data.eval_per_source  # each with its blank twin
    assert {len(found) for found in rows.values()} == {per_model}
    for made in ("construct_counts", "sft_log", "grpo_sft_grpo"):
        assert (run / "results" / f"{made}.csv").stat().st_size > 50
    done = json.loads((run / "models" / "sft_grpo" / "done.json").read_text(encoding="utf-8"))
    assert done["settings"]["start"]["from"]["settings"]["sft"]["max_steps"] == 2
    assert not (run / "models" / "grpo").exists()  # nobody asked for it
    before = (run / "models" / "sft" / "model.safetensors").stat().st_mtime_ns
    assert stages.evaluation(cfg, run, "sft") == rows["sft"]
    assert (run / "models" / "sft" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.distributed
def test_a_launched_training_leaves_what_one_here_leaves(tiny_model, micro_data, tmp_path):
    """After a failure too, whose last lines reach whoever called the stage."""
    folder, made = micro_data
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(folder / "images")
    (data / "rl.jsonl").write_text("", encoding="utf-8")
    (data / "sft.jsonl").write_text("", encoding="utf-8")
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
    logs = [(path / "results" / "sft_log.csv").read_text(encoding="utf-8") for path in (run, here)]
    assert logs[0] == logs[1] and logs[0].count("\n") == 3
    weights = [load_file(path / "model.safetensors") for path in (out, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert "vlaa_lib.loopback" in (out / "launch.log").read_text(encoding="utf-8")


def test_unknown_model_is_refused(tmp_path):
    cfg = profiles.load("smoke")
    with pytest.raises(ValueError, match="unknown model 'x'"):
        stages.model_path(cfg, tmp_path, "x")
