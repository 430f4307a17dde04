"""Mathematics: an answer against its gold, by Math-Verify in killable workers."""

from __future__ import annotations

import math
import os
import re
import signal
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib.records import Record

from . import notation
from .notation import clean, comparable, is_one
from .quantities import SCIENTIFIC, nouns_of, split_unit
from .verifiers import UNSURE, GoldError, Score, bare, excerpt, gold_text, said_number, scored, told

if TYPE_CHECKING:
    from pebble import ProcessPool

# What Math-Verify would multiply out or try every way to read, and how much of it we let through
# (ours: each well above what an answer needs)
_LIMITS = {"deep brackets": 8, "a large exponent": 1000, "a high power of a sum": 12,
           "a large factorial": 99, "a long name": 30}  # fmt: skip
_EXPONENT = re.compile(r"(\))?\s?\^\s?(?:\{([^{}]*)\}|\(([^()]*)\)|(-?\d+))")
_POWER = re.compile(r"(\d+)\s?\^\s?(?:\{\s?(\d+)\s?\}|\((\d+)\)|(\d+))(?!\s?[\d^])")
_FACTORIAL = re.compile(r"(\d+)\s?!|binom\s?\{?(\d+)")


def too_large(gold: str, answer: str) -> str:
    r"""Say what in an answer would take seconds to work out, though its gold does not; else "".

    >>> too_large("3", "9^{9^{9}}"), too_large("9", "3^2"), too_large("(x+1)^{20}", "(1+x)^{20}")
    ('a large exponent', '', '')
    """
    sizes, golds = _sizes(answer), _sizes(gold)
    return next((k for k, most in _LIMITS.items() if sizes[k] > max(most, golds[k])), "")


def _sizes(text: str) -> dict[str, float]:
    """Measure depth of brackets, numbers in exponents and in front of `!`, and length of names."""
    sizes = dict.fromkeys(_LIMITS, 0.0)

    def note(what: str, size: float) -> None:
        sizes[what] = max(sizes[what], size)

    for depth in accumulate((mark in "([{") - (mark in ")]}") for mark in text):
        note("deep brackets", depth)
    for match in _FACTORIAL.finditer(text):
        note("a large factorial", _number(match[1] or match[2]))
    for name in re.findall(r"[A-Za-z]+", text):
        note("a long name", len(name))
    while True:  # towers from the top; each pass takes a power away
        for match in _EXPONENT.finditer(text):
            for digits in re.findall(r"(?<![\d.])\d+", match[2] or match[3] or match[4] or ""):
                note("a large exponent", _number(digits))
                note("a high power of a sum", _number(digits) if match[1] else 0)
        text, found = _POWER.subn(_multiplied_out, text)
        if not found or sizes["a large exponent"] > _LIMITS["a large exponent"]:
            return sizes


def _number(digits: str) -> float:
    return int(digits) if len(digits) < 10 else math.inf


def _multiplied_out(power: re.Match) -> str:
    base, exponent = _number(power[1]), _number(power[2] or power[3] or power[4])
    small = base < 2 or (base < 10**9 and exponent * math.log10(base) < 9)
    return str(int(base**exponent)) if small else "9" * 10  # any will do that is as long


# --- workers -------------------------------------------------------------------------------------

# Math-Verify default; here for parsing and comparing together, in seconds of the worker's own
# processor time: on an overloaded machine a right answer must not lose to the clock on the wall
TIMEOUT_S = 5.0
WALL_FACTOR = 10  # ours: wall time over TIMEOUT_S after which a worker that only waits is killed
MAX_MATH_CHARS = 500  # ours: ten times the longest gold we have seen
WORKERS = min(4, os.cpu_count() or 1)  # ours: a check takes about 0.1 s, a batch a few hundred
# what stands where a gold is missing, or is true of something that was not kept
_NO_GOLD = re.compile(r"nan|none|null|nil|n\s?/?\s?a|true|false|[-?.]{1,9}", re.IGNORECASE)
KEPT = 4096  # ours: checks to remember, about 2 KiB each; groups of many steps
MEMORY_BYTES = 2**30  # ours: a worker needs 0.3 GiB; a tower of powers would take all there is


