"""Arguments of the larger commands, and of those that several commands share."""

from __future__ import annotations

import argparse
import re

from . import profiles
from .prompts import MAX_NEW_TOKENS


def shard(text: str) -> tuple[int, int]:
    """Read "i/n", i from 1 to n: the i-th of n shards is every n-th record from the i-th on.

    >>> shard("2/8")
    (2, 8)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    found = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: write i/n with i from 1 to n, e.g. 2/8")
    return found


def positive(text: str) -> int:
    """Read a whole number above zero."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above zero")
    return int(text)


def data(c: argparse.ArgumentParser, is_required: bool = True) -> None:
    """Add where records and their pictures are."""
    c.add_argument("--records", required=is_required, help="JSON array or JSON Lines")
    c.add_argument("--images", required=is_required, help="root that record paths start from")


def model(c: argparse.ArgumentParser) -> None:
    """Add how a model answers: shared by `generate` and benchmarks."""
    c.add_argument("--mode", choices=["full", "4bit"], default="full", help="adapters: either")
    c.add_argument("--backend", choices=["hf", "vllm"], default="hf")
    c.add_argument("--preset", choices=["paper", "vlmevalkit"], default="paper")
    limit = f"default: the preset's; for records {MAX_NEW_TOKENS}"
    c.add_argument("--max-new-tokens", type=int, help=limit)
    c.add_argument("--min-pixels", type=int, help="area of a picture; default: the preset's")
    c.add_argument("--max-pixels", type=int)
    prompt = c.add_mutually_exclusive_group()
    prompt.add_argument("--system-prompt-file", help="text instead of ours")
    prompt.add_argument("--no-system-prompt", action="store_true", help="as for base models")


def generate(c: argparse.ArgumentParser) -> None:
    """Add what `generate` reads."""
    c.add_argument("--model", required=True, help="checkpoint, adapter or hub name")
    c.add_argument("--image", required=True)
    c.add_argument("--question", required=True)
    model(c)


def evaluate(c: argparse.ArgumentParser) -> None:
    """Add what `evaluate` reads: records, or a benchmark."""
    data(c, is_required=False)
    c.add_argument("--model", help="checkpoint, adapter or hub name")
    c.add_argument("--out", required=True, help="JSON Lines of records; folder of a benchmark")
    c.add_argument("--batch", type=int, help="rows at a time; default: records 64, benchmarks 16")
    model(c)
    c.add_argument("--benchmark", help="e.g. MathVista_MINI, WeMath, micro-DynaMath")
    c.add_argument("--tsv", help="the benchmark's file, as VLMEvalKit has it")
    c.add_argument("--image-root", help="what image_path starts from; default: the file's folder")
    c.add_argument("--cache", help="folder of the file's pictures; default: beside it, .images")
    c.add_argument("--predictions", help="score a prediction file of the kit instead of a model")
    kit = "kit-2025-04 or kit-2026-08 (VLMEvalKit then and now), with -vlaa after its tag rule"
    c.add_argument("--extraction", default="ours", metavar="RULES", help=f"ours, strict, {kit}")
    c.add_argument("--judge", help="YAML with the section `judge`: reads what no rule can")
    c.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="only the I-th of N")
    c.add_argument("--blank", action="store_true", help="grey pictures: what is guessed")
    c.add_argument("--template", help="YAML: your own prompt, e.g. the kit's for WeMath")
    c.add_argument("--export", help="prediction file for the kit: .tsv, .json or .xlsx")
    c.add_argument("--kit-config", help="file for the kit's config entry of the model")


