"""SFT beside TRL's own trainer on the same records: samples a second and memory."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench import roofline
from vlaa_lib import models, profiles, prompts
from vlaa_lib.pocket import lessons as pocket_data
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld import narrator
from vlaa_lib.records import Record
from vlaa_lib.train.shapes import shape_of

from .memory import peak
from .timing import OURS, TRL, afresh, compared, device, in_turn


def sft(
    batch: int = 16,
    steps: int = 4,
    repeats: int = 3,
    mode: str = "full",
    model: str = "data/pocket/instruct",
    seed: int = 0,
) -> dict[str, Any]:
    """Train a few optimizer steps with our trainer and with TRL's, in turn, on the same traces.

    Same weights, seed and arithmetic. Ours reads paths, TRL gets pictures, as its examples do.
    There is no second look at a picture in an epoch of SFT, hence no fast path. Every training has
    a process of its own; what that does once, and loading, are not timed.

    Args:
        mode: full or lora. model: checkpoint, or as `roofline.checkpoint` reads it.
    Returns:
        `machine`: its measured rates.
        `speed`: one row; `difference`: the largest between the losses of a step; `of roofline`:
            share of the machine's matrix products that ours reaches.
    """
    rates = afresh(roofline.machine)
    values = {"mode": mode, "global_batch": batch, "per_device_batch": batch, "max_steps": steps}
    values |= {"logging_steps": 1, "save_steps": 0}
    with tempfile.TemporaryDirectory() as folder:
        place = roofline.checkpoint(model, folder)
        cfg = profiles.load("laptop", seed=seed, model={"policy": place}, sft=values)
        sources = list(microworld.SOURCES)
        drawn = microworld.write_split(folder, sources, "train", -(-batch * steps // 9), seed)
        made = [_with_trace(record) for record in drawn]
        runs = in_turn(lambda who: afresh(_measured, who, cfg, made, Path(folder)), repeats)
        shape = shape_of(place)
    row = compared(
        batch * steps,
        {who: [run["seconds"] for run in found] for who, found in runs.items()},
        {who: [run["mib"] for run in found] for who, found in runs.items()},
    )
    pairs = zip(runs[OURS][0]["losses"], runs[TRL][0]["losses"], strict=True)
    row["difference"] = float(f"{max(abs(a - b) for a, b in pairs):.1e}")
    tokens, seconds = runs[TRL][0]["tokens"], batch * steps / row["ours a second"]
    row["ours tokens a second"] = round(tokens / seconds)
    least = roofline.training_flops(shape, tokens, batch * steps, pocket_data.CELLS, mode)
    row["of roofline"] = round(least / seconds / (rates["TFLOP/s"] * 1e12), 3)
    return {
        "benchmark": "sft", "peer": "TRL SFTTrainer", "model": model, "mode": mode, "seed": seed,
        "repeats": repeats, "cores": os.cpu_count(), "device": device(), "machine": rates,
        "speed": [row],
    }  # fmt: skip


def _with_trace(record: Record) -> Record:
    trace = narrator.plain_trace(record.meta["scene"], record.question)
    return replace(record, answer=prompts.join_think_answer(*trace))


def _measured(who: str, cfg: profiles.Settings, made: list[Record], folder: Path) -> dict[str, Any]:
    """Train once, after a step so small that what a process does once is all it shows."""
    short = replace(cfg.sft, global_batch=1, per_device_batch=1, max_steps=1)
    _run(who, replace(cfg, sft=short), made, folder)
    return _run(who, cfg, made, folder)


def _run(who: str, cfg: profiles.Settings, made: list[Record], folder: Path) -> dict[str, Any]:
    from datasets import Image
    from trl import SFTTrainer

    from vlaa_lib.train import data
    from vlaa_lib.train.sft import sft_config, trainer_class

    m = cfg.model
    policy = models.load_policy(m.policy, cfg.sft.mode, m.max_pixels, m.min_pixels, "float32")
    rows, _ = data.rows(made, folder / "images", folder / "fitted", with_trace=True)
    table = data.dataset(rows)
    trainer = (trainer_class() if who == OURS else SFTTrainer)(
        model=policy.model,
        args=sft_config(cfg, folder / "out"),
        train_dataset=table if who == OURS else table.cast_column("image", Image()),
        processing_class=policy.processor,
        peft_config=models.adapter(cfg.sft.mode),
    )
    with peak() as memory:
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    log = [row for row in trainer.state.log_history if "loss" in row]
    losses, tokens = [row["loss"] for row in log], log[-1]["num_tokens"]
    return {"seconds": seconds, "mib": memory["mib"], "losses": losses, "tokens": tokens}