def _prepare_worker() -> None:
    import contextlib
    import logging
    import resource

    # the pool's own handler would wait for a long multiplication to end; the kernel does not
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # macOS has none; the time limit still holds
        # beyond what it holds: a script's main module, imported here again, may have loaded torch
        held = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))
    logging.disable(logging.WARNING)  # Math-Verify warns that its own timer is off
    from math_verify import grader  # before the first task's clock starts

    # it rounds to 6 places, whatever the size, and joins letters to names in small letters
    grader.sympy_numeric_eq = _are_equal
    grader.sympy_compare_symbols = lambda gold, said: (
        _are_equal(gold, said) or grader.sympy_symbolic_eq(gold, said)
    )


@lru_cache(maxsize=64)  # a group's answers come together and share their gold
def _parse(latex: str) -> Any:
    """Parse one expression as Math-Verify does, letters in their own case; None: none is there."""
    import sympy
    from latex2sympy2_extended import latex2sympy2 as grammar
    from math_verify.grader import should_treat_as_complex

    # without its units: they would drop letters, `3c` for 3
    plain = grammar.NormalizationConfig(malformed_operators=True, nits=True, boxed="none")
    try:
        found = grammar.latex2sympy(
            latex, is_real=not should_treat_as_complex(latex), normalization_config=plain,
            conversion_config=grammar.ConversionConfig(lowercase_symbols=False),
        )  # fmt: skip
    except (MemoryError, RecursionError):
        raise
    except Exception:  # whatever its grammar makes of hostile text
        return None
    return found if isinstance(found, (sympy.Basic, sympy.MatrixBase)) else None


def _are_equal(a: Any, b: Any, *_rounding: int) -> bool:
    """Compare two expressions: decimals as they are written, all else to 30 digits of its size."""
    from math_verify.grader import get_pct_val
    from sympy import Float, Integer, MatrixBase, MatrixExpr

    if isinstance(a, (MatrixBase, MatrixExpr)) or isinstance(b, (MatrixBase, MatrixExpr)):
        a, b = a.doit(), b.doit()
        both = isinstance(a, MatrixBase) and isinstance(b, MatrixBase) and a.shape == b.shape
        return both and all(map(_are_equal, a.flat(), b.flat()))
    x, y = _exact(a), _exact(b)
    if x == y:
        return True
    if x.is_number and y.is_number:
        if (a.has(Float) and _is_rounded(x, y)) or (b.has(Float) and _is_rounded(y, x)):
            return True
        percents = [get_pct_val(value, value) for value in (a, b)]
        if all(isinstance(value, Integer) for value in percents):  # 9% is what 9 says
            return percents[0] == percents[1]
        x, y = x.evalf(40), y.evalf(40)
        size = max(abs(x), abs(y))
        return bool(size.is_finite and abs(x - y) <= size * Float("1e-30"))
    return (x - y).expand() == 0


def _exact(expression: Any) -> Any:
    """Write decimals as the fractions that they are."""
    from sympy import Float, Rational

    fractions = {one: Rational(str(one)) for one in expression.atoms(Float)}
    return expression.xreplace(fractions).doit()


def _is_rounded(decimal: Any, value: Any) -> bool:
    """Say whether a decimal of six digits or more is a value, rounded or cut off at its end."""
    from sympy import Integer

    if not decimal.is_Rational:
        return False
    with localcontext(prec=60):
        sign, digits, exponent = (Decimal(decimal.p) / Decimal(decimal.q)).normalize().as_tuple()
    if not 6 <= len(digits) < 50:
        return False
    missing = (value - decimal).evalf(40) * (-1) ** sign * Integer(10) ** -exponent
    return bool(-0.5 <= missing < 1)


def _check(gold: str, answer: str, seconds: float) -> str:
    """Compare two expressions; runs in a worker. Returns right, wrong, bad gold or bad answer."""
    from math_verify import verify

    # processor time: the kernel kills the worker, also in the midst of one long multiplication
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        for wanted, said in notation.pairs(gold, answer) or [("0", "1")]:
            if (right := _parse(wanted)) is None:
                return "bad gold"
            if (found := _parse(said)) is None:
                return "bad answer"
            # x < 3 is its interval, whichever of the two the gold is
            if not verify(right, found, timeout_seconds=None, allow_set_relation_comp=True):
                return "wrong"
        return "right"
    except (MemoryError, RecursionError):
        return "bad answer"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _within(wall_s: float, check: Callable[..., str], *args: str | float) -> str:
    """Make a check in a worker that the kernel kills should it only wait.

    Not by the pool's own limit: it goes by the time of day, which NTP and a laptop's sleep move.
    """
    signal.setitimer(signal.ITIMER_REAL, wall_s)
    try:
        return check(*args)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@dataclass
