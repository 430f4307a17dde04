"""The command line of `construct`: plan, batch files, shards, or the run itself."""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from vlaa_lib import records
from vlaa_lib.construct import card, offline, pipeline
from vlaa_lib.construct.templates import OURS, read_templates
from vlaa_lib.llm.client import Limits
from vlaa_lib.llm.endpoints import ENDPOINTS, read_endpoints
from vlaa_lib.llm.ledger import Ledger
from vlaa_lib.pocket.server import scenes_of, serve_teacher


def main(args: Namespace, show: Callable[[list[dict]], None]) -> int:
    """Run `python -m vlaa_lib construct`; 3 where a budget ended the run before its end."""
    from vlaa_lib import rewards

    out = Path(args.out)
    if args.what == "card":
        print("\n".join(map(str, card.export(out, args.images))))
        return 0
    if not (args.records and args.images):
        raise ValueError("construct needs --records FILE and --images FOLDER")
    endpoints = read_endpoints(args.endpoints) if args.endpoints else ENDPOINTS
    templates = read_templates(args.prompts_dir) if args.prompts_dir else OURS
    is_local = not (args.base_url or args.endpoints)
    with contextlib.closing(Ledger(out / pipeline.LEDGER)) as ledger:
        for path in args.merge:
            print(f"{ledger.take_in(path)} new replies from {path}")
        made = rewards.usable(args.records, args.images, out, args.shard, any_open=True)
        if args.plan:
            show(offline.plan(made, args.images, ledger, endpoints, templates))
            return 0
        if args.batch == "export":
            written, waiting = offline.export_batches(
                made, args.images, ledger, endpoints, templates, out / "batch", args.again
            )
            print("\n".join(map(str, written)) or "nothing new to write")
            if waiting:
                print(f"{waiting} calls wait for replies in earlier files (--again repeats them)")
            elif not written:
                print("no call is open: run without --batch")
            return 0
        if args.batch == "import":
            taken, rejects = offline.import_batches(args.files, ledger, endpoints)
            for reject in rejects:
                print(f"not taken: {reject}", file=sys.stderr)
            print(f"{taken} replies taken, {len(rejects)} lines not")
            return 0 if taken or not rejects else 1
        if waiting := ledger.waiting():
            print(
                f"{waiting} calls are out in batch files; what is asked now is paid again",
                file=sys.stderr,
            )
    limits = Limits(args.concurrency, args.timeout, args.retries, args.max_cost, args.max_tokens)
    with contextlib.ExitStack() as stack:
        base_url = args.base_url or ""
        if is_local:
            scenes = scenes_of(records.kept(args.records, args.images), args.images)
            base_url = stack.enter_context(serve_teacher(scenes))
        try:
            result = pipeline.run(
                made,
                args.images,
                base_url,
                out,
                endpoints=endpoints,
                templates=templates,
                limits=limits,
            )
        except pipeline.BudgetSpent as stop:
            print(f"stopped: {stop}", file=sys.stderr)
            return 3
    show(result.counts)
    sizes = {row["step"]: 0 for row in result.counts}
    for row in result.counts:
        sizes[row["step"]] += row["out"]
    dropped = sum(row["dropped"] for row in result.counts)
    print(
        f"{sizes.get('split: sft', 0)} for SFT, {sizes.get('split: rl', 0)} for RL, "
        f"{dropped} dropped"
    )
    return 0
