"""The commands `evaluate` and `generate`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib import folders, records

from . import files, interchange, prompting, runner
from .extract import check_mode
from .generate import Ask, Complete, complete, complete_vllm

if TYPE_CHECKING:
    from .judge import Judge

AUTHORS = "vlaa-thinker"  # in the names of the checkpoints that the authors released
SHOWN = 5  # ours: rows that are named for each reason

Show = Callable[[list[dict[str, Any]]], None]


def main(args: Namespace, show: Show) -> int:
    """Run `python -m vlaa_lib evaluate --benchmark`."""
    out, source = Path(args.out), Path(args.tsv or "")
    if not args.tsv or bool(args.model) == bool(args.predictions):
        raise ValueError("--benchmark needs --tsv FILE, and either --model or --predictions")
    check_mode(args.extraction)  # before a model has answered for hours
    judge, chosen = _judge(args), _settings(args)
    cache = Path(args.cache or source.with_suffix(".images"))
    asked_of = files.read(args.benchmark, source, cache, args.image_root)
    for reject in asked_of.rejects:
        print(reject, file=sys.stderr)
    _tell(asked_of)
    found = _imported(args, asked_of) if args.predictions else _answered(args, asked_of, chosen)
    if missing := len(set(asked_of.indices) - found.keys()):
        print(f"{missing} of {len(asked_of.rows)} rows have no answer", file=sys.stderr)
        if not args.predictions:
            print("once every shard is done, score with the same command without --shard")
            return 0
    if args.export:
        interchange.write(args.export, asked_of, found)
    rows, table = runner.finish(out, asked_of, found, args.extraction, judge)
    _report(rows, judge)
    show(table)
    print(f"{sum(bool(row['truncated']) for row in rows)} truncated; rows in {out}")
    return 0


def _report(rows: list[dict[str, Any]], judge: Judge | None) -> None:
    """Print by which paths answers were found, and what could not be scored."""
    for reason, indices in _without_verdict(rows).items():
        more = ", ..." if len(indices) > SHOWN else ""
        shown = ", ".join(indices[:SHOWN]) + more
        print(f"{len(indices)} without verdict: {reason} (index {shown})", file=sys.stderr)
    for reason, n in judge.unusable.items() if judge else ():
        print(f"{n} replies of the judge could not be used: {reason}", file=sys.stderr)
    paths = Counter("tags" if row["path"].startswith("tags") else row["path"] for row in rows)
    print("; ".join(f"{n} {path}" for path, n in paths.most_common()))


def _judge(args: Namespace) -> Judge | None:
    """Return the judge of the endpoint in a YAML file; its replies are kept in the run's folder."""
    if not args.judge:
        return None
    if args.extraction != "ours":
        raise ValueError(f"--judge reads what our rules cannot; --extraction is {args.extraction}")
    from vlaa_lib.llm import Endpoint, read_endpoints

    from .judge import Judge

    endpoint = read_endpoints(args.judge, {"judge": Endpoint("judge")})["judge"]
    return Judge(endpoint, Path(args.out) / "judge.sqlite")


def _without_verdict(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Group the indices of rows that nobody can score by the reason."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["hit"] is None:
            found.setdefault(row["reason"], []).append(row["index"])
    return found


def _settings(args: Namespace) -> prompting.Settings:
    prompt = "" if args.no_system_prompt else None
    if args.system_prompt_file:
        prompt = prompting.read_text(args.system_prompt_file)
    elif prompt is None and AUTHORS in str(args.model).lower():
        print(
            "note: the released VLAA-Thinker checkpoints want the authors' own system prompt; "
            "copy it from inference.py of github.com/UCSC-VLAA/VLAA-Thinking into a file and name "
            "that with --system-prompt-file. Now they get ours.",
            file=sys.stderr,
        )
    limits = {key: getattr(args, key) for key in ("min_pixels", "max_pixels", "max_new_tokens")}
    return prompting.settings(args.preset, prompt, getattr(args, "template", None), **limits)


def _tell(asked_of: files.Benchmark) -> None:
    """Say how many rows there are, and how many the paper's split has."""
    split = files.LAYOUTS[asked_of.name].num_rows
    said = f"{asked_of.name}: {len(asked_of.rows)} rows"
    if split not in (None, len(asked_of.rows)):
        said += f" (the paper's split has {split})"
    others = (
        (len(asked_of.rejects), "cannot be asked"),
        (asked_of.num_other_split, "are of another split"),
    )
    print("; ".join([said, *(f"{n} {what}" for n, what in others if n)]))


def _imported(args: Namespace, asked_of: files.Benchmark) -> runner.Answers:
    """Read a prediction file; its notes go to the screen and beside the rows."""
    found, notes = interchange.read(args.predictions, asked_of)
    records.write([*asked_of.rejects, *notes], Path(args.out) / "rejects.jsonl")
    for note in notes:
        print(note, file=sys.stderr)
    return found


def _answered(
    args: Namespace, asked_of: files.Benchmark, chosen: prompting.Settings
) -> runner.Answers:
    from vlaa_lib import models

    model = models.resolve(args.model)
    if args.kit_config:
        name = Path(model).name
        folders.write_text(args.kit_config, interchange.kit_config(name, model, chosen))
    asked, batch = prompting.asks(asked_of, chosen), args.batch or 16
    limits = (args.mode, args.backend, batch, args.blank)
    runner.start(args.out, asked_of, runner.card(asked_of, asked, chosen, model, *limits))

    def load() -> Complete:
        return loaded(model, chosen, asked_of.images, args.mode, args.backend, args.blank)

    return runner.answer(asked_of.indices, asked, args.out, load, batch, args.shard)


def loaded(
    model: str,
    chosen: prompting.Settings,
    images: str | Path,
    mode: str = "full",
    backend: str = "hf",
    blank: bool = False,
) -> Complete:
    """Load a checkpoint, an adapter unmerged, or either in 4 bit; return what answers with it."""
    limits = chosen.limits() | {"blank": blank}
    if backend == "vllm":
        if mode != "full":
            raise ValueError(f"--mode {mode} is for --backend hf")
        return complete_vllm(model, images, **limits)
    from vlaa_lib import models

    pixels = chosen.max_pixels, chosen.min_pixels
    policy = models.load_policy(model, mode, *pixels, merge=False)
    return lambda asks: complete(policy, asks, images, **limits)


def answer_one(args: Namespace) -> int:
    """Run `python -m vlaa_lib generate`: print what a model says to one question."""
    chosen, image = _settings(args), Path(args.image)
    answer = loaded(args.model, chosen, image.parent, args.mode, args.backend)
    (said,) = answer([Ask(args.question, chosen.system_prompt, (image.name,))])
    print(said.text)
    if said.is_truncated:
        print(f"cut off after {said.num_tokens} tokens; see --max-new-tokens", file=sys.stderr)
    return 0
