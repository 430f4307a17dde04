"""Run records through the steps, and write the two splits, the drops and the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlaa_lib import folders, llm
from vlaa_lib import records as files
from vlaa_lib.llm.messages import CHARS_A_TOKEN, IMAGE_TOKENS
from vlaa_lib.progress import progress_bar
from vlaa_lib.prompts import has_aha
from vlaa_lib.records import Record

from .steps import OURS, STEPS, Drop, Templates

LEDGER = "ledger.sqlite"
SPLITS = ("split: sft", "split: rl")
SUMMED = ("prompt_tokens", "completion_tokens", "seconds", "cost")
COUNTED = (*(step.name for step in STEPS), *SPLITS)  # what the table of counts has rows of


class Dropped(NamedTuple):
    """A record that left the pipeline: at which step, why (counted), and its own detail."""

    id: str
    source: str
    step: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, and one row of counts for each step and source."""

    out: Path
    counts: list[dict[str, Any]]

    # the splits, and the records that left the pipeline, are read from their files

    @property
    def sft(self) -> list[Record]:
        return list(files.kept(self.out / "sft.jsonl"))

    @property
    def rl(self) -> list[Record]:
        return list(files.kept(self.out / "rl.jsonl"))

    @property
    def drops(self) -> list[Dropped]:
        return [Dropped(**row) for row in folders.whole_lines(self.out / "drops.jsonl")]

    @property
    def summary(self) -> str:
        sft, rl = (sum(row["out"] for row in self.counts if row["step"] == s) for s in SPLITS)
        dropped = sum(row["dropped"] for row in self.counts)
        return f"{sft} for SFT, {rl} for RL, {dropped} dropped"


