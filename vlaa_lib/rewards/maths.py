"""Maths: Math-Verify in worker processes that can be killed, so that no answer can stall a run."""

from __future__ import annotations

import os
import signal
from collections import OrderedDict
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from vlaa_lib.records import Record

from .answers import GoldError, Score, bare, excerpt, gold_text, scored
from .notation import clean, comparable, is_one, too_large

if TYPE_CHECKING:
    from pebble import ProcessPool

# Math-Verify default; here for parsing and comparing together, in seconds of the worker's own
# processor time: on an overloaded machine a right answer must not lose to the clock on the wall
TIMEOUT_S = 5.0
WALL_FACTOR = 10  # ours: wall time over TIMEOUT_S after which a worker that only waits is killed
MAX_MATH_CHARS = 500  # ours: ten times the longest gold we have seen
WORKERS = min(4, os.cpu_count() or 1)  # ours: a check takes about 0.1 s, a batch a few hundred
KEPT = 4096  # ours: checks to remember, about 2 KiB each; groups of many steps
MEMORY_BYTES = 2**30  # ours: a worker needs 0.3 GiB; a tower of powers would take all there is


def _prepare_worker() -> None:
    """Set limits in a fresh worker and load Math-Verify before the first task's clock starts."""
    import contextlib
    import logging
    import resource

    # the pool's own handler would wait for a long multiplication to end; the kernel does not
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # macOS has none; the time limit still holds
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.WARNING)  # Math-Verify warns that its own timer is off
    import math_verify  # noqa: F401


@lru_cache(maxsize=8)  # a group's answers come together and share their gold
def _parse(latex: str) -> list:
    """Parse one LaTeX expression; an empty list when it cannot be read."""
    from math_verify import LatexExtractionConfig, parse

    return parse(
        f"${latex}$", [LatexExtractionConfig()], fallback_mode="no_fallback",
        extraction_mode="first_match", parsing_timeout=None,  # its timer needs SIGALRM; ours kills
    )


def _check(gold: str, answer: str, seconds: float) -> str:
    """Compare two expressions; runs in a worker. Returns right, wrong, bad gold or bad answer.

    Args:
        seconds: processor time, after which the kernel kills the worker; no Python code has to
            run for it, so that one long multiplication is stopped as well.
    """
    from math_verify import verify

    signal.setitimer(signal.ITIMER_PROF, seconds)
    # the parent kills a worker that only waits; should the parent be gone, the kernel does
    signal.alarm(int(2 * WALL_FACTOR * seconds) + 5)
    try:
        gold_parsed = _parse(gold)
        if not gold_parsed:
            return "bad gold"
        answer_parsed = _parse(answer)
        if not answer_parsed:
            return "bad answer"
        # x < 3 is its interval, whichever of the two the gold is
        same = verify(
            gold_parsed, answer_parsed, timeout_seconds=None, allow_set_relation_comp=True
        )
        return "right" if same else "wrong"
    except (MemoryError, RecursionError):
        return "bad answer"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


@dataclass
class _Workers:
    """A pool, and what it was asked: checks by their arguments, the newest last."""

    pool: ProcessPool
    checks: OrderedDict[tuple[str, str, float], Future] = field(default_factory=OrderedDict)


_running: dict[int, _Workers] = {}  # by process id: a forked child cannot use its parent's pool


def _workers() -> _Workers:
    """Return this process's workers, started on first use and again should they have broken.

    They are not forked from here, so that they hold neither torch nor a GPU context.
    """
    workers = _running.get(os.getpid())
    if workers is None or not workers.pool.active:
        import multiprocessing
        from multiprocessing.util import Finalize

        from pebble import ProcessPool

        # a forked child cannot use its parent's fork server either; a new one needs a new process
        is_forked = not _running.keys() <= {os.getpid()}
        context = multiprocessing.get_context("spawn" if is_forked else "forkserver")
        if not is_forked:
            context.set_forkserver_preload(["math_verify"])  # a killed worker is soon back
        pool = ProcessPool(max_workers=WORKERS, initializer=_prepare_worker, context=context)
        workers = _running[os.getpid()] = _Workers(pool)
        _guard_forks()
        # before this process waits for its children, which these workers are; a child that
        # multiprocessing started leaves without calling atexit
        Finalize(None, _stop, (pool, os.getpid()), exitpriority=100)
    return workers


