"""Run records through the steps over the ledger, and write the two splits and the counts."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import queue
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vlaa_lib import records as files
from vlaa_lib.construct.client import Answered, CallFailed, Teacher
from vlaa_lib.construct.ledger import Ledger
from vlaa_lib.construct.split import has_aha
from vlaa_lib.construct.steps import STEPS, Drop, Step
from vlaa_lib.records import Record

T = TypeVar("T")

# the local teacher's; real ones: paper §2 names GPT-4o, DeepSeek-R1 and GPT-3.5-turbo
MODELS = {step.name: f"teacher-{step.name}" for step in STEPS}

# ours: the paper states none; greedy but for the reasoner, whose values are DeepSeek-R1's advice
SETTINGS: dict[str, dict[str, Any]] = {
    "caption": {"temperature": 0.0, "max_tokens": 2048},
    "distil": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 16384},
    "rewrite": {"temperature": 0.0, "max_tokens": 16384},
    "verify": {"temperature": 0.0, "max_tokens": 16},
}


@dataclass(frozen=True)
class Dropped:
    """A record that left the pipeline: at which step, why (counted), and its own detail."""

    id: str
    source: str
    step: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Result:
    """The SFT and RL splits, the drops, and one row of counts for each step and source."""

    sft: list[Record]
    rl: list[Record]
    drops: list[Dropped]
    counts: list[dict[str, Any]]


@dataclass
class _Tally:
    """Counts of one step and source; tokens and seconds of each distinct call once."""

    taken: int = 0
    given: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    from_ledger: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def row(self, step: str, source: str) -> dict[str, Any]:
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
        }


def run(
    records: Iterable[Record],
    images: str | Path,
    base_url: str,
    out: str | Path,
    *,
    models: Mapping[str, str] = MODELS,
    settings: Mapping[str, Mapping[str, Any]] = SETTINGS,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    max_retries: int = 5,
    progress: bool = True,
    api_key: str = "local",
) -> Result:
    """Caption, distil, rewrite, verify and split records (paper §2, steps 2 to 6).

    Writes `sft.jsonl`, `rl.jsonl`, `drops.jsonl` and `counts.csv` below `out` when all is done;
    `out/ledger.sqlite` grows with each call. Killed and started again it asks only what has no
    reply yet, and the result is that of a run never killed. Records keep their order. Also runs
    where an event loop is running already (Jupyter).

    The counts say, for each step and source: records in, out and dropped by reason; calls answered
    in this run and replies taken from the ledger; tokens and seconds of the replies, whenever paid.
    A refused call is none of these: it cost nothing, and the next run asks it again.

    Args:
        images: image root; files are checked and sent as they are, in the caption step only.
        models: model name by step; steps left out keep `MODELS`. The ledger tells models apart by
            name alone: give a teacher that changed under its name (new rates or weights) another
            `out`.
        settings: by step, arguments of `chat.completions.create`; a step's are replaced whole.
        concurrency: records worked on at a time.
        timeout_s: of one request.
        max_retries: of one request, with the `openai` client's back-off and `Retry-After`.
    Raises:
        TeacherUnreachable: the endpoint answered no call, or many in a row went unanswered.
            A failed call of one record only drops that record, with the reason.
        ValueError: `models` or `settings` name an unknown step.
        LedgerError: `out/ledger.sqlite` is not a ledger.
    """
    from tqdm.auto import tqdm

    models, settings = _by_step(MODELS, models), _by_step(SETTINGS, settings)
    records, out = list(records), Path(out)
    work = _Work(records, tqdm(total=len(records), desc="construct", disable=not progress))

    async def main() -> None:
        from openai import AsyncOpenAI

        client = AsyncOpenAI(
            base_url=base_url, api_key=api_key, timeout=timeout_s, max_retries=max_retries
        )
        with contextlib.closing(Ledger(out / "ledger.sqlite")) as ledger:
            async with client:
                # ours: two rounds of failures by every worker mean that nobody is there
                patience = max(8, 2 * concurrency)
                teacher = Teacher(client, ledger, Path(images), models, settings, patience)
                await _all([work.some(teacher) for _ in range(concurrency)])
                teacher.check_reached()

    with work.bar:
        _run_apart(main)
    result = work.result()
    _write(result, out)
    return result


def _by_step(defaults: Mapping[str, T], given: Mapping[str, T]) -> dict[str, T]:
    """Return the defaults with some steps' values replaced."""
    if unknown := sorted(given.keys() - defaults.keys()):
        raise ValueError(f"{unknown[0]!r} is no step that asks; use {', '.join(defaults)}")
    return {**defaults, **given}


