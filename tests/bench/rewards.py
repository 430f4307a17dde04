"""The mixed reward's speed beside TRL's `accuracy_reward` and a serial Math-Verify loop."""

from __future__ import annotations

import json
import logging
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vlaa_lib import ROOT, prompts
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld import narrator
from vlaa_lib.records import Record
from vlaa_lib.rewards import maths, mixed
from vlaa_lib.rewards.checkup import HIT
from vlaa_lib.rewards.verifiers import gold_text

from .timing import interleaved

Row = tuple[Record, str]  # a record and a completion
Verdicts = list[bool | None]  # right or wrong; None: not scored

GROUP = 4  # paper §4: completions of one prompt
BATCH = 64  # ours: completions scored together, whose latency has a tail
HOSTILE_SHARE = 0.01
# ours: what a policy in training says; the wrong is the gold of another record of that source
_OUTCOMES = {"right": 0.45, "wrong": 0.35, "near miss": 0.1, "malformed": 0.1}
_SPELT = {
    "digit": ("%s", "%s", "$%s$", "\\boxed{%s}", "The answer is %s.", "%s.0"),
    "mcq": ("%s", "%s", "(%s)", "%s.", "\\boxed{\\text{%s}}", "The correct option is %s"),
    "math": ("%s", "%s", "$%s$", "$$%s$$", "\\boxed{%s}", "The equation is $%s$."),
    "iou": ("%s", "%s", "The box is %s."),
    "open": ("%s", "%s It is clear."),
}
_MISSED = {
    "digit": ("%s or 70", "not %s", "%s, 11"),
    "mcq": ("A or %s", "not %s", "A B C D %s"),
    "math": ("%s + 1", "2(%s)", "%s or 3", "not %s"),
    "iou": ("%s or [0, 0, 1, 1]", "%s, [0.1, 0.2]"),
    "open": ("There are 99 red cubes. %s",),
}
_MALFORMED = ("%s</think>%s", "%s \\boxed{%s}", "<think>%s</think><answer>%s", "%s Answer: %s")
# large numbers, deep nesting, long answers, bait for patterns; the last line only the limit stops
HOSTILE = (
    "9**9**9**9", "\\boxed{9^{9^{9^{9}}}}", "7^{7^{7^{77}}}x", "9999999!", "(a+b+c+d)^{40}",
    "(" * 400, "{" * 300, "\\sqrt{" * 60 + "x" + "}" * 60, "\\boxed{" * 560, "[1," * 1300,
    "9" * 10**5, "1 + " * 900, "x" * 400 + "!", "3 " * 240, "\\pi" * 160, "1/" * 200 + "3",
    "the answer is " * 280, "." * 3999 + "a", "1," * 2000, "[" + " ," * 90 + "]", "abs(()" * 80,
    "x^{x^{x^{x^{x}}}}", "\\int_0^1 x^{50}\\sin(x)e^x dx",
)  # fmt: skip


def rewards(n: int = 2048, repeats: int = 3, seed: int = 0) -> dict[str, Any]:
    """Measure completions a second on the same texts, whether verdicts agree, and the tail.

    Ours has loaded workers but no earlier verdicts. The serial loop, in this process and with
    Math-Verify's own timers, gets the answer without its tags, which it cannot read past, answer
    and gold in dollars; TRL the whole completion and the same gold.

    Returns:
        `speed`: a row for each set of items and peer. Sets: `all`; `math`, the part made for the
            peers; `math, none twice`, with no answer to a gold repeated. `peer scores`: items on
            which the peer has a verdict; `agree`: those on which it is ours; `times faster`: the
            medians' ratio.
        `tail`: seconds of a batch of `BATCH`, clean and with `HOSTILE_SHARE` of hostile answers.
    """
    rows = mix(n, seed)
    of_math = [row for row in rows if row[0].reward == "math"]
    once = {(gold_text(r), mixed.read_answer(text)[0]): (r, text) for r, text in of_math}
    sets = {"all": rows, "math": of_math, "math, none twice": list(once.values())}
    peers = {"TRL accuracy_reward": _trl, "serial Math-Verify": _serial}
    for judge in (_ours, *peers.values()):  # all libraries are loaded, all workers up
        judge(rows[: 4 * GROUP])
    speed = []
    for items, chosen in sets.items():
        verdicts: dict[Callable, Verdicts] = {}

        def work(judge: Callable, chosen=chosen, verdicts=verdicts) -> None:
            verdicts[judge] = judge(chosen)

        mine, *theirs = interleaved([partial(work, f) for f in (_ours, *peers.values())], repeats)
        for (peer, judge), seconds in zip(peers.items(), theirs, strict=True):
            scored = [pair for pair in zip(verdicts[_ours], verdicts[judge], strict=True)
                      if pair[1] is not None]  # fmt: skip
            speed.append({
                "items": items, "n": len(chosen), "peer": peer, "peer scores": len(scored),
                "agree": sum(a == b for a, b in scored), "ours a second": round(len(chosen) / mine),
                "peer's a second": round(len(chosen) / seconds),
                "times faster": round(seconds / mine, 2),
            })  # fmt: skip
    return {
        "benchmark": "rewards", "seed": seed, "repeats": repeats, "workers": maths.WORKERS,
        "cores": os.cpu_count(), "speed": speed, "tail": _tail(rows, repeats, seed),
    }  # fmt: skip


