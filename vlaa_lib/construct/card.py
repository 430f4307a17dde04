"""A finished dataset made ready to pass on: card, table 1, released schema, `datasets` folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT, VlaaError, folders, tables, worlds
from vlaa_lib import records as files
from vlaa_lib.images import image_file
from vlaa_lib.llm import Ledger
from vlaa_lib.records import Record, RecordError

from .pipeline import LEDGER

PAPER = ROOT / "data" / "paper" / "vlaa_thinking.json"
# keys of the released files
RELEASED = ("id", "image", "question", "gt", "answer", "caption", "meta")
TAKEN, TOKENS = ("seconds", "cost"), ("prompt_tokens", "completion_tokens")  # columns of counts
# column of table 1 -> step and key of our counts, key of the paper's row
TABLE_1 = {
    "original": ("caption", "in", "original"),
    "pipeline": ("verify", "out", "pipeline"),
    "SFT": ("split: sft", "out", "final_sft"),
    "RL": ("split: rl", "out", "final_rl"),
}


def table_1(counts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return our counts beside the paper's (table 1), a micro source in the line it stands for.

    original: records put in; pipeline: verified; SFT and RL: the splits. None: not stated, not run.
    """
    stands_for = {source: name for source, (_, name) in worlds.known().sources.items()}
    ours: dict[str, Counter[str]] = {}
    for row in counts:
        found = ours.setdefault(stands_for.get(row["source"], row["source"]), Counter())
        for column, (step, key, _) in TABLE_1.items():
            found[column] += int(row[key]) if row["step"] == step else 0
    paper = folders.read_json(PAPER)["table1_dataset"]
    theirs = {row[0]: dict(zip(paper["columns"], row, strict=True)) for row in paper["rows"]}
    table = []
    for name in dict.fromkeys([*theirs, *ours]):
        row: dict[str, Any] = {"source": name}
        for column, (_, _, key) in TABLE_1.items():
            row[column] = ours[name][column] if name in ours else None
            row[f"{column} (paper)"] = theirs.get(name, {}).get(key)
        table.append(row)
    return table


def export(out: str | Path, images: str | Path | None = None) -> list[Path]:
    """Write the splits of a finished run in the released schema and as a `datasets` folder.

    `out/released/*.json` are JSON Lines under the authors' kind of name; `out/hub` holds parquet
    files that `datasets.load_dataset` reads, one split each, and the card as its README.

    Args:
        images: image root; when given, the pictures go into the parquet files.
    Raises:
        VlaaError: there is no finished run in `out`, or it kept no record.
    """
    out = Path(out)
    if not (out / "counts.csv").is_file():
        raise VlaaError(f"{out}: no finished run here (counts.csv is missing); run construct")
    counts, written, sizes = tables.read(out / "counts.csv"), [], {}
    try:
        found = table_1(counts)
        [float(row[key]) for row in counts for key in (*TAKEN, *TOKENS)]
        if not counts:
            raise ValueError("no rows")
    except (KeyError, TypeError, ValueError) as error:
        said = f"not the counts of a construction ({error!r}); run construct again"
        raise VlaaError(f"{out / 'counts.csv'}: {said}") from None
    for split, name in (("sft", "SFT"), ("rl", "GRPO")):
        path = out / f"{split}.jsonl"
        sizes[split] = sum(1 for _ in _whole(path))
        if sizes[split]:
            written.append(out / "released" / f"{name}-{sizes[split]}.json")
            folders.write_rows(written[-1], map(released, _whole(path)))
            written.append(out / "hub" / "data" / f"{split}-00000-of-00001.parquet")
            _write_parquet(path, written[-1], images)
    if not written:
        raise VlaaError(f"{out}: the run kept no record; counts.csv says where they went")
    folders.write_csv(out / "table1.csv", found)
    folders.write_text(out / "hub" / "README.md", card(out, counts, sizes))
    return [*written, out / "table1.csv", out / "hub" / "README.md"]


