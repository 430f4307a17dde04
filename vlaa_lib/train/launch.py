"""Start a training on several processes: the command, and the child process that runs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT, VlaaError, folders, profiles
from vlaa_lib.progress import progress_bar

from . import rank_setup

GRACE_S = 15  # ours: torch's launcher needs a second or two to end its workers
LAST_LINES = 40  # ours: a traceback and what led to it
SETTINGS = "launch.json"  # in the output folder: the settings that each process reads


class LaunchError(ChildProcessError):
    """A launched command failed; the message has exit code, failing process and its last lines."""


def train(
    cfg: profiles.Settings,
    method: str,
    records: str | Path,
    images: str | Path,
    out: str | Path,
    start: str | Path | None = None,
    held_out: str | Path | None = None,
) -> None:
    """Train as `train.sft` and `train.grpo` do, in `cfg.gpus` processes of the launch `cfg.launch`.

    They end with this process, and leave their log in `out/training_log.csv` and all that they
    said in `out/launch.log`. `records` is the file that they read.
    """
    words = words_of(cfg, method, records, images, out, start, held_out=held_out)
    run(command(cfg.launch, words, cfg.gpus, mode=getattr(cfg, method).mode),
        Path(out) / "launch.log")  # fmt: skip


def words_of(
    cfg: profiles.Settings,
    method: str,
    records: str | Path,
    images: str | Path,
    out: str | Path,
    start: str | Path | None = None,
    machine_rank: int = 0,
    held_out: str | Path | None = None,
) -> list[str]:
    """Return what each process runs; the settings go beside the results, as one file of JSON."""
    settings = Path(out) / SETTINGS
    # of another training that runs there; further machines come while the first one trains
    with contextlib.nullcontext() if machine_rank else folders.lock(out):
        folders.write_json(settings, asdict(cfg))
    words = ["-m", "vlaa_lib", "train", method, "--records", records, "--images", images]
    words += ["--out", out, "--profile", settings, *(["--start", start] if start else [])]
    words += ["--held-out", held_out] if held_out else []
    return [str(word) for word in words]


def command(
    config: str,
    words: list[str],
    gpus: int | None = None,
    machines: int = 1,
    machine_rank: int = 0,
    main_ip: str | None = None,
    main_port: int | None = None,
    mode: str = "full",
) -> list[str]:
    """Build the `accelerate launch` command; on one machine nobody else reaches its processes.

    On several its store and their messages are open to their network: use one that you trust.

    Args:
        config: an accelerate file in `profiles/accelerate`, without its suffix; or a path to one.
        words: what each process runs, e.g. `["-m", "vlaa_lib", "train", ...]`, or a script.
        gpus: processes a machine; by default the file's.
        machine_rank: this machine's number, from 0.
        main_ip: address of machine 0; needed with several machines.
        main_port: a port of it that all can reach; by default accelerate's 29500.
        mode: of the training; 4bit is what no file may cut into shares.
    """
    known = config in profiles.LAUNCHERS
    path = profiles.ACCELERATE / f"{config}.yaml" if known else Path(config)
    if path.suffix != ".yaml" or not path.is_file():
        raise VlaaError(
            f"--launch {config}: use one of {', '.join(profiles.LAUNCHERS)}, or a .yaml file of "
            "accelerate"
        )
    stated = folders.read_yaml(path)
    kind, count = stated.get("distributed_type"), stated.get("num_processes")
    if not isinstance(kind, str) or not isinstance(count, int):
        said = "no distributed_type and num_processes; is it a file of `accelerate config`?"
        raise VlaaError(f"{path}: {said}")
    gpus = count if gpus is None else gpus
    if gpus < 1 or machines < 1 or not 0 <= machine_rank < machines:
        raise VlaaError(
            f"--gpus {gpus} --machines {machines} --machine-rank {machine_rank}: at least one GPU "
            "and one machine, ranks from 0 to machines - 1"
        )
    if kind == "NO" and gpus * machines > 1:
        raise VlaaError(f"--launch {config} is one process; use fsdp2, zero2, zero3 or ddp")
    if mode == "4bit" and kind in ("FSDP", "DEEPSPEED"):
        raise VlaaError(
            f"--launch {config}: packed 4-bit weights are not cut into shares; use ddp, gpu1 or "
            "cpu2, or mode lora"
        )
    # on one machine nobody else's packets count
    launcher = "accelerate.commands.launch" if machines > 1 else "vlaa_lib.loopback"
    made = [sys.executable, "-m", launcher, "--config_file", str(path)]
    made += ["--num_processes", str(gpus * machines)]  # of all machines together
    if machines > 1:
        if not main_ip:
            raise VlaaError("--machines: name the address of machine 0 with --main-ip")
        made += ["--num_machines", str(machines), "--machine_rank", str(machine_rank)]
        made += ["--main_process_ip", main_ip]
    if machines > 1 or main_port is not None:
        made += ["--main_process_port", str(29500 if main_port is None else main_port)]
    return [*made, *words]


def run(command: list[str], log: str | Path) -> None:
    """Run a launch command as a child process, with one progress bar and its whole log in a file.

    The child dies with this process, however that ends (`rank_setup`), and on any exception here.

    Raises:
        LaunchError: it failed; with the exit code and the traceback of the process that did first.
    """
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    # a child's own bars would fill the log, and a buffer would hold back the last words
    wanted = {rank_setup.EVENTS: "1", "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    # a checkout that is not installed is found by its processes as well
    wanted["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    tied = [sys.executable, "-I", rank_setup.__file__, str(os.getpid()), *command]
    said: deque[str] = deque(maxlen=2000)  # lines; ours: far more than an error needs
    errors: list[dict[str, Any]] = []
    # until the first event, which names the steps, only time passes
    bar = progress_bar(desc=log.parent.name, bar_format="{desc}: {elapsed}", mininterval=1)
    # a file, not a pipe: it is whole even if this process dies, and nobody waits for a reader
    with log.open("ab") as sink, log.open("rb") as source, bar:
        sink.write(f"$ {shlex.join(command)}\n".encode())
        sink.flush()
        source.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            tied, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
            start_new_session=True, env=os.environ | wanted,
        )  # fmt: skip
        try:
            for line in _follow(source, child, bar):
                event = read_event(line)
                if event is None:
                    said.append(line)
                elif event["event"] == "error":
                    errors.append(event)
                elif "of" in event:
                    bar.total, bar.n, bar.bar_format = event["of"], event["step"], None
                    named = {key: event.get(key) for key in ("loss", "reward", "kl")}
                    shown = {key: n for key, n in named.items() if isinstance(n, float)}
                    bar.set_postfix(shown, refresh=False)
                    bar.refresh()
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):  # workers end by `rank_setup`
                if child.poll() is None:
                    os.killpg(child.pid, number)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(GRACE_S)
    if child.returncode:
        why, tail = _cause("\n".join(said), errors)
        tail = "\n".join(tail.rstrip().splitlines()[-LAST_LINES:])
        raise LaunchError(
            f"the launch failed with exit code {child.returncode}; {why}\n{tail}\nwhole log: {log}"
        )


def _follow(source: Any, child: subprocess.Popen, bar: Any) -> Iterator[str]:
    """Yield the lines of a growing file until the child has ended; meanwhile the bar moves."""
    rest = b""
    while True:
        ended = child.poll() is not None  # asked before reading, so that nothing is missed
        *whole, rest = (rest + source.read()).split(b"\n")
        for line in [*whole, rest] if ended else whole:
            yield line.decode(errors="replace")
        if ended:
            return
        bar.update(0)
        time.sleep(0.1)


def _cause(said: str, errors: list[dict[str, Any]]) -> tuple[str, str]:
    """Say which process failed first and why, and the last that it said.

    A worker that a signal killed leaves no words; the others then complain about a lost
    connection, so the launcher's own table of exit codes is asked first.
    """
    exits = re.findall(r"rank\s*: (\d+) .*\n\s*exitcode\s*: (-?\d+)", said)
    tail = re.split(r"\n.*torch/distributed/elastic.*failed \(exitcode", said)[0]  # torch's noise
    for rank, code in exits:
        if int(code) < 0 and -int(code) != signal.SIGTERM:
            hint = ": out of memory?" if -int(code) == signal.SIGKILL else ""
            return f"process {rank} was killed by {signal.Signals(-int(code)).name}{hint}", tail
    if not errors:
        return "it names no reason", tail
    order = [int(rank) for rank, _ in reversed(exits)]  # torch names the root cause last
    first = min(errors, key=lambda e: order.index(e["rank"]) if e["rank"] in order else 99)
    why = f"process {first['rank']}: {first['type']}: {first['message']}"
    return why, first["traceback"]


def read_event(line: str) -> dict[str, Any] | None:
    r"""Return the event at the end of a line, or None; a progress bar may stand before it.

    >>> read_event('  3%|#  | 1/49\r{"event": "step", "step": 1, "of": 49}')
    {'event': 'step', 'step': 1, 'of': 49}
    >>> read_event('{"event": "cut short')
    """
    start = line.find('{"event": ')
    try:
        return json.loads(line[start:]) if start >= 0 else None
    except ValueError:
        return None
