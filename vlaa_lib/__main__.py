"""The command line: `python -m vlaa_lib COMMAND --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """Build the parser; each command's function is in `run`."""
    top = argparse.ArgumentParser(prog="python -m vlaa_lib", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=function)
        return sub

    c = command("run", _run, "Run the ordered notebooks headlessly; resumes an unfinished run.")
    c.add_argument("--profile", default="laptop")
    c.add_argument("--run-dir", help="folder of the run; by default runs/<time>-<profile>")
    c.add_argument("--notebooks", nargs="*", help="numbers or names, e.g. 00 04; default: all")
    c.add_argument("--fresh", action="store_true", help="start anew instead of resuming")

    c = command(
        "construct",
        _construct,
        "Build traces for records: caption, distil, rewrite, "
        "verify, split. Resumes; finished calls are not made twice.",
    )
    _data_arguments(c)
    c.add_argument("--out", required=True, help="folder for sft.jsonl, rl.jsonl, counts.csv, ...")
    c.add_argument("--base-url", help="OpenAI-compatible endpoint; default: the local teacher")
    c.add_argument("--concurrency", type=int, default=8)

    c = command("microworld", _microworld, "Write micro-world records and pictures.")
    c.add_argument("--source", nargs="*", help="default: all nine")
    c.add_argument("--split", default="train")
    c.add_argument("--n", type=int, default=16, help="records a source")
    c.add_argument("--seed", type=int, default=0)
    c.add_argument("--out", help="folder for records.jsonl and images/")
    c.add_argument("--benchmark", help="write a micro benchmark instead, as TSV to --out")
    c.add_argument("--png", help="draw a contact sheet into this file")

    c = command("models", _models, "Rebuild the pocket VLM from nothing, or measure it again.")
    c.add_argument("what", choices=["build-pocket", "card"])
    c.add_argument(
        "--stage",
        choices=["base", "instruct"],
        default="instruct",
        help="build up to this one, going on where an earlier build stopped; or measure this one",
    )
    c.add_argument("--out", default="data/pocket")
    c.add_argument("--threads", type=int, default=2)

    c = command("train", _train, "Train a policy on records.")
    c.add_argument("method", choices=["sft", "grpo"])
    _data_arguments(c)
    c.add_argument("--out", required=True)
    c.add_argument("--profile", default="laptop")
    c.add_argument("--start", help="checkpoint to start from; default: the profile's policy")
    c.add_argument("--steps", type=int, help="optimizer steps, instead of the profile's")
    c.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="other settings, e.g. grpo.prompts_per_step=2",
    )

    c = command("evaluate", _evaluate, "Answer records greedily and print accuracy by source.")
    _data_arguments(c)
    c.add_argument("--model", required=True)
    c.add_argument("--out", required=True, help="file for the scored rows (JSON Lines)")
    c.add_argument("--batch", type=int, default=64)
    c.add_argument("--max-new-tokens", type=int, default=160)

    c = command("matrix", _matrix, "Train and evaluate models over several seeds.")
    c.add_argument("--profile", default="laptop")
    c.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    c.add_argument("--models", nargs="+", default=["instruct", "grpo"])
    c.add_argument("--run-dir", help="default: runs/<profile>-matrix")

    c = command("doctor", _doctor, "Score sampled completions before training; exit 1 when dead.")
    _data_arguments(c)
    c.add_argument("--model", required=True)
    c.add_argument("--n", type=int, default=32, help="records to sample, four completions each")

    c = command("serve-teacher", _serve, "Serve the local teacher for micro-world records.")
    _data_arguments(c)
    c.add_argument("--port", type=int, default=8765)
    return top


def _data_arguments(c: argparse.ArgumentParser) -> None:
    c.add_argument("--records", required=True, help="JSON array or JSON Lines, any extension")
    c.add_argument("--images", required=True, help="image root that record paths start from")


def _load(args: argparse.Namespace, out: str | Path | None = None):
    """Load and audit records; print every reject, keep them in `out/rejects.jsonl`."""
    from . import records, rewards

    loaded = records.load(args.records, args.images)
    unscorable = rewards.audit(loaded.records, file=Path(args.records).name)
    rejects, bad = loaded.rejects + unscorable, {reject.id for reject in unscorable}
    for reject in rejects:
        print(f"rejected: {reject}", file=sys.stderr)
    if out:
        records.write_rejects(rejects, Path(out) / "rejects.jsonl")
    kept = [record for record in loaded.records if record.id not in bad]
    if not kept:
        raise records.RecordError(f"{args.records}: no usable record; every reason is above")
    return kept