def construct(c: argparse.ArgumentParser) -> None:
    """Add what `construct` reads."""
    c.add_argument(
        "what",
        nargs="?",
        choices=["run", "card"],
        default="run",
        help="run the steps, or write card, table 1 and exports of a finished run",
    )
    c.add_argument("--records", help="JSON array or JSON Lines, any extension")
    c.add_argument("--images", help="image root; with `card`: put the pictures into the export")
    c.add_argument("--out", required=True, help="folder for sft.jsonl, rl.jsonl, counts.csv, ...")
    c.add_argument("--base-url", help="OpenAI-compatible endpoint; default: the local teacher")
    c.add_argument("--endpoints", help="YAML file: address, model, key variable, price by step")
    c.add_argument("--prompts-dir", help="your own 1.captioning.txt, 2.r1cot.txt, ...")
    c.add_argument("--concurrency", type=int, default=8, help="calls at a time")
    c.add_argument("--timeout", type=float, default=600, help="seconds of one try of one call")
    c.add_argument("--retries", type=int, default=5, help="of one call")
    c.add_argument("--max-cost", type=float, help="stop cleanly after so many US dollars")
    c.add_argument("--max-tokens", type=int, help="stop cleanly after so many tokens")
    c.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="only the I-th of N")
    c.add_argument("--merge", nargs="+", default=[], help="ledgers of shards to take replies from")
    c.add_argument("--plan", action="store_true", help="say what it would cost, ask nobody")
    c.add_argument("--batch", choices=["export", "import"], help="OpenAI batch files, half price")
    c.add_argument("--files", nargs="+", default=[], help="batch output files to import")
    c.add_argument("--again", action="store_true", help="export calls of earlier files once more")
    c.add_argument("--resume", action="store_true", help="go on where a run stopped: always so")


def reward_model(c: argparse.ArgumentParser) -> None:
    """Add what scores open answers."""
    names = profiles.REWARD_MODELS
    c.add_argument("--reward-model", choices=names, help="of open answers; default: the profile's")
    c.add_argument("--trust-remote-code", action="store_true", help="xcomposer brings its own")
    c.add_argument("--endpoints", help="YAML file with the section `judge`")


def launch(c: argparse.ArgumentParser) -> None:
    """Add on how many processes a training runs."""
    names = ", ".join(profiles.launchers())
    c.add_argument("--launch", metavar="NAME", help=f"run on several processes: {names}")
    c.add_argument("--gpus", type=int, help="processes a machine; default: 8, or 2 without GPUs")
    c.add_argument("--machines", type=int, default=1)
    c.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    c.add_argument("--main-ip", help="address of machine 0")
    c.add_argument("--main-port", type=int, help="a free port of machine 0; default: 29500")
    c.add_argument("--print", action="store_true", help="print the launch command, then stop")


def plan(c: argparse.ArgumentParser) -> None:
    """Add what `plan` reads."""
    c.add_argument("--profile", default="laptop")
    c.add_argument("--method", choices=["sft", "grpo"], default="grpo")
    c.add_argument("--gpus", type=int, default=1)
    c.add_argument("--model", help="folder, config.json or hub name; default: the profile's policy")
    c.add_argument("--records", type=int, help="default: what the profile trains on")
    c.add_argument("--card-gb", type=float, help="default: 80, with lora 24, with 4bit 16")
    c.add_argument("--sharding", choices=["ddp", "zero2", "zero3", "fsdp2"])
    c.add_argument("--reward-model", choices=["none", "parked", "on"])
    c.add_argument("--pictures", nargs="*", default=[], metavar="WIDTHxHEIGHT", help="in pixels")
    c.add_argument("--tokens-per-second", type=float, help="measured: trained, on all GPUs")
    c.add_argument("--mfu", type=float, default=0.3, help="assumed share of peak arithmetic")
    c.add_argument("--keep", type=int, default=2, help="checkpoints on disk at a time")
    c.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings")
    c.add_argument("--json", help="file for the plan, memory in bytes")


def bench(c: argparse.ArgumentParser) -> None:
    """Add which benchmark is run, and how large."""
    names = ["construct", "estimate", "evaluate", "grpo", "notebooks", "rewards", "sft"]
    c.add_argument("name", choices=names)
    c.add_argument("--out", "--json", help="file for all that was found (JSON)")
    c.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. repeats=5")