class _Workers:
    pool: ProcessPool
    checks: OrderedDict[tuple[str, str, float], Future] = field(default_factory=OrderedDict)


_running: dict[int, _Workers] = {}  # by process id: a forked child cannot use its parent's pool


def _workers() -> _Workers:
    """Return this process's workers, started on first use and again should they have broken.

    They are not forked from here, so that they hold neither torch nor a GPU context.
    """
    workers = _running.get(os.getpid())
    if workers and workers.pool.active:
        return workers
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
    # stop, then join, before this process waits for its children, which these workers are; a
    # child that multiprocessing started leaves without calling atexit
    Finalize(None, pool.stop, exitpriority=101)
    Finalize(None, pool.join, exitpriority=100)
    return workers


@cache
def _guard_forks() -> None:
    """Let no fork fall into the moment in which the pool's thread starts a worker."""
    from multiprocessing import resource_tracker

    # else the child inherits a lock that nobody releases, and its own pool waits for ever
    lock = resource_tracker._resource_tracker._lock
    os.register_at_fork(
        before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
    )


def forget() -> None:
    """Forget all verdicts, for measurements."""
    _workers().checks.clear()


def submit(record: Record, answer: str) -> Future | Score:
    """Send an answer to the workers; a Score at once where no maths is needed to refuse it."""
    gold, said = gold_text(record), bare(answer)
    is_long = len(gold) > MAX_MATH_CHARS
    if is_long or not is_one(gold := clean(gold)) or (
        _NO_GOLD.fullmatch(gold) or notation.is_prose(gold)
    ):
        raise GoldError(_bad_gold(record))
    if len(said) > MAX_MATH_CHARS:
        return scored("math", 0.0, f"the answer has more than {MAX_MATH_CHARS} characters")
    if UNSURE.search(said) and not UNSURE.search(gold):  # but a function may have cases
        return scored("math", 0.0, f"{excerpt(said)} is a premise, a guess or a denial")
    if not is_one(answer := clean(told(said))):
        return scored("math", 0.0, f"{excerpt(said)} is not one expression")
    if wanted := notation.words(gold):
        is_right = notation.are_same_words(wanted, notation.words(answer))
        said = f"{excerpt(said)} is {'right' if is_right else 'wrong'}"
        return scored("math", float(is_right), said)
    nouns = nouns_of(f"{record.question} {gold}")
    number = said_number(said, record.question)  # `There are 3 triangles`, `5 - 2 = 3`
    if number is not None and not (split_unit(answer)[1] or SCIENTIFIC.search(answer)):
        answer = f"{number:f}"
    pair = comparable(gold, answer, nouns)
    if isinstance(pair, str):
        return scored("math", 0.0, pair)
    if what := too_large(*pair):
        return scored("math", 0.0, f"{excerpt(said)} is too much to work out: {what}")
    return _schedule(*pair, TIMEOUT_S)


def _schedule(*args: str | float) -> Future:
    """Return the future of a check with these arguments, an earlier one where that will do.

    Policies repeat their answers, and a trainer may submit a batch before it asks for the scores.
    """
    workers = _workers()
    future = workers.checks.pop(args, None)
    if future is None or _was_stopped(future):
        future = workers.pool.schedule(_within, args=(WALL_FACTOR * TIMEOUT_S, _check, *args))
    workers.checks[args] = future
    if len(workers.checks) > KEPT:
        workers.checks.popitem(last=False)
    return future


def _was_stopped(future: Future) -> bool:
    """Say whether a check was cancelled, killed from outside, or given up on a busy machine."""
    if not future.done() or future.cancelled():
        return future.cancelled()
    error = future.exception()
    return error is not None and getattr(error, "exitcode", None) != -signal.SIGPROF


def collect(record: Record, answer: str, pending: Future | Score) -> Score:
    """Wait for what `submit` returned."""
    from concurrent.futures.process import BrokenProcessPool

    from pebble import ProcessExpired

    if isinstance(pending, Score):
        return pending
    try:
        verdict = pending.result()
    except ProcessExpired as error:  # else out of memory or stack, and Python could not say
        limits = {-signal.SIGPROF: f"{TIMEOUT_S:g} s of processor time",
                  -signal.SIGALRM: f"{WALL_FACTOR * TIMEOUT_S:g} s of waiting"}  # fmt: skip
        limit = limits.get(error.exitcode)
        return scored(
            "math", 0.0, f"timed out after {limit}" if limit else "the worker died on this answer"
        )
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
        "reads, nor a word or a label; correct 'gt' or set 'reward' to open"
    )
