"""Run each step within its own time limit; one that fails is named, and the others go on.

    bash tests/gpu/run.sh [--out FOLDER] [--dry]

The folder gets `gpu.json` (all figures), `gpu.md` (a table for data/results/LOG.md), and the log of
each step.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tests.bench.timing import device
from tests.size.three_billion import CHANGES
from vlaa_lib import ROOT, folders
from vlaa_lib.escape import say
from vlaa_lib.pocket import microworld
from vlaa_lib.tables import markdown_table

TOTAL_S = 580  # of all steps together
DRY_SLACK = 20  # times as long without a GPU, on a machine that has other work
# of a training at profile `paper`: two sampling rounds, the second one with renewed weights
ROUNDS = (
    "grpo.rollout_prompts=4", "grpo.train_batch=16", "grpo.per_device_batch=4",
    "grpo.max_prompt_tokens=512", "grpo.max_completion_tokens=64", "grpo.save_rounds=0",
    "grpo.dead_rounds=99",
)  # fmt: skip
LOGGED = {
    "grad_norm": "grad_norm", "kl": "kl", "step_time": "seconds a round",
    "sampling/sampling_logp_difference/mean": "sampler's difference",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A command, `python -m WORDS`, with its limit; and how to read its figures."""

    name: str
    limit_s: float
    words: tuple[Any, ...]
    figures: Callable[[], Any]
    needs: tuple[str, ...] = ()  # CUDA, or a package

    def missing(self) -> list[str]:
        return [n for n in self.needs if not (
            torch.cuda.is_available() if n == "CUDA" else importlib.util.find_spec(n)
        )]  # fmt: skip


def steps(model: Path, work: Path, dry: bool) -> Iterator[Step]:
    """Yield the steps, the cheapest first: those after the time is over are not begun."""
    data = ["--records", work / "records.jsonl", "--images", work / "images"]

    def found(name: str) -> tuple[Path, Callable[[], Any]]:
        file = work / f"{name}.json"
        return file, lambda: json.loads(file.read_text(encoding="utf-8"))

    def training(name: str, *words: Any) -> tuple[tuple[Any, ...], Callable[[], Any]]:
        out = work / name
        return ("train", "grpo", *data, "--out", out, *words), lambda: logged(out)

    file, figures = found("shape")
    size = "tiny" if dry else "3b"
    words = ("tests.size.three_billion", "--folder", model, "--size", size, "--out", file)
    yield Step("real shape, LoRA", 170, words, figures)
    file, figures = found("roofline")
    yield Step("roofline", 60, ("tests.gpu.roofline", model, file), figures)
    quantised = [f"model.policy={model}", *CHANGES, "grpo.mode=4bit", "grpo.save_rounds=0"]
    words, figures = training("4bit", "--profile", "single", "--set", *quantised)
    yield Step("4-bit LoRA", 90, ("vlaa_lib", *words), figures, ("CUDA", "bitsandbytes"))
    rounds = ["--profile", "paper", "--steps", 2, "--set", f"model.policy={model}", *ROUNDS]
    words, figures = training("fsdp2", *rounds, "grpo.sampler=transformers")
    words = ("vlaa_lib", *words[:2], "--launch", "fsdp2", "--gpus", 1, *words[2:])
    yield Step("FSDP2 on one GPU", 100, words, figures, ("CUDA",))
    words, figures = training("vllm", *rounds)
    yield Step("vLLM colocate, full", 150, ("vlaa_lib", *words), figures, ("CUDA", "vllm"))
    for mode in ("lora", "full"):
        file, figures = found(f"bench-{mode}")
        sizes = ["generations=[2]", "prompts=2", "tokens=6"]
        if not dry:
            sizes = ["generations=[4, 8]", "prompts=4", "tokens=64"]
        words = ("tests.bench", "grpo", "--out", file, "--set", f"model={model}", f"mode={mode}",
                 "sides=[112]", "steps=[1]", "rounds=1", "repeats=1", *sizes)  # fmt: skip
        yield Step(f"bench grpo, {mode}", 200, words, lambda read=figures: read()["speed"])


def logged(out: Path) -> dict[str, Any]:
    """Return what a training's log says of its last step."""
    with (out / "training_log.csv").open(encoding="utf-8") as stream:
        last = list(csv.DictReader(stream))[-1]
    return {name: float(last[key]) for key, name in LOGGED.items() if last.get(key)}


def run(step: Step, out: Path, deadline: float) -> dict[str, Any]:
    """Run a step; return its outcome, seconds and figures."""
    row: dict[str, Any] = {"step": step.name, "outcome": "", "seconds": None, "figures": None}
    if missing := step.missing():
        return row | {"outcome": f"not run: needs {' and '.join(missing)}"}
    start = time.monotonic()
    if (left := deadline - start) < 10:
        return row | {"outcome": "not run: the time of all steps is over"}
    limit = min(step.limit_s, left)
    log = out / f"{step.name.replace(',', '').replace(' ', '-')}.log"
    with log.open("wb") as sink:
        child = subprocess.Popen(
            [sys.executable, "-m", *map(str, step.words)], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=sink, stderr=sink, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # and the processes that it started
                child.wait()
    row["seconds"] = round(time.monotonic() - start, 1)
    if code is None:
        return row | {"outcome": f"failed: stopped after {limit:.0f} s"}
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        return row | {"outcome": f"failed: code {code}: {' '.join(last)[:300]}"}
    try:
        return row | {"outcome": "ran", "figures": step.figures()}
    except (OSError, ValueError, LookupError) as error:
        return row | {"outcome": f"failed: its figures cannot be read ({error!r})"}


def report(found: dict[str, Any]) -> str:
    """Return the outcomes as a Markdown table, and a table for each step that has figures."""
    short = [{k: v for k, v in row.items() if k != "figures"} for row in found["steps"]]
    parts = [f"{found['device']}, torch {found['torch']}", markdown_table(short)]
    for row in found["steps"]:
        if figures := row["figures"]:
            rows = figures.get("rows", [figures]) if isinstance(figures, dict) else figures
            parts += [row["step"], markdown_table(rows)]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Return 1 where a step failed, or where nothing ran at all."""
    parser = argparse.ArgumentParser("tests/gpu/run.sh", description=__doc__)
    parser.add_argument("--out", default="build/gpu", help="folder to fill")
    parser.add_argument("--model", help="checkpoint; by default one of random weights is built")
    parser.add_argument("--dry", action="store_true", help="a tiny model, without a GPU")
    args = parser.parse_args(argv)
    slack, out = DRY_SLACK if args.dry else 1, Path(args.out).resolve()
    deadline = time.monotonic() + slack * TOTAL_S
    microworld.write_split(out, ["solids"], "train", 8)
    model = Path(args.model or out / ("tiny" if args.dry else "3b")).resolve()
    found: dict[str, Any] = {"device": device(), "torch": torch.__version__, "steps": []}
    for step in steps(model, out, args.dry):
        given = replace(step, limit_s=slack * step.limit_s)
        found["steps"].append(row := run(given, out, deadline))
        say(f"{row['step']}: {row['outcome']}")
        folders.write_json(out / "gpu.json", found)  # what is known stands, whatever comes
        folders.write_text(out / "gpu.md", report(found))
    outcomes = [row["outcome"].partition(":")[0] for row in found["steps"]]
    return int("failed" in outcomes or "ran" not in outcomes)


if __name__ == "__main__":
    sys.exit(main())
