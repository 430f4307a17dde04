"""Who scores steps: the scene's truth, a vision model as judge; how a pool is scored, and files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlaa_lib import VlaaError, evaluate, folders, llm, traces
from vlaa_lib.escape import say
from vlaa_lib.evaluate.generate import Ask, answer, fingerprint
from vlaa_lib.prompts import STEP_IN_CONTEXT, STEP_JUDGE_PROMPT
from vlaa_lib.records import Record, RecordError, iter_file
from vlaa_lib.rewards.reward_models import Judge

from .pools import Pool
from .steps import split

if TYPE_CHECKING:
    from vlaa_lib.models import Policy

# records and the steps of a solution to each -> a score for each step, NaN where there is none;
# the record has question and image. Higher is better; in [0, 1] where a product is to be taken.
Scorer = Callable[[Sequence[Record], Sequence[list[str]]], list[list[float]]]
# (generator, record id, sample) -> a score for each step
Scores = dict[tuple[str, str, int], list[float]]


def score_pools(scorer: Scorer, pools: Iterable[Pool], records: Iterable[Record]) -> Scores:
    """Score the steps of every candidate, with one call of the scorer a pool.

    A question whose record is not among the others, as its picture broke, has no score: NaN.
    """
    by_id, scores = {record.id: record for record in records}, {}
    for pool in pools:
        if missing := [i for i in pool.candidates if i not in by_id]:
            told = f"no record of question {missing[0]!r} (and {len(missing) - 1} more)"
            if len(missing) == len(pool.candidates):
                remedy = "give the records that the pool was sampled for"
                raise RecordError(f"{pool.generator}: {told}; {remedy}")
            say(f"{pool.generator}: {told}: no score", is_error=True)
        for i in missing:
            for row in pool.candidates[i]:
                nothing = [math.nan] * len(split(row["completion"]))
                scores[pool.generator, i, row["sample"]] = nothing
        rows = [(i, row) for i, mine in pool.candidates.items() if i in by_id for row in mine]
        solutions = [split(row["completion"]) for _, row in rows]
        found = scorer([by_id[i] for i, _ in rows], solutions) if rows else []
        if len(found) != len(rows):
            raise VlaaError(f"the scorer gave {len(found)} lists for {len(rows)} solutions")
        for (i, row), steps, values in zip(rows, solutions, found, strict=True):
            if len(values) != len(steps) or any(map(math.isinf, values)):
                raise VlaaError(
                    f"record {i}, sample {row['sample']}: scores {values[:8]} for {len(steps)} "
                    "steps; a scorer must give one number, or NaN, for each step"
                )
            scores[pool.generator, i, row["sample"]] = values
    return scores


def step_truth(
    records: Sequence[Record], solutions: Sequence[list[str]], with_answer: bool = False
) -> list[list[float]]:
    """Score steps by the scene: the share of a step's checkable sentences that are true (ours).

    It stands for a perfect process reward model; a step with nothing to check has no score.

    Args:
        with_answer: the last step is true only if the final answer is right as well, which a
            perfect model would know of a step that states it.

    >>> scene = {"kind": "bars", "bars": [{"color": "red", "value": 3}]}
    >>> made = Record("r", "a.png", "How high?", "3", reward="digit", meta={"scene": scene})
    >>> step_truth([made], [["The red bar reaches 4.", "Hm.", "The red bar reaches 3."]])
    [[0.0, nan, 1.0]]
    >>> step_truth([made], [["The red bar reaches 4.", "The answer is 3."]], with_answer=True)
    [[0.0, 1.0]]
    """
    found: list[list[float]] = []
    for record, solution in zip(records, solutions, strict=True):
        if not (scene := record.meta.get("scene")):
            raise RecordError(f"record {record.id}: no scene to hold steps against; use a judge")
        checked = [[part.truth for part in traces.check_steps(step, scene)
                    if part.truth is not None] for step in solution]  # fmt: skip
        found.append([sum(held) / len(held) if held else math.nan for held in checked])
    if with_answer:
        texts = [" ".join(solution) for solution in solutions]
        for scores, row in zip(found, evaluate.score_rows(list(records), texts), strict=True):
            if scores:
                known = 1.0 if math.isnan(scores[-1]) else scores[-1]
                scores[-1] = min(known, float(row["correct"]))
    return found


def write(path: str | Path, scorer: str, scores: Scores) -> None:
    """Write scores as JSON Lines, atomically; NaN becomes null."""
    rows = (
        {"scorer": scorer, "generator": generator, "record_id": record_id, "sample": sample,
         "scores": [None if math.isnan(score) else score for score in values]}
        for (generator, record_id, sample), values in scores.items()
    )  # fmt: skip
    folders.write_rows(path, rows)


def read(*paths: str | Path) -> dict[str, Scores]:
    """Read what `process judge` wrote, of several pools and scorers: scores by scorer."""
    found: dict[str, Scores] = {}
    for place, row in ((f"{path}:{line}", row) for path in paths for line, row in iter_file(path)):
        if isinstance(row, RecordError):
            raise RecordError(f"{place}: {row}")
        try:
            key = str(row["generator"]), str(row["record_id"]), int(row["sample"])
            values = [math.nan if x is None else float(x) for x in row["scores"]]
            mine = found.setdefault(str(row["scorer"]), {})
        except (KeyError, TypeError, ValueError):
            said = "expected scorer, generator, record_id, sample and scores"
            raise RecordError(f"{place}: {said}") from None
        if key in mine or any(map(math.isinf, values)):
            said = "scored above" if key in mine else "a score is infinite"
            raise RecordError(f"{place}: {' '.join(map(str, key))}: {said}; delete this line")
        mine[key] = values
    return found


def scores_of(known: Scores, generator: str, record_id: str, sample: int) -> list[float]:
    """Look up a candidate's scores."""
    key = generator, record_id, sample
    if key not in known:  # what failed is there, as NaN
        raise VlaaError(f"{key}: not in the scores; score the whole pool first")
    return known[key]


