"""Maths: Math-Verify on whole answers, in workers that a slow or greedy answer cannot hold up."""

import faulthandler
import itertools
import os
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

import scoring
from vlaa_lib import ROOT, rewards
from vlaa_lib.rewards import Score, maths

score = partial(scoring.score, "math")


def map_wrapped(answers):
    return list(map(scoring.wrap, answers))


@pytest.fixture(autouse=True)
def no_earlier_verdicts():
    maths.forget()


@pytest.mark.parametrize(("gold", "answer"), [
    ("2x+1", "y = 2x+1"), ("y = 2x", "2x = y"), ("y = 2x", "y - 2x = 0"),
    ("y = |x - 2| - 1", "\\left|2-x\\right|-1"),
    ("y = -(x - 2)^2 + 3", "y = -x^2 + 4x - 1"), ("\\frac{1}{2}", "0.5"), ("\\frac12", "1/2"),
    ("x^2", "x**2"), ("45", "45°"), ("-2", "−2"), ("1,000", "1000"), ("\\sin(x)", "\\sin x"),
    ("2x", "The equation is $y = 2x$."), ("x=1, x=2", "x=2, x=1"), ("\\theta = 45", "45"),
])
def test_math_right(gold, answer):
    found = score(gold, answer)
    assert found.value == 1.0 and found.reason.endswith("is right"), found.reason


@pytest.mark.parametrize(("gold", "answer", "reason"), [
    ("y = 2x + 1", "2x - 1", "is wrong"), ("y = 2x", "x = 2y", "is wrong"),
    ("2x", "not 2x", "a denial"), ("2x", "2x or 3x", "is wrong"), ("x = 3", "y = 3", "is wrong"),
    ("\\sqrt{2}", "1.4", "is wrong"), ("3", "3 = 7", "not both equations"),
    ("2x", "y = 2x = 3x", "not both equations"), ("2x", "2x + 1 = 2x", "not both equations"),
    ("2x", "\\frac{", "cannot be read"), ("2x", "?", "cannot be read"),
    ("2x", "$2x$ or $3x$", "is not one expression"),
    ("2x", "$2x$, since $x$", "is not one expression"),
    ("2x", "2" * 501, "more than 500 characters"),
])
def test_math_wrong(gold, answer, reason):
    found = score(gold, answer)
    assert found.value == 0.0 and reason in found.reason


def test_odd_answers_earn_nothing_and_are_never_run_as_python(tmp_path):
    marker = tmp_path / "ran"
    odd = [
        "\\text{exec}(1)", "lambda: 0", "\\begin{matrix}" * 20, "\\frac" * 80, "\\sqrt" * 60, "\\",
        "}{", f"__import__('pathlib').Path('{marker}').touch()", f"open('{marker}', 'w')",
    ]
    scores = rewards.score_all([scoring.record("math", "2x")] * len(odd), map_wrapped(odd))
    assert [(a, s) for a, s in zip(odd, scores, strict=True) if s.value] == []
    assert not marker.exists()


_real_check = maths._check


def _stalled(gold, answer, seconds):
    """Stand for a worker on an overloaded machine: time passes in which it may not run."""
    time.sleep(2 * seconds)
    return _real_check(gold, answer, seconds)


def _hung(gold, answer, seconds):
    time.sleep(3600)


def test_a_right_answer_does_not_time_out_because_the_machine_is_busy(monkeypatch):
    monkeypatch.setattr(maths, "TIMEOUT_S", 1.5)
    monkeypatch.setattr(maths, "_check", _stalled)
    assert score("2", "1 + 1") == Score(1.0, "math: '1 + 1' is right", "math")


def test_a_step_of_the_clock_costs_no_answer(monkeypatch):
    """NTP, or a laptop that slept: a day passes between any two looks at the time of day."""
    days, clock = itertools.count(), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 86_400 * next(days))
    monkeypatch.setattr(maths, "_check", _stalled)
    monkeypatch.setattr(maths, "TIMEOUT_S", 1.5)
    assert score("2", "1 + 1") == Score(1.0, "math: '1 + 1' is right", "math")


def test_a_dead_pool_is_replaced():
    assert score("2", "1 + 1").value == 1.0
    pool = maths._workers().pool
    pool.stop()
    pool.join()
    assert score("2", "1 + 1").value == 1.0
    assert maths._workers().pool is not pool


@pytest.mark.parametrize(("answer", "what"), [
    ("9**9**9**9", "a large exponent"), ("\\boxed{9^{9^{9}}}", "a large exponent"),
    ("(9^9)^{9^9}", "a large exponent"), ("9^{8+9^9}", "a large exponent"),
    ("2^{-100000000}", "a large exponent"), ("9" * 400 + "^9^9^9", "a large exponent"),
    ("(a+b+c+d)^{40}", "a high power of a sum"), ("9999999!", "a large factorial"),
    ("\\binom{1000000}{5}", "a large factorial"), ("x" * 400, "a long name"),
    ("(" * 11 + "x" + ")" * 11, "deep brackets"), ("\\sin(" * 60 + "x" + ")" * 60, "deep brackets"),
])
def test_what_would_take_seconds_is_refused_without_the_workers(answer, what, monkeypatch):
    monkeypatch.setattr(maths, "_schedule", None)
    found = score("2x", answer)
    assert found.value == 0.0 and found.reason.endswith(f"is too much to work out: {what}")


