"""The commands of the data, of process rewards and of the pocket world; `cli` has the others."""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from vlaa_lib import Halted, folders

from . import options as o
from .escape import say
from .options import loaded, one_of, show
from .prompts import MAX_NEW_TOKENS
from .tables import read

data, process = typer.Typer(no_args_is_help=True), typer.Typer(no_args_is_help=True)
SHOWN = ("generator", "scorer", "aggregator", "n", "questions", "accuracy", "low", "high")


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
        say(*building.export(out, images))
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
        foreign = sum("scene" not in record.meta for record in kept(records, images))
        if foreign:
            say(
                f"warning: {records}: {foreign} records are not of the micro-world, and without "
                "--base-url or --endpoints the local teacher answers, which has rules for that "
                "world alone; give real ones a real teacher (data/CONSTRUCT.md)", is_error=True,
            )  # fmt: skip
        teacher = pocket.serve_teacher(pocket.scenes_of(kept(records, images), images))
    try:
        with teacher as url:
            result = building.run(made, images, url, out, limits=limits, **asked)
    except (Halted, KeyboardInterrupt) as stop:  # not at its end: the same command goes on
        said = str(stop) or f"interrupted; finished calls are kept in {out}, start again to go on"
        say(f"stopped: {said}", is_error=True)
        raise typer.Exit(3) from None
    show(result.counts)
    say(result.summary)


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
        say("scored; once every shard is done, choose with the same command without --shard")
        return
    if scores:
        table, rejects = subsets.average(made, scores)
        folders.write_csv(folder / "perplexity.csv", table)
        recording.write(rejects, folder / "not_scored.jsonl")
        say(f"{len(table)} records in {out}/perplexity.csv, {len(rejects)} in not_scored.jsonl")
    chosen = {f"top-{k}": subsets.select(made, scores, k).records for k in top}
    if aha:
        chosen[f"aha-{aha}"] = subsets.aha(made, aha, seed)
    for name, kept in chosen.items():
        recording.write(kept, folder / f"{name}.jsonl")
        say(f"{len(kept)} records in {out}/{name}.jsonl")


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
    say(f"commit {found.commit}: {download} to download, about {unpack} to unpack")
    if not plan:
        fetch.download(found)
        say(f"done; next: python -m vlaa_lib data check --root {root}")


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
    say(*wrong or ["every record has its picture"])
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
        say(f"left out: {name}, as there is no folder {homes[name]}", is_error=True)
    counts = sources.paper_counts(scale)
    chosen = source or there
    if unknown := [name for name in chosen if name not in counts]:
        raise ValueError(f"unknown source {unknown[0]!r}; use one of {', '.join(counts)}")
    if not chosen:
        raise ValueError(f"{root}: no dataset's folder here; see data/SOURCES.md")
    show(sources.write(out, {name: counts[name] for name in chosen}, root, seed))
    say(f"records and pictures in {out}; what was left out is in rejects.jsonl")


# --- process: sample a pool, score its steps, compare ways of choosing, train ---------------------


