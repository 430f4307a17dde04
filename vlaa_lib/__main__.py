"""The command line: `python -m vlaa_lib COMMAND --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlaa_lib import folders

from . import Halted, arguments


def parser() -> argparse.ArgumentParser:
    """Build the parser; each command's function is in `run`."""
    top = argparse.ArgumentParser(prog="python -m vlaa_lib", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function, help: str, under=commands) -> argparse.ArgumentParser:
        sub = under.add_parser(name, help=help, description=help)
        sub.set_defaults(run=function)
        return sub

    c = command("run", _run, "Run the ordered notebooks headlessly; resumes an unfinished run.")
    c.add_argument("--profile", default="laptop")
    c.add_argument("--run-dir", help="folder of the run; by default runs/<time>-<profile>")
    c.add_argument("--notebooks", nargs="*", help="numbers or names, e.g. 00 04; default: all")
    c.add_argument("--fresh", action="store_true", help="start anew instead of resuming")

    c = command("stage", _stage, "Build one artefact of a run, and what it needs.")
    c.add_argument("name", help="model:grpo, answers:sft, pool:instruct, vilprm:0, ...")
    c.add_argument("--run-dir", help="folder of the run; by default runs/<profile>")
    arguments.settings(c)

    c = command(
        "construct",
        _construct,
        "Build traces for records: caption, distil, rewrite, verify, split. Resumes; finished "
        "calls are not made twice.",
    )
    arguments.construct(c)

    c = command("microworld", _microworld, "Write micro-world records and pictures.")
    c.add_argument("--source", nargs="*", help="default: all nine")
    c.add_argument("--split", default="train")
    c.add_argument("--n", type=arguments.positive, default=16, help="records a source")
    c.add_argument("--seed", type=int, default=0)
    c.add_argument("--out", help="folder for records.jsonl and images/")
    c.add_argument("--benchmark", help="write a micro benchmark instead, as TSV to --out")
    c.add_argument("--png", help="draw a contact sheet into this file")

    c = command("data", None, "The released dataset, and the nine public ones behind it.")
    actions = c.add_subparsers(dest="what", required=True, metavar="ACTION")
    c = command("fetch", _data_fetch, "Get the released dataset; resumes.", actions)
    c.add_argument("dataset", choices=["vlaa-thinking"])
    c.add_argument("--root", required=True, help="folder of the dataset; pictures go to images/")
    c.add_argument("--revision", help="default: ROOT/REVISION, else main as of today")
    c.add_argument("--only", nargs="+", help="patterns of files, e.g. '*.json'")
    c.add_argument("--plan", action="store_true", help="print files and sizes, then stop")
    c = command("check", _data_check, "Say, source by source, which pictures are there.", actions)
    c.add_argument("--root", required=True, help="folder of the dataset")
    c.add_argument("--records", nargs="+", help="default: all JSON files in ROOT")
    c.add_argument("--deep", action="store_true", help="open and decode every picture")
    command("sources", _data_sources, "List the public sources: where from, which files.", actions)
    c = command("prepare", _data_prepare, "Sample public sources into records.", actions)
    c.add_argument("--root", required=True, help="holds one folder a source; see `data sources`")
    c.add_argument("--out", required=True, help="folder for records.jsonl, rejects.jsonl, images/")
    c.add_argument("--source", nargs="*", help="default: those with a folder; or micro sources")
    c.add_argument("--scale", type=float, default=1.0, help="share of the paper's counts")
    c.add_argument("--seed", type=int, default=0)

    c = command("subset", _subset, "Choose small SFT subsets: by perplexity, or by aha words.")
    arguments.subset(c)

    c = command("models", _models, "Rebuild the pocket VLM from nothing, or measure it again.")
    c.add_argument("what", choices=["build-pocket", "card"])
    c.add_argument(
        "--stage",
        choices=["base", "instruct"],
        default="instruct",
        help="build up to this one, going on where an earlier build stopped; or measure this one",
    )
    c.add_argument("--out", help="default: runs/pocket to build, data/pocket to measure")
    c.add_argument("--threads", type=int, default=2)

    c = command("train", _train, "Train a policy on records.")
    arguments.train(c)

    c = command("plan", _plan, "Say what a training needs, before it starts; exit 1: too much.")
    arguments.plan(c)

    c = command(
        "evaluate",
        _evaluate,
        "Answer records, or a benchmark's file, greedily and print the scores. Benchmarks resume; "
        "for several GPUs start one --shard on each.",
    )
    arguments.evaluate(c)

    c = command("generate", _generate, "Ask a model about one picture.")
    arguments.generate(c)

    c = command("process", _process, "Candidate pools, scores of steps, best-of-N (ViLBench).")
    arguments.process(c)

    c = command("matrix", _matrix, "Train and evaluate models over several seeds.")
    c.add_argument("--profile", default="laptop")
    c.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    c.add_argument("--models", nargs="+", default=["instruct", "grpo"])
    c.add_argument("--run-dir", help="default: runs/<profile>-matrix")

    c = command("doctor", _doctor, "Score sampled completions before training; exit 1 when dead.")
    arguments.doctor(c)

    c = command("traces", _traces, "Pick a few telling traces of a finished run.")
    c.add_argument("what", choices=["curate"])
    c.add_argument("--run", dest="run_dir", required=True, help="folder of the run")
    c.add_argument("--out", default="data/traces")
    c.add_argument("--per-source", type=arguments.positive, default=4)
    c.add_argument("--seed", type=int, default=0)

    c = command("bench", _bench, "Measure speed beside a named peer; one table, and JSON to --out.")
    arguments.bench(c)

    c = command("serve-teacher", _serve, "Serve the local teacher for micro-world records.")
    arguments.data(c)
    c.add_argument("--port", type=int, default=8765)
    c.add_argument("--fault-rate", type=float, default=0.0, help="all kinds of fault together")
    c.add_argument("--reasoning-field", action="store_true", help="thinking beside the text")
    return top