class _Work:
    """The records of one run, taken one after the other by the workers."""

    def __init__(self, records: list[Record], bar: Any) -> None:
        self.bar = bar
        self._records = records
        self._todo = iter(range(len(records)))
        self._done: dict[int, Record | Dropped] = {}
        self._tallies = {
            (step.name, source): _Tally()
            for step in STEPS
            for source in dict.fromkeys(record.source for record in records)
        }
        self._counted: set[str] = set()

    async def some(self, teacher: Teacher) -> None:
        """Take the next record through all steps, until none is left."""
        for index in self._todo:
            self._done[index] = await self._through(self._records[index], teacher)
            self.bar.update()

    async def _through(self, record: Record, teacher: Teacher) -> Record | Dropped:
        for step in STEPS:
            tally = self._tallies[step.name, record.source]
            tally.taken += 1
            outcome = await self._step(step, record, teacher, tally)
            if isinstance(outcome, Drop):
                tally.reasons[outcome.reason] += 1
                return Dropped(record.id, record.source, step.name, outcome.reason, outcome.detail)
            tally.given += 1
            record = outcome
        return record

    async def _step(
        self, step: Step, record: Record, teacher: Teacher, tally: _Tally
    ) -> Record | Drop:
        request = step.ask(record)
        if request is None:
            return step.take(record, None)
        try:
            answered = await teacher.ask(request)
        except CallFailed as error:
            return Drop(error.reason, error.detail)
        self._count(tally, answered)
        if answered.reply.problem:
            return Drop("unusable reply", answered.reply.problem)
        return step.take(record, answered.reply)

    def _count(self, tally: _Tally, answered: Answered) -> None:
        tally.calls += answered.paid
        tally.from_ledger += not answered.paid
        if answered.key in self._counted:
            return
        self._counted.add(answered.key)
        tally.prompt_tokens += answered.reply.prompt_tokens
        tally.completion_tokens += answered.reply.completion_tokens
        tally.seconds += answered.reply.seconds

    def result(self) -> Result:
        """Split what is left by its aha moments, in the order of the input."""
        done = [self._done[index] for index in range(len(self._records))]
        kept = [item for item in done if isinstance(item, Record)]
        splits = {
            "split: sft": [record for record in kept if not has_aha(record.answer)],
            "split: rl": [record for record in kept if has_aha(record.answer)],
        }
        counts = [tally.row(*key) for key, tally in self._tallies.items()]
        for name, members in splits.items():
            sizes = Counter(record.source for record in members)
            for source in dict.fromkeys(record.source for record in self._records):
                counts.append(_Tally(sizes[source], sizes[source]).row(name, source))
        drops = [item for item in done if isinstance(item, Dropped)]
        return Result(*splits.values(), drops, counts)


async def _all(works: list[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines together; when one fails, end the others before passing the error on."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _run_apart(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on its own loop in its own thread: Jupyter's thread has a loop already.

    An interrupt of the waiting thread cancels the coroutine and lets it clean up.
    """
    started: queue.Queue[tuple[asyncio.AbstractEventLoop, Any]] = queue.Queue()

    async def wrapped() -> T:
        started.put((asyncio.get_running_loop(), asyncio.current_task()))
        return await main()

    with ThreadPoolExecutor(1, thread_name_prefix="construct") as pool:
        future = pool.submit(lambda: asyncio.run(wrapped()))
        loop, task = started.get()
        try:
            return future.result()
        except KeyboardInterrupt:
            with contextlib.suppress(RuntimeError):  # the loop has closed in the meantime
                loop.call_soon_threadsafe(task.cancel)
            raise


def _write(result: Result, out: Path) -> None:
    files.write(result.sft, out / "sft.jsonl")
    files.write(result.rl, out / "rl.jsonl")
    rows = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in result.drops)
    files.write_lines(out / "drops.jsonl", rows)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(_Tally().row("", "")), lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.counts)
    files.write_text(out / "counts.csv", table.getvalue())
