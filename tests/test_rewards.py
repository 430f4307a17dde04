"""Rewards: format, open answers, audit, hostile text, and what TRL and people call."""

import json
import math
import random
import time
from dataclasses import replace
from functools import partial, update_wrapper

import pytest

from scoring import COLON, columns, record, score, wrap
from vlaa_lib import folders, records, rewards
from vlaa_lib.rewards import GoldError, Score, maths, mixed, open_ended, verifiers
from vlaa_lib.rewards.verifiers import MAX_ANSWER_CHARS, bare

SCENE = {
    "kind": "objects",
    "objects": [
        {"color": "red", "shape": "cube", "size": "big", "box": [0.1, 0.1, 0.3, 0.3]},
        {"color": "red", "shape": "cube", "size": "big", "box": [0.5, 0.1, 0.7, 0.3]},
        {"color": "blue", "shape": "ball", "size": "small", "box": [0.1, 0.6, 0.2, 0.7]},
    ],
}


# --- format --------------------------------------------------------------------------------------

@pytest.mark.parametrize("completion", [
    "", "3", "<answer>3</answer>", "<think>a</think><answer></answer>", wrap("3") + "x",
    wrap("3") * 2, "<think>a</think><answer>3", "<answer>3</answer><think>a</think>",
])
@pytest.mark.parametrize(("reward", "gt"), [("digit", "3"), ("math", "3"), ("open", "x")])
def test_wrong_format_earns_nothing(completion, reward, gt):
    found = rewards.score(record(reward, gt), completion)
    assert (found.value, found.kind, found.is_format) == (0, "", True)
    assert found.reason.startswith("format: ")


@pytest.mark.parametrize(("completion", "said"), [
    (wrap("3") + " " * mixed.MAX_COMPLETION_CHARS, f"more than {mixed.MAX_COMPLETION_CHARS}"),
    (wrap("3" * (MAX_ANSWER_CHARS + 1)), f"answer of more than {MAX_ANSWER_CHARS}"),
])
def test_lengths_are_capped(completion, said):
    found = rewards.score(record("digit", "3"), completion)
    assert found == Score(0.0, f"format: {said} characters", is_format=True)


@pytest.mark.parametrize(("text", "inside"), [
    ("3", "3"), (" 3. ", "3"), ("$3$", "3"), ("$$3$$", "3"), ("\\(3\\)", "3"), ("\\[3\\]", "3"),
    ("\\boxed{3}", "3"), ("**3**", "3"), ("`3`", "3"), ('"3"', "3"), ("$\\boxed{\\text{B}}$.", "B"),
    ("The final answer is: **\\boxed{B}**", "B"), ("Answer: 3", "3"), ("So, the answer is 3", "3"),
    ("\\boxed{3} or \\boxed{7}", "\\boxed{3} or \\boxed{7}"), ("$3$ or $7$", "$3$ or $7$"),
    ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"), ("3..", "3.."), ("$", "$"),
    ("\\boxed{}", "\\boxed{}"), ("\\boxed{a\\}", "\\boxed{a\\}"), ("answers 3", "answers 3"),
    ("The answer is", "The answer is"),
])
def test_bare_takes_off_wrappers_around_the_whole(text, inside):
    assert bare(text) == inside


# --- open answers --------------------------------------------------------------------------------

GOLD = "There are 2 red cubes."


@pytest.mark.parametrize(("answer", "score_of_answer"), [
    (f"{GOLD} There is 1 blue ball.", 2),
    (f"{GOLD} I see one blue ball. There are 3 objects.", 3),
    ("The blue ball is at the left. There are 3 objects. I see 2 cubes.", 3),
    (GOLD, 1), ("There are 3 red cubes.", -1), ("A lovely picture.", 0),
    (f"{GOLD} There is 1 blue ball. There are 4 cones.", 1),  # one true, one false more
    (f"{GOLD} " * 20, 1),
    (f"{GOLD} I count 2 red blocks.", 1),  # the same fact in other words
    (f"{GOLD} 1 + 1 = 2. 2 + 2 = 4. 3 + 1 = 4.", 1),  # true anywhere
    (f"{GOLD} There are no green cones. There are no gray balls.", 1),  # endless
    (f"{GOLD} The blue ball spans [0.10, 0.60, 0.20, 0.70].", 2),
    (GOLD + "".join(f" The blue ball spans [0.10, 0.60, 0.20, 0.7{i}]." for i in range(3)), 2),
])
def test_open_pays_for_facts_beyond_its_reference(answer, score_of_answer):
    found = score("open", GOLD, answer, meta={"scene": SCENE})
    assert found.reason == f"open: score {score_of_answer}, reference 1"
    assert found.value == pytest.approx(max(0.0, 1 - math.exp(1 - score_of_answer)))


def test_open_formula_and_its_beta():
    assert open_ended.relative(-1.0, 0.0) == 0.0
    assert open_ended.relative(3.0, 1.0, beta=0.5) == pytest.approx(1 - math.exp(-1))
    assert open_ended.relative(1e6, 0.0) <= 1.0