def _load(args: argparse.Namespace, out: str | Path | None = None, any_open: bool = False):
    """Load and audit records; print every reject, keep them in `out/rejects.jsonl`."""
    from . import rewards

    return list(rewards.usable(args.records, args.images, out, any_open=any_open))


def _table(rows: list[dict]) -> None:
    from vlaa_lib.tables import text_table

    print(text_table(rows))


def _run(args) -> int:
    from .study import run

    return run.run(
        args.profile, notebooks=args.notebooks, run_dir=args.run_dir, resume=not args.fresh
    )


def _stage(args) -> int:
    from .study import parallel, stages
    from .train import worker

    cfg = arguments.loaded(args)
    with worker.joined():
        parallel.named(cfg, stages.folder(cfg, args.run_dir), args.name)
    return 0


def _construct(args) -> int:
    from .study import construct_command as command

    return command.main(args, _table)


def _microworld(args) -> int:
    from itertools import islice

    from .pocket import microworld

    if args.benchmark:
        return _benchmark(args)
    if not (args.out or args.png):
        raise ValueError("name a folder with --out, or a picture with --png")
    sources = list(dict.fromkeys(args.source or microworld.SOURCES))
    if args.out:
        made = microworld.write_split(args.out, sources, args.split, args.n, args.seed)
        print(f"{len(made)} records in {args.out}/records.jsonl")
    if args.png:
        streams = [microworld.stream(s, args.split, args.seed) for s in sources]
        images = [sample.image for found in streams for sample in islice(found, args.n)]
        microworld.sheet(images, 8 if len(sources) == 1 else args.n).save(args.png)
        print(f"{len(images)} pictures in {args.png}")
    return 0


def _subset(args) -> int:
    from . import subsets

    if (args.top and not args.perplexity) or not (args.perplexity or args.aha):
        raise ValueError("name models with --perplexity (and sizes with --top), or a size --aha")
    return subsets.main(args, _load(args, args.out, any_open=True))


def _benchmark(args) -> int:
    from .pocket.microworld import benchmarks

    if not args.out:
        raise ValueError("--benchmark needs --out FILE.tsv")
    if args.source or args.png or args.split != "train":
        raise ValueError("--benchmark has its own sources and split, and no --png")
    rows = benchmarks.write_tsv(args.benchmark, args.out, args.n, args.seed)
    print(f"{len(rows)} rows of {args.benchmark} in {args.out}")
    return 0


def _data_fetch(args) -> int:
    from .sources import hub

    plan = hub.plan(args.root, args.revision, args.only)
    _table(plan.rows)
    download, unpack = map(hub.megabytes, plan.needs)
    print(f"commit {plan.commit}: {download} to download, about {unpack} to unpack", flush=True)
    if not args.plan:
        hub.fetch(plan)
        print(f"done; next: python -m vlaa_lib data check --root {args.root}")
    return 0


def _data_check(args) -> int:
    from .sources import pictures

    found = pictures.check(args.root, args.records, args.deep)
    _table(found.rows())
    print("\n".join(found.notes) or "every record has its picture")
    return 0 if found.is_complete else 1


def _data_sources(args) -> int:
    from . import sources

    _table(sources.table())
    return 0


