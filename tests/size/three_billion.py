"""The real shape on a machine of 24 GB without a GPU, or on a GPU: measured beside planned memory.

    python -m tests.size.three_billion [--folder DIR] [--out FILE.json]

Builds 3,754,622,976 random bf16 parameters with the hub's files and the true vocabulary (once in
DIR, or in a temporary folder), reads a picture, says 8 tokens; takes a GRPO step through `train
grpo --profile single`, is killed after its checkpoint and takes the second one; merges the adapter
and says 8 tokens again. About ten minutes on two idle cores, 12 GB of memory, 12 GB of disk.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.bench.timing import afresh, begin_peak, device, most_bytes
from vlaa_lib import ROOT, VlaaError, folders, models
from vlaa_lib.escape import say
from vlaa_lib.evaluate.generate import Ask, Limits, complete, render
from vlaa_lib.options import loaded
from vlaa_lib.pocket import microworld
from vlaa_lib.tables import markdown_table
from vlaa_lib.train import checkpoints, plan

from . import qwen

# a sampling round of two completions is an optimizer step; a picture takes 256 tokens
CHANGES = (
    "model.dtype=bfloat16", "model.min_pixels=196608", "grpo.num_generations=2",
    "grpo.rollout_prompts=1", "grpo.train_batch=2", "grpo.per_device_batch=2",
    "grpo.max_prompt_tokens=512", "grpo.max_completion_tokens=8", "grpo.max_steps=2",
    "grpo.save_rounds=1",
)  # fmt: skip
PIXELS, TOKENS = 196_608, 8  # the area of 512 x 384
CHECKPOINT_S = 1800  # to wait for the first one


def check(folder: Path, work: Path, size: str = "3b") -> dict[str, Any]:
    """Do all of it in processes of their own; tell of each phase: GB measured, planned, seconds.

    Args:
        folder: of the checkpoint, which is built where there is none.
        work: for records, pictures and trainings.
        size: of `qwen.write`.
    """
    rows: list[dict[str, Any]] = []

    def told(phase: str, planned: float | None, gb: float | None, seconds: float) -> None:
        row = {"phase": phase, "measured GB": gb, "planned GB": planned, "seconds": seconds}
        rows.append(row)
        say(", ".join(f"{name} {value}" for name, value in row.items()))

    if not (folder / "chat_template.json").is_file():  # the last one that is written
        start = time.monotonic()
        afresh(qwen.write, folder, size)
        told("build and save", None, None, round(time.monotonic() - start, 1))
    changes = [f"model.policy={folder}", *CHANGES]
    setup = plan.setup_of(loaded("single", changes), "grpo", 1, records=1)
    setup = replace(setup, checkpointing=torch.cuda.is_available())
    planned = {name: sum(parts.values()) for name, parts in plan.memory(setup).items()}
    planned["loading"] = plan.states(setup)["weights"] + plan.RUNTIME_BYTES
    planned["whole"] = 2 * setup.shape.total + plan.RUNTIME_BYTES  # bf16, as `_asked` loads it
    planned = {name: round(size / 1e9, 2) for name, size in planned.items()}

    microworld.write_split(work, ["solids"], "train", 2)
    told("load, forward, 8 tokens", planned["whole"], **afresh(_asked, folder, work))
    out = work / "out"
    words = ["train", "grpo", "--records", work / "records.jsonl", "--images", work / "images",
             "--out", out, "--profile", "single", "--set", *changes]  # fmt: skip
    for part in ("GRPO", "resumed"):
        marks = work / f"{part}.jsonl"
        _train(marks, words, out if part == "GRPO" else None)
        found = _first_step(marks)
        for phase in ("loading", "sampling", "scoring", "training"):
            told(f"{part}: {phase}", planned[phase], *found[phase])
    with (out / "training_log.csv").open(encoding="utf-8") as log:
        steps = [line["step"] for line in csv.DictReader(log)]
    if steps != ["1", "2"]:
        raise VlaaError(f"the training that was resumed logged the steps {steps}, not 1 and 2")
    told("merge, forward, 8 tokens", planned["whole"], **afresh(_asked, out, work))
    return {"parameters": setup.shape.total, "device": device(), "rows": rows}


def _first_step(marks: Path) -> dict[str, list[float]]:
    """Return GB and seconds of the phases up to the first checkpoint; scoring has two parts."""
    found: dict[str, list[float]] = {}
    for mark in folders.whole_lines(marks):
        if mark["phase"] == "saving":
            break
        gb, seconds = found.get(mark["phase"], (0.0, 0.0))
        more = mark["held"]
        found[mark["phase"]] = [max(gb, more["gb"]), round(seconds + more["seconds"], 1)]
    return found


def held(start: float) -> dict[str, float]:
    """Return the peak since `begin_peak` (GB) and the seconds since `start`."""
    return {"gb": round(most_bytes() / 1e9, 2), "seconds": round(time.monotonic() - start, 1)}


def _asked(folder: Path, work: Path) -> dict[str, float]:
    """Load a policy in bf16, an adapter merged; read a picture and say a few tokens of it."""
    from PIL import Image

    start, _ = time.monotonic(), begin_peak()
    policy = models.load_policy(folder, min_pixels=PIXELS, dtype="bfloat16")
    picture = next((work / "images").rglob("*.png")).relative_to(work / "images")
    ask = Ask("What is this?", "", (str(picture),))
    with Image.open(work / "images" / picture) as opened:
        inputs = policy.processor(
            images=[opened.convert("RGB")], text=[render(policy.processor, ask)],
            return_tensors="pt",
        )  # fmt: skip
    with torch.inference_mode():
        logits = policy.model(**inputs.to(policy.model.device)).logits
    if not bool(logits.isfinite().all()):
        raise VlaaError("the logits of random weights are not all finite")
    (said,) = complete(policy, [ask], work / "images", Limits(TOKENS, min_pixels=PIXELS))
    if said.num_tokens > TOKENS:
        raise VlaaError(f"{said.num_tokens} tokens instead of {TOKENS}")
    return held(start)


def _train(marks: Path, words: list[Any], out: Path | None) -> None:
    """Run the command line, watched; with `out` kill it once that folder has a checkpoint."""
    command = [sys.executable, "-m", "tests.size.watched", marks, *words]
    log = marks.with_suffix(".log")
    with log.open("wb") as sink:
        child = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=sink, stderr=sink)
        deadline = time.monotonic() + CHECKPOINT_S
        try:
            while out and child.poll() is None and not checkpoints.latest(out):
                if time.monotonic() > deadline:
                    raise VlaaError(f"no checkpoint after {CHECKPOINT_S} s; see {log}")
                time.sleep(0.2)
            code = None if out and child.poll() is None else child.wait()
        finally:
            child.kill()
            child.wait()
    if code or (out and code is not None):
        said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise VlaaError(f"{' '.join(map(str, words[:2]))} ended with code {code}: {said}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.size.three_billion", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--folder", help="of the checkpoint; by default a temporary one")
    parser.add_argument("--size", choices=qwen.SIZES, default="3b", help="tiny: to try this file")
    parser.add_argument("--out", metavar="FILE.json", help="file for all that was found")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = Path(args.folder or work / "Qwen2.5-VL-3B-random").resolve()
        try:
            found = check(folder, work, args.size)
        except (ValueError, OSError) as error:
            say(f"error: {error}", is_error=True)
            return 2
    say(f"{found['parameters']:,} parameters, {found['device']}")
    say(markdown_table(found["rows"]))
    if args.out:
        folders.write_json(args.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
