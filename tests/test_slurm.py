"""data/slurm/grpo.sbatch on two nodes: a killed worker ends the job, the same file goes on."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

import slurm_cluster
from vlaa_lib import ROOT
from vlaa_lib.train import checkpoints, launch

STEPS = 6
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
# the paper's size for a machine without GPUs; all else is the file as it stands
CHANGES = (
    ("#SBATCH --gpus-per-node=8\n", ""),
    ("--cpus-per-task=64", "--cpus-per-task=1"),
    ("--output=runs/slurm-%j.log", "--output={work}/slurm-%j.log"),
    ("source .venv/bin/activate", "export PATH={bin}:$PATH PYTHONPATH={root} OMP_NUM_THREADS=1"),
    ("--profile paper", "--profile smoke"),
    ("--records data/vlaa_thinking/VLAA-Thinking-GRPO-25K.json --images data/vlaa_thinking/images",
     "--records {data}/records.jsonl --images {data}/images"),
    ("--out runs/grpo", "--out {work}/grpo"),
    ("--launch fsdp2 --gpus 8", "--launch cpu2 --gpus 1 --set {settings}"),
)  # fmt: skip


@pytest.fixture
def job(tiny_model, micro_data, tmp_path) -> Path:
    settings = [
        f"model.policy={tiny_model}", f"grpo.max_steps={STEPS}", "grpo.save_rounds=1",
        "grpo.per_device_batch=8", "grpo.max_completion_tokens=8", "grpo.dead_rounds=99",
    ]  # fmt: skip
    given = {"work": tmp_path, "bin": Path(sys.executable).parent, "root": ROOT,
             "data": micro_data[0], "settings": " ".join(settings)}  # fmt: skip
    text = (ROOT / "data/slurm/grpo.sbatch").read_text(encoding="utf-8")
    for old, new in CHANGES:
        assert text.count(old) == 1, f"data/slurm/grpo.sbatch has no {old!r} any more"
        text = text.replace(old, new.format(**given))
    (tmp_path / "grpo.sbatch").write_text(text, encoding="utf-8")
    return tmp_path / "grpo.sbatch"


@pytest.mark.distributed
def test_a_killed_worker_ends_the_job_and_the_same_file_goes_on(job, tmp_path):
    if lacking := slurm_cluster.missing():
        pytest.skip(f"NOT TESTED, Slurm: {lacking}")
    (tmp_path / "slurm").mkdir()
    out, deadline = tmp_path / "grpo", time.monotonic() + 540

    def wait(slurm, number, until) -> str:
        while not until():
            state = slurm.state(number)
            if state in ENDED or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        return slurm.state(number)

    def log(number) -> str:
        return (tmp_path / f"slurm-{number}.log").read_text(encoding="utf-8", errors="replace")

    with slurm_cluster.cluster(tmp_path / "slurm") as slurm:
        first = slurm.run("sbatch", "--parsable", f"--chdir={ROOT}", job)
        state = wait(slurm, first, lambda: checkpoints.step_of(checkpoints.latest(out)) >= 2)
        assert state == "RUNNING", log(first) + slurm.logs()
        workers = slurm.processes("SLURM_NODEID=1", "RANK=1")
        os.kill(workers[0], signal.SIGKILL)
        killed = time.monotonic()
        assert wait(slurm, first, lambda: False) == "FAILED", log(first)
        assert time.monotonic() - killed < 60
        while slurm.processes(f"SLURM_JOB_ID={first}") and time.monotonic() - killed < 60:
            time.sleep(0.2)
        assert not slurm.processes(f"SLURM_JOB_ID={first}")
        held = checkpoints.step_of(checkpoints.latest(out))
        assert 2 <= held < STEPS, "killed too late to show anything"
        before = (out / "launch.log").stat().st_size
        second = slurm.run("sbatch", "--parsable", f"--chdir={ROOT}", job)
        assert wait(slurm, second, lambda: False) == "COMPLETED", log(second) + slurm.logs()
    heard = map(launch.read_event, (out / "launch.log").read_bytes()[before:].decode().splitlines())
    steps = [event["step"] for event in heard if event and event["event"] == "step"]
    assert steps[0] in range(held, STEPS) and steps[-1] == STEPS  # not from the start
    kept = sorted(path.name for path in out.glob("checkpoint*"))
    assert kept == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]