def _table(rows: list[dict]) -> None:
    from .show.figures import text_table

    print(text_table(rows))


def _run(args) -> int:
    from . import run

    return run.run(
        args.profile, notebooks=args.notebooks, run_dir=args.run_dir, resume=not args.fresh
    )


def _construct(args) -> int:
    from . import construct

    made = _load(args, args.out)
    options = {"concurrency": args.concurrency}
    if args.base_url:
        result = construct.run(made, args.images, args.base_url, args.out, **options)
    else:
        scenes = construct.scenes_of(made, args.images)
        with construct.serve_teacher(scenes) as base_url:
            result = construct.run(made, args.images, base_url, args.out, **options)
    _table(result.counts)
    print(f"{len(result.sft)} for SFT, {len(result.rl)} for RL, {len(result.drops)} dropped")
    return 0


def _microworld(args) -> int:
    from itertools import islice

    from . import microworld

    if args.benchmark:
        return _benchmark(args)
    if not (args.out or args.png):
        raise ValueError("name a folder with --out, or a picture with --png")
    sources = args.source or list(microworld.SOURCES)
    if args.out:
        made = microworld.write_split(args.out, sources, args.split, args.n, args.seed)
        print(f"{len(made)} records in {args.out}/records.jsonl")
    if args.png:
        streams = [microworld.stream(s, args.split, args.seed) for s in sources]
        images = [sample.image for found in streams for sample in islice(found, args.n)]
        microworld.sheet(images, 8 if len(sources) == 1 else args.n).save(args.png)
        print(f"{len(images)} pictures in {args.png}")
    return 0


def _benchmark(args) -> int:
    from .microworld import benchmarks

    if not args.out:
        raise ValueError("--benchmark needs --out FILE.tsv")
    rows = benchmarks.write_tsv(args.benchmark, args.out, args.n, args.seed)
    print(f"{len(rows)} rows of {args.benchmark} in {args.out}")
    return 0


def _models(args) -> int:
    from . import pocket, pocket_card

    if args.what == "card":
        pocket_card.write_card(args.stage, Path(args.out) / args.stage)
    else:
        pocket.build(args.out, threads=args.threads, last=args.stage)
    return 0


def _train(args) -> int:
    from . import profiles, train

    overrides = dict(item.split("=", 1) for item in args.set)
    if args.steps:
        overrides["sft.max_steps" if args.method == "sft" else "grpo.steps"] = args.steps
    cfg = profiles.load(args.profile, **overrides)
    method = train.sft if args.method == "sft" else train.grpo
    log = method(cfg, _load(args, args.out), args.images, args.out, args.start)
    _table([{k: v for k, v in row.items() if k in ("step", "loss", "reward", "kl")} for row in log])
    print(f"saved {args.out}")
    return 0


def _evaluate(args) -> int:
    import json

    from . import evaluate, models, records

    made = _load(args)
    policy = models.load_policy(args.model)
    rows = evaluate.evaluate(policy, made, args.images, args.model, args.batch, args.max_new_tokens)
    records.write_lines(args.out, (json.dumps(row) + "\n" for row in rows))
    _table(evaluate.summary(rows))
    return 0


def _matrix(args) -> int:
    from . import stages

    _table(stages.matrix(args.profile, args.seeds, args.models, args.run_dir))
    return 0


def _doctor(args) -> int:
    from . import evaluate, models, rewards

    made = [record for record in _load(args)[: args.n] for _ in range(4)]
    policy = models.load_policy(args.model)
    texts = evaluate.generate(policy, made, args.images, temperature=0.8)
    table = rewards.doctor(made, texts)
    _table(table)
    problem = rewards.dead(table)
    print(problem or "the reward is alive")
    return 1 if problem else 0


def _serve(args) -> int:
    from . import construct

    construct.serve_forever(args.records, args.images, args.port)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and turn the errors a user can mend into one clear line."""
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
