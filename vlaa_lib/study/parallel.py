"""Independent stages of a run at once, each in a process with its share of the cores."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlaa_lib import profiles
from vlaa_lib.profiles import Settings

from . import stages

BUILDERS: dict[str, Callable[[Settings, Path, str], Any]] = {}  # kind of stage -> what builds it


def named(cfg: Settings, run: Path, name: str) -> Any:
    """Build the stage of a name such as `model:grpo`, `answers:sft` or `vilprm:0`; return it.

    Raises:
        ValueError: unknown name.
    """
    kind, _, which = name.partition(":")
    if kind not in BUILDERS:
        raise ValueError(f"unknown stage {name!r}; use one of {', '.join(BUILDERS)}, then :NAME")
    return BUILDERS[kind](cfg, run, which)


def _answers(cfg: Settings, run: Path, model: str) -> None:
    """Let a model answer the held-out records and the micro benchmarks."""
    stages.benchmark_files(cfg, run)  # first, since all models' answers need them
    stages.evaluation(cfg, run, model)
    stages.benchmarks(cfg, run, model)


def build(cfg: Settings, run: Path, *names: str) -> None:
    """Build independent stages at once, each in a process with its share of the cores.

    A pocket VLM's matrices are too small to fill two cores. With a GPU, with `cfg.launch`, or on
    one core nothing is done: stages are built where they are asked for.

    Args:
        names: as for `named`; what several of them build on is built here first.
    Raises:
        train.launch.LaunchError: one of them failed.
    """
    import torch

    from vlaa_lib.train import launch

    cores = torch.get_num_threads()  # those that this process may use
    if cores < 2 or cfg.launch != profiles.HERE or torch.cuda.is_available():
        return
    while True:
        missing = {name: stage for name in names if (stage := _missing(cfg, run, name))}
        paths = Counter(path for path, *_ in missing.values())
        shared = [stage for stage in missing.values() if paths[stage[0]] > 1]
        if not shared:
            break
        stages.once(*shared[0])
    if len(missing) < 2:
        return
    words = [sys.executable, "-m", "vlaa_lib", "stage"]
    given = ["--run-dir", str(run), "--profile", cfg.profile]
    given += ["--set", *changed] if (changed := profiles.changes(cfg)) else []
    together = min(cores, len(missing))
    env = {"OMP_NUM_THREADS": str(cores // together)}
    commands = {re.sub(r"\W+", "-", name): [*words, name, *given] for name in missing}
    logs = run / "logs"
    launch.run_at_once(commands, logs, together, env)
    for name in commands:  # what it said last: what was built, and in how many seconds
        print((logs / f"{name}.log").read_text(encoding="utf-8").rstrip().rsplit("\n", 1)[-1])


def _missing(cfg: Settings, run: Path, name: str) -> tuple | None:
    """Return the arguments of `once` of the first stage that is to be built for a name."""
    token = stages.looking.set(True)
    try:
        named(cfg, run, name)
    except stages.Missing as missing:
        return missing.args
    finally:
        stages.looking.reset(token)
    return None


BUILDERS |= {"model": stages.model_path, "answers": _answers}