def process(c: argparse.ArgumentParser) -> None:
    """Add what the actions of `process` read."""
    actions = c.add_subparsers(dest="what", required=True, metavar="ACTION")
    c = actions.add_parser("pool", help="sample solutions of each question; resumes")
    data(c)
    c.add_argument("--model", required=True, help="checkpoint that answers")
    c.add_argument("--out", required=True, help="folder of the pool")
    c.add_argument("--generator", help="its name in tables; default: the checkpoint's")
    c.add_argument("--candidates", type=int, default=16, help="solutions of a question")
    c.add_argument("--temperature", type=float, default=0.8)
    c.add_argument("--seed", type=int, default=0)
    c.add_argument("--batch", type=int, default=64)
    c.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS)

    c = actions.add_parser("judge", help="score the steps of pools; finished calls are kept")
    data(c)
    c.add_argument("--pools", nargs="+", required=True, help="folders")
    c.add_argument("--out", required=True, help="file for the scores; judge.sqlite goes beside")
    by = c.add_mutually_exclusive_group(required=True)
    by.add_argument("--endpoints", help="YAML file with the section `judge`")
    by.add_argument("--model", help="checkpoint that judges")
    by.add_argument("--prm", help="folder of a ViLPRM that scores")
    by.add_argument("--truth", choices=["steps", "steps+answer"], help="the micro-world's scenes")
    c.add_argument("--view", choices=["step", "prefix", "context"], default="context")
    c.add_argument("--concurrency", type=int, default=8, help="calls at a time")
    c.add_argument("--max-cost", type=float, help="stop cleanly after so many US dollars")

    c = actions.add_parser("best-of-n", help="compare ways of choosing among candidates")
    c.add_argument("--pools", nargs="+", required=True, help="folders, one a generator")
    c.add_argument("--scores", nargs="*", default=[], help="files that `process judge` wrote")
    c.add_argument("--sizes", nargs="+", type=int, default=[2, 4, 8, 16], metavar="N")
    c.add_argument("--out", required=True, help="file for the table (CSV)")

    c = actions.add_parser("search", help="search trees of steps, write scored processes; resumes")
    data(c)
    c.add_argument("--model", help="checkpoint that answers; default: the profile's policy")
    c.add_argument("--out", required=True, help="folder for trees/ and processes.json")
    c.add_argument("--n", type=positive, help="take the first N records")
    settings(c)

    c = actions.add_parser("train-prm", help="train a ViLPRM on scored processes; resumes")
    c.add_argument("--rows", required=True, help="processes.json of a search, or ViLReward-73K")
    c.add_argument("--images", required=True, help="image root that their paths start from")
    c.add_argument("--out", required=True, help="folder of the ViLPRM")
    c.add_argument("--start", help="checkpoint to start from; default: the profile's policy")
    settings(c)


def settings(c: argparse.ArgumentParser) -> None:
    """Add a profile and what differs from it."""
    c.add_argument("--profile", default="laptop")
    c.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings")


def loaded(args: argparse.Namespace, **overrides: str) -> profiles.Settings:
    """Load the profile of arguments that have `settings`; overrides win over `--set`."""
    return profiles.load(
        args.profile, **dict(item.split("=", 1) for item in args.set) | overrides
    )


def subset(c: argparse.ArgumentParser) -> None:
    """Add which small subsets are drawn."""
    data(c)
    c.add_argument("--out", required=True, help="folder for scores/, top-K.jsonl and aha-K.jsonl")
    c.add_argument("--perplexity", nargs="+", metavar="MODEL", default=[], help="who scores them")
    c.add_argument("--top", type=int, action="append", default=[], help="keep the K highest")
    c.add_argument("--aha", type=int, metavar="K", help="draw K records with an aha word")
    c.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="only score these")
    c.add_argument("--batch-tokens", type=int, help="tokens a forward pass, padding included")
    c.add_argument("--seed", type=int, default=0, help="of the draw of --aha")


def train(c: argparse.ArgumentParser) -> None:
    """Add what is trained, from what, and how."""
    c.add_argument("method", choices=["sft", "grpo"])
    data(c)
    c.add_argument("--out", required=True)
    c.add_argument("--profile", default="laptop")
    c.add_argument("--start", help="checkpoint to start from; default: the profile's policy")
    c.add_argument("--steps", type=int, help="optimizer steps, instead of the profile's")
    c.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="other settings, e.g. grpo.rollout_prompts=2",
    )
    reward_model(c)
    launch(c)


def doctor(c: argparse.ArgumentParser) -> None:
    """Add which completions the doctor scores."""
    c.add_argument("what", nargs="?", choices=["rewards"], default="rewards")
    data(c)
    given = c.add_mutually_exclusive_group(required=True)
    given.add_argument("--completions", help="JSON Lines: id, completion, group; or traces folder")
    given.add_argument("--model", help="checkpoint to sample them from")
    c.add_argument("--n", type=positive, default=32, help="records, four completions each")
    c.add_argument("--json", metavar="OUT", help="file for all that was found")
