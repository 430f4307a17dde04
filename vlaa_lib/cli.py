"""The command line: `python -m vlaa_lib COMMAND --help`.

Commands read arguments, call one function of the library and print; nothing else happens here.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from vlaa_lib import Halted, folders, profiles
from vlaa_lib.prompts import MAX_NEW_TOKENS

from . import options as o
from .commands import construct, data, microworld, models, process, subset
from .escape import say
from .options import loaded, one_line, one_of, show
from .progress import close_bars

STUDY, METHOD, DATA, POCKET = "The study", "The method", "Data", "The pocket world"
HELD_OUT = "folder with records.jsonl and images; asked every grpo.held_out_rounds rounds"
LAUNCH = f"run on several processes: {', '.join(profiles.LAUNCHERS)}"
RULES = "ours, strict, kit-2025-04 or kit-2026-08 (VLMEvalKit then and now), -vlaa: its tag rule"
app = typer.Typer(
    help="VLAA-Thinking, runnable: build a dataset, train, evaluate, compare traces.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
app.add_typer(process, name="process", rich_help_panel=METHOD, help="Process rewards (ViLBench).")
app.add_typer(data, name="data", rich_help_panel=DATA, help="The released dataset and its sources.")
for command in (construct, subset):
    app.command(rich_help_panel=DATA)(command)
for command in (microworld, models):
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
    say(f"{out}: {card['records']} records, {card['flips']} flips")


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
    held_out: Annotated[str | None, Option(help=HELD_OUT)] = None,
    steps: Annotated[int | None, Option(help="optimizer steps, instead of the profile's")] = None,
    launch: Annotated[str | None, o.several(LAUNCH)] = None,
    gpus: Annotated[int | None, o.several("processes a machine; default: 8, or 2 on CPUs")] = None,
    machines: Annotated[int, o.several("how many")] = 1,
    machine_rank: Annotated[int, o.several("number of this machine, from 0")] = 0,
    main_ip: Annotated[str | None, o.several("address of machine 0")] = None,
    main_port: Annotated[int | None, o.several("a free port of it; default: 29500")] = None,
    print_only: Annotated[bool, o.several("print the command, then stop", "--print")] = False,
) -> None:
    """Train a policy on records; a training that was cut off goes on from its last checkpoint.

    Example: python -m vlaa_lib train grpo --records R.jsonl --images images --out runs/grpo
    --profile smoke --set grpo.beta=0.01
    """
    from vlaa_lib import rewards
    from vlaa_lib import train as training
    from vlaa_lib.train import launch as launcher
    from vlaa_lib.train import rank_setup

    cfg = loaded(profile, changes, **{f"{method}.max_steps": steps})
    if held_out and not (method == "grpo" and cfg.grpo.held_out_rounds):
        raise ValueError("--held-out is for GRPO with grpo.held_out_rounds above 0; set that too")
    if launch:
        given = cfg, method, records, images, out, start, machine_rank, held_out
        words = launcher.words_of(*given)
        mode = getattr(cfg, method).mode
        given = launch, words, gpus, machines, machine_rank, main_ip, main_port, mode
        command = launcher.command(*given)
        say(shlex.join(command))
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
            from vlaa_lib import evaluate as answering
            from vlaa_lib.process import prm

            scorer = prm.chosen_reward(cfg, images)
            asker = answering.held_out_asker(cfg, held_out)
            log = training.grpo(*given, process_reward=scorer, held_out=asker)
    if rank_setup.rank() == 0:
        shown = ("step", "loss", "reward", "kl")
        show([{k: v for k, v in row.items() if k in shown} for row in log])
        say(f"saved {out}")


@app.command(rich_help_panel=METHOD)
def plan(
    profile: o.Profile = "laptop",
    method: Literal["sft", "grpo"] = "grpo",
    gpus: int = 1,
    model: Annotated[str | None, Option(help="folder, config.json or hub name")] = None,
    records: Annotated[int | None, Option(help="default: what the profile trains on")] = None,
    card_gb: Annotated[float | None, Option(help="default: 80, with lora 24, 4bit 16")] = None,
    sharding: Literal["ddp", "zero2", "zero3", "fsdp2"] | None = None,
    changes: o.Set = [],
    json: o.Json = None,
) -> None:
    """Say what a training needs, before it starts; exit 1: it does not fit.

    Example: python -m vlaa_lib plan --profile paper --gpus 8
    """
    from vlaa_lib.train import plan as planner

    cfg, asked = loaded(profile, changes), {"card_gb": card_gb, "sharding": sharding}
    made = planner.plan(planner.setup_of(cfg, method, gpus, model, records=records, **asked))
    if json:
        folders.write_json(json, made)
    say("all of it arithmetic, an estimate")
    for rows in planner.tables(made):
        show(rows)
    for problem in made["problems"]:
        say(f"does not fit: {problem}")
    say("verdict: does not fit" if made["problems"] else "verdict: fits")
    raise typer.Exit(1 if made["problems"] else 0)


@app.command(rich_help_panel=METHOD)
def doctor(
    records: o.Records,
    images: o.Images,
    what: Annotated[Literal["rewards"], Argument(hidden=True)] = "rewards",
    completions: Annotated[str | None, Option(help="JSON Lines, or a folder of traces")] = None,
    model: Annotated[str | None, Option(help="checkpoint to sample them from")] = None,
    n: Annotated[int, Option(min=1, help="records, four completions each")] = 32,
) -> None:
    """Score sampled completions before training; exit 1: nothing can be learnt from them.

    Example: python -m vlaa_lib doctor --records R.jsonl --images images --model runs/sft
    """
    one_of(completions=completions, model=model)
    from vlaa_lib.study import doctor as checkup

    is_alive = checkup.examine(records, images, completions, model, n)
    raise typer.Exit(0 if is_alive else 1)


@app.command(rich_help_panel=METHOD)
def evaluate(
    out: o.Out,
    records: o.MaybeRecords = None,
    images: o.MaybeImages = None,
    benchmark: Annotated[str | None, Option(help="MathVista_MINI, micro-WeMath")] = None,
    tsv: Annotated[str | None, Option(help="the benchmark's file, as VLMEvalKit has it")] = None,
    image_root: Annotated[str | None, Option(help="default: the file's folder")] = None,
    predictions: Annotated[str | None, Option(help="score this file of the kit")] = None,
    extraction: Annotated[str, Option(metavar="RULES", help=RULES)] = "ours",
    judge: Annotated[str | None, Option(help="YAML with `judge`: reads what no rule can")] = None,
    shard: o.Shard = "1/1",
    blank: Annotated[bool, Option("--blank", help="grey pictures: what is guessed")] = False,
    export: Annotated[str | None, Option(help="file for the kit: .tsv or .json")] = None,
    model: o.MaybeModel = None,
    mode: o.Mode = "full",
    dtype: o.Dtype = "auto",
    backend: Annotated[Literal["hf", "vllm"], o.answers("what samples")] = "hf",
    preset: Annotated[Literal["paper", "vlmevalkit"], o.answers("whose limits")] = "paper",
    batch: Annotated[int | None, o.answers("rows at a time; default: 64, of benchmarks 16")] = None,
    max_new_tokens: o.Tokens = None,
    min_pixels: Annotated[int | None, o.answers("of a picture; default: the preset's")] = None,
    max_pixels: Annotated[int | None, o.answers("of a picture; default: the preset's")] = None,
    system_prompt_file: o.Prompt = None,
    template: Annotated[str | None, o.answers("YAML: your own prompt for a benchmark")] = None,
) -> None:
    """Answer records, or a benchmark's file, greedily and print the scores. Resumes.

    For several GPUs start one --shard on each.

    Example: python -m vlaa_lib evaluate --records R.jsonl --images images --model runs/grpo
    --out runs/answers
    """
    from vlaa_lib import evaluate as evaluation
    from vlaa_lib import models, rewards
    from vlaa_lib.evaluate import extract, kit, runner
    from vlaa_lib.evaluate.benchmarks import held_out, read

    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels, "max_new_tokens": max_new_tokens,
              "dtype": dtype}  # fmt: skip
    if not benchmark:
        if not (records and images and model):
            raise ValueError("evaluate needs --benchmark, or --records, --images and --model")
        limits["max_new_tokens"] = max_new_tokens or MAX_NEW_TOKENS
        chosen = asking(model, system_prompt_file, preset, **limits)
        made = rewards.pictured(rewards.usable(records, images), images, chosen.max_pixels)
        asked = held_out(list(made), images)
        policy = models.load_policy(model, dtype=dtype)
        rows = evaluation.run(policy, [asked], chosen, out, model, batch or 64)
        folders.write_rows(Path(out) / "rows.jsonl", rows)
        say(*runner.report([row for row in rows if not row["blank"]]), is_error=True)
        return show(evaluation.summary(rows))
    if not tsv or bool(model) == bool(predictions):
        raise ValueError("--benchmark needs --tsv FILE, and either --model or --predictions")
    extract.check_mode(extraction)  # before a model has answered for hours
    reader = None
    if judge:
        if extraction != "ours":
            raise ValueError(f"--judge reads what our rules cannot; --extraction is {extraction}")
        from vlaa_lib.evaluate.judge import Judge
        from vlaa_lib.llm import Endpoint, read_endpoints

        endpoint = read_endpoints(judge, {"judge": Endpoint("judge")})["judge"]
        reader = Judge(endpoint, Path(out) / "judge.sqlite")  # a reply is paid for once
    chosen = asking(model, system_prompt_file, preset, template, **limits)
    asked = read(benchmark, tsv, Path(tsv).with_suffix(".images"), image_root)
    say(asked)
    if predictions:
        found = kit.read(predictions, asked)
    else:
        given = [asked], chosen, out, models.resolve(model), None, batch or 16
        found = runner.answer(*given, blank, shard, mode, backend)[asked.name]
    say(*asked.rejects, is_error=True)
    if missing := len(asked.rows) - len(found):
        say(f"{missing} of {len(asked.rows)} rows have no answer", is_error=True)
        if not predictions:
            say("once every shard is done, score with the same command without --shard")
            return None
    if export:
        kit.write(export, asked, found)
    rows, table = runner.finish(out, asked, found, extraction, reader)
    say(*runner.report(rows, reader), is_error=True)
    return show(table)


def asking(
    model: str | None, prompt_file: str | None, preset: str = "paper", template: str | None = None,
    **limits: int | str | None,
) -> Any:  # fmt: skip
    """Return the settings; note where the authors' own prompt is missed."""
    from vlaa_lib.evaluate import prompting

    if not prompt_file and "vlaa-thinker" in str(model).lower():
        say(
            "note: the released VLAA-Thinker checkpoints want the authors' own system prompt; "
            "copy it from inference.py of github.com/UCSC-VLAA/VLAA-Thinking into a file and name "
            "that with --system-prompt-file. Now they get ours.",
            is_error=True,
        )
    prompt = prompting.read_text(prompt_file) if prompt_file else None
    return prompting.settings(preset, prompt, template, **limits)


