"""The commands of `data`: the released dataset, and the nine public ones behind it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from vlaa_lib import options as o
from vlaa_lib.options import show

data = typer.Typer(no_args_is_help=True)


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


@data.command("sources")
def public_sources() -> None:
    """List the public sources: where from, which files."""
    from vlaa_lib import sources

    show(sources.table())


@data.command()
def prepare(
    root: Annotated[str, Option(help="holds one folder a source; see `data sources`")],
    out: o.Out,
    source: Annotated[list[str], Option(help="default: those with a folder; or micro ones")] = [],
    scale: Annotated[float, Option(help="share of the paper's counts")] = 1.0,
    seed: o.Seed = 0,
) -> None:
    """Sample public sources into records; what was left out is in rejects.jsonl."""
    from vlaa_lib import sources, worlds

    roots = {name: Path(root) / reader.folder for name, reader in sources.READERS.items()}
    there = [name for name, folder in roots.items() if folder.is_dir()]
    for name in [] if source else sorted(roots.keys() - there):
        print(f"left out: {name}, as there is no folder {roots[name]}", file=sys.stderr)
    counts = sources.paper_counts(scale)
    counts |= {micro: counts[name] for micro, (_, name) in worlds.known().sources.items()}
    chosen = source or there
    if unknown := [name for name in chosen if name not in counts]:
        raise ValueError(f"unknown source {unknown[0]!r}; use one of {', '.join(counts)}")
    if not chosen:
        raise ValueError(f"{root}: no dataset's folder here; see `data sources`")
    show(sources.write(out, {name: counts[name] for name in chosen}, roots, seed))
    print(f"records and pictures in {out}; what was left out is in rejects.jsonl")
