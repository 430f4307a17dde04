"""Two processes over gloo train as one does: DDP, FSDP2, and ZeRO where deepspeed is installed.

Each backend is launched once, by the launcher that users have, for SFT and GRPO together. And the
recipes of every profile: their real TRL settings, and two steps of the larger ones.
"""

import csv
import importlib.util
import math
import socket
import subprocess
import sys
import time
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

import launched
from vlaa_lib import ROOT, models, profiles, prompts, records, traces
from vlaa_lib.__main__ import main
from vlaa_lib.pocket.microworld import narrator
from vlaa_lib.train import checkpoints, launch
from vlaa_lib.train.grpo import grpo_config
from vlaa_lib.train.sft import sft_config, supervised_args

# deepspeed is an extra that requirements.txt leaves out: data/TRAINING.md says what was run
ZERO = ["zero2", "zero3"] if importlib.util.find_spec("deepspeed") else []
FSDP2 = str(ROOT / "tests" / "data" / "cpu2_fsdp2.yaml")
KINDS = {"cpu2": "MULTI_CPU", FSDP2: "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
COMPARED = {
    "sft": ("loss", "grad_norm"),
    "grpo": ("loss", "grad_norm", "kl", "reward"),
    "off": ("grad_norm", "reward"),  # on-policy and without KL the loss is 0, its gradient is not
}
# float32 sums in another order, three steps long
TOLERANCE = {"rel": 1e-3, "abs": 2e-5}


@pytest.fixture(scope="module")
def data(micro_data, tmp_path_factory) -> Path:
    """Sixteen records with traces: one global batch of SFT."""
    folder, made = micro_data
    target = tmp_path_factory.mktemp("records")
    plain = [narrator.plain_trace(r.meta["scene"], r.question) for r in made[:16]]
    traced = [
        replace(r, answer=prompts.join_think_answer(*p)) for r, p in zip(made, plain, strict=False)
    ]
    records.write(traced, target / "records.jsonl")
    (target / "images").symlink_to(folder / "images")
    return target


@pytest.fixture(scope="module")
def alone(tiny_model, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    launched.both(str(tiny_model), data, out)
    return out


def log_of(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "training_log.csv").open(encoding="utf-8")))


SHARDED = [pytest.param(name, marks=pytest.mark.distributed) for name in (FSDP2, *ZERO)]


@pytest.mark.parametrize("config", ["cpu2", *SHARDED])
def test_two_processes_train_as_one(config, tiny_model, data, alone, tmp_path):
    words = [launched.__file__, str(tiny_model), str(data), str(tmp_path)]
    command = launch.command(config, words, gpus=2, main_port=0)
    command[3:3] = ["--mixed_precision", "no"]  # to compare in float32
    launch.run(command, tmp_path / "launch.log")
    lines = (tmp_path / "launch.log").read_text(errors="replace", encoding="utf-8").splitlines()
    heard = [event for event in map(launch.read_event, lines) if event]
    kinds = [event["name"] for event in heard if event["event"] == "kind"]
    assert kinds == [KINDS[config]] * 2
    for method, keys in COMPARED.items():
        one, two = log_of(alone / method), log_of(tmp_path / method)
        assert len(one) == len(two) == launched.STEPS
        if method == "off":  # a group of four without advantages: only one process can have it
            assert any(float(row["frac_reward_zero_std"]) == 0.25 for row in one)
        for key in keys:
            wanted, seen = ([float(row[key]) for row in log] for log in (one, two))
            assert seen == pytest.approx(wanted, **TOLERANCE), (method, key)
            assert any(seen), f"{method}: {key} is 0 throughout, and the comparison is empty"
        # through the loader: after GRPO with ZeRO-3 the file's names carry one `model.` more
        old, new = (
            models.load_policy(at / method, dtype="float32").model.state_dict()
            for at in (alone, tmp_path)
        )
        # AdamW moves a weight by up to 5e-4 a step however small its gradient: where that is all
        # rounding, so is the direction
        assert not [k for k in old if not torch.allclose(old[k], new[k], atol=1e-4)]
    # one process alone tells of its progress, from the first step to the last of each method
    steps = [event["step"] for event in heard if event["event"] == "step"]
    assert [step for step, _ in groupby(steps)] == [0, 1, 2, 3] * len(COMPARED)