# --- a vision model as judge of steps -------------------------------------------------------------

# greedy: the paper's judges are deterministic; ours: room for a line of reason and the score
SETTINGS = {"temperature": 0.0, "max_tokens": 256}
TOP = 5  # paper appendix A: 1 to 5
# What the judge is shown of a step. Whether the paper shows it alone or with what came before is
# not known. `step`: the step alone; `prefix`: all up to the step, graded as one; `context`: the
# step, below those before it, which are marked as not to be graded.
INPUTS = ("step", "prefix", "context")
_SCORE = re.compile(r"\W{0,6}score\W{0,6}([1-5])(?: ?/ ?5)?\W{0,6}", re.IGNORECASE)
# for each request a reply, or why there is none
Asker = Callable[[list[llm.Request]], list[llm.Reply | llm.CallFailed]]


def read_score(text: str) -> int | None:
    """Read a judge's reply: its last line is the score, and no other line is one; else None.

    >>> read_score("It counts right.\\nScore: 4"), read_score("**Score:** [5/5]"), read_score("3")
    (4, 5, 3)
    >>> read_score("Score: 4\\nScore: 5"), read_score("Score: 4.5"), read_score("Score: 4, as said")
    (None, None, None)
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if len(lines) == 1 and lines[0] in set("12345"):
        return int(lines[0])
    found = [_SCORE.fullmatch(line) for line in lines]
    return int(found[-1][1]) if found and found[-1] and sum(map(bool, found)) == 1 else None


class StepJudge:
    """A scorer of steps: fifths from 0.2 to 1, NaN where the reply has no score (counted).

    Attributes:
        asked: steps graded in its life; `unusable`: those without a score, by reason.
    """

    def __init__(self, name: str, view: str, ask: Asker) -> None:
        if view not in INPUTS:
            raise VlaaError(f"view {view!r}; use one of {', '.join(INPUTS)}")
        self.name, self.view, self._ask = f"{name} {view}", view, ask
        self.asked, self.unusable = 0, Counter()

    @property
    def failure_rate(self) -> float:
        """The share of steps without a score."""
        return sum(self.unusable.values()) / max(1, self.asked)

    def __call__(
        self, records: Sequence[Record], solutions: Sequence[list[str]]
    ) -> list[list[float]]:
        requests = [
            llm.Request("judge", llm.fill(STEP_JUDGE_PROMPT, question=llm.quoted(record.question),
                                          input=shown(steps, i, self.view)), record.image)
            for record, steps in zip(records, solutions, strict=True)
            for i in range(len(steps))
        ]  # fmt: skip
        texts = llm.texts_of(self._ask(requests), self.unusable)
        scores = [None if text is None else read_score(text) for text in texts]
        if lost := scores.count(None) - texts.count(None):
            self.unusable[f"no score from 1 to {TOP}"] += lost
        self.asked += len(scores)
        left = iter(scores)
        return [[(next(left) or math.nan) / TOP for _ in steps] for steps in solutions]


def shown(steps: Sequence[str], i: int, view: str) -> str:
    """Return what the judge is shown of step i (from 0)."""
    steps = [llm.quoted(step) for step in steps]
    if view == "step":
        return steps[i]
    if view == "prefix" or i == 0:
        return "\n".join(steps[: i + 1])
    return llm.fill(STEP_IN_CONTEXT, caption="\n".join(steps[:i]), input=steps[i])


def endpoint_judge(
    endpoint: llm.Endpoint,
    ledger: str | Path,
    images: str | Path,
    view: str = "context",
    limits: llm.Limits | None = None,
) -> StepJudge:
    """Return a judge behind any OpenAI-compatible endpoint; the ledger asks equal steps once.

    Args:
        endpoint: its `settings` are added to `SETTINGS`.
        view: ours, as the paper's is not known: a step makes sense after those before it.
        limits: budgets are of the judge's life.
    """
    made = replace(endpoint, settings=SETTINGS | dict(endpoint.settings))
    return StepJudge(f"judge {endpoint.model}", view, Judge(made, ledger, images, limits).replies)


def policy_judge(
    policy: Policy,
    ledger: str | Path,
    images: str | Path,
    view: str = "context",
    batch: int = 64,
    max_new_tokens: int = SETTINGS["max_tokens"],
) -> StepJudge:
    """Return a local policy as judge, greedy; replies are kept in the ledger batch by batch."""
    # the weights are part of the key: a policy trained further is another judge
    settings = fingerprint(policy) | {"max_new_tokens": max_new_tokens}
    del settings["policy"]  # a path names nothing
    local = llm.Endpoint("local", settings=settings)

    def ask(requests: list[llm.Request]) -> list[llm.Reply | llm.CallFailed]:
        found, keys = {}, {}
        for request in dict.fromkeys(requests):
            try:
                keys[request] = llm.key_of(local, request, Path(images))[0]
            except llm.CallFailed as error:
                found[request] = error
        with llm.Ledger(ledger) as kept:
            todo = [request for request, key in keys.items() if not kept.get(key)]
            for start in range(0, len(todo), batch):
                part = todo[start : start + batch]
                # a text may spell a special token, such as the one that stands for the picture
                asks = [Ask(r.text.replace("<|", "< |"), "", (r.image,)) for r in part]
                # one that is cut off has no line with the score
                texts = answer(policy, asks, images, batch, max_new_tokens)
                with kept.together():
                    for request, text in zip(part, texts, strict=True):
                        problem = "" if text.strip() else llm.EMPTY
                        reply = llm.Reply(text, policy.path, problem=problem)
                        kept.put(keys[request], "judge", reply)
            found |= {request: kept.get(key) for request, key in keys.items()}
        return [found[request] for request in requests]

    name = f"judge {Path(policy.path).name} {settings['weights'][:8]}"
    return StepJudge(name, view, ask)