@pytest.mark.parametrize(("meta", "gold", "reason"), [
    ({}, GOLD, "no meta.scene and no reward model"),
    ({"scene": "x"}, GOLD, "no meta.scene and no reward model"),
    ({"scene": {"kind": "objects"}}, GOLD, "meta.scene is incomplete"),
    ({"scene": {"kind": "nebula"}}, GOLD, "meta.scene is incomplete"),
    ({"scene": {"kind": "objects", "objects": [{"color": "red", "shape": "cube"}]}}, GOLD,
     "meta.scene is incomplete (KeyError('box'))"),
    ({"scene": SCENE}, "A lovely picture.", "states no fact of the scene"),
    ({"scene": SCENE}, "The tallest bar is red.", "states no fact of the scene"),
])
def test_open_golds_that_cannot_be_scored(meta, gold, reason):
    made = record("open", gold, meta=meta)
    (reject,) = rewards.audit([made])
    assert reason in reject.reason and "; " in reject.reason
    with pytest.raises(GoldError, match="record r1"):
        rewards.score(made, wrap(GOLD))


# --- hostile questions ---------------------------------------------------------------------------

@pytest.mark.parametrize("text", [
    "A: " * 33_000, "(" * 100_000, "\n" * 100_000, "choices:" * 12_000, "A" * 100_000,
    "A)" + " " * 100_000, "Choices: " + "A. x " * 20_000,
])
def test_hostile_questions_are_read_in_time(text):
    start = time.monotonic()
    rewards.options(text)
    verifiers.read_number("3 cubes", text)
    rewards.parse_box(text)
    bare(text)
    assert time.monotonic() - start < 2


# --- audit, pairing, TRL -------------------------------------------------------------------------

GOOD = [
    record("digit", "3", id="d"), record("mcq", "B", COLON, id="c"),
    record("math", "y = 2x", id="m"),
    record("iou", "[0, 0, 0.5, 0.5]", id="i", frame="norm01"),
    record("open", GOLD, id="o", meta={"scene": SCENE}),
]
RIGHT = {"d": "3", "c": "B", "m": "2x", "i": "[0, 0, 0.5, 0.5]", "o": GOLD + " There is 1 ball."}


@pytest.mark.parametrize(("made", "reason"), [
    (record("digit", "many"), "digit: gold 'many' is not one number; correct 'gt'"),
    (record("mcq", "E", COLON), "mcq: gold: E is none of the choices A, B, C, D; correct 'gt'"),
    (record("math", "\\frac{"), "is not one LaTeX expression"),
    (record("math", "$x$ or $y$"), "is not one LaTeX expression"),
    (record("iou", "[1, 1, 1, 1]", frame="norm01"), "is not one box [x1, y1, x2, y2] with an area"),
    (record("iou", "[10, 10, 20, 20]", frame="norm01"), "is not one box"),
    (record("digit", "</answer>"), "gold cannot stand in an answer (format"),
    (record("vibes", "3"), "unknown reward 'vibes'; use one of digit"),
])
def test_audit_names_the_remedy(made, reason):
    (reject,) = rewards.audit([*GOOD, made], "a.jsonl", lines={"r1": 7})
    assert (reject.file, reject.line, reject.id) == ("a.jsonl", 7, "r1")
    assert reason in reject.reason


NO_GOLDS = (math.nan, math.inf, True, False, {}, {"answer": 3}, "nan", "None", "null", "N/A",
            "True", "-", '{"answer": 3}', "The line goes up at first.",
            "it cannot be read off here")  # fmt: skip


def test_a_math_gold_that_is_no_answer_is_named_with_its_line(tmp_path, capsys):
    plain = {"image": "synthesis/a.png", "question": "?", "reward": "math"}
    rows = [plain | {"id": str(n), "gt": gold} for n, gold in enumerate((*NO_GOLDS, "yes", "3"))]
    (tmp_path / "images/synthesis").mkdir(parents=True)
    (tmp_path / "images/synthesis/a.png").touch()
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = [made.id for made in rewards.usable(path, tmp_path / "images", tmp_path)]
    assert found == [str(len(NO_GOLDS)), str(len(NO_GOLDS) + 1)]
    told = folders.whole_lines(tmp_path / "rejects.jsonl")
    assert [(row["file"], row["line"]) for row in told] == [
        ("r.jsonl", n) for n in range(1, len(NO_GOLDS) + 1)]  # fmt: skip
    assert "r.jsonl:15: 14: math: gold 'it cannot be read off here'" in capsys.readouterr().err


def test_a_bad_gold_is_never_rewarded():
    with pytest.raises(GoldError, match=r"record r1: digit: gold 'many'.*rewards\.audit"):
        rewards.score(record("digit", "many"), wrap("many"))


