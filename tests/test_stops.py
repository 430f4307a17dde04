"""Every long command killed at random moments, on a full disk, on one that is read-only, twice at
once: it ends in one line, loses nothing, takes no half file for a whole, and then goes on.

`VLAA_KILLS` is how often each is killed (default 2).
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

import forks
import test_sources
from test_run import note, notebook, status
from test_traces import run as finished_run
from test_train import with_traces
from vlaa_lib import ROOT, records, tables, traces

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("VLAA_KILLS", "2"))
SHORT = ("--profile smoke --set model.policy=MODEL sft.mode=lora grpo.mode=lora sft.max_steps=6 "
         "sft.save_steps=1 sft.global_batch=4 sft.per_device_batch=4 grpo.max_steps=4 "
         "grpo.rollout_prompts=4 grpo.train_batch=8 grpo.per_device_batch=4 grpo.save_rounds=1 "
         "grpo.max_completion_tokens=8 grpo.dead_rounds=9")  # fmt: skip
SOURCE = "--records RECORDS --images IMAGES --out OUT"
COMMANDS = {
    "construct": f"construct {SOURCE}",
    "sft": f"train sft {SOURCE} {SHORT}",
    "grpo": f"train grpo {SOURCE} {SHORT}",
    "evaluate": f"evaluate {SOURCE} --model MODEL --batch 4 --max-new-tokens 40",
    "pool": f"process pool {SOURCE} --model MODEL --candidates 2 --max-new-tokens 40",
    "prepare": "data prepare --root ROOT --source ArxivQA --scale 1 --out OUT",
    "curate": "traces curate --run RUN --per-source 2 --out OUT",
    "run": "run --profile smoke --run-dir OUT --notebooks FIRST SECOND",
}  # fmt: skip
TIMES = ("step_time", "epoch", "num_tokens", "train_", "seconds")


def rows_of(store):
    """Return rows of traces without what names a folder."""
    return [{k: v for k, v in row.items() if k != "model"} for row in traces.load(store)]


def log_of(out):
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)}
            for row in tables.read(out / "training_log.csv")]


def trained(out):
    weights = load_file(out / "adapter_model.safetensors")
    return {k: v.tolist() for k, v in weights.items()}, log_of(out)


def files(*names):
    return lambda out: [(out / name).read_bytes() for name in names]


LEFT = {  # what a whole command leaves, as far as it must be the same again
    "construct": files("sft.jsonl", "rl.jsonl", "drops.jsonl"),
    "sft": trained,
    "grpo": lambda out: (trained(out), rows_of(out / "traces")),
    "evaluate": files("rows.jsonl"),
    "pool": rows_of,
    "prepare": files("records.jsonl", "rejects.jsonl"),
    "curate": lambda out: (files("records.jsonl")(out), rows_of(out)),
    "run": lambda out: (status(out), (out / "report.html").is_file()),
}


class Forks:
    """A process that runs command lines in forks of its own."""

    def __init__(self, words: dict[str, str], home: Path):
        self.words, self.home = words, home
        command = [sys.executable, str(ROOT / "tests" / "forks.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def begin(self, name: str, out: Path, **disk) -> int:
        words = self.words[name].replace("OUT", str(out)).split()
        given = {"words": words, "log": str(self.home / "log"), **disk}
        print(json.dumps(given), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def end(self) -> tuple[int, str]:
        """Return the exit code, negative for a signal, and what was said."""
        code = os.waitstatus_to_exitcode(int(self.process.stdout.readline()))
        return code, (self.home / "log").read_text(encoding="utf-8")

    def run(self, name: str, out: Path, **disk) -> tuple[int, str]:
        self.begin(name, out, **disk)
        return self.end()


@pytest.fixture(scope="module")
def made(tiny_model, micro_data, tmp_path_factory):
    """The command lines with everything that they read, and a folder for logs."""
    home, (folder, given) = tmp_path_factory.mktemp("stops"), micro_data
    records.write(with_traces(given), home / "records.jsonl")
    root = test_sources.make(home / "root", "ArxivQA")
    for picture in root.rglob("*.jpg"):
        Image.effect_noise((400, 300), 80).save(picture)
    finished_run.__wrapped__(home)
    paths = {"RECORDS": home / "records.jsonl", "IMAGES": folder / "images", "MODEL": tiny_model,
             "ROOT": home / "root", "RUN": home / "run",
             "FIRST": notebook(home, "00_first", note(home, "first"), "import time",
                               "time.sleep(1)"),
             "SECOND": notebook(home, "01_second", note(home, "second"))}  # fmt: skip
    words = dict(COMMANDS)
    for name, text in words.items():
        for word, path in paths.items():
            text = re.sub(rf"\b{word}\b", str(path), text)
        words[name] = text
    return words, home


@pytest.fixture(scope="module")
def two(made):
    """Two processes that run command lines: two can run at once."""
    both = [Forks(*made), Forks(made[0], made[1] / "other")]
    (made[1] / "other").mkdir()
    yield both
    for one in both:
        one.process.stdin.close()
        one.process.wait(600)


@pytest.fixture(scope="module")
def whole(two, made):
    """Return what a command leaves that nobody disturbs, its seconds and its KiB."""
    known = {}

    def of(name):
        if name not in known:
            out, start = made[1] / "whole" / name, time.monotonic()
            code, said = two[0].run(name, out)
            assert code == 0, said
            size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
            known[name] = LEFT[name](out), time.monotonic() - start, size // 1024 + 4
        return known[name]

    return of


def check_said(said: str, *places) -> None:
    assert "Traceback" not in said, said
    told = [line for line in said.splitlines() if line.startswith(("error: ", "stopped: "))]
    assert len(told) == 1 and any(str(place) in told[0] for place in places), said
    assert ";" in told[0] or ":" in told[0].partition(": ")[2], "file, reason, remedy"
    print(told[0])


@pytest.mark.parametrize("name", ["construct", "sft", "grpo", "evaluate", "pool", "run"])
def test_killed_at_random_moments_it_ends_as_if_it_never_was(name, two, whole, tmp_path):
    wanted, seconds, _ = whole(name)
    out, kills, tries, rng = tmp_path / "0", 0, 0, random.Random(name)
    while True:
        child, tries = two[0].begin(name, out), tries + 1
        if kills < KILLS:
            time.sleep(seconds * rng.random() * 0.8)
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(child, signal.SIGKILL)
        code, said = two[0].end()
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL) and tries < 6 * KILLS + 6, said
        if code == 0:
            assert LEFT[name](out) == wanted
            if kills == KILLS:
                return
            out = tmp_path / str(tries)  # it was faster than we: anew


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_with_room_it_goes_on(name, share, two, whole, tmp_path):
    wanted, _, size = whole(name)
    disk, held = tmp_path / "disk", tmp_path / "held"
    disk.mkdir()
    (held / "out").mkdir(parents=True)
    kib = max(8, int(size * share))
    code, said = two[0].run(name, disk / "out", disk=str(disk), held=str(held), kib=kib)
    if code == forks.NO_MOUNT:
        pytest.skip("this process may not mount a disk of its own: run it as root")
    assert code in (1, 2, 3), said
    check_said(said, disk)
    code, said = two[0].run(name, held / "out")
    assert code == 0, said
    assert LEFT[name](held / "out") == wanted


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_disk_is_one_line(name, begun, two, whole, made, tmp_path):
    whole(name)
    disk, held = tmp_path / "disk", tmp_path / "held"
    disk.mkdir()
    held.mkdir()
    if begun:
        shutil.copytree(made[1] / "whole" / name, held / "out")
    given = {"disk": str(disk), "held": str(held), "kib": 100_000, "ro": True}
    code, said = two[0].run(name, disk / "out", **given)
    if code == forks.NO_MOUNT:
        pytest.skip("this process may not mount a disk of its own: run it as root")
    assert code == 2, said
    check_said(said, disk)


@pytest.mark.parametrize("name", COMMANDS)
def test_of_two_at_once_one_is_refused_or_waits(name, two, whole, tmp_path):
    wanted, *_ = whole(name)
    out = tmp_path / "out"
    for one in two:
        one.begin(name, out)
    ends = [one.end() for one in two]
    assert 0 in [code for code, _ in ends], ends
    for code, said in ends:
        assert code in (0, 2), said
        if code:
            check_said(said, out, f".{out.name}.new")
            assert "in use by another process" in said
    assert LEFT[name](out) == wanted
