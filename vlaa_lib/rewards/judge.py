"""A judge as reward model: a vision model behind an OpenAI-compatible endpoint gives 0 to 10."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlaa_lib.llm import (
    CallFailed,
    Endpoint,
    Limits,
    Reply,
    Request,
    Spent,
    ask_all,
    call_key,
    fill,
)
from vlaa_lib.prompts import JUDGE_PROMPT
from vlaa_lib.records import Record

from .reward_models import BETA, picture_problem

# ours: greedy, so that a question asked twice has one answer; a number needs no more tokens
SETTINGS = {"temperature": 0.0, "max_tokens": 16}
_SCORE = re.compile(r"(10(?:\.0{1,4})?|[0-9](?:\.[0-9]{1,4})?)(?: ?/ ?10)?\.?")


def read_score(text: str) -> float | None:
    """Read a judge's reply: one number from 0 to 10 and nothing else, or None.

    >>> read_score(" 7.5/10. "), read_score("10"), read_score("11"), read_score("7 or 8")
    (7.5, 10.0, None, None)
    """
    match = _SCORE.fullmatch(text.strip())
    return float(match[1]) if match else None


class Judge:
    """Ask a vision model to grade each answer (ours; the paper uses a trained reward model).

    It sees picture, question and answer, as the paper's does, and not the reference. Replies are
    kept in the ledger, where an equal question is found again at no cost; calls run concurrently
    in a thread of their own. A reply that is no number from 0 to 10, or a call that fails for
    one answer, gives no score and is counted.

    Args:
        endpoint: `settings` are added to greedy decoding and 16 new tokens; a model that thinks
            first needs more.
        ledger: file that keeps the replies.
        images: image root.
        limits: budgets are of the judge's life; calls in flight are finished and can pass them.

    Attributes:
        unusable: how many answers got no score in its life, by reason.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ledger: str | Path,
        images: str | Path,
        limits: Limits | None = None,
        beta: float = BETA,
    ) -> None:
        settings = SETTINGS | dict(endpoint.settings)
        self._endpoint = replace(endpoint, settings=settings)
        self._ledger, self._images = Path(ledger), Path(images)
        self._limits = limits or Limits()
        self._spent = Spent()
        # the digest stands for settings and wording
        digest = call_key("judge", endpoint.model, settings, JUDGE_PROMPT)[:8]
        self.name, self.beta = f"judge {endpoint.model} {digest}", beta
        self.unusable: Counter[str] = Counter()

    def problem(self, record: Record) -> str:
        """Say what is wrong with the record's picture."""
        return picture_problem(record, self._images)

    def score(self, records: Sequence[Record], answers: Sequence[str]) -> list[float | None]:
        """Return the judge's number for each answer, or None.

        Raises:
            VlaaError: the endpoint answers nobody, or has no address or no key.
            Halted: no further call may be made.
        """
        requests = [
            Request("judge", fill(JUDGE_PROMPT, question=r.question, pred=answer), r.image)
            for r, answer in zip(records, answers, strict=True)
        ]
        return [self._read(reply) for reply in self.replies(requests)]

    def replies(self, requests: list[Request]) -> list[Reply | CallFailed]:
        """Return the reply to each request of the step `judge`, or why there is none.

        Raises:
            VlaaError, Halted: as `score`.
        """
        return ask_all(
            requests, self._endpoint, self._ledger, self._images, self._limits, self._spent
        )

    def _read(self, reply: Reply | CallFailed) -> float | None:
        if isinstance(reply, CallFailed):
            self.unusable[reply.reason] += 1
            return None
        value = None if reply.problem else read_score(reply.text)
        if value is None:
            # the part before the colon: a refusal quotes the model
            self.unusable[reply.problem.partition(":")[0] or "no number from 0 to 10"] += 1
        return value
