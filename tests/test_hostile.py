"""Any text is scored: in range, the same each time and in any order, for a bounded price."""

import base64
import pickle
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring import COLON, record, wrap
from vlaa_lib import evaluate, rewards, traces
from vlaa_lib.pocket import microworld
from vlaa_lib.rewards import GoldError, Score, maths

SCENE = {"kind": "objects", "objects": [
    {"color": "red", "shape": "cube", "size": "big", "box": [0.1, 0.1, 0.3, 0.3]},
]}  # fmt: skip
GOLDS = {"digit": "3", "mcq": "B", "math": "2x", "iou": "[0, 0, 1, 1]",
         "open": "There is 1 red cube."}  # fmt: skip
RECORDS = {
    reward: record(reward, gold, COLON, id=reward, meta={"scene": SCENE})
    for reward, gold in GOLDS.items()
}
TOWERS = ["9^{9^{9^{9}}}", "\\boxed{9^{9^{9^{9}}}}", "7^{7^{7^{77}}}x", "9999999!", "9^{9^{9}} + x"]
HOSTILE = [
    # towers of powers
    "9**9**9**9", "9**9**9**99", *TOWERS[:1],
    # deep nesting
    "(" * 4000, "[" * 4000, "{" * 300, "(" * 200 + "x" + ")" * 200, "\\boxed{" * 560,
    "\\text{" * 600 + "B" + "}" * 300, "\\sqrt{" * 60 + "x" + "}" * 60, "[1," * 1300, "$" * 4000,
    # megabytes
    "9" * 10**6, "A" * 10**6, "1 + " * 250_000, "\\frac{" * 170_000, "9" * 4000,
    # bait for patterns that backtrack
    "the answer is " * 280, "." * 3999 + "a", "1," * 2000, " " * 3000 + "x", "A. " * 1300,
    "there are " * 400, "so, " * 1000, "wait, " * 660 + "x", "[" + " ," * 90 + "]", "**" * 2000,
    "1 + " * 900 + "1 = 2", "\n" * 3999 + "3x", "x" * 400 + "!", "\\pi" * 160, "sqrt(" * 99,
    "abs(()" * 80, "x=" * 240, "1 " * 249, "x = 1, " * 70,
    # marks that cannot be seen
    "\x00", "3\x00", "B\x00", "\x00\x01", "\u202e3", "\u202eB", "\u2066x2\u2069", "\ufeff3",
    "\ud800" * 100, "٣" * 500,
    # code
    "<script>alert(3)</script>", "<img src=x onerror=alert('B')>", "javascript:alert(3)",
    "$(rm -rf /)", "; cat /etc/passwd", "`id`", "__import__('os').system('id')", "{{7*7}}",
    base64.b64encode(pickle.dumps({"answer": 3})).decode(),
]  # fmt: skip


def raw(text):
    """Write a completion without help from the library, so that nothing is cleaned up."""
    return f"<think>I look.</think><answer>{text}</answer>"


@pytest.mark.parametrize("reward", GOLDS)
def test_hostile_answers_earn_nothing_and_keep_memory_flat(reward, monkeypatch):
    monkeypatch.setattr(maths, "TIMEOUT_S", 1.0)
    rewards.score(RECORDS[reward], raw("1"))
    tracemalloc.start()
    scores = rewards.score_all([RECORDS[reward]] * len(HOSTILE), list(map(raw, HOSTILE)))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(t[:30], s.reason) for t, s in zip(HOSTILE, scores, strict=True) if s.value] == []
    # ours: twice the largest text; one answer parsed as an expression needs more
    assert peak_bytes < 16 * 2**20


def _burn(seconds):
    """Use up processor time as an answer does that runs into its limit."""
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


@pytest.mark.slow
def test_answers_that_never_end_cost_their_limit_and_no_more(monkeypatch):
    """Compare with as many tasks that use the limit and end, on the same machine and load."""
    monkeypatch.setattr(maths, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(maths, "WALL_FACTOR", 100)  # the other limit must not come first
    monkeypatch.setattr(maths, "too_large", lambda gold, answer: "")  # past the sieve
    maths.forget()
    rewards.score(RECORDS["math"], raw("2x"))  # workers are up
    start = time.monotonic()
    burns = [maths._workers().pool.schedule(_burn, args=(maths.TIMEOUT_S,)) for _ in TOWERS]
    for burn in burns:
        burn.result()
    bound_s = time.monotonic() - start
    start = time.monotonic()
    scores = rewards.score_all([RECORDS["math"]] * 25, list(map(raw, TOWERS + ["x + x"] * 20)))
    took_s = time.monotonic() - start
    assert set(scores[:5]) == {Score(0.0, "math: timed out after 1 s of processor time", "math")}
    assert [s.value for s in scores[5:]] == [1.0] * 20
    assert took_s < 3 * bound_s  # a killed worker has to be replaced each time
    assert rewards.score(RECORDS["math"], raw("4x - 2x")).value == 1.0  # none is stuck


PIECES = st.lists(st.sampled_from([
    "3", "7", "0.5", "1,000", "three", "B", "(A)", "45", "[0, 0, 1, 1]", "x", "2x", "y = ", " or ",
    " and ", "not ", ", ", "$", "\\boxed{", "{", "}", "\\frac{1}{2}", "\\text{", "\\sin", "sin(",
    "sqrt(", ")", "[", "]", "%", "°", " cm", "√", "π", "\\pm", "<", "=", "\n", ".", "x^2", "\x00",
    "The answer is ", "There is 1 red cube. ", "<answer>",
]), max_size=8).map("".join)  # fmt: skip
TEXTS = st.one_of(PIECES, st.text(max_size=60))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(sorted(GOLDS)), TEXTS), min_size=2, max_size=6),
       st.randoms(use_true_random=False))
def test_scores_are_in_range_repeatable_and_do_not_depend_on_the_batch(rows, chance):
    made, texts = [RECORDS[r] for r, _ in rows], [raw(text) for _, text in rows]
    scores = rewards.score_all(made, texts)
    assert all(0 <= s.value <= 1 and s.reason for s in scores)
    order = list(range(len(rows)))
    chance.shuffle(order)
    again = rewards.score_all([made[i] for i in order], [texts[i] for i in order])
    assert again == [scores[i] for i in order]


@settings(max_examples=40)
@given(st.sampled_from(sorted(GOLDS)), TEXTS.filter(str.strip), TEXTS)
def test_only_a_gold_can_be_an_error(reward, gold, answer):
    made = record(reward, gold, COLON, meta={"scene": SCENE})
    try:
        assert 0 <= rewards.score(made, raw(answer)).value <= 1
    except GoldError as error:
        assert "r1" in str(error)
        assert rewards.audit([made])


BROKEN = ("x", 5, [], {}, None, {"kind": ["a"]}, {"kind": "nebula"})


def test_a_scene_that_is_none_ends_nothing():
    """A record's `meta.scene` may be anybody's: what cannot be held against it is not checked."""
    text = wrap("The red bar reaches 4. The peak is at 3. The angle is 30. The date is 5.")
    for name in microworld.SOURCES:
        real = next(microworld.stream(name, "dev")).record
        scene = real.meta["scene"]
        for broken in (*BROKEN, *({**scene, key: value} for key in scene for value in BROKEN[:5])):
            made = replace(real, meta={"scene": broken})
            if not rewards.audit([made]):
                rows = evaluate.score_rows([made], [text])
                assert traces.from_evaluation(rows, [made])[0]["steps"] == 5
