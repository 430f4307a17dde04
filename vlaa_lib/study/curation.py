"""A small set of traces of a measured run, for a viewer that opens at once."""

from __future__ import annotations

import random
import re
import shutil
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from vlaa_lib import VlaaError, folders, records, rewards
from vlaa_lib.images import image_file
from vlaa_lib.pocket.microworld.narrator import Rates
from vlaa_lib.pocket.teacher import taught
from vlaa_lib.records import Record
from vlaa_lib.traces import CARD, FOLDER, TraceStore, flipped, from_evaluation, is_right

MODELS = ("instruct", "sft", "grpo", "sft_grpo")
OURS = re.compile(r"card\.json|records\.jsonl|images|part-.*\.parquet")  # of a curated folder


def curate(
    run: str | Path, out: str | Path = FOLDER, per_source: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Write a few records of each source, their pictures and every model's trace; return the card.

    Of each source one of each kind in turn, so that gain and damage both show: a flip, which SFT
    gets wrong and GRPO right; a loss, right before training and wrong after GRPO; a right answer
    behind a false step; any other. `seed` decides among them. The card says how many of each there
    are. The folder appears whole or not at all.

    Raises:
        FileNotFoundError: the run lacks the evaluation of `sft` or `grpo`.
        ValueError: `out` holds something else.
    """
    run, out = Path(run), Path(out)
    held = {path.name for path in out.iterdir()} if out.exists() else set()
    # records and pictures alone may be anybody's
    if (held and CARD not in held) or not all(map(OURS.fullmatch, held)):
        raise VlaaError(f"{out}: holds other files than curated traces; name a new folder")
    pictures = run / "world/test/images"
    try:
        made, runs, card = _read(run, pictures)
    except (KeyError, TypeError) as error:
        said = f"its evaluation or its dataset is broken ({error!r}); build them again"
        raise VlaaError(f"{run}: {said}") from None
    kinds = {
        "flips": set(flipped(runs["sft"], runs["grpo"])),
        "losses": set(flipped(runs["grpo"], runs.get("instruct", runs["sft"]))),
        # a right answer behind a false step is what no score shows
        "hollow": {row["record_id"] for rows in runs.values() for row in rows
                   if row["false_steps"] and is_right(row)},
    }
    order = sorted(made, key=lambda record: record.id)
    random.Random(seed).shuffle(order)
    everything, chosen = {record.id for record in made}, []
    for source in dict.fromkeys(record.source for record in made):
        left = [record for record in order if record.source == source]
        for ids in islice(cycle([*kinds.values(), everything]), min(per_source, len(left))):
            chosen.append(next((record for record in left if record.id in ids), left[0]))
            left.remove(chosen[-1])
    card |= {
        "command": "python -m vlaa_lib traces curate --run RUN "
                   f"--per-source {per_source} --seed {seed}",
        "records": len(chosen),
        **{kind: sum(record.id in ids for record in chosen) for kind, ids in kinds.items()},
    }

    ids = {record.id for record in chosen}
    kept = [row for rows in runs.values() for row in rows if row["record_id"] in ids]
    staged = out.with_name(f".{out.name}.new")
    with folders.lock(staged):
        for left in staged.glob("[!.]*"):  # of a process that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        records.write(chosen, staged / "records.jsonl")
        for record in chosen:
            place = staged / "images" / record.image
            place.parent.mkdir(parents=True, exist_ok=True)
            with folders.named(place):
                shutil.copy(image_file(record.image, pictures), place)
        TraceStore(staged).append(kept)
        folders.write_json(staged / CARD, card)
        (staged / ".lock").unlink()
        shutil.rmtree(out, ignore_errors=True)
        staged.replace(out)
    return card


def _read(
    run: Path, pictures: Path
) -> tuple[list[Record], dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Return a run's held-out records, the rows of every model by name, and what it was."""
    world, done = run / "world" / "test" / "records.jsonl", run / "dataset" / "done.json"
    files = {name: run / "evaluation" / name / "rows.jsonl" for name in MODELS}
    for path in (world, done, files["sft"], files["grpo"]):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: not there; finish the run first: python -m vlaa_lib run --run-dir {run}"
            )
    made = list(rewards.pictured(rewards.usable(world, pictures), pictures))
    runs = {"teacher": taught(made, Rates(**folders.read_json(done)["settings"]["rates"]))}
    for name, path in files.items():
        rows = [row for row in folders.whole_lines(path) if not row["blank"]]
        if rows or name in ("sft", "grpo"):
            runs[name] = rows
    path = run / "run_card.json"
    whole = folders.read_json(path) if path.is_file() else {}
    # what tells one run from another; None for what is not written down
    card = {key: whole.get(key) for key in ("profile", "seed", "commit", "machine", "finished")}
    stamp = made, card["profile"], card["seed"]
    return made, {name: from_evaluation(rows, *stamp) for name, rows in runs.items()}, card
