"""Mathematics: how people write it, as text alone, and Math-Verify in killable workers."""

from __future__ import annotations

import math
import os
import re
import signal
from collections import OrderedDict
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from vlaa_lib.records import Record

from .verifiers import GoldError, Score, bare, excerpt, gold_text, scored, symbols

if TYPE_CHECKING:
    from pebble import ProcessPool

_INSIDE = r"\(((?:[^()]|\([^()]*\))*)\)"  # a call's argument, with parentheses one deep
_FUNCTIONS = (
    "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|sec|csc|cot|log|ln|exp|pi|theta|alpha|beta"
)
_TEXT_MACRO = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|operatorname|mbox)\{([^{}]*)\}")

_SIDE = re.compile(  # one name on the left: y, f(x), x_1, \\theta
    r"(\\?[A-Za-z]{1,12}(?:_\{?\w{1,6}\}?)?(?:\([A-Za-z]\))?)\s{0,4}=(.+)", re.DOTALL
)
_Y_OF_X = ({"y", "f(x)"}, {"y", "g(x)"})
_RELATION = re.compile(r"[<>]|\\(?:l|g)eq?\b|\\in\b")
_TUPLE = re.compile(r"(?:\\left\s?)?[\[(].*,.*[\])]", re.DOTALL)
# Math-Verify reads past these to one side or the other: `4, \boxed{3}` and `3 \approx 4` pass for 3
_NOT_ONE = re.compile(r"\$|\\boxed|\\fbox|\\approx|\\simeq|\\sim\b|~|\\phantom|\d\s+\d")

_UNITS = {  # ours: one name for each way to write it; units are compared, never converted
    "mm": r"mm|millimet(?:er|re)s?", "cm": r"cm|centimet(?:er|re)s?", "m": r"m|met(?:er|re)s?",
    "km": r"km|kilomet(?:er|re)s?", "g": r"g|grams?", "kg": r"kg|kilograms?", "h": r"h|hours?",
    "s": r"s|sec|seconds?", "min": r"min|minutes?", "m/s": r"m\s?/\s?s", "km/h": r"km\s?/\s?h",
    "deg": r"\^\s?\{?\s?\\circ\s?\}?|\\degree|\\deg|deg|degrees?", "rad": r"rad|radians?",
    "unit": r"units?",
}  # fmt: skip
_UNIT = re.compile(
    r"(?P<body>[^A-Za-z]*(?:\\[A-Za-z]+[^A-Za-z]*){0,20}?)\s{0,3}"
    r"(?:(?P<square>sq\.?|square)\s{1,3}|(?P<cubic>cubic)\s{1,3})?"
    r"(?P<unit>" + "|".join(_UNITS.values()) + r")(?:\s?\^\s?\{?(?P<power>[23])\}?)?",
    re.IGNORECASE,
)


def latex(expression: str) -> str:
    r"""Write plain notation, as Math PUMA has it, so that Math-Verify reads functions as functions.

    It takes `sin` for a product of three letters: by its signs `5*sin(5*x)` equals `-5*sin(-5*x)`.

    >>> latex("y = -5 * sin(pi * x) + abs(2*(x - 1))")
    'y = -5 * \\sin(\\pi * x) + |2*(x - 1)|'
    >>> latex("sqrt(2) + log(x, 2) + sinx"), latex(r"\sqrt{2} \sin x")
    ('\\sqrt{2} + \\log_{2}(x) + \\sin x', '\\sqrt{2} \\sin x')
    """
    text = re.sub(rf"(?<![\\a-z])(?:math\.|np\.)?abs{_INSIDE}", r"|\1|", expression)
    text = re.sub(rf"(?<![\\a-z])(?:math\.|np\.)?sqrt{_INSIDE}", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\a-z])log\(([^(),]*),\s*([^(),]*)\)", r"\\log_{\2}(\1)", text)
    text = re.sub(rf"(?<![\\a-z])({_FUNCTIONS})x\b", r"\1 x", text)
    return re.sub(rf"(?<![\\a-z])({_FUNCTIONS})(?![a-z])", r"\\\1", text)


def clean(text: str) -> str:
    r"""Strip an answer's wrappers and write what is inside in the LaTeX that Math-Verify reads.

    >>> clean(r"The answer is $2\text{ cm}$."), clean("2 * sin(x)**-1"), clean("3 1/2")
    ('2 cm', '2 * \\sin(x)^{-1}', '3\\frac{1}{2}')
    """
    text = re.sub(r"^\$([^$]*)\$(?=\s{0,3}[A-Za-z]{1,20}$)", r"\1", bare(text))  # $3$ cm
    text = symbols(text).replace("**", "^")
    text = re.sub(r"(?<=\d)(?:\\,|\{,\})(?=\d{3}(?!\d))", "", text)  # LaTeX's thousands
    text = re.sub(r"\\(?:[,;:! ]|q?quad\b)", " ", text)
    # words in \text must count as words: Math-Verify drops them, `3 \text{ is wrong}` passes for 3
    text = latex(_TEXT_MACRO.sub(r" \1 ", text))
    text = re.sub(r"\^(-\d+(?:\.\d+)?|\d*\.\d+)", r"^{\1}", text)
    text = re.sub(r"(?<![\d.])(\d{1,9})\s{1,3}(\d{1,9})\s?/\s?(\d{1,9})", r"\1\\frac{\2}{\3}", text)
    return " ".join(text.split())


def is_one(text: str) -> bool:
    """Say whether a cleaned text may be one expression."""
    return bool(text) and not _NOT_ONE.search(text)


