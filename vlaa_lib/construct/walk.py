"""One record's way through the steps, told apart from who answers, and what is counted on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vlaa_lib.llm.client import Answered
from vlaa_lib.llm.messages import CallFailed
from vlaa_lib.prompts import has_aha
from vlaa_lib.records import Record

from .steps import STEPS, Drop, Request
from .templates import Templates

SPLITS = ("split: sft", "split: rl")
COUNTED = (*(step.name for step in STEPS), *SPLITS)  # what the table of counts has rows of


class Dropped(NamedTuple):
    """A record that left the pipeline: at which step, why (counted), and its own detail."""

    id: str
    source: str
    step: str
    reason: str
    detail: str = ""


@dataclass
class Tally:
    """Counts of one step and source; tokens, seconds and cost of each distinct call once."""

    taken: int = 0
    given: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    from_ledger: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0

    def count(self, answered: Answered, is_first: bool) -> None:
        """Count a reply; `is_first`: no other record had the same call before."""
        self.calls += answered.paid
        self.from_ledger += not answered.paid
        if is_first:
            self.prompt_tokens += answered.reply.prompt_tokens
            self.completion_tokens += answered.reply.completion_tokens
            self.seconds += answered.reply.seconds
            self.cost += answered.reply.cost

    def row(self, step: str, source: str) -> dict[str, Any]:
        """Return one row of the table of counts."""
        return {
            "step": step,
            "source": source,
            "in": self.taken,
            "out": self.given,
            "dropped": sum(self.reasons.values()),
            "reasons": "; ".join(f"{why}: {n}" for why, n in sorted(self.reasons.items())),
            "calls": self.calls,
            "from_ledger": self.from_ledger,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": round(self.seconds, 3),
            "cost": round(self.cost, 6),
        }


class Tallies:
    """The counts of a run, by step and source, in the order in which sources appear."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, Tally]] = {}  # source -> step

    def of(self, step: str, source: str) -> Tally:
        """Return the tally of a step and source."""
        if source not in self._found:
            self._found[source] = {name: Tally() for name in COUNTED}
        return self._found[source][step]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the table's rows: step by step, and for each its sources."""
        for step in COUNTED:
            for source, tallies in self._found.items():
                yield tallies[step].row(step, source)


Way = Generator[Request, "Answered | CallFailed", "Record | Dropped"]


def walk(
    record: Record, templates: Templates, tallies: Tallies, is_first: Callable[[str], bool]
) -> Way:
    """Take a record through all steps: yields each request, is sent what came back, returns what
    became of the record.

    Args:
        is_first: key of a call -> whether no other record had it before.
    """
    for step in STEPS:
        tally = tallies.of(step.name, record.source)
        tally.taken += 1
        request, reply, outcome = step.ask(record, templates), None, None
        if request is not None:
            answered = yield request
            if isinstance(answered, CallFailed):
                outcome = Drop(answered.reason, answered.detail)
            else:
                tally.count(answered, is_first(answered.key))
                reply = answered.reply
                outcome = Drop("unusable reply", reply.problem) if reply.problem else None
        outcome = outcome or step.take(record, reply)
        if isinstance(outcome, Drop):
            tally.reasons[outcome.reason] += 1
            return Dropped(record.id, record.source, step.name, outcome.reason, outcome.detail)
        tally.given += 1
        record = outcome
    tally = tallies.of(SPLITS[has_aha(record.answer)], record.source)
    tally.taken += 1
    tally.given += 1
    return record
