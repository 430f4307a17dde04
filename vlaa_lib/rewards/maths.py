"""Maths: Math-Verify in worker processes that can be killed, so that no answer can stall a run."""

from __future__ import annotations

import atexit
import os
import re
from concurrent.futures import Future, TimeoutError
from typing import TYPE_CHECKING

from ..records import Record
from .answers import GoldError, Score, bare, excerpt, gold_text

if TYPE_CHECKING:
    from pebble import ProcessPool

TIMEOUT_S = 5.0  # Math-Verify default; here for parsing and comparing together
MAX_MATH_CHARS = 500  # ours: ten times the longest gold we have seen
WORKERS = min(4, os.cpu_count() or 1)  # ours: a check takes about 0.1 s, a batch a few hundred
MEMORY_BYTES = 2**30  # ours: a worker needs 0.3 GiB; a tower of powers would take all there is

_SIDE = re.compile(  # one name on the left: y, f(x), x_1, \\theta
    r"(\\?[A-Za-z]{1,12}(?:_\{?\w{1,6}\}?)?(?:\([A-Za-z]\))?)\s{0,4}=(.+)", re.DOTALL
)
_Y_OF_X = ({"y", "f(x)"}, {"y", "g(x)"})


def _prepare_worker() -> None:
    """Set limits in a fresh worker and load Math-Verify before the first task's clock starts."""
    import contextlib
    import logging
    import resource
    import signal

    # the pool's own handler would wait for a long multiplication to end; the kernel does not
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # macOS has none; the time limit still holds
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.WARNING)  # Math-Verify warns that its own timer is off
    import math_verify  # noqa: F401


def _parse(latex: str) -> list:
    """Parse one LaTeX expression; an empty list when it cannot be read."""
    from math_verify import LatexExtractionConfig, parse

    return parse(
        f"${latex}$", [LatexExtractionConfig()], fallback_mode="no_fallback",
        extraction_mode="first_match", parsing_timeout=None,  # its timer needs SIGALRM; ours kills
    )


def _check(gold: str, answer: str, seconds: float) -> str:
    """Compare two expressions; runs in a worker. Returns right, wrong, bad gold or bad answer."""
    import signal

    from math_verify import verify

    # the parent kills a slow worker; should the parent be gone, the kernel does
    signal.alarm(int(2 * seconds) + 5)
    try:
        gold_parsed = _parse(gold)
        if not gold_parsed:
            return "bad gold"
        answer_parsed = _parse(answer)
        if not answer_parsed:
            return "bad answer"
        same = verify(gold_parsed, answer_parsed, timeout_seconds=None)
        return "right" if same else "wrong"
    except (MemoryError, RecursionError):
        return "bad answer"
    finally:
        signal.alarm(0)


_running: dict[int, ProcessPool] = {}  # by process id: a forked child cannot use its parent's pool


def _pool() -> ProcessPool:
    """Return this process's workers, started on first use and again should they have broken.

    A fork server starts them, so that they hold neither torch nor a GPU context.
    """
    pool = _running.get(os.getpid())
    if pool is None or not pool.active:
        import multiprocessing

        from pebble import ProcessPool

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["math_verify"])  # a killed worker is back in milliseconds
        pool = ProcessPool(max_workers=WORKERS, initializer=_prepare_worker, context=context)
        _running[os.getpid()] = pool
        atexit.register(_stop, pool, os.getpid())
    return pool


def _stop(pool: ProcessPool, owner: int) -> None:
    """Stop the workers before the interpreter goes, so that none is caught while starting."""
    if owner == os.getpid():
        pool.stop()
        pool.join()


def _clean(text: str) -> str:
    return bare(text).replace("−", "-").replace("**", "^").replace("°", "^\\circ")


def _split_side(text: str) -> tuple[str, str]:
    """Split `y = 2x` into ("y", "2x"); other texts into ("", text)."""
    match = _SIDE.fullmatch(text)
    if match is None or "=" in match[2]:
        return "", text
    return match[1].replace(" ", ""), match[2].strip()


def comparable(gold: str, answer: str) -> tuple[str, str] | None:
    """Drop `y =` from both sides where that is fair; None when the answer hedges with an equation.

    >>> comparable("y = 2x", "2x"), comparable("x = 3", "y = 3"), comparable("3", "7 = 3")
    (('2x', '2x'), ('x = 3', 'y = 3'), None)
    """
    (gold_name, gold_body), (name, body) = _split_side(gold), _split_side(answer)
    if "=" not in gold_body + body:
        names = {gold_name, name}
        if gold_name == name or "" in names or names in _Y_OF_X:
            return gold_body, body
    # Math-Verify reads the gold off either side of an equation: `7 = 3` would pass for 3
    return (gold, answer) if ("=" in gold) == ("=" in answer) else None


def submit(record: Record, answer: str) -> Future | Score:
    """Send an answer to the workers; a Score at once where no maths is needed to refuse it.

    Raises:
        GoldError: the gold is too long to be an expression.
    """
    gold, answer = _clean(gold_text(record)), _clean(answer)
    if not gold or len(gold) > MAX_MATH_CHARS or "$" in gold:
        raise GoldError(_bad_gold(record))
    if len(answer) > MAX_MATH_CHARS:
        return Score(0.0, f"math: the answer has more than {MAX_MATH_CHARS} characters")
    if "$" in answer or not answer:
        return Score(0.0, f"math: {excerpt(answer)} is not one expression")
    pair = comparable(gold, answer)
    if pair is None:
        return Score(0.0, f"math: {excerpt(answer)} and the gold are not both equations")
    return _pool().schedule(_check, args=(*pair, TIMEOUT_S), timeout=TIMEOUT_S)


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
        return Score(0.0, f"math: timed out after {TIMEOUT_S:g} s")
    except ProcessExpired:  # out of memory or stack in a way that Python could not report
        return Score(0.0, "math: the worker died on this answer")
    except BrokenProcessPool as error:
        raise RuntimeError(
            "the math workers cannot start; a script needs `if __name__ == '__main__':` around its "
            "main part, as always with worker processes"
        ) from error
    if verdict == "bad gold":
        raise GoldError(_bad_gold(record))
    if verdict == "bad answer":
        return Score(0.0, f"math: {excerpt(answer)} cannot be read")
    return Score(float(verdict == "right"), f"math: {excerpt(bare(answer))} is {verdict}")


def _bad_gold(record: Record) -> str:
    return (
        f"math: gold {excerpt(gold_text(record))} is not one LaTeX expression that Math-Verify "
        "reads; correct 'gt' or set 'reward' to open"
    )