def _split_side(text: str) -> tuple[str, str]:
    """Split `y = 2x` into ("y", "2x") and `x = 1, x = 2` into ("x", "1, 2"); else ("", text)."""
    match = _SIDE.fullmatch(text)
    if match is None:
        return "", text
    again = rf"(,|;|\bor\b|\band\b)\s{{0,4}}{re.escape(match[1])}\s{{0,4}}=\s{{0,4}}"
    body = re.sub(again, r"\1 ", match[2])
    return ("", text) if "=" in body else (match[1].replace(" ", ""), body.strip())


def split_unit(text: str) -> tuple[str, str]:
    r"""Split a number from the unit behind it; letters in front of it are no number.

    >>> split_unit("12 square centimeters"), split_unit(r"45^\circ"), split_unit("2x m")
    (('12', 'cm^2'), ('45', 'deg'), ('2x m', ''))
    """
    match = _UNIT.fullmatch(text)
    if match is None or not re.search(r"\d|\\pi", match["body"]):
        return text, ""
    name = next(n for n, p in _UNITS.items() if re.fullmatch(p, match["unit"], re.IGNORECASE))
    power = "2" if match["square"] else "3" if match["cubic"] else match["power"]
    return match["body"].strip(), f"{name}^{power}" if power else name


def comparable(gold: str, answer: str) -> tuple[str, str] | str:
    """Drop `y =` and units where that is fair: the pair to compare, or what forbids comparing it.

    >>> comparable("y = 2x", "2x"), comparable("x = 3", "y = 3"), comparable("3 cm", "3 m")
    (('2x', '2x'), ('x = 3', 'y = 3'), 'unit m instead of cm')
    >>> comparable("3", "7 = 3")
    'the answer and the gold are not both equations'
    """
    (gold_name, gold_body), (name, body) = _split_side(gold), _split_side(answer)
    names = {gold_name, name}
    is_fair = gold_name == name or "" in names or names in _Y_OF_X
    if not is_fair or "=" in gold_body + body:
        gold_body, body = gold, answer
    # Math-Verify reads the gold off either side of an equation: `7 = 3` would pass for 3
    if ("=" in gold_body) != ("=" in body):
        return "the answer and the gold are not both equations"
    # it also takes `(1, 2)` for the set of 1 and 2
    is_tuple = [bool(_TUPLE.fullmatch(side)) for side in (gold_body, body)]
    if is_tuple[0] != is_tuple[1] and not _RELATION.search(gold_body + body):
        return "the answer and the gold are not both in brackets"
    (gold_body, gold_unit), (body, unit) = split_unit(gold_body), split_unit(body)
    if gold_unit and unit and gold_unit != unit:
        return f"unit {unit} instead of {gold_unit}"
    return gold_body, body


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
KEPT = 4096  # ours: checks to remember, about 2 KiB each; groups of many steps
MEMORY_BYTES = 2**30  # ours: a worker needs 0.3 GiB; a tower of powers would take all there is


def _prepare_worker() -> None:
    import contextlib
    import logging
    import resource

    # the pool's own handler would wait for a long multiplication to end; the kernel does not
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # macOS has none; the time limit still holds
        # beyond what it holds: a script's main module, imported here again, may have loaded torch
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))
    logging.disable(logging.WARNING)  # Math-Verify warns that its own timer is off
    import math_verify  # noqa: F401  # before the first task's clock starts


@lru_cache(maxsize=8)  # a group's answers come together and share their gold
def _parse(latex: str) -> list:
    from math_verify import LatexExtractionConfig, parse

    return parse(
        f"${latex}$", [LatexExtractionConfig()], fallback_mode="no_fallback",
        extraction_mode="first_match", parsing_timeout=None,  # its timer needs SIGALRM; ours kills
    )


def _check(gold: str, answer: str, seconds: float) -> str:
    """Compare two expressions; runs in a worker. Returns right, wrong, bad gold or bad answer."""
    from math_verify import verify

    # processor time: the kernel kills the worker, also in the midst of one long multiplication
    signal.setitimer(signal.ITIMER_PROF, seconds)
    # the parent kills a worker that only waits; should the parent be gone, the kernel does
    signal.alarm(int(2 * WALL_FACTOR * seconds) + 5)
    try:
        if not (gold_parsed := _parse(gold)):
            return "bad gold"
        if not (answer_parsed := _parse(answer)):
            return "bad answer"
        # x < 3 is its interval, whichever of the two the gold is
        options = {"timeout_seconds": None, "allow_set_relation_comp": True}
        return "right" if verify(gold_parsed, answer_parsed, **options) else "wrong"
    except (MemoryError, RecursionError):
        return "bad answer"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


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
    """Return the future of a check with these arguments, an earlier one where that will do.

    Policies repeat their answers, and a trainer may submit a batch before it asks for the scores.
    """
    workers = _workers()
    future = workers.checks.pop(args, None)
    if future is None or _was_stopped(future):
        future = workers.pool.schedule(_check, args=args, timeout=WALL_FACTOR * TIMEOUT_S)
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
    except TimeoutError:
        return scored("math", 0.0, f"timed out after {WALL_FACTOR * TIMEOUT_S:g} s of waiting")
    except ProcessExpired as error:  # else out of memory or stack, and Python could not say
        is_late = error.exitcode == -signal.SIGPROF
        late = f"timed out after {TIMEOUT_S:g} s of processor time"
        return scored("math", 0.0, late if is_late else "the worker died on this answer")
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