@cache
def _guard_forks() -> None:
    """Let no fork fall into the moment in which the pool's thread starts a worker.

    The child would inherit the lock of multiprocessing's resource tracker and nobody to release
    it, and wait for ever when it starts a pool of its own.
    """
    from multiprocessing import resource_tracker

    lock = resource_tracker._resource_tracker._lock
    os.register_at_fork(
        before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
    )


def forget() -> None:
    """Forget all verdicts, so that each is worked out anew: for measurements and tests."""
    _workers().checks.clear()


def _stop(pool: ProcessPool, owner: int) -> None:
    """Stop the workers before the interpreter goes, so that none is caught while starting."""
    if owner == os.getpid():
        pool.stop()
        pool.join()


def submit(record: Record, answer: str) -> Future | Score:
    """Send an answer to the workers; a Score at once where no maths is needed to refuse it.

    What is equal to an earlier check, waiting or done, is not checked again: policies repeat their
    answers, and a trainer may submit a batch before it asks for the scores.

    Raises:
        GoldError: the gold is too long to be an expression.
    """
    gold, said = gold_text(record), bare(answer)
    if len(gold) > MAX_MATH_CHARS or not is_one(gold := clean(gold)):
        raise GoldError(_bad_gold(record))
    if len(said) > MAX_MATH_CHARS:
        return scored("math", 0.0, f"the answer has more than {MAX_MATH_CHARS} characters")
    if not is_one(answer := clean(said)):
        return scored("math", 0.0, f"{excerpt(said)} is not one expression")
    pair = comparable(gold, answer)
    if isinstance(pair, str):
        return scored("math", 0.0, pair)
    if what := too_large(*pair):
        return scored("math", 0.0, f"{excerpt(said)} is too much to work out: {what}")
    return _schedule(*pair, TIMEOUT_S)


def _schedule(*args: str | float) -> Future:
    """Return the future of a check with these arguments, an earlier one where that will do."""
    workers = _workers()
    future = workers.checks.pop(args, None)
    if future is None or not _will_do(future):
        future = workers.pool.schedule(_check, args=args, timeout=WALL_FACTOR * TIMEOUT_S)
    workers.checks[args] = future
    if len(workers.checks) > KEPT:
        workers.checks.popitem(last=False)
    return future


def _will_do(future: Future) -> bool:
    """Say whether a check need not be repeated: it runs, or failed by nobody's fault but its own.

    Not so one that was cancelled, killed by something else or given up on a busy machine.
    """
    if not future.done():
        return True
    if future.cancelled():
        return False
    error = future.exception()
    return error is None or getattr(error, "exitcode", None) == -signal.SIGPROF


def collect(record: Record, answer: str, pending: Future | Score) -> Score:
    """Wait for what `submit` returned.

    Raises:
        GoldError: Math-Verify cannot read the gold.
        RuntimeError: the workers cannot start.
    """
    from concurrent.futures.process import BrokenProcessPool

    from pebble import ProcessExpired

    if isinstance(pending, Score):
        return pending
    try:
        verdict = pending.result()
    except TimeoutError:
        return scored("math", 0.0, f"timed out after {WALL_FACTOR * TIMEOUT_S:g} s of waiting")
    except ProcessExpired as error:
        if error.exitcode == -signal.SIGPROF:
            return scored("math", 0.0, f"timed out after {TIMEOUT_S:g} s of processor time")
        # out of memory or stack in a way that Python could not report
        return scored("math", 0.0, "the worker died on this answer")
    except BrokenProcessPool as error:
        raise RuntimeError(
            "the math workers cannot start; a script needs `if __name__ == '__main__':` around its "
            "main part, as always with worker processes"
        ) from error
    if verdict == "bad gold":
        raise GoldError(_bad_gold(record))
    if verdict == "bad answer":
        return scored("math", 0.0, f"{excerpt(answer)} cannot be read")
    return scored("math", float(verdict == "right"), f"{excerpt(bare(answer))} is {verdict}")


def _bad_gold(record: Record) -> str:
    return (
        f"math: gold {excerpt(gold_text(record))} is not one LaTeX expression that Math-Verify "
        "reads; correct 'gt' or set 'reward' to open"
    )
