"""Launching: the right command, a child that never outlives its parent, errors with a name."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from commands import parsed
from vlaa_lib import ROOT, VlaaError, models, profiles
from vlaa_lib.__main__ import main
from vlaa_lib.train import launch, rank_setup
from vlaa_lib.train.grpo import sampler_args

WORDS = ["-m", "vlaa_lib", "train", "grpo"]
# children import the launcher's modules without the trainers beside them, which take seconds
LIGHT = """
import sys, types, vlaa_lib
train = sys.modules["vlaa_lib.train"] = types.ModuleType("vlaa_lib.train")
train.__path__ = [vlaa_lib.__path__[0] + "/train"]
"""


def as_accelerate_reads(made: list[str]):
    """Return the arguments that accelerate itself would run with, its file and ours merged."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    launcher = "accelerate.commands.launch" if "--num_machines" in made else "vlaa_lib.loopback"
    assert made[:3] == [sys.executable, "-m", launcher]
    return _validate_launch_command(launch_command_parser().parse_args(made[3:]))[0]


@pytest.mark.parametrize("path", sorted(profiles.ACCELERATE.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_file_is_read_by_accelerate_and_gives_its_command(path, capsys):
    from accelerate.commands.config import load_config_from_file

    stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = load_config_from_file(str(path))
    assert config.distributed_type == stated["distributed_type"]
    assert config.num_processes == stated["num_processes"]
    assert f"--launch {path.stem}" in path.read_text(encoding="utf-8")
    assert main(["train", "--help"]) == 0
    assert path.stem in re.findall(r"\w+", capsys.readouterr().out)


@pytest.mark.parametrize("config", ["fsdp2", "zero2", "zero3", "ddp"])
def test_one_machine(config, monkeypatch):
    monkeypatch.setattr("accelerate.commands.launch.is_deepspeed_available", lambda: True)
    args = as_accelerate_reads(launch.command(config, WORDS, gpus=4))
    assert (args.num_processes, args.num_machines, args.machine_rank) == (4, 1, 0)
    assert args.module and args.training_script == "vlaa_lib"
    assert args.training_script_args == ["train", "grpo"]
    assert args.use_fsdp == (config == "fsdp2")
    assert args.use_deepspeed == config.startswith("zero")
    assert args.mixed_precision == "bf16" and not args.use_cpu


def test_two_machines():
    made = [
        launch.command("fsdp2", WORDS, 8, machines=2, machine_rank=r, main_ip="10.1.2.3")
        for r in (0, 1)
    ]
    for rank, args in enumerate(map(as_accelerate_reads, made)):
        assert args.num_processes == 16  # of both machines
        assert (args.num_machines, args.machine_rank) == (2, rank)
        assert (args.main_process_ip, args.main_process_port) == ("10.1.2.3", 29500)
    differs = [pair for pair in zip(*made, strict=True) if len(set(pair)) > 1]
    assert differs == [("0", "1")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "fsdp3"}, "use one of cpu2, ddp, fsdp2"),
        ({"config": "../fsdp2"}, "use one of"),
        ({"gpus": 0}, "at least one GPU"),
        ({"machines": 2}, "--main-ip"),
        ({"machines": 2, "machine_rank": 2, "main_ip": "a"}, "ranks from 0"),
        ({"config": "gpu1", "gpus": 2}, "gpu1 is one process"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        launch.command(**{"config": "fsdp2", "words": WORDS, **options})


def train_words(tmp_path, *more) -> list[str]:
    return ["train", "grpo", "--records", "r.jsonl", "--images", "i", "--out", str(tmp_path), *more]


def test_print_shows_the_command_and_keeps_the_settings(tmp_path, capsys):
    own = ["--launch", "fsdp2", "--gpus", "2", "--print"]
    words = train_words(tmp_path, "--steps", "2", "--set", "grpo.beta=0.1", "seed=1")
    assert main([*words, *own]) == main([*words[:2], *own, *words[2:]]) == 0
    first, second = map(shlex.split, capsys.readouterr().out.splitlines())
    assert first == second
    settings = tmp_path / launch.SETTINGS
    assert first[-2:] == ["--profile", str(settings)]
    assert {path.name for path in tmp_path.iterdir()} == {".lock", settings.name}
    args = as_accelerate_reads(first)
    assert args.num_processes == 2 and args.training_script_args[:2] == ["train", "grpo"]
    cfg = profiles.load(str(settings))
    assert (cfg.profile, cfg.seed, cfg.grpo.beta, cfg.grpo.max_steps) == ("laptop", 1, 0.1, 2)


def test_packed_weights_are_not_sharded(tmp_path, capsys):
    words = train_words(tmp_path, "--set", "grpo.mode=4bit", "--print", "--launch")
    assert main([*words, "zero3"]) == 2
    assert "use ddp, gpu1 or cpu2" in capsys.readouterr().err
    assert main([*words, "ddp"]) == 0
    cfg = profiles.load("paper", **{"sft.mode": "4bit"})
    with pytest.raises(ValueError, match="--launch fsdp2: packed 4-bit"):
        launch.train(cfg, "sft", "r.jsonl", "images", tmp_path)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_settings_reach_the_processes_as_one_file(method, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(launch, "run", lambda *given: ran.append(given))
    changes = {"launch": "ddp", "gpus": 3, "seed": 5, "grpo.learning_rate": 7e-6}
    cfg = profiles.load("single", **changes, **{"model.policy": "a b/c", "grpo.parts": ["mcq"]})
    places = [tmp_path / "rl records.jsonl", tmp_path / "images", tmp_path / "out"]
    launch.train(cfg, method, *places, start="runs/sft")
    ((made, log),) = ran
    assert log == tmp_path / "out" / "launch.log"
    seen = as_accelerate_reads(made)
    assert seen.num_processes == 3 and seen.training_script == "vlaa_lib"
    args = parsed(seen.training_script_args)
    assert [args.method, args.start, args.launch] == [method, "runs/sft", None]
    assert [args.records, args.images, args.out] == [str(place) for place in places]
    assert profiles.load(args.profile) == cfg and not args.changes


def python(tmp_path, code: str) -> list[str]:
    (tmp_path / "child.py").write_text(LIGHT + code, encoding="utf-8")
    return [sys.executable, str(tmp_path / "child.py")]


def test_events_move_the_bar_and_all_output_reaches_the_log(tmp_path, capsys):
    command = python(
        tmp_path,
        "from vlaa_lib.train import rank_setup\n"
        "sys.stderr.write('50%|# |\\r'); sys.stderr.flush()\n"
        "rank_setup.emit('step', step=1, of=2, loss=0.5)\n"
        "print('{\"event\": half'); print('no newline at the end', end='')\n",
    )
    launch.run(command, tmp_path / "out" / "launch.log")
    launch.run(command, tmp_path / "out" / "launch.log")
    assert re.search(r"out: +50%.* 1/2 .*loss=0.5", capsys.readouterr().err)
    log = (tmp_path / "out" / "launch.log").read_text(encoding="utf-8")
    assert log.count("no newline at the end") == log.count('{"event": half') == 2
    assert log.startswith("$ ")


def test_no_events_unless_asked_for(capsys, monkeypatch):
    monkeypatch.delenv(rank_setup.EVENTS, raising=False)
    rank_setup.emit("step", step=1)
    assert capsys.readouterr().out == ""


def test_a_failure_carries_exit_code_reason_and_last_lines(tmp_path):
    command = python(tmp_path, "print('warming up')\nraise KeyError('no such column')")
    with pytest.raises(launch.LaunchError, match="(?s)exit code 1; .*warming up.*no such column.*"
                       f"whole log: {tmp_path / 'launch.log'}"):  # fmt: skip
        launch.run(command, tmp_path / "launch.log")


def test_the_root_cause_is_the_process_that_torch_names(tmp_path):
    """Rank 1 fails on its data, then rank 0 loses its connection and says so first."""
    command = python(
        tmp_path,
        "from vlaa_lib.train import rank_setup\n"
        "for rank, kind in ((0, 'RuntimeError'), (1, 'ImageError')):\n"
        "    told = {'type': kind, 'message': 'm', 'traceback': f'trace {kind}'}\n"
        "    rank_setup.emit('error', rank=rank, **told)\n"
        "print('E1 torch/distributed/elastic/multiprocessing/api.py:9] failed (exitcode: 1)')\n"
        "for rank in (0, 1):\n"
        "    print(f'  rank      : {rank} (local_rank: {rank})\\n  exitcode  : 1 (pid: 5)')\n"
        "sys.exit(1)\n",
    )
    with pytest.raises(launch.LaunchError, match="process 1: ImageError: m\ntrace ImageError\n"):
        launch.run(command, tmp_path / "launch.log")


# a launcher and, in a session of its own as torch starts it, a worker; both tell their numbers
FAMILY = """
import subprocess, time
worker = '''LIGHT
import os, time
from vlaa_lib.train import rank_setup
rank_setup.die_with_launcher()
print("pids", os.getppid(), os.getpid(), flush=True)
time.sleep(600)
'''
subprocess.Popen([sys.executable, "-c", worker], start_new_session=True)
time.sleep(600)
""".replace("LIGHT", LIGHT)


def wait_for(found, timeout_s: float = 120):
    end = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return value


def family(log: Path) -> list[int]:
    found = re.search(r"pids (\d+) (\d+)", log.read_text(
        encoding="utf-8")) if log.is_file() else None
    return [int(number) for number in found.groups()] if found else []


def gone(pids: list[int]) -> bool:
    def lives(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return not any(map(lives, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_orphans_when_the_parent_ends(tmp_path, number):
    log = tmp_path / "launch.log"
    python(tmp_path, FAMILY)
    code = (
        LIGHT + "from vlaa_lib.train import launch\n"
        f"launch.run([sys.executable, {str(tmp_path / 'child.py')!r}], {str(log)!r})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    pids = wait_for(lambda: family(log))
    assert not gone(pids)
    parent.send_signal(number)
    assert parent.wait(60) != 0
    wait_for(lambda: gone(pids))


def test_an_exception_in_the_parent_ends_the_child(tmp_path, monkeypatch):
    log, read = tmp_path / "launch.log", launch.read_event

    def stop(line: str) -> None:
        if line.startswith("pids"):
            raise KeyboardInterrupt
        return read(line)

    monkeypatch.setattr(launch, "read_event", stop)
    with pytest.raises(KeyboardInterrupt):
        launch.run(python(tmp_path, FAMILY), log)
    pids = family(log)
    assert pids
    wait_for(lambda: gone(pids))


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_leash_without_a_holder_ends_at_once():
    command = [sys.executable, "-I", rank_setup.__file__, str(os.getpid() + 10**6), "true"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "is gone" in done.stderr


LISTENS = """
import json, os, sys, psutil, torch
import torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
if dist.get_rank() == 0:
    family = psutil.Process(os.getppid()).children(recursive=True) + [psutil.Process(os.getppid())]
    found = {c.laddr.ip for p in family for c in p.net_connections() if c.status == "LISTEN"}
    open(sys.argv[1], "w").write(json.dumps(sorted(found)))
dist.barrier()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="psutil needs rights elsewhere")
@pytest.mark.parametrize("port", [0, "taken"])
def test_on_one_machine_nothing_listens_beyond_it(port, tmp_path):
    script, found = tmp_path / "listens.py", tmp_path / "found.json"
    script.write_text(LISTENS, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if port == "taken" else port
        command = launch.command("cpu2", [str(script), str(found)], gpus=2, main_port=port)
        launch.run(command, tmp_path / "launch.log")
    assert json.loads(found.read_text(encoding="utf-8")) == ["127.0.0.1"]


# who samples


@pytest.fixture
def policy(tiny_model):
    return models.Policy(None, models.load_processor(tiny_model), str(tiny_model))


def config(args: dict):
    from trl import GRPOConfig

    return GRPOConfig(output_dir="unused", bf16=False, use_cpu=True, report_to="none", **args)


def test_transformers_never_samples_an_image_or_a_video(policy):
    args = sampler_args(profiles.load("laptop"), policy)
    made = config(args)
    tokens = ["<|image_pad|>", "<|video_pad|>"]
    banned = policy.processor.tokenizer.convert_tokens_to_ids(tokens)
    assert made.generation_kwargs == {"suppress_tokens": banned} and not made.use_vllm
    assert (made.temperature, made.top_k, made.max_completion_length) == (0.8, 0, 176)


@pytest.mark.parametrize("kind", ["colocate", "server"])
def test_vllm_is_asked_for_in_trls_words(kind, policy, monkeypatch):
    monkeypatch.setitem(sampler_args.__globals__, "find_spec", lambda name: name)
    url = "http://node7:8001"
    cfg = profiles.load("paper", **{"grpo.sampler": f"vllm-{kind}", "grpo.sampler_url": url})
    made = config(sampler_args(cfg, policy))
    assert made.use_vllm and made.vllm_mode == kind
    tokens = ["<|image_pad|>", "<|video_pad|>"]
    banned = policy.processor.tokenizer.convert_tokens_to_ids(tokens)
    assert made.generation_kwargs == {"logit_bias": dict.fromkeys(banned, -100.0)}
    assert made.vllm_server_base_url == (url if kind == "server" else None)
    if kind == "colocate":
        assert made.vllm_max_model_length == 1024 + 800
        assert not made.vllm_enable_sleep_mode  # a CPU's vLLM refuses it
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        assert sampler_args(cfg, policy)["vllm_enable_sleep_mode"]
        awake = profiles.load("paper", **{"grpo.sampler_sleep": False})
        assert not sampler_args(awake, policy)["vllm_enable_sleep_mode"]


def test_vllm_where_it_cannot_work_is_refused(policy, monkeypatch):
    monkeypatch.setitem(sampler_args.__globals__, "find_spec", lambda name: None)
    with pytest.raises(VlaaError, match="not installed; pip install"):
        sampler_args(profiles.load("paper"), policy)
    with pytest.raises(VlaaError, match="grpo.sampler: .*4-bit.*rounds it away"):
        profiles.load("paper", **{"grpo.mode": "4bit"})


def test_the_slurm_example_is_a_valid_script_with_a_valid_command():
    path = ROOT / "data" / "slurm" / "grpo.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    words = shlex.split(next(line for line in text.splitlines() if "-m vlaa_lib" in line))
    words = words[words.index("vlaa_lib") + 1 :]
    stand_ins = {"$SLURM_NNODES": "2", "$SLURM_NODEID": "1"}
    args = parsed([stand_ins.get(word, word) for word in words])
    assert args.launch == "fsdp2" and (args.machines, args.machine_rank) == (2, 1)
