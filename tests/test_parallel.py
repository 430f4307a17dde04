"""Independent stages at once: which are started, how many, with what, and what a failure does."""

import json
import os
import sys
import time
from threading import Thread

import pytest
import torch

from vlaa_lib import profiles
from vlaa_lib.__main__ import main
from vlaa_lib.study import parallel, stages
from vlaa_lib.train import launch


def script(tmp_path, name: str, code: str) -> list[str]:
    (tmp_path / f"{name}.py").write_text("import json, os, sys, time\n" + code)
    return [sys.executable, str(tmp_path / f"{name}.py")]


def test_so_many_commands_at_a_time_and_no_more(tmp_path):
    code = (
        "start = time.time(); time.sleep(0.8)\n"
        "print(json.dumps([start, time.time(), os.environ['THREADS']]))\n"
    )
    commands = {name: script(tmp_path, name, code) for name in "abcd"}
    launch.run_at_once(commands, tmp_path / "logs", 2, {"THREADS": "7"})
    spans = []
    for name in commands:
        said = (tmp_path / "logs" / f"{name}.log").read_text().splitlines()[-1]
        start, end, threads = json.loads(said)
        spans.append((start, end))
        assert threads == "7"
    together = [sum(a <= start < b for a, b in spans) for start, _ in spans]
    assert max(together) == 2


WAITS = "open(sys.argv[0] + '.pid', 'w').write(str(os.getpid())); time.sleep({seconds})\n"


def test_a_failure_lets_the_others_end_and_starts_no_more(tmp_path, capsys):
    """What trained for an hour beside it is not lost."""
    fails = f"while not os.path.exists({str(tmp_path / 'slow.py.pid')!r}):\n    time.sleep(0.1)\n"
    fails += "raise SystemExit('no more paper')\n"
    slow = WAITS.format(seconds=2) + "print('slow is done')\n"
    codes = {"slow": slow, "fails": fails, "later": "print('later is done')\n"}
    commands = {name: script(tmp_path, name, code) for name, code in codes.items()}
    with pytest.raises(launch.LaunchError, match="no more paper"):
        launch.run_at_once(commands, tmp_path, 2, {})
    assert "slow is done" in (tmp_path / "slow.log").read_text()
    assert not (tmp_path / "later.log").exists()
    assert "fails failed; waiting for slow" in capsys.readouterr().out


def test_an_interrupt_ends_them(tmp_path, monkeypatch):
    begun = tmp_path / "waits.py.pid"

    def stop(source, child):
        for line in follow(source, child):
            if begun.is_file() and begun.read_text():
                raise KeyboardInterrupt
            yield line

    follow = launch._follow
    monkeypatch.setattr(launch, "_follow", stop)
    commands = {"waits": script(tmp_path, "waits", WAITS.format(seconds=600))}
    with pytest.raises(KeyboardInterrupt):
        launch.run_at_once(commands, tmp_path, 2, {})
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


def test_a_stage_that_two_need_is_built_by_one(tmp_path):
    built = []

    def build(path):
        time.sleep(0.5)
        built.append(path)

    both = [Thread(target=stages.once, args=(tmp_path / "base", {}, build)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert built == [tmp_path / "base"]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Let two stages build on a shared one, and catch what is started for them."""

    def named(cfg, run, name):
        base = stages.once(run / "base", {}, lambda path: (path / "made").write_text("x"))
        assert (base / "made").is_file()
        return stages.once(run / name.replace(":", "-"), {}, lambda path: None)

    calls = []
    monkeypatch.setattr(parallel, "named", named)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def run_at_once(commands, logs, at_once, env):
        calls.append((commands, logs, at_once, env))
        logs.mkdir()
        for name in commands:
            (logs / f"{name}.log").write_text(f"hello\nbuilt {name} in 1 s\n")

    monkeypatch.setattr(launch, "run_at_once", run_at_once)
    return calls


def test_what_several_build_on_is_built_first_and_here(started, tmp_path, capsys):
    cfg = profiles.load("smoke", seed=3)
    parallel.build(cfg, tmp_path, "model:a", "model:b")
    assert (tmp_path / "base" / "done.json").is_file() and not (tmp_path / "model-a").exists()
    ((commands, logs, at_once, env),) = started
    assert list(commands) == ["model-a", "model-b"] and logs == tmp_path / "logs"
    assert at_once == 2 and env == {"OMP_NUM_THREADS": "2"}
    assert capsys.readouterr().out.endswith("built model-a in 1 s\nbuilt model-b in 1 s\n")
    words = commands["model-b"][commands["model-b"].index("stage") :]
    assert words == [
        "stage", "model:b", "--run-dir", str(tmp_path), "--profile", "smoke", "--set", "seed=3",
    ]  # fmt: skip


def test_what_is_there_or_alone_starts_nothing(started, tmp_path, monkeypatch):
    cfg = profiles.load("smoke")
    parallel.named(cfg, tmp_path, "model:a")
    parallel.build(cfg, tmp_path, "model:a", "model:b")  # one is left: it is built where asked for
    parallel.build(profiles.load("smoke", launch="ddp"), tmp_path, "model:b", "model:c")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)  # one model fills it
        parallel.build(cfg, tmp_path, "model:b", "model:c")
    assert started == [], "with a GPU"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    parallel.build(cfg, tmp_path, "model:b", "model:c")
    assert started == [] and not (tmp_path / "model-b").exists()


def test_two_models_answer_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small = {"data.eval_per_source": 1, "data.bench_rows": 2, "evaluate.max_new_tokens": 8}
    cfg = profiles.load("smoke", **small)
    begin = time.time()
    parallel.build(cfg, tmp_path, "answers:base", "answers:instruct")
    for model in ("base", "instruct"):
        for place in (model, f"{model}-micro"):
            done = tmp_path / "evaluation" / place / "done.json"
            assert done.stat().st_mtime > begin
            assert stages.looking.get() is False
        assert "built" in (tmp_path / "logs" / f"answers-{model}.log").read_text()
    monkeypatch.setattr(launch, "run_at_once", None)
    parallel.build(cfg, tmp_path, "answers:base", "answers:instruct")  # nothing is left
    assert len(stages.evaluation(cfg, tmp_path, "base")) == 2 * len(cfg.data.sources)


def test_a_stage_by_its_name(tmp_path, capsys):
    assert main(["stage", "model:base", "--run-dir", str(tmp_path), "--profile", "smoke"]) == 0
    assert main(["stage", "model:gone", "--run-dir", str(tmp_path), "--profile", "smoke"]) != 0
    assert main(["stage", "soup", "--run-dir", str(tmp_path), "--profile", "smoke"]) != 0
    said = capsys.readouterr().err
    assert "unknown model 'gone'" in said and "unknown stage 'soup'; use one of model" in said
