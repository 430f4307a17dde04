"""A thread of its own for calls, which finishes what is paid for when it is interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from vlaa_lib.escape import say

T = TypeVar("T")

# ours: for calls in flight after an interrupt. SLURM kills 30 s after its SIGTERM
GRACE_S = 25.0


def run_apart(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on its own loop in its own thread: Jupyter's thread has a loop already.

    An interrupt of the waiting thread cancels the coroutine and lets it clean up; so does SIGTERM,
    which ends as a KeyboardInterrupt too.
    """
    started: queue.Queue[tuple[asyncio.AbstractEventLoop, Any]] = queue.Queue()

    async def wrapped() -> T:
        started.put((asyncio.get_running_loop(), asyncio.current_task()))
        return await main()

    with _as_interrupts(), ThreadPoolExecutor(1, thread_name_prefix="construct") as pool:
        future = pool.submit(lambda: asyncio.run(wrapped()))
        try:
            return future.result()
        except KeyboardInterrupt:
            loop, task = started.get()
            paid = (f"stopping: calls in flight are paid, waiting up to {GRACE_S:g} s for them; "
                    "interrupt again to give them up")  # fmt: skip
            for said in (paid, "given up"):
                # RuntimeError: the loop has closed in the meantime
                with contextlib.suppress(KeyboardInterrupt, RuntimeError):
                    loop.call_soon_threadsafe(task.cancel)
                    say(said, is_error=True)
                    wait([future])
            raise


@contextlib.contextmanager
def _as_interrupts() -> Iterator[None]:
    """Let SIGTERM (scancel, docker stop) and a closed terminal interrupt, if nobody minds them."""
    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in ours if signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
