"""The commands of the data: construction, subsets, datasets; and of the pocket world."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from vlaa_lib import Halted, folders

from . import options as o
from .options import show

data = typer.Typer(no_args_is_help=True)


def construct(
    out: o.Out,
    what: Annotated[Literal["run", "card"], Argument(help="card: of a finished run")] = "run",
    records: o.MaybeRecords = None,
    images: o.MaybeImages = None,
    base_url: Annotated[str | None, Option(help="default: the local teacher")] = None,
    endpoints: o.Endpoints = None,
    prompts_dir: Annotated[str | None, Option(help="your own 1.captioning.txt, ...")] = None,
    concurrency: o.Concurrency = 8,
    timeout: Annotated[float, Option(help="seconds of one try of one call")] = 600,
    retries: Annotated[int, Option(help="of one call")] = 5,
    max_cost: o.MaxCost = None,
    max_tokens: Annotated[int | None, Option(help="stop cleanly after so many tokens")] = None,
    plan: Annotated[bool, Option("--plan", help="say what it would cost, ask nobody")] = False,
) -> None:
    """Build traces for records: caption, distil, rewrite, verify, split. Paid calls are kept.

    Example: python -m vlaa_lib construct --records R.jsonl --images images --out runs/data
    """
    from vlaa_lib import construct as building
    from vlaa_lib import pocket, rewards
    from vlaa_lib.records import kept

    if what == "card":
        print("\n".join(map(str, building.export(out, images))))
        return
    if not (records and images):
        raise ValueError("construct needs --records FILE and --images FOLDER")
    asked = {
        "endpoints": building.read_endpoints(endpoints) if endpoints else building.ENDPOINTS,
        "templates": building.read_templates(prompts_dir) if prompts_dir else building.Templates(),
    }
    made = rewards.usable(records, images, out, any_open=True)
    if plan:
        show(building.plan(made, images, out, **asked))
        return
    limits = building.Limits(concurrency, timeout, retries, max_cost, max_tokens)
    if base_url or endpoints:
        teacher = nullcontext(base_url or "")
    else:
        teacher = pocket.serve_teacher(pocket.scenes_of(kept(records, images), images))
    try:
        with teacher as url:
            result = building.run(made, images, url, out, limits=limits, **asked)
    except Halted as stop:  # not at its end: the same command goes on
        print(f"stopped: {stop}", file=sys.stderr)
        raise typer.Exit(3) from None
    show(result.counts)
    print(result.summary)


def subset(
    records: o.Records,
    images: o.Images,
    out: o.Out,
    perplexity: Annotated[list[str], Option(metavar="MODEL ...", help="who scores them")] = [],
    top: Annotated[list[int], Option(metavar="K ...", help="keep the K highest")] = [],
    aha: Annotated[int | None, Option(help="draw so many records with an aha word")] = None,
    shard: o.Shard = "1/1",
    batch_tokens: Annotated[int | None, Option(help="of a forward pass, with padding")] = None,
    seed: o.Seed = 0,
) -> None:
    """Choose small SFT subsets: by perplexity, or by aha words.

    Example: python -m vlaa_lib subset --records R.jsonl --images images --out runs/sub
    --perplexity data/pocket/instruct --top 50
    """
    from vlaa_lib import models, rewards, subsets
    from vlaa_lib import records as recording

    if (top and not perplexity) or not (perplexity or aha):
        raise ValueError("name models with --perplexity (and sizes with --top), or a size --aha")
    made, folder = list(rewards.usable(records, images, out, any_open=True)), Path(out)
    scores = {}
    limits = batch_tokens or subsets.BATCH_TOKENS, shard
    for model in perplexity:
        place = folder / "scores" / re.sub(r"[^\w.-]+", "_", model)
        scores[model] = subsets.load(place, made)
        if len(scores[model]) < len(made):  # with nothing left to do no model is loaded
            policy = models.load_policy(model)
            scores[model] = subsets.score(policy, made, images, place, *limits)
    if shard != (1, 1):
        print("scored; once every shard is done, choose with the same command without --shard")
        return
    if scores:
        table, rejects = subsets.average(made, scores)
        folders.write_csv(folder / "perplexity.csv", table)
        recording.write(rejects, folder / "not_scored.jsonl")
        print(f"{len(table)} records in {out}/perplexity.csv, {len(rejects)} in not_scored.jsonl")
    chosen = {f"top-{k}": subsets.select(made, scores, k).records for k in top}
    if aha:
        chosen[f"aha-{aha}"] = subsets.aha(made, aha, seed)
    for name, kept in chosen.items():
        recording.write(kept, folder / f"{name}.jsonl")
        print(f"{len(kept)} records in {out}/{name}.jsonl")


# --- data: the released dataset, and the nine public ones behind it -------------------------------


@data.command()
def fetch(
    dataset: Literal["vlaa-thinking"],
    root: Annotated[str, Option(help="folder of the dataset; pictures go to images/")],
    revision: Annotated[str | None, Option(help="default: ROOT/REVISION, else main today")] = None,
    only: Annotated[list[str], Option(help="patterns of files, e.g. '*.json'")] = [],
    plan: Annotated[bool, Option("--plan", help="print files and sizes, then stop")] = False,
) -> None:
    """Get the released dataset; resumes."""
    from vlaa_lib.sources import fetch

    found = fetch.plan(root, revision, only or None)
    show(found.rows)
    download, unpack = map(fetch.megabytes, found.needs)
    print(f"commit {found.commit}: {download} to download, about {unpack} to unpack", flush=True)
    if not plan:
        fetch.download(found)
        print(f"done; next: python -m vlaa_lib data check --root {root}")


@data.command()
def check(
    root: Annotated[str, Option(help="folder of the dataset")],
    records: Annotated[list[str], Option(help="default: all JSON files in ROOT")] = [],
    deep: Annotated[bool, Option("--deep", help="open and decode every picture")] = False,
) -> None:
    """Say, source by source, which pictures are there; exit 1: some are not."""
    from vlaa_lib.sources import fetch

    rows, wrong = fetch.check(root, records or None, deep)
    show(rows)
    print("\n".join(wrong) or "every record has its picture")
    raise typer.Exit(1 if wrong else 0)


@data.command()
def prepare(
    root: Annotated[str, Option(help="holds one folder a source; see data/SOURCES.md")],
    out: o.Out,
    source: Annotated[list[str], Option(help="default: those with a folder")] = [],
    scale: Annotated[float, Option(help="share of the paper's counts")] = 1.0,
    seed: o.Seed = 0,
) -> None:
    """Sample public sources into records; what was left out is in rejects.jsonl."""
    from vlaa_lib import sources

    homes = {name: Path(root) / reader.folder for name, reader in sources.READERS.items()}
    there = [name for name, folder in homes.items() if folder.is_dir()]
    for name in [] if source else sorted(homes.keys() - there):
        print(f"left out: {name}, as there is no folder {homes[name]}", file=sys.stderr)
    counts = sources.paper_counts(scale)
    chosen = source or there
    if unknown := [name for name in chosen if name not in counts]:
        raise ValueError(f"unknown source {unknown[0]!r}; use one of {', '.join(counts)}")
    if not chosen:
        raise ValueError(f"{root}: no dataset's folder here; see data/SOURCES.md")
    show(sources.write(out, {name: counts[name] for name in chosen}, root, seed))
    print(f"records and pictures in {out}; what was left out is in rejects.jsonl")


# --- the pocket world ----------------------------------------------------------------------------


def microworld(
    out: Annotated[str, Option(help="folder for records.jsonl and images/; of --benchmark a TSV")],
    source: Annotated[list[str], Option(metavar="NAME ...", help="default: all nine")] = [],
    split: str = "train",
    n: Annotated[int, Option(min=1, help="records a source")] = 16,
    seed: o.Seed = 0,
    benchmark: Annotated[str | None, Option(help="write this micro benchmark instead")] = None,
) -> None:
    """Write micro-world records and pictures, or a micro benchmark.

    Example: python -m vlaa_lib microworld --split test --n 20 --out runs/held-out
    """
    from vlaa_lib.pocket import microworld as world
    from vlaa_lib.pocket.microworld import benchmarks

    if benchmark:
        if source or split != "train":
            raise ValueError("--benchmark has its own sources and split")
        rows = benchmarks.write_tsv(benchmark, out, n, seed)
        print(f"{len(rows)} rows of {benchmark} in {out}")
        return
    made = world.write_split(out, list(dict.fromkeys(source or world.SOURCES)), split, n, seed)
    print(f"{len(made)} records in {out}/records.jsonl")


def models(
    what: Literal["build-pocket", "card"],
    stage: Literal["base", "instruct"] = "instruct",
    out: Annotated[str | None, Option(help="default: runs/pocket; to measure: data/pocket")] = None,
    threads: int = 2,
) -> None:
    """Rebuild the pocket VLM from nothing, going on where a build stopped; or measure it again."""
    from vlaa_lib.pocket import card, recipe

    if what == "card":
        card.write_card(stage, Path(out or "data/pocket") / stage)
    else:
        recipe.build(out or "runs/pocket", threads=threads, last=stage)