@process.command()
def pool(
    records: o.Records,
    images: o.Images,
    model: o.Model,
    out: o.Out,
    generator: Annotated[str | None, Option(help="its name in tables")] = None,
    candidates: Annotated[int, Option(help="solutions of a question")] = 16,
    temperature: float = 0.8,
    seed: o.Seed = 0,
    batch: int = 64,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> None:
    """Sample solutions of each question; resumes."""
    from vlaa_lib import models, rewards
    from vlaa_lib.process import best_of_n, pools

    made = list(rewards.pictured(rewards.usable(records, images), images))
    name = generator or Path(model).name
    given = models.load_policy(model), made, images, out, name, candidates, temperature, seed
    found = pools.sample(*given, batch=batch, max_new_tokens=max_new_tokens)
    show(best_of_n.table([found], {}, [n for n in pools.SIZES if n <= found.reach], resamples=200))
    say(f"{len(found.candidates)} questions of {name} in {out}")


@process.command("judge")
def judge_steps(
    records: o.Records,
    images: o.Images,
    pools: Annotated[list[str], Option(metavar="FOLDER ...")],
    out: o.OutFile,
    endpoints: o.Endpoints = None,
    model: Annotated[str | None, Option(help="checkpoint that judges")] = None,
    prm: Annotated[str | None, Option(help="folder of a ViLPRM that scores")] = None,
    truth: Annotated[Literal["steps", "steps+answer"] | None, Option(help="the scenes")] = None,
    view: Literal["step", "prefix", "context"] = "context",
    concurrency: o.Concurrency = 8,
    max_cost: o.MaxCost = None,
) -> None:
    """Score the steps of pools; finished calls are kept."""
    one_of(endpoints=endpoints, model=model, prm=prm, truth=truth)
    from vlaa_lib import llm, models, rewards
    from vlaa_lib.process import scorers
    from vlaa_lib.process.pools import load

    made = rewards.usable(records, images)
    made = list(made if truth else rewards.pictured(made, images))
    given = Path(out).parent / "judge.sqlite", images, view
    if truth:
        name = f"truth of {truth}"
        scorer: Any = partial(scorers.step_truth, with_answer=truth == "steps+answer")
    elif prm:
        from vlaa_lib.process import prm as vilprm

        name, scorer = f"ViLPRM {Path(prm).name}", vilprm.scorer(vilprm.load(prm), images)
    elif model:
        scorer = scorers.policy_judge(models.load_policy(model), *given)
        name = scorer.name
    else:
        endpoint = llm.read_endpoints(endpoints, {"judge": llm.Endpoint("judge")})["judge"]
        limits = llm.Limits(concurrency, max_cost=max_cost)
        scorer = scorers.endpoint_judge(endpoint, *given, limits)
        name = scorer.name
    found = scorers.score_pools(scorer, map(load, pools), made)
    scorers.write(out, name, found)
    if isinstance(scorer, scorers.StepJudge):
        show([{"no score": k, "steps": n} for k, n in scorer.unusable.most_common()])
        say(f"{scorer.failure_rate:.1%} of {scorer.asked} steps have no score")
    say(f"scores of {len(found)} candidates by {name} in {out}")


@process.command("best-of-n")
def best_of_n(
    pools: Annotated[list[str], Option(metavar="FOLDER ...", help="one a generator")],
    out: o.OutFile,
    scores: Annotated[list[str], Option(metavar="FILE ...", help="of `process judge`")] = [],
    sizes: Annotated[list[int], Option(metavar="N ...")] = [2, 4, 8, 16],
) -> None:
    """Compare ways of choosing among candidates."""
    from vlaa_lib.process import scorers
    from vlaa_lib.process.best_of_n import table
    from vlaa_lib.process.pools import load

    rows = table([load(folder) for folder in pools], scorers.read(*scores), sizes)
    folders.write_csv(out, rows)
    largest = max((row["n"] for row in rows), default=0)
    show([{key: row[key] for key in SHOWN} for row in rows if row["n"] == largest])
    say(f"{len(rows)} rows in {out}")


@process.command("first-error")
def find_first_error(
    truth: Annotated[str, Option(metavar="FILE", help="of `process judge --truth`")],
    scores: Annotated[list[str], Option(metavar="FILE ...", help="of `process judge`")],
    out: o.OutFile,
) -> None:
    """Measure who finds the first false step of solutions: a micro-ProcessBench."""
    from vlaa_lib.process import first_error, scorers

    exact = scorers.read(truth)
    if len(exact) != 1:
        raise ValueError(f"{truth}: scores by {', '.join(exact) or 'nobody'}; give the truth alone")
    rows = first_error.table(scorers.read(*scores), *exact.values())
    folders.write_csv(out, rows)
    show(rows)


@process.command()
def search(
    records: o.Records,
    images: o.Images,
    out: o.Out,
    model: Annotated[str | None, Option(help="default: the profile's policy")] = None,
    n: Annotated[int | None, Option(min=1, help="take the first N records")] = None,
    profile: o.Profile = "laptop",
    changes: o.Set = [],
) -> None:
    """Search trees of steps, write scored processes; resumes."""
    cfg = loaded(profile, changes)
    from vlaa_lib import models, rewards
    from vlaa_lib.process.search import rows, run, statistics

    usable, m = list(rewards.usable(records, images, out)), cfg.model
    made = list(islice(rewards.pictured(usable, images), n))
    given = "full", m.max_pixels, m.min_pixels, m.dtype
    policy = models.load_policy(model or m.policy, *given)
    trees = run(policy, made, images, out, cfg.search, cfg.seed)
    show(statistics(trees))
    say(f"{len(rows(trees))} rows of {len(trees)} questions in {Path(out) / 'processes.json'}")


@process.command("train-prm")
def train_prm(
    rows: Annotated[str, Option(help="processes.json of a search, or ViLReward-73K")],
    images: o.Images,
    out: o.Out,
    start: o.Start = None,
    profile: o.Profile = "laptop",
    changes: o.Set = [],
) -> None:
    """Train a ViLPRM on scored processes; resumes."""
    cfg = loaded(profile, changes)
    from vlaa_lib.process import prm
    from vlaa_lib.process.search import read_processes

    found = read_processes(rows, images, cfg.model.max_pixels)
    for reject in found.rejects:
        say(f"rejected: {reject}")
    log = prm.train(cfg, found.rows, images, out, start)
    show([{key: row[key] for key in ("step", "loss") if key in row} for row in log])
    for name in ("held_out", "calibration"):
        show(read(Path(out) / f"{name}.csv"))


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
        say(f"{len(rows)} rows of {benchmark} in {out}")
        return
    made = world.write_split(out, list(dict.fromkeys(source or world.SOURCES)), split, n, seed)
    say(f"{len(made)} records in {out}/records.jsonl")


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
