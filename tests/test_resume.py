"""Resume: 4 steps equal 2 + 2, bit for bit; a broken checkpoint is passed over, never loaded."""

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from test_hostile_checkpoints import Payload
from test_train import settings, with_traces
from vlaa_lib import ROOT, Halted, VlaaError, traces, train
from vlaa_lib.pocket import microworld
from vlaa_lib.train import checkpoints, launch
from vlaa_lib.train.trainer import AdaptiveKL, SupervisedTrainer

WEIGHTS = {"full": "model.safetensors", "lora": "adapter_model.safetensors"}
WEIGHTS["4bit"] = WEIGHTS["lora"]


def run(method, cfg, micro_data, out):
    folder, made = micro_data
    if method == "sft":
        return train.sft(cfg, with_traces(made), folder / "images", out)
    return train.grpo(cfg, made, folder / "images", out)


def short(tiny_model, method, mode):
    return settings(tiny_model, **{
        f"{method}.mode": mode, f"{method}.max_steps": 4,
        "sft.epochs": 9.0, "sft.global_batch": 4, "sft.per_device_batch": 2, "sft.save_steps": 2,
        "grpo.rollout_prompts": 4, "grpo.train_batch": 8,  # two optimizer steps a sampling round
        "grpo.per_device_batch": 4, "grpo.max_completion_tokens": 8, "grpo.save_rounds": 1,
        "grpo.dead_rounds": 9, "grpo.kl_horizon": 100, "grpo.kl_target": 1e-9,
    })  # fmt: skip


QUICK = ("grpo", "lora")  # the others are marked slow


