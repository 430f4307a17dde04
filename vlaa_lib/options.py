"""Arguments that several commands share, as typer reads them, and what is made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from typer import Option

from vlaa_lib import profiles
from vlaa_lib.prompts import MAX_NEW_TOKENS
from vlaa_lib.tables import text_table


def one_of(**given: Any) -> None:
    """Refuse none or several of arguments that exclude each other."""
    if sum(bool(value) for value in given.values()) != 1:
        raise ValueError(f"give exactly one of {' '.join(f'--{name}' for name in given)}")


def loaded(profile: str, changes: list[str], **more: Any) -> profiles.Settings:
    """Load a profile with KEY=VALUE changes; `more` wins where it holds a value."""
    changed = dict(pair.split("=", 1) for pair in changes)
    return profiles.load(profile, **changed | {k: v for k, v in more.items() if v})


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    print(text_table(rows))


def shard_of(text: str) -> tuple[int, int]:
    """Read "i/n", i from 1 to n: the i-th of n shards is every n-th record from the i-th on.

    >>> shard_of("2/8")
    (2, 8)
    """
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise typer.BadParameter(f"{text!r}: write i/n with i from 1 to n, e.g. 2/8")
    return int(first), int(last)


def several(help: str, *names: str) -> Any:
    """Return an option of how a training is spread over GPUs."""
    return Option(*names, help=help, rich_help_panel="Several GPUs or machines")


def answers(help: str, *names: str) -> Any:
    """Return an option of how a model answers."""
    return Option(*names, help=help, rich_help_panel="How the model answers")


# where things are
Records = Annotated[str, Option("--records", help="JSON array or JSON Lines, any extension")]
MaybeRecords = Annotated[str | None, Option("--records", help="JSON array or JSON Lines")]
Images = Annotated[str, Option("--images", help="root that the records' paths start from")]
MaybeImages = Annotated[str | None, Option("--images", help="root of the records' paths")]
Out = Annotated[str, Option("--out", help="folder to fill; started again, the work goes on")]
OutFile = Annotated[str, Option("--out", help="file to write")]
RunDir = Annotated[str | None, Option("--run-dir", help="folder of the run")]
Json = Annotated[str | None, Option("--json", metavar="FILE", help="all that was found, as JSON")]

# settings
Profile = Annotated[str, Option("--profile", help="smoke, laptop, single or paper")]
Set = Annotated[list[str], Option("--set", metavar="KEY=VALUE ...", help="other settings")]
Seed = Annotated[int, Option("--seed")]
Shard = Annotated[Any, Option("--shard", metavar="I/N", parser=shard_of, help="only the I-th of N")]
Start = Annotated[str | None, Option("--start", help="checkpoint; default: the profile's policy")]

# endpoints
Endpoints = Annotated[str | None, Option("--endpoints", help="YAML: who answers, at what price")]
Concurrency = Annotated[int, Option("--concurrency", help="calls at a time")]
MaxCost = Annotated[float | None, Option("--max-cost", help="stop cleanly at so many US dollars")]

# how a training is launched
WAYS = f"run on several processes: {', '.join(profiles.LAUNCHERS)}"
Launch = Annotated[str | None, several(WAYS, "--launch")]
Gpus = Annotated[int | None, several("processes a machine; default: 8, or 2 without GPUs")]
Machines = Annotated[int, several("how many")]
MachineRank = Annotated[int, several("number of this machine, from 0")]
MainIp = Annotated[str | None, several("address of machine 0")]
MainPort = Annotated[int | None, several("a free port of machine 0; default: 29500")]
PrintOnly = Annotated[bool, several("print the launch command, then stop", "--print")]

# how a model answers
Model = Annotated[str, answers("checkpoint, adapter or hub name", "--model")]
MaybeModel = Annotated[str | None, answers("checkpoint, adapter or hub name", "--model")]
Mode = Annotated[Literal["full", "4bit"], answers("adapters: either")]
Backend = Annotated[Literal["hf", "vllm"], answers("what samples")]
Preset = Annotated[Literal["paper", "vlmevalkit"], answers("whose limits and prompt")]
Tokens = Annotated[
    int | None, answers(f"default: the preset's; for records {MAX_NEW_TOKENS}", "--max-new-tokens")
]
MinPixels = Annotated[int | None, answers("area of a picture; default: the preset's")]
MaxPixels = Annotated[int | None, answers("area of a picture; default: the preset's")]
Prompt = Annotated[str | None, answers("text instead of ours", "--system-prompt-file")]
NoPrompt = Annotated[bool, answers("as for base models", "--no-system-prompt")]

RULES = "ours, strict, kit-2025-04 or kit-2026-08 (VLMEvalKit then and now), -vlaa: its tag rule"
Rules = Annotated[str, Option("--extraction", metavar="RULES", help=RULES)]
Judge = Annotated[str | None, Option("--judge", help="YAML with `judge`: reads what no rule can")]
