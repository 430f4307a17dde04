"""Run benchmarks: answer their rows, resumable and in shards, then score what was answered.

In the folder of a run: `run.json` (what it was made with), `answers.jsonl` (appended to; of a shard
in a folder of its own). Where it is scored: `rejects.jsonl`, `rows-MODE.jsonl` (in the file's
order), `scores-MODE.csv`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlaa_lib import VlaaError, folders, records, rewards
from vlaa_lib.progress import progress_bar
from vlaa_lib.prompts import AHA_KEYWORDS

from . import prompting
from .benchmarks import HELD_OUT, Answers, Benchmark, Row
from .generate import Complete, by_length, complete, generate, loaded
from .scoring import score_all, score_rows
from .stats import summarise

if TYPE_CHECKING:
    from vlaa_lib.models import Policy
    from vlaa_lib.profiles import Settings as Profile

    from .judge import Judge

SHOWN = 5  # ours: rows that are named for each reason


def run(
    policy: Policy,
    benchmarks: Sequence[Benchmark],
    chosen: prompting.Settings,
    out: str | Path,
    model: str,
    batch: int = 16,
    blanks: Sequence[bool] = (False, True),
) -> list[Row]:
    """Answer benchmarks that share one folder of pictures, and once more with grey ones; score.

    The grey pictures tell seeing from guessing: same prompts, same sizes. All rows in one pass, so
    that batches are full; resumable in `out`. `model` is what the scored rows name, beside `blank`.
    """
    rows, images = [], benchmarks[0].images
    for blank in blanks:
        answering = partial(complete, policy, images=images, limits=chosen, blank=blank)
        part = Path(out) / ("blank" if blank else "seen")
        found = answer(benchmarks, chosen, part, policy.path, answering, batch, blank)
        for one in benchmarks:
            rows += [row | {"model": model, "blank": blank} for row in score(one, found[one.name])]
    return rows


def held_out_asker(cfg: Profile, folder: str | Path | None) -> Callable[..., list[Row]] | None:
    """Return what GRPO asks now and then: held-out records, greedily, with and without pictures.

    Args:
        folder: `records.jsonl` and `images`; None: nothing is asked.
    Returns:
        a function of policy, process and processes to the scored rows of that process's records.
    """
    if folder is None:
        return None
    images, limit, batch = Path(folder) / "images", cfg.evaluate.max_new_tokens, cfg.evaluate.batch
    usable = rewards.usable(Path(folder) / "records.jsonl", images)
    chosen = records.spread(usable, cfg.grpo.held_out_records)

    def ask(policy: Policy, process: int = 0, processes: int = 1) -> list[Row]:
        mine, rows = chosen[process::processes], []
        for blank in (False, True):
            texts = generate(policy, mine, images, batch, limit, blank=blank)
            rows += score_rows(mine, texts, blank=blank)
        return rows

    return ask


def answer(
    benchmarks: Sequence[Benchmark],
    chosen: prompting.Settings,
    out: str | Path,
    model: str,
    complete_batch: Complete | None = None,
    batch: int = 16,
    blank: bool = False,
    shard: tuple[int, int] = (1, 1),
    mode: str = "full",
    backend: str = "hf",
) -> dict[str, Answers]:
    """Answer the rows that have no answer yet; return all answers in the folder, by benchmark.

    Killed at any moment and started again, it ends with the same answers: batches stay the same,
    one that is not whole is answered again. Of a shard (i, n) every n-th row from the i-th on.

    Args:
        model: the checkpoint; loaded where something is left to do and no `complete_batch` given.
    """
    number, count = shard
    asked = [(one.name, row["index"], ask) for one in benchmarks
             for row, ask in zip(one.rows, prompting.asks(one, chosen), strict=True)]  # fmt: skip
    depends_on = asdict(chosen) | {
        "benchmarks": [one.name for one in benchmarks], "weights": folders.fingerprint(model),
        "mode": mode, "backend": backend, "blank": blank,
        "prompts_sha256": prompting.digest([ask for *_, ask in asked]),
    }  # fmt: skip
    # answers depend on a batch's size only in the last bits of bfloat16, so it may change
    about = {"model": model, "batch": batch, "rows": [str(one) for one in benchmarks]}
    about |= folders.provenance()
    folders.claim(out, depends_on | about, "run.json", names=about)
    mine = asked[number - 1 :: count]
    folder = Path(out) if count == 1 else Path(out) / f"{number}-of-{count}"
    with folders.lock(folder):
        done = answers(out)
        folders.whole_lines(folder / "answers.jsonl", cut=True)
        order = by_length([len(ask.user) for *_, ask in mine], batch)
        parts = [[mine[i] for i in group] for group in order]
        todo = [part for part in parts if any(key[1] not in done.get(key[0], ()) for key in part)]
        if todo and complete_batch is None:
            complete_batch = loaded(model, benchmarks[0].images, chosen, mode, backend, blank)
        for part in progress_bar(todo, desc="evaluate", unit="batch", disable=None):
            made = complete_batch([ask for *_, ask in part])
            for (name, index, _), said in zip(part, made, strict=True):
                row = {"benchmark": name, "index": index, "prediction": said.text}
                row |= {"tokens": said.num_tokens, "truncated": said.is_truncated}
                folders.append_line(folder / "answers.jsonl", row)
    found = answers(out)
    return {one.name: found.get(one.name, {}) for one in benchmarks}


def answers(out: str | Path) -> dict[str, Answers]:
    """Read the answers of all shards, by benchmark."""
    found: dict[str, Answers] = {}
    for path in [Path(out) / "answers.jsonl", *sorted(Path(out).glob("*-of-*/answers.jsonl"))]:
        for number, row in enumerate(folders.whole_lines(path), 1):
            if not all(isinstance(row.get(k), str) for k in ("benchmark", "index", "prediction")):
                raise VlaaError(f"{path}:{number}: not an answer; delete this line")
            found.setdefault(row["benchmark"], {})[row["index"]] = row
    return found


# --- scoring --------------------------------------------------------------------------------------


def score(
    benchmark: Benchmark, found: Answers, mode: str = "ours", judge: Judge | None = None
) -> list[Row]:
    """Score answered rows, in the file's order; held-out records by their own verifiers.

    Beside what `scoring` says: aha keywords, tokens and whether it was truncated, the last two
    None where an imported file does not say.
    """
    rows = [row for row in benchmark.rows if row["index"] in found]
    texts = [found[row["index"]]["prediction"] for row in rows]
    if benchmark.name == HELD_OUT:
        scored = score_rows([row["record"] for row in rows], texts)
    else:
        scored = score_all(benchmark.name, rows, texts, mode, judge)
    for asked, row, text in zip(rows, scored, texts, strict=True):
        row |= {key: found[asked["index"]].get(key) for key in ("tokens", "truncated")}
        said = text.lower()
        # a plain substring test, as there (paper §2, step 6)
        row["aha"] = {word: n for word in AHA_KEYWORDS if (n := said.count(word))}
    return scored


def finish(
    out: str | Path,
    benchmark: Benchmark,
    found: Answers,
    mode: str = "ours",
    judge: Judge | None = None,
) -> tuple[list[Row], list[Row]]:
    """Score and write; return the rows and the scores. A judge has files of its own, named so."""
    rows = score(benchmark, found, mode, judge)
    label, rule = (f"{mode}-judge", f"{mode}, then {judge.name}") if judge else (mode, mode)
    table = [{"extraction": rule} | row for row in summarise(benchmark.name, rows, resamples=1000)]
    folders.write_rows(Path(out) / f"rows-{label}.jsonl", rows)
    folders.write_csv(Path(out) / f"scores-{label}.csv", table)
    records.write(benchmark.rejects, Path(out) / "rejects.jsonl")
    return rows, table


def report(rows: list[Row], judge: Judge | None = None) -> list[str]:
    """Say what could not be scored, by which paths answers were found, how many were cut off."""
    missing: dict[str, list[str]] = {}
    for row in rows:
        if row.get("hit", False) is None:
            missing.setdefault(row["reason"], []).append(row["index"])
    told = [
        f"{len(found)} without verdict: {reason} (index {', '.join(found[:SHOWN])}"
        + (", ...)" if len(found) > SHOWN else ")")
        for reason, found in missing.items()
    ]
    paths = Counter("tags" if row["path"].startswith("tags") else row["path"] for row in rows)
    cut = sum(bool(row["truncated"]) for row in rows)
    unusable = judge.unusable.items() if judge else ()
    told += [f"{n} replies of the judge could not be used: {reason}" for reason, n in unusable]
    return [*told, "; ".join([*(f"{n} {p}" for p, n in paths.most_common()), f"{cut} truncated"])]