def mix(n: int, seed: int = 0) -> list[Row]:
    """Draw completions in groups of `GROUP`, sources in the shares of the paper's RL split.

    Records and traces are the micro-world's, answers right, wrong, near misses or malformed.
    """
    chance = random.Random(seed)
    paper = json.loads((ROOT / "data/paper/vlaa_thinking.json").read_text(encoding="utf-8"))
    final_rl = {row[0]: row[5] for row in paper["table1_dataset"]["rows"]}
    weights = [final_rl[source] for _, source in microworld.SOURCES.values()]
    groups = chance.choices(list(microworld.SOURCES), weights, k=-(-n // GROUP))
    made = [microworld.record(source, "train", i, seed) for i, source in enumerate(groups)]
    golds: dict[str, list[str]] = {}
    for record in made:
        golds.setdefault(record.source, []).append(gold_text(record))
    rows = []
    for record in made:
        think, _ = narrator.plain_trace(record.meta["scene"], record.question)
        for outcome in chance.choices(list(_OUTCOMES), list(_OUTCOMES.values()), k=GROUP):
            said = gold_text(record) if outcome == "right" else chance.choice(golds[record.source])
            shape = chance.choice((_MISSED if outcome == "near miss" else _SPELT)[record.reward])
            text = prompts.join_think_answer(think, shape % said)
            if outcome == "malformed":
                text = chance.choice(_MALFORMED) % (think, said)
            rows.append((record, text))
    return rows[:n]


def _ours(rows: Sequence[Row]) -> Verdicts:
    maths.forget()
    scores = mixed.score_all([record for record, _ in rows], [text for _, text in rows])
    return [score.value >= HIT for score in scores]


def _trl(rows: Sequence[Row]) -> Verdicts:
    from trl.rewards import accuracy_reward

    completions = [[{"role": "assistant", "content": text}] for _, text in rows]
    found = accuracy_reward(completions, [f"${gold_text(record)}$" for record, _ in rows])
    return [None if value is None else value == 1 for value in found]


def _serial(rows: Sequence[Row]) -> Verdicts:
    """Parse and compare one after another, as Math-Verify's own examples do."""
    from math_verify import parse, verify

    quiet = logging.getLogger("math_verify")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    verdicts: Verdicts = []
    try:
        for record, text in rows:
            gold = parse(f"${gold_text(record)}$")
            said = mixed.read_answer(text)[0]
            said = said if "$" in said or "\\boxed" in said else f"${said}$"
            verdicts.append(verify(gold, parse(said)) if gold else None)
    finally:
        quiet.setLevel(level)
    return verdicts


def _tail(rows: Sequence[Row], repeats: int, seed: int) -> list[dict[str, Any]]:
    """Time batches with and without hostile answers in turn; rows of quantiles and their ratios."""
    chance = random.Random(seed)
    hostile = list(rows)
    places = chance.sample(range(len(rows)), max(1, round(HOSTILE_SHARE * len(rows))))
    for i, place in enumerate(places):
        text = f"<think></think><answer>{HOSTILE[i % len(HOSTILE)]}</answer>"
        hostile[place] = (rows[place][0], text)
    seconds: dict[str, list[float]] = {"clean": [], "1 % hostile": []}
    for _ in range(repeats):
        for start in range(0, len(rows), BATCH):
            for name, chosen in (("clean", rows), ("1 % hostile", hostile)):
                began = time.perf_counter()
                _ours(chosen[start : start + BATCH])
                seconds[name].append(time.perf_counter() - began)
    table = []
    for name, found in seconds.items():
        found.sort()
        row = {f"p{q}": found[min(len(found) - 1, len(found) * q // 100)] for q in (50, 95, 99)}
        table.append({"batches": name, **row, "mean": statistics.mean(found)})
    clean, dirty = table
    ratio = {k: dirty[k] / clean[k] for k in clean if k != "batches"}
    return [
        {k: v if isinstance(v, str) else round(v, 4) for k, v in row.items()}
        for row in (clean, dirty, {"batches": "ratio", **ratio})
    ]
