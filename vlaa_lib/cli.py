"""The command line: `python -m vlaa_lib COMMAND --help`.

Commands read arguments, call one function of the library and print; nothing else happens here.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from json import dumps
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from vlaa_lib import Halted, folders
from vlaa_lib.evaluate.command import evaluate, generate
from vlaa_lib.pocket.command import microworld, models, serve_teacher
from vlaa_lib.process.command import process
from vlaa_lib.sources.command import data

from . import options as o
from .options import loaded, one_of, show

STUDY, METHOD, DATA, POCKET = "The study", "The method", "Data", "The pocket world"
app = typer.Typer(
    help="VLAA-Thinking, runnable: build a dataset, train, evaluate, compare traces.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
app.add_typer(data, name="data", rich_help_panel=DATA, help="The released dataset and its sources.")
app.add_typer(process, name="process", rich_help_panel=METHOD, help="Process rewards (ViLBench).")
for command in (evaluate, generate):
    app.command(rich_help_panel=METHOD)(command)
for command in (microworld, models, serve_teacher):
    app.command(rich_help_panel=POCKET)(command)


# --- the study -----------------------------------------------------------------------------------


@app.command(rich_help_panel=STUDY)
def run(
    profile: o.Profile = "laptop",
    run_dir: o.RunDir = None,
    notebooks: Annotated[list[str], Option(help="numbers or names, e.g. 00 04")] = [],
    fresh: Annotated[bool, Option("--fresh", help="start anew instead of resuming")] = False,
) -> None:
    """Run the ordered notebooks headlessly; resumes an unfinished run.

    Example: python -m vlaa_lib run --profile smoke --run-dir runs/smoke
    """
    from vlaa_lib.study import run as study

    chosen = notebooks or None
    raise typer.Exit(study.run(profile, notebooks=chosen, run_dir=run_dir, resume=not fresh))


@app.command(rich_help_panel=STUDY)
def stage(
    name: Annotated[str, Argument(help="model:grpo, answers:sft, pool:instruct, vilprm:0, ...")],
    profile: o.Profile = "laptop",
    changes: o.Set = [],
    run_dir: o.RunDir = None,
) -> None:
    """Build one artefact of a run, and what it needs."""
    from vlaa_lib import study
    from vlaa_lib.study import stages

    cfg = loaded(profile, changes)
    study.build(cfg, stages.folder(cfg, run_dir), name)


@app.command(rich_help_panel=STUDY)
def matrix(
    profile: o.Profile = "laptop",
    seeds: list[int] = [0, 1, 2],
    models: list[str] = ["instruct", "grpo"],
    run_dir: o.RunDir = None,
) -> None:
    """Train and evaluate models over several seeds.

    Example: python -m vlaa_lib matrix --seeds 1 2 --models instruct sft grpo sft_grpo
    """
    from vlaa_lib.study import stages

    show(stages.matrix(profile, seeds, models, run_dir))


@app.command(rich_help_panel=STUDY)
def traces(
    what: Literal["curate"],
    run_dir: Annotated[str, Option("--run", help="folder of a finished run")],
    out: o.Out = "data/traces",
    per_source: Annotated[int, Option(min=1)] = 4,
    seed: o.Seed = 0,
) -> None:
    """Pick a few telling traces of a finished run."""
    from vlaa_lib.study import curation

    card = curation.curate(run_dir, out, per_source, seed)
    print(f"{out}: {card['records']} records, {card['flips']} flips, {card['bytes']:,} bytes")


# --- data ----------------------------------------------------------------------------------------


@app.command(rich_help_panel=DATA)
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
    with ExitStack() as stack:
        if not (base_url or endpoints):
            scenes = pocket.scenes_of(kept(records, images), images)
            base_url = stack.enter_context(pocket.serve_teacher(scenes))
        try:
            result = building.run(made, images, base_url or "", out, limits=limits, **asked)
        except Halted as stop:  # not at its end: the same command goes on
            print(f"stopped: {stop}", file=sys.stderr)
            raise typer.Exit(3) from None
    show(result.counts)
    print(result.summary)


@app.command(rich_help_panel=DATA)
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
    import re

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


# --- the method ----------------------------------------------------------------------------------


@app.command(rich_help_panel=METHOD)
def train(
    method: Literal["sft", "grpo"],
    records: o.Records,
    images: o.Images,
    out: o.Out,
    profile: o.Profile = "laptop",
    changes: o.Set = [],
    start: o.Start = None,
    steps: Annotated[int | None, Option(help="optimizer steps, instead of the profile's")] = None,
    reward_model: Annotated[str | None, Option(help="of open answers")] = None,
    trust_remote_code: Annotated[bool, Option("--trust-remote-code", help="for xcomposer")] = False,
    endpoints: o.Endpoints = None,
    launch: o.Launch = None,
    gpus: o.Gpus = None,
    machines: o.Machines = 1,
    machine_rank: o.MachineRank = 0,
    main_ip: o.MainIp = None,
    main_port: o.MainPort = None,
    print_only: o.PrintOnly = False,
) -> None:
    """Train a policy on records; a training that was cut off goes on from its last checkpoint.

    Example: python -m vlaa_lib train grpo --records R.jsonl --images images --out runs/grpo
    --profile smoke --set grpo.beta=0.01
    """
    from vlaa_lib import rewards
    from vlaa_lib import train as training
    from vlaa_lib.train import launch as launcher
    from vlaa_lib.train import rank_setup

    cfg = loaded(profile, changes, **{
        f"{method}.max_steps": steps, "grpo.reward_model": reward_model,
        "grpo.trust_remote_code": trust_remote_code, "grpo.endpoints": endpoints,
    })  # fmt: skip
    if launch:
        words = launcher.words_of(cfg, method, records, images, out, start)
        command = launcher.command(
            launch, words, gpus, machines, machine_rank, main_ip, main_port,
            getattr(cfg, method).mode,
        )  # fmt: skip
        print(shlex.join(command), flush=True)
        if not print_only:
            name = f"launch-{machine_rank}.log" if machine_rank else "launch.log"
            launcher.run(command, Path(out) / name)
        return
    with rank_setup.joined():
        made = list(rewards.usable(records, images, out, any_open=True))
        given = cfg, made, images, out, start
        if method == "sft":
            log = training.sft(*given)
        else:
            from vlaa_lib.process import prm

            log = training.grpo(*given, process_reward=prm.chosen_reward(cfg, images))
    if rank_setup.rank() == 0:
        shown = ("step", "loss", "reward", "kl")
        show([{k: v for k, v in row.items() if k in shown} for row in log])
        print(f"saved {out}")


@app.command(rich_help_panel=METHOD)
def plan(
    profile: o.Profile = "laptop",
    method: Literal["sft", "grpo"] = "grpo",
    gpus: int = 1,
    model: Annotated[str | None, Option(help="folder, config.json or hub name")] = None,
    records: Annotated[int | None, Option(help="default: what the profile trains on")] = None,
    card_gb: Annotated[float | None, Option(help="default: 80, with lora 24, 4bit 16")] = None,
    sharding: Literal["ddp", "zero2", "zero3", "fsdp2"] | None = None,
    reward_model: Literal["none", "parked", "on"] | None = None,
    changes: o.Set = [],
    json: o.Json = None,
) -> None:
    """Say what a training needs, before it starts; exit 1: it does not fit.

    Example: python -m vlaa_lib plan --profile paper --gpus 8
    """
    from vlaa_lib.train import plan as planner

    made = planner.plan(planner.setup_of(
        loaded(profile, changes), method, gpus, model, records=records, card_gb=card_gb,
        sharding=sharding, reward_model=reward_model,
    ))  # fmt: skip
    if json:
        folders.write_text(json, dumps(made, indent=1) + "\n")
    print("all of it arithmetic, an estimate")
    for rows in planner.tables(made):
        show(rows)
    for problem in made["problems"]:
        print(f"does not fit: {problem}")
    print("verdict: does not fit" if made["problems"] else "verdict: fits")
    raise typer.Exit(1 if made["problems"] else 0)


@app.command(rich_help_panel=METHOD)
def doctor(
    records: o.Records,
    images: o.Images,
    what: Annotated[Literal["rewards"], Argument(hidden=True)] = "rewards",
    completions: Annotated[str | None, Option(help="JSON Lines, or a folder of traces")] = None,
    model: Annotated[str | None, Option(help="checkpoint to sample them from")] = None,
    n: Annotated[int, Option(min=1, help="records, four completions each")] = 32,
    json: o.Json = None,
) -> None:
    """Score sampled completions before training; exit 1: nothing can be learnt from them.

    Example: python -m vlaa_lib doctor --records R.jsonl --images images --model runs/sft
    """
    one_of(completions=completions, model=model)
    given = SimpleNamespace(**locals())
    from vlaa_lib.study import doctor as checkup

    raise typer.Exit(checkup.main(given, show))


# --- the entry -----------------------------------------------------------------------------------


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that a command line names, and the words after its name."""
    found, rest = typer.main.get_command(app), list(words)
    while rest and rest[0] in getattr(found, "commands", {}):
        found = found.commands[rest.pop(0)]
    return found, rest


def spelt_out(words: list[str]) -> list[str]:
    """Repeat an option that takes several values before each of them, as typer wants it.

    >>> spelt_out(["matrix", "--seeds", "1", "2", "--profile", "smoke"])
    ['matrix', '--seeds', '1', '--seeds', '2', '--profile', 'smoke']
    """
    found, rest = command_of(words)
    several = {name for p in found.params if getattr(p, "multiple", False) for name in p.opts}
    made, option = words[: len(words) - len(rest)], ""
    for word in rest:
        if word.startswith("--"):
            option = word if word in several else ""
        made += [word] if not option else [] if word == option else [option, word]
    return made


def main(argv: list[str] | None = None) -> int:
    """Run a command; the errors that a user can mend become one clear line and exit code 2."""
    try:
        app(spelt_out(sys.argv[1:] if argv is None else argv), prog_name="python -m vlaa_lib")
    except SystemExit as end:
        return int(end.code or 0)
    except (ValueError, OSError, Halted) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
