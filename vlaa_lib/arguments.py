"""Arguments of the larger commands, and of those that several commands share."""

from __future__ import annotations

import argparse
import re

from . import profiles


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


def data(c: argparse.ArgumentParser) -> None:
    """Add where records and their pictures are."""
    c.add_argument("--records", required=True, help="JSON array or JSON Lines, any extension")
    c.add_argument("--images", required=True, help="image root that record paths start from")


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
    c.add_argument("--reward-model", choices=names, default=names[0], help="of open answers")
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
    c.add_argument("--max-new-tokens", type=int, default=160)

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
    c.add_argument("--n", type=int, help="take the first N records")
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