class Counts(dict[str, dict[str, dict[str, Any]]]):
    """What happened to how many records: source -> step -> row, sources as they appeared."""

    def __missing__(self, source: str) -> dict[str, dict[str, Any]]:
        zeros = dict.fromkeys(("calls", "from_ledger", "prompt_tokens", "completion_tokens"), 0)
        self[source] = {
            name: {"step": name, "source": source, "in": 0, "out": 0, "dropped": 0,
                   "reasons": Counter(), **zeros, "seconds": 0.0, "cost": 0.0}
            for name in COUNTED
        }  # fmt: skip
        return self[source]

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: step by step, and for each its sources."""
        rows = [by_step[step] for step in COUNTED for by_step in self.values()]
        return [
            row | {
                "reasons": "; ".join(f"{why}: {n}" for why, n in sorted(row["reasons"].items())),
                "seconds": round(row["seconds"], 3),
                "cost": round(row["cost"], 6),
            }
            for row in rows
        ]  # fmt: skip


async def through(
    record: Record,
    ask: Callable[[llm.Request], Awaitable[llm.Answered]],
    templates: Templates,
    counts: Counts,
) -> Record | Dropped:
    """Take one record through all steps; return it, or why it was dropped."""
    for step in STEPS:
        row = counts[record.source][step.name]
        row["in"] += 1
        request, reply = step.ask(record, templates), None
        try:
            if request is not None:
                answered = await ask(request)
                reply = answered.reply
                row["calls" if answered.paid else "from_ledger"] += 1
                # of a call that several records share, the first one counts what it took
                for name in SUMMED:
                    row[name] += getattr(reply, name) if answered.is_first else 0
                if reply.problem:
                    raise llm.CallFailed("unusable reply", reply.problem)
            outcome = step.take(record, reply)
        except llm.CallFailed as error:
            outcome, paid, error.paid = Drop(error.reason, error.detail), error.paid, llm.Reply("")
            for name in SUMMED:  # of replies that were none; several records can share the error
                row[name] += getattr(paid, name)
        if isinstance(outcome, Drop):
            row["dropped"] += 1
            row["reasons"][outcome.reason] += 1
            return Dropped(record.id, record.source, step.name, outcome.reason, outcome.detail)
        row["out"] += 1
        record = outcome
    row = counts[record.source][SPLITS[has_aha(record.answer)]]
    row["in"] += 1
    row["out"] += 1
    return record


def run(
    records: Iterable[Record],
    images: str | Path,
    base_url: str,
    out: str | Path,
    *,
    endpoints: Mapping[str, llm.Endpoint] = llm.ENDPOINTS,
    templates: Templates = OURS,
    limits: llm.Limits | None = None,
    progress: bool = True,
) -> Result:
    """Caption, distil, rewrite, verify and split records (paper §2, steps 2 to 6).

    Writes `sft.jsonl`, `rl.jsonl`, `drops.jsonl` and `counts.csv` below `out` when all is done;
    `out/ledger.sqlite` grows with each call. Killed and started again it asks only what has no
    reply yet, and the result is that of a run never killed. Records keep their order, and are read
    and written one by one: memory does not grow with their number.

    The counts say, for each step and source: records in, out and dropped by reason; calls answered
    in this run and replies taken from the ledger; tokens, seconds and cost of the replies, whenever
    paid, and of what came in this run instead of one, such as an unfinished reply. A refused call
    cost nothing; like an unfinished one it is not kept, and the next run asks it again.

    Args:
        endpoints: by step. The ledger tells models apart by name alone: give a teacher that
            changed under its name (new rates or weights) another `out`.
    Raises:
        VlaaError: `out` is in use; and what `llm.Client` raises. A failed call of one record only
            drops that record, with the reason.
        Halted: the budget is spent or the disk nearly full; calls in flight were finished.
        KeyboardInterrupt: Ctrl-C or SIGTERM; calls in flight were given `llm.apart.GRACE_S`.
    """
    out, counts = Path(out), Counts()
    folders.check_locks(out)
    total = len(records) if isinstance(records, list) else None
    bar = progress_bar(total=total, desc="construct", unit="record", disable=not progress)

    async def work(record: Record) -> Record | Dropped:
        outcome = await through(record, client.ask, templates, counts)
        bar.update()
        return outcome

    with bar, folders.lock(out):
        client = llm.Client(endpoints, base_url, out / LEDGER, images, limits, is_alone=True)
        with _writer(out) as write:
            client.work_through(records, work, write)
        folders.write_csv(out / "counts.csv", counts.rows())
    return Result(out, counts.rows())


@contextmanager
def _writer(out: Path) -> Iterator[Callable[[Record | Dropped], None]]:
    """Open the three files, each there whole or not at all, and give what writes an outcome."""
    with (folders.atomic(out / "sft.jsonl") as sft, folders.atomic(out / "rl.jsonl") as rl,
          folders.atomic(out / "drops.jsonl") as drops):  # fmt: skip

        def write(outcome: Record | Dropped) -> None:
            if isinstance(outcome, Record):
                (rl if has_aha(outcome.answer) else sft).write(files.line_of(outcome))
            else:
                drops.write(folders.as_json(outcome._asdict()) + "\n")

        yield write


# --- what it would cost --------------------------------------------------------------------------

# ours: completion tokens of a call before the ledger has seen any; a rewrite repeats its input
ASSUMED_TOKENS = {"caption": 400, "distil": 1000, "rewrite": 1000, "verify": 2}
# ours: what a step puts into its template: picture; caption and question; trace; two answers
ASSUMED_PROMPT_TOKENS = {"caption": IMAGE_TOKENS, "distil": 450, "rewrite": 1000, "verify": 100}
SEEN_ENOUGH = 20  # ours: calls of a step after which the ledger's means replace the assumptions


def plan(
    records: Iterable[Record],
    images: str | Path,
    out: str | Path,
    *,
    endpoints: Mapping[str, llm.Endpoint] = llm.ENDPOINTS,
    templates: Templates = OURS,
) -> list[dict[str, Any]]:
    """Say what a run would ask and cost, before anything is spent.

    Each record is followed through the replies in `out/ledger.sqlite`; from there on as if nothing
    were dropped and nothing asked again. A step's tokens are the means of its model's finished
    calls, once there are twenty, else our assumptions, named above.

    Returns:
        one row a step, and their sum; dollars are US dollars.
    """
    names = [step.name for step in STEPS]
    calls, known_tokens, num_unknown = Counter(), Counter(), Counter()

    async def main() -> dict[str, dict[str, Any]]:
        with llm.Ledger(Path(out) / LEDGER) as ledger:

            async def known(request: llm.Request) -> llm.Answered:
                key, _ = llm.key_of(endpoints[request.step], request, Path(images))
                if reply := ledger.get(key):
                    return llm.Answered(reply, False, False)
                later = names[names.index(request.step) + 1 :]
                calls.update(later)
                num_unknown.update(later)
                if ledger.meet(key):
                    calls[request.step] += 1
                    known_tokens[request.step] += request.tokens
                raise llm.CallFailed("open", "not asked yet")  # this record is followed no further

            for record in records:
                await through(record, known, templates, Counts())
            return {(row["step"], row["model"]): row for row in ledger.models()}

    finished, rows = llm.run_apart(main), []
    for step in names:
        means = finished.get((step, endpoints[step].model), {"replies": 0})
        basis = f"{means['replies']} finished calls"
        prompt, completion = means.get("prompt_tokens"), means.get("completion_tokens")
        if means["replies"] < SEEN_ENOUGH:
            basis, completion = "assumption", ASSUMED_TOKENS[step]
            prompt = ASSUMED_PROMPT_TOKENS[step] + len(getattr(templates, step)) // CHARS_A_TOKEN
        tokens = known_tokens[step] + num_unknown[step] * prompt, calls[step] * completion
        rows.append({
            "step": step, "model": endpoints[step].model, "calls": calls[step],
            "prompt_tokens": round(tokens[0]), "completion_tokens": round(tokens[1]),
            "dollars": round(endpoints[step].cost(*tokens), 4), "based on": basis,
        })  # fmt: skip
    sums = ("calls", "prompt_tokens", "completion_tokens", "dollars")
    total = {key: round(sum(row[key] for row in rows), 4) for key in sums}
    return [*rows, {"step": "all", "model": "", **total, "based on": ""}]