@app.command(rich_help_panel=METHOD)
def generate(
    model: o.Model,
    image: Annotated[str, Option(help="a picture")],
    question: Annotated[str, Option(help="what is asked of it")],
    mode: o.Mode = "full",
    dtype: o.Dtype = "auto",
    max_new_tokens: o.Tokens = None,
    system_prompt_file: o.Prompt = None,
) -> None:
    """Ask a model about one picture.

    Example: python -m vlaa_lib generate --model data/pocket/instruct --image a.png --question "?"
    """
    from vlaa_lib.evaluate.generate import Ask
    from vlaa_lib.evaluate.generate import loaded as model_of

    chosen = asking(model, system_prompt_file, max_new_tokens=max_new_tokens, dtype=dtype)
    picture = Path(image)
    answer = model_of(model, picture.parent, chosen, mode, "hf")
    (said,) = answer([Ask(question, chosen.system_prompt, (picture.name,))])
    say(said.text)
    if said.is_truncated:
        say(f"cut off after {said.num_tokens} tokens; see --max-new-tokens", is_error=True)


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
    for stream in (sys.stdout, sys.stderr):  # what others print, on a terminal that is not UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(spelt_out(sys.argv[1:] if argv is None else argv), prog_name="python -m vlaa_lib")
    except SystemExit as end:
        return int(end.code or 0)
    except (ValueError, OSError, Halted) as error:
        close_bars()
        say(f"error: {one_line(error)}", is_error=True)
        return 2
    return 0
