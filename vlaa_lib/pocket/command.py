"""The commands of the pocket world: draw it, rebuild its model, serve its teacher."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from vlaa_lib import options as o


def microworld(
    source: Annotated[list[str], Option(metavar="NAME ...", help="default: all nine")] = [],
    split: str = "train",
    n: Annotated[int, Option(min=1, help="records a source")] = 16,
    seed: o.Seed = 0,
    out: Annotated[str | None, Option(help="folder for records.jsonl and images/")] = None,
    benchmark: Annotated[str | None, Option(help="a micro benchmark, as TSV to --out")] = None,
    png: Annotated[str | None, Option(help="draw a contact sheet into this file")] = None,
) -> None:
    """Write micro-world records and pictures, or a micro benchmark.

    Example: python -m vlaa_lib microworld --split test --n 20 --out runs/held-out
    """
    from vlaa_lib.images import sheet
    from vlaa_lib.pocket import microworld as world
    from vlaa_lib.pocket.microworld import benchmarks

    if benchmark:
        if not out:
            raise ValueError("--benchmark needs --out FILE.tsv")
        if source or png or split != "train":
            raise ValueError("--benchmark has its own sources and split, and no --png")
        rows = benchmarks.write_tsv(benchmark, out, n, seed)
        print(f"{len(rows)} rows of {benchmark} in {out}")
        return
    if not (out or png):
        raise ValueError("name a folder with --out, or a picture with --png")
    sources = list(dict.fromkeys(source or world.SOURCES))
    if out:
        made = world.write_split(out, sources, split, n, seed)
        print(f"{len(made)} records in {out}/records.jsonl")
    if png:
        streams = [world.stream(name, split, seed) for name in sources]
        images = [sample.image for found in streams for sample in islice(found, n)]
        sheet(images, 8 if len(sources) == 1 else n).save(png)
        print(f"{len(images)} pictures in {png}")


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


def serve_teacher(
    records: o.Records,
    images: o.Images,
    port: int = 8765,
) -> None:
    """Serve the local teacher for micro-world records."""
    from vlaa_lib import pocket

    pocket.serve_forever(records, images, port)
