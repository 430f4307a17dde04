"""Run records through the steps over the ledger, and write the two splits and the counts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlaa_lib import folders
from vlaa_lib import records as files
from vlaa_lib.llm.client import BudgetSpent, Limits, Stopped, Teacher
from vlaa_lib.llm.endpoints import ENDPOINTS, Endpoint
from vlaa_lib.llm.ledger import Ledger
from vlaa_lib.llm.loop import run_all, run_apart
from vlaa_lib.llm.messages import CallFailed
from vlaa_lib.progress import progress_bar
from vlaa_lib.prompts import has_aha
from vlaa_lib.records import Record

from .templates import OURS, Templates
from .walk import Dropped, Tallies, Way, walk

T = TypeVar("T")

LEDGER = "ledger.sqlite"
SPLIT_FILES = ("sft.jsonl", "rl.jsonl", "drops.jsonl")
# ours: records that may be finished and wait for a slow one before them, so that order is kept
WINDOW = 1024


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, and one row of counts for each step and source."""

    out: Path
    counts: list[dict[str, Any]]

    @property
    def sft(self) -> list[Record]:
        """The SFT split, read from its file."""
        return list(files.kept(self.out / "sft.jsonl"))

    @property
    def rl(self) -> list[Record]:
        """The RL split, read from its file."""
        return list(files.kept(self.out / "rl.jsonl"))

    @property
    def drops(self) -> list[Dropped]:
        """The records that left the pipeline."""
        lines = (self.out / "drops.jsonl").read_text(encoding="utf-8").splitlines()
        return [Dropped(**json.loads(line)) for line in lines]


def run(
    records: Iterable[Record],
    images: str | Path,
    base_url: str,
    out: str | Path,
    *,
    endpoints: Mapping[str, Endpoint] = ENDPOINTS,
    templates: Templates = OURS,
    limits: Limits | None = None,
    progress: bool = True,
) -> Result:
    """Caption, distil, rewrite, verify and split records (paper §2, steps 2 to 6).

    Writes `sft.jsonl`, `rl.jsonl`, `drops.jsonl` and `counts.csv` below `out` when all is done;
    `out/ledger.sqlite` grows with each call. Killed and started again it asks only what has no
    reply yet, and the result is that of a run never killed. Records keep their order, and are read
    and written one by one: memory does not grow with their number. Also runs where an event loop
    is running already (Jupyter).

    The counts say, for each step and source: records in, out and dropped by reason; calls answered
    in this run and replies taken from the ledger; tokens, seconds and cost of the replies, whenever
    paid. A refused call is none of these: it cost nothing, and the next run asks it again.

    Args:
        images: image root; files are checked and sent as they are, in the caption step only.
        base_url: of the endpoints that name none.
        endpoints: by step. The ledger tells models apart by name alone: give a teacher that
            changed under its name (new rates or weights) another `out`.
    Raises:
        TeacherUnreachable: the endpoint answered no call, or many in a row went unanswered.
            A failed call of one record only drops that record, with the reason.
        BudgetSpent: the budget is spent or the disk nearly full; calls in flight were finished.
        EndpointError: a key is missing.
        BlockingIOError: another run is at work in `out`.
        LedgerError: `out/ledger.sqlite` is not a ledger of this version, or cannot be written.
    """
    out, limits = Path(out), limits or Limits()
    total = len(records) if isinstance(records, list) else None
    bar = progress_bar(total=total, desc="construct", unit="record", disable=not progress)
    with bar, contextlib.ExitStack() as stack:
        stack.enter_context(_alone(out))

        async def main() -> list[dict[str, Any]]:
            with contextlib.closing(Ledger(out / LEDGER)) as ledger:
                tallies = Tallies()
                async with Teacher(endpoints, base_url, ledger, Path(images), limits) as teacher:
                    ways = (walk(record, templates, tallies, ledger.meet) for record in records)
                    work = _Work(ways, teacher, _writer(stack, out), bar.update)
                    await run_all([work.some() for _ in range(limits.concurrency)])
                    teacher.check_reached()
                work.check_finished()
                return list(tallies.rows())

        counts = run_apart(main)
        folders.write_csv(out / "counts.csv", counts)
    return Result(out, counts)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second run out of the folder, and clear away what a killed one left half-written."""
    from filelock import FileLock, Timeout

    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / "run.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(f"{out}: another run is at work here; wait, or use another") from None
    try:
        for name in (*SPLIT_FILES, "rejects.jsonl", "counts.csv"):
            for left in out.glob(f".{name}.*"):
                left.unlink()
        yield
    finally:
        lock.release()


def _writer(stack: contextlib.ExitStack, out: Path) -> Callable[[Record | Dropped], None]:
    """Open the three files, atomically, and return what writes an outcome into its own."""
    sft, rl, drops = (stack.enter_context(folders.atomic(out / name)) for name in SPLIT_FILES)

    def write(outcome: Record | Dropped) -> None:
        if isinstance(outcome, Record):
            (rl if has_aha(outcome.answer) else sft).write(files.line_of(outcome))
        else:
            drops.write(json.dumps(outcome._asdict(), ensure_ascii=False) + "\n")

    return write


class _Work:
    """Records on their way, taken one after the other by the workers, written in their order."""

    def __init__(
        self,
        ways: Iterator[Way],
        teacher: Teacher,
        write: Callable[[Record | Dropped], None],
        update: Callable[[], Any],
    ) -> None:
        self._ways, self._teacher = enumerate(ways), teacher
        self._write, self._update = write, update
        self._free = asyncio.Semaphore(WINDOW)  # far more than records at work at a time
        self._done: dict[int, Record | Dropped] = {}
        self._written = 0
        self._stopped = ""

    async def some(self) -> None:
        """Take the next record through all steps, until none is left or no call may be made."""
        while True:
            await self._free.acquire()
            index, way = (0, None) if self._stopped else next(self._ways, (0, None))
            if way is None:
                self._free.release()
                return
            try:
                self._done[index] = await self._drive(way)
            except Stopped as error:
                self._stopped = str(error)
                self._free.release()  # who waits for this record to be written ends, one by one
                return
            self._update()
            while self._written in self._done:
                self._write(self._done.pop(self._written))
                self._written += 1
                self._free.release()

    async def _drive(self, way: Way) -> Record | Dropped:
        """Send a record's requests to the teacher until it says what became of it."""
        answer = None
        while True:
            try:
                request = way.send(answer)
            except StopIteration as end:
                return end.value
            try:
                answer = await self._teacher.ask(request)
            except CallFailed as error:
                answer = error

    def check_finished(self) -> None:
        """Raise BudgetSpent if records were left over."""
        if self._stopped:
            done = self._written + len(self._done)
            raise BudgetSpent(
                f"{self._stopped}. {done} records are finished; every reply is in the ledger: "
                "start again with more to go on from there"
            )
