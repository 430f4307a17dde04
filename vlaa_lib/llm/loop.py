"""Many calls at once, also where the caller has an event loop already."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")


async def run_all(works: list[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines together; when one fails, end the others before passing the error on."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run_apart(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on its own loop in its own thread: Jupyter's thread has a loop already.

    An interrupt of the waiting thread cancels the coroutine and lets it clean up.
    """
    started: queue.Queue[tuple[asyncio.AbstractEventLoop, Any]] = queue.Queue()

    async def wrapped() -> T:
        started.put((asyncio.get_running_loop(), asyncio.current_task()))
        return await main()

    with ThreadPoolExecutor(1, thread_name_prefix="construct") as pool:
        future = pool.submit(lambda: asyncio.run(wrapped()))
        loop, task = started.get()
        try:
            return future.result()
        except KeyboardInterrupt:
            try:
                with contextlib.suppress(RuntimeError):  # the loop has closed in the meantime
                    loop.call_soon_threadsafe(task.cancel)
                print("calls in flight are paid: waiting for them; interrupt again to give up")
                wait([future])
            except KeyboardInterrupt:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(task.cancel)
            raise
