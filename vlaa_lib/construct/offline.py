"""What needs no connection: what a run would cost, and batch files for half the price."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlaa_lib import folders
from vlaa_lib.llm.client import Answered
from vlaa_lib.llm.endpoints import Endpoint
from vlaa_lib.llm.ledger import Ledger
from vlaa_lib.llm.messages import (
    CHARS_A_TOKEN,
    EMPTY,
    IMAGE_TOKENS,
    CallFailed,
    body,
    data_url,
    key_of,
    read_completion,
    read_image,
)
from vlaa_lib.records import Record, Reject

from .steps import STEPS, Request
from .templates import Templates
from .walk import Tallies, walk

# ours: completion tokens of a call before the ledger has seen any; a rewrite repeats its input
ASSUMED_TOKENS = {"caption": 400, "distil": 1000, "rewrite": 1000, "verify": 2}
# ours: what a step puts into its template: picture; caption and question; trace; two answers
ASSUMED_PROMPT_TOKENS = {"caption": IMAGE_TOKENS, "distil": 450, "rewrite": 1000, "verify": 100}
SEEN_ENOUGH = 20  # ours: calls of a step after which the ledger's means replace the assumptions
BATCH_DISCOUNT = 0.5  # OpenAI's price list for its batch interface
BATCH_ROWS, BATCH_BYTES = 50_000, 150 * 2**20  # OpenAI's limits are 50,000 and 200 MB a file


def open_calls(
    records: Iterable[Record],
    images: Path,
    ledger: Ledger,
    endpoints: Mapping[str, Endpoint],
    templates: Templates,
) -> Iterator[tuple[Request, str, bytes]]:
    """Follow each record through the replies that the ledger has, up to one that is not there.

    Yields:
        the request without a reply, its key, and its image's bytes; nothing of a record that is
        through, or dropped.
    """
    for record in records:
        way, answer = walk(record, templates, Tallies(), lambda key: True), None
        while True:
            try:
                request = way.send(answer)
            except StopIteration:
                break
            try:
                image = read_image(request.image, images) if request.image else b""
            except CallFailed as error:
                answer = error
                continue
            key = key_of(endpoints[request.step], request, image)
            reply = ledger.get(key)
            if reply is None:
                yield request, key, image
                break
            answer = Answered(reply, key, paid=False)


def plan(
    records: Iterable[Record],
    images: str | Path,
    ledger: Ledger,
    endpoints: Mapping[str, Endpoint],
    templates: Templates,
) -> list[dict[str, Any]]:
    """Say what a run would ask and cost, before anything is spent.

    As if nothing were dropped on the way and nothing asked again. A step's tokens are the means of
    its finished calls, once there are twenty, else our assumptions, named above.

    Returns:
        one row a step, and their sum: calls, prompt and completion tokens, cost in US dollars, and
        where the tokens come from.
    """
    names = [step.name for step in STEPS]
    calls, known_tokens, unknown = (dict.fromkeys(names, 0) for _ in range(3))
    for request, key, _ in open_calls(records, Path(images), ledger, endpoints, templates):
        for later in names[names.index(request.step) + 1 :]:
            calls[later] += 1
            unknown[later] += 1
        if ledger.meet(key):
            calls[request.step] += 1
            seen = IMAGE_TOKENS if request.image else 0
            known_tokens[request.step] += seen + len(request.text) // CHARS_A_TOKEN
    means, rows = ledger.means(), []
    for step in names:
        finished, prompt, completion = means.get(step, (0, 0.0, 0.0))
        basis = f"{finished} finished calls"
        if finished < SEEN_ENOUGH:
            basis = "assumption"
            prompt = ASSUMED_PROMPT_TOKENS[step] + len(getattr(templates, step)) // CHARS_A_TOKEN
            completion = ASSUMED_TOKENS[step]
        tokens = known_tokens[step] + unknown[step] * prompt, calls[step] * completion
        rows.append(
            {
                "step": step,
                "model": endpoints[step].model,
                "calls": calls[step],
                "prompt_tokens": round(tokens[0]),
                "completion_tokens": round(tokens[1]),
                "dollars": round(endpoints[step].cost(*tokens), 4),
                "based on": basis,
            }
        )
    sums = ("calls", "prompt_tokens", "completion_tokens", "dollars")
    total = {key: round(sum(row[key] for row in rows), 4) for key in sums}
    return [*rows, {"step": "all", "model": "", **total, "based on": ""}]


def export_batches(
    records: Iterable[Record],
    images: str | Path,
    ledger: Ledger,
    endpoints: Mapping[str, Endpoint],
    templates: Templates,
    folder: str | Path,
    again: bool = False,
) -> tuple[list[Path], int]:
    """Write every call that can be asked now, once, into OpenAI batch files, one model a file.

    Run it again after `import_batches`: each round takes the records one step further. When there
    is nothing to export, `construct` itself writes the splits without asking anybody.

    Args:
        again: also write calls that an earlier file holds and that have no reply yet.
    Returns:
        the files written, and how many open calls wait in earlier files.
    """
    written: list[Path] = []
    waiting = 0
    open_files: dict[str, list[Any]] = {}  # step -> stream, rows, bytes
    with ExitStack() as stack:
        for request, key, image in open_calls(records, Path(images), ledger, endpoints, templates):
            if not ledger.meet(key):
                continue
            if ledger.exported(key) and not again:
                waiting += 1
                continue
            try:
                url = data_url(request.image, image, Path(images)) if image else ""
            except CallFailed:
                continue  # asks nobody: the run itself drops this record, with the reason
            row = {
                "custom_id": key,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body(endpoints[request.step], request.text, url, is_plain=True),
            }
            line = json.dumps(row, ensure_ascii=False) + "\n"
            size = len(line.encode())
            found = open_files.get(request.step)
            if not found or found[1] >= BATCH_ROWS or found[2] + size > BATCH_BYTES:
                written.append(_next_file(Path(folder), request.step, written))
                found = [stack.enter_context(folders.atomic(written[-1])), 0, 0]
                open_files[request.step] = found
            found[0].write(line)
            found[1:] = found[1] + 1, found[2] + size
            ledger.export(key, request.step)
    return written, waiting


def _next_file(folder: Path, step: str, written: list[Path]) -> Path:
    """Return a name that no batch file has, this round's or an earlier one's."""
    names = {path.name for path in (*folder.glob(f"{step}-*.jsonl"), *written)}
    return next(
        folder / name for n in itertools.count(1) if (name := f"{step}-{n:03}.jsonl") not in names
    )


def import_batches(
    paths: Iterable[str | Path], ledger: Ledger, endpoints: Mapping[str, Endpoint]
) -> tuple[int, list[Reject]]:
    """Put the replies of batch output files into the ledger.

    Returns:
        how many were new, and the lines that were not taken, with the reason: those calls stay
        open.
    """
    taken, rejects = 0, []
    for path in map(Path, paths):
        with path.open(encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, 1):
                key = ""
                try:
                    key, row = _batch_row(line)
                    taken += _take_in(key, row, ledger, endpoints)
                except ValueError as error:
                    rejects.append(Reject(path.name, number, key, str(error)))
    return taken, rejects


def _batch_row(line: str) -> tuple[str, dict[str, Any]]:
    try:
        row = json.loads(line)
        return str(row["custom_id"]), row
    except (ValueError, LookupError, TypeError):
        raise ValueError("not a line of a batch output file") from None


def _take_in(
    key: str, row: dict[str, Any], ledger: Ledger, endpoints: Mapping[str, Endpoint]
) -> bool:
    """Keep the reply of one line; return whether it was new.

    Raises:
        ValueError: why there is none to keep.
    """
    step, response = ledger.exported(key), row.get("response")
    if step is None:
        raise ValueError("this ledger exported no such call")
    if row.get("error") or not isinstance(response, dict) or response.get("status_code") != 200:
        said = json.dumps(row.get("error") or response)[:300]
        raise ValueError(f"the endpoint failed: {said}")
    reply = read_completion(response.get("body"), endpoints[step])  # NotACompletion: a ValueError
    if reply.problem == EMPTY:
        raise ValueError(EMPTY)
    return ledger.put(key, step, replace(reply, cost=reply.cost * BATCH_DISCOUNT))