@pytest.mark.parametrize(("gold", "answer"), [
    ("256", "2^{2^3}"), ("2^{1000}", "4^{500}"), ("(x+1)^{14}", "(1+x)^{14}"), ("x^{0.33333}",) * 2,
    ("((((x))))", "x"), ("6", "3!"), ("1", "0^0"), ("e^{-x^2}", "\\exp(-x^2)"),
    ("10^{50}", "100^{25}"),
])
def test_what_is_large_in_the_gold_as_well_is_worked_out(gold, answer):
    assert score(gold, answer) == Score(1.0, f"math: {answer!r} is right", "math")


def test_equal_checks_are_made_once_and_forgotten_when_asked():
    gold = scoring.record("math", "y = 2x + 1")
    said = map_wrapped(
        ["2x+1", "$y = 2x+1$", "\\boxed{2x+1}", "The answer is $2x+1$.", "2x+2"]
    )
    first = rewards.score_all([gold] * 5, said)
    assert [s.value for s in first] == [1.0] * 4 + [0.0]
    kept = maths._workers().checks
    futures = list(kept.values())
    assert len(futures) == 2
    assert rewards.score_all([gold] * 5, said) == first and list(kept.values()) == futures
    maths.forget()
    assert rewards.score(gold, said[0]) == first[0]
    assert len(kept) == 1 and not set(kept.values()) & set(futures)


def test_few_checks_are_remembered_the_newest(monkeypatch):
    monkeypatch.setattr(maths, "KEPT", 2)
    for answer in ("1", "2", "3", "2", "4"):
        score("2", answer)
    assert [answer for _, answer, _ in maths._workers().checks] == ["2", "4"]


def test_a_worker_that_only_waits_is_killed_by_the_clock_and_its_check_made_again(monkeypatch):
    monkeypatch.setattr(maths, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(maths, "WALL_FACTOR", 1)
    with monkeypatch.context() as patch:
        patch.setattr(maths, "_check", _hung)
        assert score("2", "1 + 1") == Score(0.0, "math: timed out after 1 s of waiting", "math")
    monkeypatch.setattr(maths, "WALL_FACTOR", 100)
    assert score("2", "1 + 1").value == 1.0


def test_a_check_that_used_up_its_limit_is_not_made_again(monkeypatch):
    monkeypatch.setattr(maths, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(maths, "WALL_FACTOR", 1000)
    monkeypatch.setattr(maths, "too_large", lambda gold, answer: "")
    first = score("2", "9^{9^{9^{9}}}")
    assert "of processor time" in first.reason
    pending = maths.submit(scoring.record("math", "2"), "9^{9^{9^{9}}}")
    assert pending.done() and score("2", "9^{9^{9^{9}}}") == first


def _score_in_child(context_name, pipe):
    """Score in a process of its own, whose parent has workers and verdicts, some pending."""
    faulthandler.dump_traceback_later(90)  # says where a child waits that never answers
    pipe.send([score("y = 2x", "2x").value, score("y = 2x", "3x").value])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_any_kind_of_child_has_its_own_workers(method):
    import multiprocessing

    pending = [maths.submit(scoring.record("math", "y = 2x"), f"{n}x") for n in (2, 3)]
    context = multiprocessing.get_context(method)
    mine, theirs = context.Pipe()
    child = context.Process(target=_score_in_child, args=(method, theirs))
    child.start()
    if not mine.poll(120):
        child.kill()  # or the tests would never end
        pytest.fail("the child waits for its parent's workers")
    assert mine.recv() == [1.0, 0.0]
    child.join()
    assert child.exitcode == 0
    assert [future.result() for future in pending] == ["right", "wrong"]


def test_a_fork_waits_while_a_thread_starts_a_worker():
    from multiprocessing import resource_tracker

    assert score("2", "2").value == 1.0
    lock, held = resource_tracker._resource_tracker._lock, threading.Event()

    def start_something():
        with lock:
            held.set()
            time.sleep(0.3)

    threading.Thread(target=start_something).start()
    held.wait()
    child = os.fork()
    if not child:
        os._exit(0 if lock.acquire(blocking=False) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_workers_serve_a_cell_that_runs_beside_an_event_loop_and_off_the_main_thread():
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    async def cell():
        return score("2x", "x + x")

    assert asyncio.run(cell()).value == 1.0
    with ThreadPoolExecutor(1) as thread:  # a notebook's widget, TRL's reward thread
        wrong = Score(0.0, "math: '3x' is wrong", "math")
        assert thread.submit(score, "2x", "3x").result() == wrong


def _loaded_modules():
    return sorted(sys.modules)


def test_workers_have_no_torch_and_little_memory():
    import resource

    limit = maths._workers().pool.schedule(resource.getrlimit, args=(resource.RLIMIT_AS,)).result()
    held = limit[0] - maths.MEMORY_BYTES
    assert (limit[0] == limit[1] and 0 < held < 2**29) or sys.platform == "darwin"
    loaded = maths._workers().pool.schedule(_loaded_modules).result()
    assert "math_verify" in loaded and "torch" not in loaded and "transformers" not in loaded


LARGE = """
import transformers.trainer  # noqa: F401
from vlaa_lib import prompts, rewards
from vlaa_lib.records import Record

if __name__ == "__main__":
    asked = Record("a", "a.png", "?", "y = -x - 1", reward="math", solution="y = -x - 1")
    print(rewards.score(asked, prompts.join_think_answer("", "y = -1 - x")).value)
"""


@pytest.mark.slow
def test_a_script_that_loads_much_leaves_its_workers_their_memory(tmp_path):
    """Each worker imports the script's main module again, and with it all of torch."""
    (tmp_path / "large.py").write_text(LARGE, encoding="utf-8")
    words = [sys.executable, str(tmp_path / "large.py")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "1.0", done.stderr
