"""Arguments that several commands share, as typer reads them, and what is made of them."""

from __future__ import annotations

import errno
from typing import Annotated, Any, Literal

import typer
from typer import Option

from vlaa_lib import profiles
from vlaa_lib.escape import say
from vlaa_lib.prompts import MAX_NEW_TOKENS
from vlaa_lib.tables import text_table


def one_of(**given: Any) -> None:
    """Refuse none or several of arguments that exclude each other."""
    if sum(bool(value) for value in given.values()) != 1:
        raise ValueError(f"give exactly one of {' '.join(f'--{name}' for name in given)}")


def loaded(profile: str, changes: list[str], **more: Any) -> profiles.Settings:
    """Load a profile with KEY=VALUE changes; `more` wins where it holds a value."""
    if wrong := [pair for pair in changes if "=" not in pair]:
        raise ValueError(f"--set {wrong[0]}: write KEY=VALUE, such as grpo.beta=0.01")
    changed = dict(pair.split("=", 1) for pair in changes)
    return profiles.load(profile, **changed | {k: v for k, v in more.items() if v})


# what to do about an error of the system; any other: see to the path
REMEDIES = {
    errno.ENOSPC: "make room, then run the same command again",
    errno.EDQUOT: "make room, then run the same command again",
    errno.EFBIG: "raise the limit on the size of files, then run the same command again",
    errno.EROFS: "name a folder that may be written",
    errno.EACCES: "name one that you may read, or write",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.EISDIR: "name a file in it",
}


def one_line(error: Exception) -> str:
    """Say an error in one line; of the system's: which file, why, what to do.

    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.csv"))
    'a.csv: no such file or directory; check the path'
    """
    if isinstance(error, OSError) and error.errno:
        # of two files, as when one is copied, the second is the one that is written
        name = error.filename if error.filename2 is None else error.filename2
        place = f"{name}: " if name is not None else ""
        why = (error.strerror or str(error)).lower()
        error = f"{place}{why}; {REMEDIES.get(error.errno, 'check the path')}"
    return " ".join(str(error).split())


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    say(text_table(rows))


def shard_of(text: str) -> tuple[int, int]:
    """Read "i/n", i from 1 to n: the i-th of n shards is every n-th record from the i-th on."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise typer.BadParameter(f"{text!r}: write i/n with i from 1 to n, e.g. 2/8")
    return int(first), int(last)


def several(help: str, *names: str) -> Any:
    """Return an option of how a training is spread over GPUs."""
    return Option(*names, help=help, rich_help_panel="Several GPUs or machines")


def answers(help: str) -> Any:
    """Return an option of how a model answers."""
    return Option(help=help, rich_help_panel="How the model answers")


# where things are
RECORDS = Option("--records", help="JSON array or JSON Lines, any extension")
IMAGES = Option("--images", help="root that the records' paths start from")
Records, MaybeRecords = Annotated[str, RECORDS], Annotated[str | None, RECORDS]
Images, MaybeImages = Annotated[str, IMAGES], Annotated[str | None, IMAGES]
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

# how a model answers
MODEL = answers("checkpoint, adapter or hub name")
Model, MaybeModel = Annotated[str, MODEL], Annotated[str | None, MODEL]
Mode = Annotated[Literal["full", "4bit"], answers("adapters: either")]
Dtype = Annotated[profiles.Dtype, answers("auto: float32 on a CPU, bfloat16 on a GPU; vLLM's own")]
Tokens = Annotated[int | None, answers(f"default: the preset's; for records {MAX_NEW_TOKENS}")]
Prompt = Annotated[str | None, answers("text instead of ours; an empty file: none")]