def _data_prepare(args) -> int:
    from . import sources
    from .pocket import microworld

    roots = {name: Path(args.root) / reader.folder for name, reader in sources.READERS.items()}
    there = [name for name, root in roots.items() if root.is_dir()]
    for name in [] if args.source else sorted(roots.keys() - there):
        print(f"left out: {name}, as there is no folder {roots[name]}", file=sys.stderr)
    counts = sources.paper_counts(args.scale)
    counts |= {micro: counts[name] for micro, (_, name) in microworld.SOURCES.items()}
    chosen = args.source or there
    if unknown := [name for name in chosen if name not in counts]:
        raise ValueError(f"unknown source {unknown[0]!r}; use one of {', '.join(counts)}")
    if not chosen:
        raise ValueError(f"{args.root}: no dataset's folder here; see `data sources`")
    _table(sources.write(args.out, {name: counts[name] for name in chosen}, roots, args.seed))
    print(f"records and pictures in {args.out}; what was left out is in rejects.jsonl")
    return 0


def _models(args) -> int:
    from .pocket import card as pocket_card
    from .pocket import recipe

    if args.what == "card":
        pocket_card.write_card(args.stage, Path(args.out or "data/pocket") / args.stage)
    else:
        recipe.build(args.out or "runs/pocket", threads=args.threads, last=args.stage)
    return 0


def _train(args) -> int:
    from . import train
    from .train import launch, worker

    overrides = {}
    if args.steps:
        overrides["sft.max_steps" if args.method == "sft" else "grpo.max_steps"] = args.steps
    for key in ("reward_model", "trust_remote_code", "endpoints"):
        if value := getattr(args, key):
            overrides[f"grpo.{key}"] = value
    cfg = arguments.loaded(args, **overrides)
    if args.launch:
        options = argparse.ArgumentParser(add_help=False)
        arguments.launch(options)
        words = options.parse_known_args(args.argv)[1]  # the processes must not launch again
        return launch.main(args, words, getattr(cfg, args.method).mode)
    with worker.joined():
        given = (cfg, _load(args, args.out, any_open=True), args.images, args.out, args.start)
        if args.method == "sft":
            log = train.sft(*given)
        else:
            from .process import prm

            log = train.grpo(*given, process_reward=prm.chosen_reward(cfg, args.images))
    if worker.rank() == 0:
        shown = ("step", "loss", "reward", "kl")
        _table([{k: v for k, v in row.items() if k in shown} for row in log])
        print(f"saved {args.out}")
    return 0


def _plan(args) -> int:
    from .train import plan

    return plan.main(args, _table)


def _evaluate(args) -> int:
    import json

    from . import evaluate, models

    if args.benchmark:
        from .evaluate import command

        return command.main(args, _table)
    if not (args.records and args.images and args.model):
        raise ValueError("evaluate needs --benchmark, or --records, --images and --model")
    made = _load(args)
    limits = {"batch": args.batch, "max_new_tokens": args.max_new_tokens}
    limits = {name: limit for name, limit in limits.items() if limit}
    policy = models.load_policy(args.model)
    rows = evaluate.evaluate(policy, made, args.images, args.model, **limits)
    folders.write_lines(args.out, (json.dumps(row) + "\n" for row in rows))
    _table(evaluate.summary(rows))
    return 0


def _process(args) -> int:
    from .process import command

    return command.main(args, _table)


def _generate(args) -> int:
    from .evaluate import command

    return command.answer_one(args)


def _matrix(args) -> int:
    from .study import stages

    _table(stages.matrix(args.profile, args.seeds, args.models, args.run_dir))
    return 0


def _doctor(args) -> int:
    from . import doctor

    return doctor.main(args, _table)


def _traces(args) -> int:
    from .study import curation

    card = curation.curate(args.run_dir, args.out, args.per_source, args.seed)
    print(f"{args.out}: {card['records']} records, {card['flips']} flips, {card['bytes']:,} bytes")
    return 0


def _bench(args) -> int:
    import json

    from tests import bench


    found = bench.BENCHMARKS[args.name](**bench.arguments(args.name, args.set))
    for rows in [v for v in found.values() if v and isinstance(v, list)] or [[found]]:
        _table(rows)
    if args.out:
        folders.write_text(args.out, json.dumps(found, indent=1) + "\n")
    return 0


def _serve(args) -> int:
    from . import pocket

    pocket.serve_forever(
        args.records, args.images, args.port, args.fault_rate, args.reasoning_field
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and turn the errors a user can mend into one clear line."""
    args = parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    try:
        return args.run(args)
    except (ValueError, OSError, Halted) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