@pytest.mark.parametrize(("method", "mode"), [
    pytest.param(*case, marks=() if case == QUICK else pytest.mark.slow)
    for case in product(("sft", "grpo"), ("full", "lora", "4bit"))
])  # fmt: skip
def test_four_steps_equal_two_and_two(method, mode, tiny_model, micro_data, tmp_path):
    cfg = short(tiny_model, method, mode)
    log = run(method, cfg, micro_data, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-4")
    (tmp_path / "resumed" / WEIGHTS[mode]).unlink()
    again = run(method, cfg, micro_data, tmp_path / "resumed")
    one, two = (
        load_file(tmp_path / name / WEIGHTS[mode]) for name in ("whole", "resumed")
    )
    assert one.keys() == two.keys() and all((one[k] == two[k]).all() for k in one)
    timeless = ("step_time", "epoch", "num_tokens")
    assert [strip(row, timeless) for row in again] == [strip(row, timeless) for row in log]
    assert [row["step"] for row in again] == [1, 2, 3, 4]
    kept = list(csv.DictReader((tmp_path / "resumed" / "training_log.csv").open(encoding="utf-8")))
    assert len(kept) == 4
    if method == "grpo":
        rows = [
            [strip(row, "model") for row in traces.load(tmp_path / name / "traces")]
            for name in ("whole", "resumed")  # rollouts bear the name of their folder
        ]
        assert rows[0] == rows[1] and len(rows[0]) == 2 * cfg.grpo.rollouts
        betas = [row["beta"] for row in log]
        assert betas[0] == betas[1] != betas[2] == betas[3]  # the controller moves once a round
        state = json.loads((tmp_path / "whole" / "checkpoint-4" / checkpoints.STATE).read_text(
            encoding="utf-8"))
        del state[checkpoints.FILES]
        assert state == {"beta": betas[3], "round_kl": [row["kl"] for row in log[2:]], "silent": 2}


def strip(row, names):
    return {k: v for k, v in row.items() if not k.startswith(names)}


def write(out, step):
    """Write what counts as a whole checkpoint."""
    folder = out / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x")
    (folder / "trainer_state.json").write_text("{}", encoding="utf-8")
    (folder / "optimizer.pt").write_bytes(b"o")
    state = {checkpoints.FILES: checkpoints.sizes(folder)}
    (folder / checkpoints.STATE).write_text(json.dumps(state), encoding="utf-8")
    return folder


def test_a_half_written_checkpoint_is_passed_over(tmp_path, capsys):
    assert checkpoints.latest(tmp_path) is None
    two, four, ten = (write(tmp_path, step) for step in (2, 4, 10))
    assert checkpoints.latest(tmp_path) == ten  # 10 comes after 4
    (ten / "trainer_state.json").write_text('{"step": 1', encoding="utf-8")
    (four / "model.safetensors").unlink()
    (tmp_path / "checkpoint-old").mkdir()
    assert checkpoints.latest(tmp_path) == two
    said = capsys.readouterr().out
    assert "checkpoint-10" in said and "trainer_state.json" in said
    assert "checkpoint-4: not whole, model.safetensors missing" in said


def test_what_no_run_of_this_release_left_is_not_replaced(tiny_model, micro_data, tmp_path, capsys):
    cfg, made = settings(tiny_model), micro_data[1]
    old = write(tmp_path / "old", 2)
    (old / checkpoints.STATE).write_text("{}", encoding="utf-8")  # before files were listed
    (tmp_path / "theirs" / "checkpoint-7").mkdir(parents=True)
    for name in ("old", "theirs"):
        with pytest.raises(VlaaError, match="none of its checkpoints .* delete them"):
            checkpoints.begin(cfg, "sft", made, tmp_path / name)
    assert "checkpoint-2: not whole, vlaa_state.json lists no files" in capsys.readouterr().out
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(VlaaError, match="a model that was not trained there"):
        checkpoints.begin(cfg, "sft", made, tmp_path / "model")


def test_a_folder_of_other_settings_is_refused(tiny_model, micro_data, tmp_path):
    one, other = (settings(tiny_model, **{"sft.max_steps": steps}) for steps in (4, 5))
    made = micro_data[1]
    for cfg in (other, one):  # without a checkpoint nothing is lost
        assert checkpoints.begin(cfg, "sft", made, tmp_path) is None
    last = write(tmp_path, 2)
    with pytest.raises(VlaaError, match=r"other settings \(.*sft.max_steps 4 instead of 5"):
        checkpoints.begin(other, "sft", made, tmp_path)
    with pytest.raises(VlaaError, match="records .* instead of"):
        checkpoints.begin(one, "sft", made[1:], tmp_path)
    assert checkpoints.begin(one, "sft", made, tmp_path) == str(last)


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(
    tiny_model, micro_data, tmp_path, monkeypatch
):
    cfg = short(tiny_model, "sft", "lora")
    written = SupervisedTrainer._save_optimizer_and_scheduler

    def full(self, folder):
        written(self, folder)
        if self.state.global_step == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(SupervisedTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(Halted, match="(?s)step 4.*No space.*checkpoint-2"):
        run("sft", cfg, micro_data, tmp_path)
    assert checkpoints.latest(tmp_path).name == "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()
    monkeypatch.undo()
    assert len(run("sft", cfg, micro_data, tmp_path)) == 4
    assert checkpoints.latest(tmp_path).name == "checkpoint-4"
    assert not (tmp_path / checkpoints.STAGING).exists()


@pytest.fixture(scope="module")
def trained(tiny_model, micro_data, tmp_path_factory):
    """A run with a checkpoint after 2 and after 4 steps."""
    out = tmp_path_factory.mktemp("trained") / "sft"
    run("sft", short(tiny_model, "sft", "lora"), micro_data, out)
    return out


PARTS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors",
         "adapter_config.json", "trainer_state.json", checkpoints.STATE)  # fmt: skip


@pytest.mark.parametrize("how", ["gone", "empty", "cut"])
@pytest.mark.parametrize("name", PARTS)
def test_a_checkpoint_without_a_part_is_not_whole(name, how, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "out")
    assert checkpoints.latest(tmp_path / "out").name == "checkpoint-4"
    path = tmp_path / "out" / "checkpoint-4" / name
    if how == "gone":
        path.unlink()
    else:
        os.truncate(path, 0 if how == "empty" else path.stat().st_size // 2)
    assert checkpoints.latest(tmp_path / "out").name == "checkpoint-2"
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_is_refused(name, trained, tiny_model, micro_data, tmp_path):
    out, marker = tmp_path / "out", tmp_path / "marker"
    shutil.copytree(trained, out)
    shutil.rmtree(out / "checkpoint-4")
    (out / "checkpoint-2" / name).write_bytes(pickle.dumps(Payload(marker)))
    listed(out / "checkpoint-2")
    cfg = short(tiny_model, "sft", "lora")
    with pytest.raises(VlaaError, match="checkpoint-2: does not load .*; delete it"):
        run("sft", cfg, micro_data, out)
    assert not marker.exists()


def listed(checkpoint):
    """List a changed checkpoint's files anew, as if it had been written so."""
    state = json.loads((checkpoint / checkpoints.STATE).read_text(encoding="utf-8"))
    state[checkpoints.FILES] = checkpoints.sizes(checkpoint)
    (checkpoint / checkpoints.STATE).write_text(json.dumps(state), encoding="utf-8")


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_checkpoint_of_other_names_is_refused(mode, tiny_model, micro_data, tmp_path):
    cfg, out = short(tiny_model, "sft", mode), tmp_path / "out"
    run("sft", cfg, micro_data, out)
    path = out / "checkpoint-4" / WEIGHTS[mode]
    weights = load_file(path)
    key = next(key for key in weights if "down_proj" in key)
    weights[key.replace("layers.", "blocks.")] = weights.pop(key)
    save_file(weights, path, {"format": "pt"})
    listed(out / "checkpoint-4")
    with pytest.raises(VlaaError, match="checkpoint-4: its weights .* 1 missing .* 1 unexpected"):
        run("sft", cfg, micro_data, out)


def test_a_disk_that_is_full_at_the_last_save_is_named(
    tiny_model, micro_data, tmp_path, monkeypatch
):
    def full(self, folder, **_):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    cfg = short(tiny_model, "sft", "lora")
    run("sft", cfg, micro_data, tmp_path)
    before = (tmp_path / WEIGHTS["lora"]).read_bytes()
    written = SupervisedTrainer.save_model
    monkeypatch.setattr(SupervisedTrainer, "save_model", lambda self, folder, **_: (
        Path(folder).mkdir(parents=True), full(self, folder)))  # fmt: skip
    with pytest.raises(Halted, match="trained model could not .*No space.*from checkpoint-4"):
        run("sft", cfg, micro_data, tmp_path)
    assert (tmp_path / WEIGHTS["lora"]).read_bytes() == before
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.setattr(SupervisedTrainer, "save_model", written)
    assert len(run("sft", cfg, micro_data, tmp_path)) == 4  # no step more, and the same weights
    assert (tmp_path / WEIGHTS["lora"]).read_bytes() == before
    assert not (tmp_path / checkpoints.STAGING).exists()


HOLDS = """
from vlaa_lib import folders
with folders.lock({out!r}):
    print("held", flush=True)
    input()
"""


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_two_trainings_in_one_folder_are_refused(method, tiny_model, micro_data, tmp_path, capsys):
    out = tmp_path / "out"
    other = subprocess.Popen([sys.executable, "-c", HOLDS.format(out=str(out))], text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(VlaaError, match=f"{out} is in use by another process"):
            run(method, short(tiny_model, method, "lora"), micro_data, out)
        with pytest.raises(VlaaError, match="in use"):
            launch.words_of(short(tiny_model, method, "lora"), method, "r", "i", out)
    finally:
        other.kill()
        other.wait()
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_adaptive_kl_follows_openrlhf():
    controller = AdaptiveKL(1e-3, 5e-4, 10_000)
    assert controller.update(1.0, 2048) == pytest.approx(1e-3 * (1 + 0.2 * 0.2048))  # clipped
    assert controller.update(5e-4, 2048) == controller.beta  # on target: no change
    before = controller.beta
    assert controller.update(4.5e-4, 1000) == pytest.approx(before * (1 - 0.1 * 0.1))
    for _ in range(49):
        controller.update(0.0, 2048)
    assert 1.2e-4 < controller.beta < 1.4e-4  # the whole of the paper's run: never below this


def test_a_dead_reward_stops_with_the_doctors_report(tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    # an untrained model never meets the format
    cfg = settings(tiny_model, **{"grpo.mode": "lora", "grpo.max_steps": 9, "grpo.dead_rounds": 2,
                                  "grpo.max_completion_tokens": 8})
    with pytest.raises(Halted, match="(?s)2 sampling.*every reward is 0.*hit_rate"):
        train.grpo(cfg, made, folder / "images", tmp_path)


DIES_WHILE_WRITING = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from test_resume import run, short
from vlaa_lib import records
from vlaa_lib.train.trainer import SupervisedTrainer

written = SupervisedTrainer._save_optimizer_and_scheduler

def slow(self, folder):
    written(self, folder)
    if self.state.global_step == 4:
        print("WRITING", flush=True)
        time.sleep(600)

SupervisedTrainer._save_optimizer_and_scheduler = slow
folder = Path({folder!r})
made = records.load(folder / "records.jsonl", folder / "images").records
run("sft", short({model!r}, "sft", "lora"), (folder, made), {out!r})
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_checkpoint_loses_only_that_one(tiny_model, tmp_path):
    folder, out = tmp_path / "micro", tmp_path / "out"
    made = microworld.write_split(folder, list(microworld.SOURCES), "dev", 2)
    script = DIES_WHILE_WRITING.format(
        paths=[str(ROOT), str(ROOT / "tests")], folder=str(folder), model=str(tiny_model),
        out=str(out),
    )  # fmt: skip
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert any("WRITING" in line for line in child.stdout), "it ended before the checkpoint"
    finally:
        child.kill()
        child.wait()
    assert list((out / checkpoints.STAGING / "checkpoint-4").glob("adapter_model*"))
    assert checkpoints.latest(out).name == "checkpoint-2"
    cfg = short(tiny_model, "sft", "lora")
    log = run("sft", cfg, (folder, made), out)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert checkpoints.latest(out).name == "checkpoint-4"
    whole = run("sft", cfg, (folder, made), tmp_path / "whole")
    assert [row["loss"] for row in log] == [row["loss"] for row in whole]