def test_open_questions_without_a_scene_are_kept_for_a_reward_model(micro_data, tmp_path, capsys):
    folder, made = micro_data
    records.write([replace(r, meta={}) for r in made], tmp_path / "r.jsonl")
    usual, kept = (
        [r.id for r in rewards.usable(tmp_path / "r.jsonl", folder / "images", any_open=any_open)]
        for any_open in (False, True)
    )
    assert usual == [r.id for r in made if r.reward != "open"]
    assert kept == [r.id for r in made] != usual
    assert "no meta.scene and no reward model" in capsys.readouterr().err


def batch(seed=0, copies=4):
    """Rows of records and completions, each right for exactly its own record, shuffled."""
    rows = [(r, RIGHT[r.id]) for r in GOOD for _ in range(copies)]
    rows += [(record("digit", str(n), id=f"n{n}"), str(n)) for n in range(20)]
    random.Random(seed).shuffle(rows)
    return rows


@pytest.mark.parametrize("shaped", [str, lambda text: [{"role": "assistant", "content": text}]])
def test_mixed_reward_pairs_each_completion_with_its_own_record(shaped):
    rows = batch()
    texts = [wrap(answer) for _, answer in rows]
    extra, metrics = {}, {}
    values = rewards.mixed_reward(
        prompts=[None] * len(rows), completions=list(map(shaped, texts)),
        **columns([r for r, _ in rows]), image=["x"] * len(rows),
        log_extra=extra.__setitem__, log_metric=metrics.__setitem__,
    )  # fmt: skip
    assert min(values) > 0.6
    assert values == [rewards.score(r, t).value for (r, _), t in zip(rows, texts, strict=True)]
    assert extra["record_id"] == [r.id for r, _ in rows]
    assert [why.split(":")[0] for why in extra["reason"]] == [r.reward for r, _ in rows]
    assert metrics == {
        "reward_digit": 1.0, "reward_mcq": 1.0, "reward_math": 1.0, "reward_iou": 1.0,
        "reward_open": pytest.approx(1 - math.exp(-1)), "format_rate": 1.0,
    }


def test_mixed_reward_with_rotated_records_pays_nobody():
    turned = columns([record("digit", str((n + 1) % 8), id=f"n{n}") for n in range(8)])
    assert rewards.mixed_reward([], [wrap(str(n)) for n in range(8)], **turned) == [0.0] * 8


def test_mixed_reward_logs_the_format_rate_and_only_the_parts_present():
    metrics = {}
    made, texts = columns(GOOD[:1] * 4), [wrap("3"), "3", wrap("4"), ""]
    values = rewards.mixed_reward([], texts, **made, log_metric=metrics.__setitem__)
    assert values == [1.0, 0.0, 0.0, 0.0]
    assert metrics == {"reward_digit": 0.25, "format_rate": 0.5}


def test_what_was_started_is_scored_as_if_it_were_not():
    rows = [*batch(), (record("math", "y = 2x", id="w"), "3x"),
            (record("math", "2"), "$1$, $2$")]  # fmt: skip
    made, texts = columns([r for r, _ in rows]), [wrap(a) for _, a in rows]
    maths.forget()
    plain = rewards.mixed_reward([], texts, **made)
    maths.forget()
    rewards.start(made, [[{"role": "assistant", "content": text}] for text in texts])
    begun = list(maths._workers().checks.items())
    assert {answer for (_, answer, _), _ in begun} == {"2x", "3x"}
    assert rewards.mixed_reward([], texts, **made) == plain
    # found, not repeated
    assert {id(f) for f in maths._workers().checks.values()} == {id(f) for _, f in begun}


def test_a_bad_gold_is_raised_where_scores_are_asked_for_and_not_when_started():
    bad = record("math", "\\frac{", id="bad")
    rewards.start(columns([bad, record("math", "$x$ or $y$")]), [wrap("2x")] * 2)
    rewards.start(columns(GOOD[2:3]), ["no tags"])
    with pytest.raises(GoldError, match="record bad"):
        rewards.mixed_reward([], [wrap("2x")], **columns([bad]))
    assert rewards.score(GOOD[2], wrap("2x")).value == 1.0


def test_mixed_reward_of_some_parts_leaves_the_others_out_and_counts_completions():
    digits = update_wrapper(partial(rewards.mixed_reward, parts=("digit",)), rewards.mixed_reward)
    with pytest.raises(ValueError, match="5 records for 1 completions"):
        digits([], [wrap("3")], **columns(GOOD))
    extra, texts = {}, [wrap(RIGHT[r.id]) for r in GOOD]
    values = digits([], texts, **columns(GOOD), log_extra=extra.__setitem__)
    assert values == [1.0, None, None, None, None]
    assert extra["reason"] == ["digit: 3 is right", "", "", "", ""]
    assert digits.__name__ == "mixed_reward"


@pytest.mark.parametrize(("completion", "text"), [
    ("a", "a"), ([{"role": "assistant", "content": "a"}], "a"), ([], ""),
    ([{"role": "assistant", "content": [{"type": "text", "text": "a"}]}], "a"),
    ([{"role": "assistant", "content": None}], ""),
])
def test_completions_as_trl_passes_them(completion, text):
    assert mixed.text_of(completion) == text