@pytest.mark.distributed
def test_a_killed_worker_is_a_named_error_and_no_hang(tmp_path):
    """Process 1 is killed while process 0 waits for it in a collective."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal, sys, torch.distributed as dist\n"
        f"sys.path.append({str(Path(launch.__file__).parent)!r})\n"
        "import rank_setup\n"  # by itself: the trainers beside it take seconds to import
        "rank_setup.die_with_launcher()\n"
        "dist.init_process_group('gloo')\n"
        "if dist.get_rank() == 1:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "dist.barrier()\n"
    , encoding="utf-8")
    command = launch.command("cpu2", [str(script)])
    with pytest.raises(launch.LaunchError, match="code 1; process 1 was killed by SIGKILL"):
        launch.run(command, tmp_path / "launch.log")
    assert "SIGKILL" in (tmp_path / "launch.log").read_text(encoding="utf-8")
    assert sys.executable in (tmp_path / "launch.log").read_text(encoding="utf-8")


@pytest.mark.distributed
def test_two_machines_killed_after_a_checkpoint_go_on_from_it(tiny_model, data, tmp_path):
    """Two launchers on loopback and one folder, as with Slurm; the second start finds the first."""
    words = [sys.executable, "-m", "vlaa_lib", "train", "sft", *source(data), "--profile", "smoke"]
    words += ["--out", str(tmp_path / "out"), "--launch", "cpu2", "--gpus", "1", "--machines", "2"]
    changes = ["--set", f"model.policy={tiny_model}", "sft.max_steps=6", "sft.save_steps=1"]
    changes += ["sft.global_batch=4", "sft.per_device_batch=2"]

    def start() -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = ["--main-ip", "127.0.0.1", "--main-port", str(port), "--machine-rank"]
        return [subprocess.Popen([*words, *place, str(rank), *changes], cwd=ROOT,
                                 stdout=subprocess.DEVNULL) for rank in (0, 1)]  # fmt: skip

    def end(machines: list[subprocess.Popen]) -> None:
        for machine in machines:
            machine.kill()  # all that it started dies with it
            machine.wait()

    machines, deadline = start(), time.monotonic() + 500  # loaded machines take minutes to start
    try:
        while checkpoints.step_of(checkpoints.latest(tmp_path / "out")) < 2:
            assert all(machine.poll() is None for machine in machines), "ended before a checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        end(machines)
    held = checkpoints.step_of(checkpoints.latest(tmp_path / "out"))
    assert 2 <= held < 6, "killed too late to show anything"
    log = tmp_path / "out" / "launch.log"
    before = log.stat().st_size
    machines = start()
    try:
        assert [machine.wait(500) for machine in machines] == [0, 0]
    finally:
        end(machines)
    heard = map(launch.read_event, log.read_bytes()[before:].decode().splitlines())
    steps = [event["step"] for event in heard if event and event["event"] == "step"]
    assert steps[0] in range(held, 6) and steps[-1] == 6  # not from the start
    assert [row["step"] for row in log_of(tmp_path / "out")] == list("123456")
    kept = sorted(path.name for path in (tmp_path / "out").glob("checkpoint*"))
    assert kept == ["checkpoint-5", "checkpoint-6"]  # and nothing half-written


# --- the recipes of every profile ----------------------------------------------------------------

ON_CPU = {"grpo.sampler": "transformers"}  # vLLM needs a GPU


def source(data: Path) -> list[str]:
    return ["--records", str(data / "records.jsonl"), "--images", str(data / "images")]


@pytest.mark.parametrize("world", [1, 2, 8])
@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_is_a_valid_trl_config_or_names_valid_neighbours(
    name, world, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: world))
    for config in (grpo_config, supervised_args):
        monkeypatch.setitem(config.__globals__, "num_processes", lambda: world)
    cfg, policy = profiles.load(name, **ON_CPU), models.load_policy(tiny_model)
    for method, make, batch in (
        ("sft", lambda c: sft_config(c, tmp_path), cfg.sft.global_batch),
        ("grpo", lambda c: grpo_config(c, tmp_path, policy), cfg.grpo.train_batch),
    ):
        try:
            args = make(cfg)
        except ValueError as error:
            assert "these work: " in str(error)
            fitting = math.gcd(batch, batch // world) if batch % world == 0 else None
            assert fitting, f"{batch} cannot be shared by {world} processes at all"
            args = make(profiles.load(name, **ON_CPU, **{f"{method}.per_device_batch": fitting}))
        seen = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
        assert seen == batch
        if method == "grpo":
            assert args.generation_batch_size == cfg.grpo.rollouts
            per_round = args.generation_batch_size * args.num_iterations // batch
            assert per_round == cfg.grpo.steps_per_round
            assert args.steps_per_generation * world * args.per_device_train_batch_size == (
                cfg.grpo.rollouts
            )


SMALL = {
    "sft": ["sft.max_steps=2", "sft.global_batch=8", "sft.per_device_batch=4"],
    "grpo": [
        *("grpo.max_steps=2", "grpo.rollout_prompts=4", "grpo.train_batch=16"),
        *("grpo.per_device_batch=8", "grpo.max_completion_tokens=8", "grpo.sampler=transformers"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "grpo"])
@pytest.mark.parametrize("name", ["paper", "single"])
def test_two_steps_for_real(name, method, tiny_model, data, tmp_path):
    words = ["train", method, *source(data), "--out", str(tmp_path), "--profile", name]
    assert main([*words, "--set", f"model.policy={tiny_model}", *SMALL[method]]) == 0
    weights = "model.safetensors" if name == "paper" else "adapter_model.safetensors"
    assert (tmp_path / weights).is_file()
    if method == "grpo":
        assert len(traces.load(tmp_path / "traces")) == 2 * 16


@pytest.mark.distributed
def test_the_paper_recipe_through_the_launcher(tiny_model, data, tmp_path):
    words = ["train", "sft", *source(data), "--out", str(tmp_path), "--profile", "paper"]
    words += ["--launch", "cpu2", "--main-port", "0"]
    assert main([*words, "--set", f"model.policy={tiny_model}", *SMALL["sft"]]) == 0
    assert (tmp_path / "model.safetensors").is_file()
    assert "vlaa_lib.loopback" in (tmp_path / "launch.log").read_text(encoding="utf-8")
