"""A vision model as judge of steps: 1 to 5 for each, from an endpoint or a local policy."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib.evaluate.generate import Ask, answer
from vlaa_lib.images import ImageError, open_image
from vlaa_lib.llm.client import Limits
from vlaa_lib.llm.endpoints import Endpoint
from vlaa_lib.llm.ledger import Ledger, Reply, call_key
from vlaa_lib.llm.messages import EMPTY, CallFailed, Request, fill, read_image
from vlaa_lib.prompts import STEP_IN_CONTEXT, STEP_JUDGE_PROMPT
from vlaa_lib.records import Record
from vlaa_lib.rewards.judge import Judge

if TYPE_CHECKING:
    from vlaa_lib.models import Policy

# greedy: the paper's judges are deterministic; ours: room for a line of reason and the score
SETTINGS = {"temperature": 0.0, "max_tokens": 256}
TOP = 5  # paper appendix A: 1 to 5
# What the judge is shown of a step. Whether the paper shows it alone or with what came before is
# not known. `step`: the step alone; `prefix`: all up to the step, graded as one; `context`: the
# step, below those before it, which are marked as not to be graded.
INPUTS = ("step", "prefix", "context")
_SCORE = re.compile(r"\W{0,6}score\W{0,6}([1-5])(?: ?/ ?5)?\W{0,6}", re.IGNORECASE)
_LONE = re.compile(r"[1-5]")

Asker = Callable[[list[Request]], "list[Reply | CallFailed]"]


def read_score(text: str) -> int | None:
    """Read a judge's reply: its last line is the score, and no other line is one; else None.

    >>> read_score("It counts right.\\nScore: 4"), read_score("**Score:** [5/5]"), read_score("3")
    (4, 5, 3)
    >>> read_score("Score: 4\\nScore: 5"), read_score("Score: 4.5"), read_score("Score: 4, as said")
    (None, None, None)
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if len(lines) == 1 and _LONE.fullmatch(lines[0]):
        return int(lines[0])
    found = [match[1] for line in lines if (match := _SCORE.fullmatch(line))]
    is_last = bool(lines) and _SCORE.fullmatch(lines[-1]) is not None
    return int(found[0]) if len(found) == 1 and is_last else None


def shown(steps: Sequence[str], i: int, view: str) -> str:
    """Return what the judge is shown of step i (from 0).

    >>> shown(["Two.", "One.", "Three."], 1, "step"), shown(["Two.", "One.", "Three."], 1, "prefix")
    ('One.', 'Two.\\nOne.')
    """
    if view == "prefix" or (view == "context" and i == 0):
        return "\n".join(steps[: i + 1])
    if view == "context":
        return fill(STEP_IN_CONTEXT, caption="\n".join(steps[:i]), input=steps[i])
    return steps[i]


class StepJudge:
    """A scorer of steps: fifths from 0.2 to 1, NaN where the reply has no score (counted).

    Make one with `endpoint_judge` or `policy_judge`. Equal requests are asked once a ledger.

    Args:
        view: one of `INPUTS`.
        ask: returns a reply, or why there is none, for each request.

    Attributes:
        name: names its scores.
        asked: steps graded in its life; `unusable`: those without a score, by reason.
    """

    def __init__(self, name: str, view: str, ask: Asker) -> None:
        if view not in INPUTS:
            raise ValueError(f"view {view!r}; use one of {', '.join(INPUTS)}")
        self.name, self.view, self._ask = f"{name} {view}", view, ask
        self.asked, self.unusable = 0, Counter()

    @property
    def failure_rate(self) -> float:
        """The share of steps without a score."""
        return sum(self.unusable.values()) / max(1, self.asked)

    def __call__(
        self, records: Sequence[Record], solutions: Sequence[list[str]]
    ) -> list[list[float]]:
        """Return a score for each step of each solution.

        Raises:
            TeacherUnreachable: the endpoint answers nobody.
            BudgetSpent: no further call may be made.
            EndpointError: the endpoint has no address or no key.
        """
        requests = [
            Request(
                "judge",
                fill(STEP_JUDGE_PROMPT, question=record.question, input=shown(steps, i, self.view)),
                record.image,
            )
            for record, steps in zip(records, solutions, strict=True)
            for i in range(len(steps))
        ]
        scores = iter([self._read(reply) for reply in self._ask(requests)])
        return [[next(scores) for _ in steps] for steps in solutions]

    def _read(self, reply: Reply | CallFailed) -> float:
        self.asked += 1
        if isinstance(reply, CallFailed):
            self.unusable[reply.reason] += 1
            return math.nan
        # a reply cut off or blocked is a problem, whatever number it holds
        score = None if reply.problem else read_score(reply.text)
        if score is None:
            # the part before the colon: a refusal quotes the model
            self.unusable[reply.problem.partition(":")[0] or f"no score from 1 to {TOP}"] += 1
            return math.nan
        return score / TOP


