"""Maths: Math-Verify on whole answers, in workers that a slow or greedy answer cannot hold up."""

import sys
import time
from functools import partial

import pytest

import scoring
from vlaa_lib import rewards
from vlaa_lib.rewards import Score, maths

score = partial(scoring.score, "math")


@pytest.mark.parametrize(("gold", "answer"), [
    ("y = 2x + 1", "y = 2x + 1"), ("y = 2x + 1", "1 + 2x"), ("y = 2x + 1", "f(x) = 2x + 1"),
    ("y = 2x + 1", "$$y=1+2x$$"), ("y = 2x + 1", "\\boxed{2x+1}"), ("2x+1", "y = 2x+1"),
    ("y = 2x", "2x = y"), ("y = 2x", "y - 2x = 0"), ("y = |x - 2| - 1", "\\left|2-x\\right|-1"),
    ("y = -(x - 2)^2 + 3", "y = -x^2 + 4x - 1"), ("\\frac{1}{2}", "0.5"), ("\\frac12", "1/2"),
    ("x^2", "x**2"), ("45", "45°"), ("-2", "−2"), ("1,000", "1000"), ("\\sin(x)", "\\sin x"),
    ("2x", "The equation is $y = 2x$."), ("x=1, x=2", "x=2, x=1"), ("\\theta = 45", "45"),
])
def test_math_right(gold, answer):
    found = score(gold, answer)
    assert found.value == 1.0, found.reason
    assert found.reason.endswith("is right")


@pytest.mark.parametrize(("gold", "answer", "reason"), [
    ("y = 2x + 1", "2x - 1", "is wrong"), ("y = 2x", "x = 2y", "is wrong"),
    ("3", "3 or 7", "is wrong"), ("3", "3, 7", "is wrong"), ("3", "7, 3", "is wrong"),
    ("2x", "not 2x", "is wrong"), ("2x", "2x or 3x", "is wrong"), ("x = 3", "y = 3", "is wrong"),
    ("\\sqrt{2}", "1.4", "is wrong"), ("3", "\\pm 3", "is wrong"), ("3", "x > 3", "is wrong"),
    ("3", "7 = 3", "not both equations"), ("3", "3 = 7", "not both equations"),
    ("2x", "y = 2x = 3x", "not both equations"), ("2x", "2x + 1 = 2x", "not both equations"),
    ("2x", "\\frac{", "cannot be read"), ("2x", "?", "cannot be read"),
    ("2x", "$2x$ or $3x$", "is not one expression"),
    ("2x", "$2x$, since $x$", "is not one expression"),
    ("2x", "2" * 501, "more than 500 characters"),
])
def test_math_wrong(gold, answer, reason):
    found = score(gold, answer)
    assert found.value == 0.0 and reason in found.reason


@pytest.mark.parametrize("answer", [
    "\\text{exec}(1)", "lambda: 0", "{" * 300,
    "\\begin{matrix}" * 20, "\\frac" * 80, "x" * 400, "\\sqrt" * 60, "\x00\x01", "\\", "}{",
])
def test_math_survives_odd_answers(answer):
    assert score("2x", answer).value == 0.0


def test_math_text_is_never_run_as_python(tmp_path):
    marker = tmp_path / "ran"
    for answer in (f"__import__('pathlib').Path('{marker}').touch()", f"open('{marker}', 'w')"):
        assert score("2x", answer).value == 0.0
    assert not marker.exists()


def test_a_slow_answer_is_killed_and_costs_only_its_own_time(monkeypatch):
    monkeypatch.setattr(maths, "TIMEOUT_S", 2.0)
    monkeypatch.setattr(maths, "WALL_FACTOR", 100)  # the other limit must not come first
    gold = scoring.record("math", "2")
    answers = ["\\boxed{9^{9^{9^{9}}}}", *["1 + 1"] * 20]
    scores = rewards.score_all([gold] * len(answers), [scoring.wrap(a) for a in answers])
    assert scores[0] == Score(0.0, "math: timed out after 2 s of processor time")
    assert [s.value for s in scores[1:]] == [1.0] * 20
    # no worker is left in the long multiplication
    assert score("2", "4 - 2").value == 1.0


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
    assert score("2", "1 + 1") == Score(1.0, "math: '1 + 1' is right")


def test_a_worker_that_only_waits_is_killed_by_the_clock_on_the_wall(monkeypatch):
    monkeypatch.setattr(maths, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(maths, "WALL_FACTOR", 2)
    monkeypatch.setattr(maths, "_check", _hung)
    start = time.monotonic()
    assert score("2", "1 + 1") == Score(0.0, "math: timed out after 1 s of waiting")
    assert time.monotonic() - start >= 1


def test_a_dead_pool_is_replaced():
    assert score("2", "1 + 1").value == 1.0
    pool = maths._pool()
    pool.stop()
    pool.join()
    assert score("2", "1 + 1").value == 1.0
    assert maths._pool() is not pool


def _loaded_modules():
    return sorted(sys.modules)


def test_workers_have_no_torch_and_little_memory():
    import resource

    limit = maths._pool().schedule(resource.getrlimit, args=(resource.RLIMIT_AS,)).result()
    assert limit == (maths.MEMORY_BYTES, maths.MEMORY_BYTES) or sys.platform == "darwin"
    loaded = maths._pool().schedule(_loaded_modules).result()
    assert "math_verify" in loaded and "torch" not in loaded and "transformers" not in loaded
