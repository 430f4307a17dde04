"""What the construction pipeline costs, beside a bare client loop."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlaa_lib import prompts, records
from vlaa_lib.pocket import microworld

from .timing import interleaved

_TRACE = prompts.join_think_answer("There are two and one. " * 20, "3")
_REPLIES = {"caption": "There are 3 things.", "verify": "Yes"}


def construct(n: int = 400, concurrency: int = 64, repeats: int = 3, latency_s: float = 0.02):
    """Measure what the pipeline costs a record beyond the endpoint: against a bare client loop.

    The bare loop makes the same calls of the same records with the `openai` client and keeps
    nothing. The endpoint is a process of its own on this machine, and waits `latency_s` a call.

    Returns:
        a row: seconds of both (medians), their ratio, and our milliseconds a record beyond theirs.
    """
    with tempfile.TemporaryDirectory() as folder, _endpoint(latency_s) as base_url:
        drawn = microworld.write_split(folder, ["solids"], "train", n, seed=0)
        # no two calls alike, so that both make all of them
        made = [replace(r, question=f"{r.question} ({i})") for i, r in enumerate(drawn)]
        images = Path(folder) / "images"

        def ours() -> None:
            from vlaa_lib import construct as library

            with tempfile.TemporaryDirectory() as out:
                limits = library.Limits(concurrency=concurrency)
                options = {"limits": limits, "progress": False}
                result = library.run(made, images, base_url, out, **options)
            done = sum(row["out"] for row in result.counts if row["step"].startswith("split"))
            assert done == n, f"{n - done} of {n} records did not come through"

        def bare() -> None:
            asyncio.run(_bare_loop(made, images, base_url, concurrency))

        ours(), bare()  # both import and connect once
        mine, theirs = interleaved((ours, bare), repeats)
    return {
        "benchmark": "construct",
        "peer": "openai client, bare loop",
        "records": n,
        "concurrency": concurrency,
        "seconds": round(mine, 3),
        "peer seconds": round(theirs, 3),
        "ratio": round(mine / theirs, 3),
        "ms a record beyond the peer": round(1000 * (mine - theirs) / n, 3),
    }


async def _bare_loop(
    made: list[records.Record], images: Path, base_url: str, concurrency: int
) -> None:
    from openai import AsyncOpenAI

    from vlaa_lib.llm import ENDPOINTS
    from vlaa_lib.llm.messages import body, data_url

    texts = {step: getattr(prompts, f"{step.upper()}_PROMPT") for step in ENDPOINTS}
    waiting = iter(made)

    async def some(client: AsyncOpenAI) -> None:
        for record in waiting:
            url = data_url(record.image, (images / record.image).read_bytes(), images)
            for step, endpoint in ENDPOINTS.items():
                sent = texts[step] + (_TRACE if step == "rewrite" else "") + record.question
                picture = url if step == "caption" else ""
                reply = await client.chat.completions.create(**body(endpoint, sent, picture))
                assert reply.choices[0].message.content

    async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
        await asyncio.gather(*(some(client) for _ in range(concurrency)))


@contextlib.contextmanager
def _endpoint(latency_s: float) -> Iterator[str]:
    """Serve canned replies from another process; yield its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, latency_s), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Any, latency_s: float) -> None:
    from tests.fault_server import endpoint

    def canned(body: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
        time.sleep(latency_s)
        return 200, _REPLIES.get(body["model"].removeprefix("teacher-"), _TRACE), {}

    with endpoint(canned) as (base_url, _):
        pipe.send(base_url)
        threading.Event().wait()