def endpoint_judge(
    endpoint: Endpoint,
    ledger: str | Path,
    images: str | Path,
    view: str = "context",
    limits: Limits | None = None,
) -> StepJudge:
    """Return a judge behind any OpenAI-compatible endpoint; replies are kept in the ledger.

    Args:
        endpoint: its `settings` are added to `SETTINGS`.
        view: ours, as the paper's is not known: a step makes sense after those before it.
        limits: budgets are of the judge's life.
    """
    made = replace(endpoint, settings=SETTINGS | dict(endpoint.settings))
    asked = Judge(made, ledger, images, limits)
    return StepJudge(f"judge {endpoint.model}", view, asked.replies)


def policy_judge(
    policy: Policy,
    ledger: str | Path,
    images: str | Path,
    view: str = "context",
    batch: int = 64,
    max_new_tokens: int = SETTINGS["max_tokens"],
) -> StepJudge:
    """Return a local policy as judge, greedy; replies are kept in the ledger batch by batch.

    The policy's weights are part of the key: a policy trained further is another judge.
    """
    from vlaa_lib import perplexity

    settings = {k: v for k, v in perplexity.fingerprint(policy).items() if k != "policy"}
    asked = _Local(policy, settings, Path(ledger), Path(images), batch, max_new_tokens)
    name = f"judge {Path(policy.path).name} {settings['weights'][:8]}"
    return StepJudge(name, view, asked.replies)


@dataclass(frozen=True)
class _Local:
    """Ask a local policy what `rewards.judge.Judge` asks an endpoint."""

    policy: Policy
    settings: dict[str, Any]
    ledger: Path
    images: Path
    batch: int
    max_new_tokens: int

    def replies(self, requests: list[Request]) -> list[Reply | CallFailed]:
        digests = {image: self._digest(image) for image in {r.image for r in requests}}
        keys = [self._key(request, digests[request.image]) for request in requests]
        with closing(Ledger(self.ledger)) as ledger:
            asked = {k: r for k, r in zip(keys, requests, strict=True) if isinstance(k, str)}
            todo = [(k, r) for k, r in asked.items() if ledger.get(k) is None]
            for start in range(0, len(todo), self.batch):
                part = todo[start : start + self.batch]
                for (key, _), text in zip(part, self._said([r for _, r in part]), strict=True):
                    problem = "" if text.strip() else EMPTY
                    ledger.put(key, "judge", Reply(text, self.policy.path, problem=problem))
            return [ledger.get(key) if isinstance(key, str) else key for key in keys]

    def _digest(self, image: str) -> str | CallFailed:
        try:
            open_image(image, self.images)
            return hashlib.sha256(read_image(image, self.images)).hexdigest()
        except ImageError as error:
            return CallFailed("unusable image", str(error)[:300])
        except CallFailed as error:
            return error

    def _key(self, request: Request, digest: str | CallFailed) -> str | CallFailed:
        if isinstance(digest, CallFailed):
            return digest
        settings = self.settings | {"max_new_tokens": self.max_new_tokens}
        return call_key(request.step, "local", settings, request.text, digest)

    def _said(self, requests: list[Request]) -> list[str]:
        # a policy's text may spell a special token, such as the one that stands for the picture
        asks = [Ask(r.text.replace("<|", "< |"), "", (r.image,)) for r in requests]
        return answer(self.policy, asks, self.images, self.batch, self.max_new_tokens)