def _whole(path: Path) -> Iterator[Record]:
    """Read a split of a finished run, which holds no reject: nothing is left out in silence."""
    for row in files.read(path):
        if not isinstance(row, Record):
            raise RecordError(f"{row}; run construct again")
        yield row


def released(record: Record) -> dict[str, Any]:
    """Return a record's released keys, and those that reading it back needs besides."""
    full = record.to_json()
    row = {key: full[key] for key in RELEASED if key in full}
    try:
        known = files.from_json(row).to_json()
    except RecordError:  # an image folder that is none of the paper's sources
        known = {}
    needed = ("source", "reward", "solution", "frame")
    return row | {key: full[key] for key in needed if known.get(key) != full.get(key)}


def _write_parquet(split: Path, target: Path, images: str | Path | None) -> None:
    """Write one split as parquet, a row at a time; `meta` and other keys become JSON text."""
    import tempfile

    import datasets

    def flat() -> Iterator[dict[str, Any]]:
        for record in _whole(split):
            row = dict(vars(record))
            row |= {key: folders.as_json(row[key]) for key in ("meta", "extra")}
            if images:  # what is published: nothing from outside the root, no link followed there
                held = image_file(record.image, images).read_bytes()
                row["image"] = {"bytes": held, "path": record.image}
            yield row

    columns = dict.fromkeys(next(flat()), datasets.Value("string"))
    if images:
        columns["image"] = datasets.Image()
    # through a file of its own: the pictures of a whole split need not fit into memory
    with tempfile.TemporaryDirectory() as cache, folders.staged(target) as draft:
        features = datasets.Features(columns)
        try:
            made = datasets.Dataset.from_generator(flat, features=features, cache_dir=cache)
        except datasets.exceptions.DatasetGenerationError as error:
            raise error.__cause__ from None  # of a picture, say: the library wraps it
        made.to_parquet(draft)


def card(out: Path, counts: list[dict[str, Any]], sizes: dict[str, int]) -> str:
    """Return the dataset card: what it holds, where it was lost, what it cost, what to beware."""
    splits = "".join(
        f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in sizes if sizes[split]
    )
    lost = [
        {"step": row["step"], "source": row["source"], "dropped": int(number), "why": reason}
        for row in counts
        for reason, number in re.findall(r"(.+?): (\d+)(?:; |$)", row["reasons"])
    ]
    spent = {key: sum(float(row[key]) for row in counts) for key in TAKEN}
    tokens = sum(int(row[key]) for row in counts for key in TOKENS)
    is_micro = any(row["source"] in worlds.known().sources for row in counts)
    nature = (
        "The pictures are drawn (a micro-world), the teacher is a program with stated error "
        "rates; `meta.scene` is the truth behind each picture."
        if is_micro
        else "Captions and reasoning were written by the models that `models` below names."
    )
    models = [{"ledger": "not here"}]
    if (out / LEDGER).is_file():
        with Ledger(out / LEDGER) as ledger:
            models = ledger.models()
    return f"""---
configs:
- config_name: default
  data_files:
{splits}---

# Reasoning traces, built in six steps

{sizes["sft"]} records for SFT and {sizes["rl"]} for RL (their traces hold an aha word), made by
caption, distil, rewrite, verify and split after VLAA-Thinking (arXiv 2504.11468). {nature}

## Counts, beside the paper's table 1

{tables.markdown_table(table_1(counts))}

## Where records were lost

{tables.markdown_table(lost) if lost else "None was."}

## Who answered, and what it took

{tables.markdown_table(models)}

{tokens:,} tokens, {spent["cost"]:.4f} US dollars at the prices given, {spent["seconds"]:,.0f}
seconds of waiting for replies (many at a time).

## Beware

* A judge compared the final answers. Nobody read the reasoning: a verified trace can hold false
  steps, and about things that the caption did not tell it must guess.
* The split is a search for words ("check" is in "checkered"), not a judgement of reasoning.
* Pictures keep the terms of the datasets they come from.
"""
