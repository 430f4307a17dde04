"""Run a benchmark: answer its rows, resumable and in shards, then score what was answered.

In the folder of a run: `run.json` (what it was made with), `rejects.jsonl`, `answers*.jsonl`
(appended to, one file a shard), `rows-MODE.jsonl` (scored, in the file's order), `scores-MODE.csv`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib import folders, records
from vlaa_lib.folders import provenance
from vlaa_lib.progress import progress_bar
from vlaa_lib.prompts import AHA_KEYWORDS
from vlaa_lib.records import RecordError

from . import files, prompting
from .files import Benchmark
from .generate import Ask, Complete, Completion, by_length
from .metrics import summarise
from .scoring import score_all

if TYPE_CHECKING:
    from .judge import Judge

# what answers depend on; a batch's size only in the last bits of bfloat16, so it may change
IDENTITY = ("benchmark", "weights", "mode", "backend", "settings", "prompts_sha256", "blank")

Answers = dict[str, dict[str, Any]]  # index -> prediction, tokens, truncated


def card(
    benchmark: Benchmark,
    asked: list[Ask],
    chosen: prompting.Settings,
    model: str,
    mode: str = "full",
    backend: str = "hf",
    batch: int = 16,
    blank: bool = False,
) -> dict[str, Any]:
    """Return what a run is made with and what it is made of."""
    return {
        "benchmark": benchmark.name,
        "model": model,
        "weights": weights(model),
        "mode": mode,
        "backend": backend,
        "batch": batch,
        "blank": blank,
        "settings": asdict(chosen),
        "prompts_sha256": prompting.digest(asked),
        "num_rows": len(benchmark.rows),
        "num_rows_of_the_split": files.LAYOUTS[benchmark.name].num_rows,
        "num_rejects": len(benchmark.rejects),
        "num_other_split": benchmark.num_other_split,
        **provenance(),
    }


def weights(model: str) -> str:
    """Return a hash of a checkpoint's folder, or the name of one on the hub.

    Small files whole; of each large one its size and last 64 KiB, which training changes.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    found = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jinja", ".txt")):
        found.update(path.name.encode() + path.read_bytes())
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin")):
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 2**16))
            found.update(f"{path.name} {size}".encode() + stream.read())
    return found.hexdigest()[:16]


def start(out: str | Path, benchmark: Benchmark, made_with: dict[str, Any]) -> None:
    """Write `run.json` and the rejects, or hold them to those of the run that is there.

    Raises:
        RecordError: the folder has a run of another model, other settings or other prompts.
    """
    path = Path(out) / "run.json"
    if path.is_file():
        found = _object(path.read_text(encoding="utf-8"), str(path))
        wanted = json.loads(json.dumps(made_with))
        if other := [key for key in IDENTITY if found.get(key) != wanted[key]]:
            raise RecordError(
                f"{path}: a run with another {' and '.join(other)}; name another --out, or "
                "delete this one"
            )
    else:
        folders.write_text(path, json.dumps(made_with, indent=1, ensure_ascii=False) + "\n")
    records.write(benchmark.rejects, Path(out) / "rejects.jsonl")


def answer(
    indices: list[str],
    asked: list[Ask],
    out: str | Path,
    load: Callable[[], Complete],
    batch: int = 16,
    shard: tuple[int, int] = (1, 1),
) -> Answers:
    """Answer the rows that have no answer yet; return all answers found in the folder, by index.

    Killed at any moment and started again, it ends with the same answers: batches stay the same,
    one that is not whole is answered again.

    Args:
        load: gives what answers one batch; called only where something is left to do.
        shard: (i, n): every n-th row from the i-th (1 to n) on, into a file of its own.
    Raises:
        RecordError: an answer file is broken, or another process writes it.
    """
    from filelock import FileLock, Timeout

    number, count = shard
    path = Path(out) / ("answers.jsonl" if count == 1 else f"answers-{number}-of-{count}.jsonl")
    mine = list(zip(indices, asked, strict=True))[number - 1 :: count]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{path}.lock", timeout=0):
            _cut_half_line(path)
            done = answers(out)
            batches = by_length([ask.user for _, ask in mine], batch)
            todo = [b for b in batches if any(mine[i][0] not in done for i in b)]
            _answer([[mine[i] for i in b] for b in todo], path, load)
    except Timeout:
        raise RecordError(f"{path}: another process writes it; wait, or take --shard") from None
    return answers(out)


def _answer(batches: list[list[tuple[str, Ask]]], path: Path, load: Callable) -> None:
    if not batches:
        return
    complete = load()
    with path.open("a", encoding="utf-8") as stream:
        for rows in progress_bar(batches, desc="evaluate", unit="batch", disable=None):
            made = complete([ask for _, ask in rows])
            lines = [_line(index, said) for (index, _), said in zip(rows, made, strict=True)]
            stream.write("".join(lines))
            stream.flush()
            os.fsync(stream.fileno())


def _line(index: str, said: Completion) -> str:
    fields = {"index": index, "prediction": said.text}
    fields |= {"tokens": said.num_tokens, "truncated": said.is_truncated}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _cut_half_line(path: Path) -> None:
    """Cut off the half line that a killed run left at the end."""
    text = path.read_bytes() if path.is_file() else b""
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(path, whole)


def answers(out: str | Path) -> Answers:
    """Read the answers of all shards.

    Raises:
        RecordError: a line is no answer.
    """
    found: Answers = {}
    for path in sorted(Path(out).glob("answers*.jsonl")):
        for number, line in enumerate(_whole_lines(path), 1):
            row = _object(line, f"{path}:{number}")
            if not isinstance(row.get("index"), str) or not isinstance(row.get("prediction"), str):
                raise RecordError(f"{path}:{number}: not an answer; delete this line")
            found[row["index"]] = row
    return found


def _whole_lines(path: Path) -> Iterator[str]:
    """Yield lines up to one that another shard is still writing."""
    with path.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                yield line.decode("utf-8", errors="replace")


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RecordError(f"{place}: not a JSON object; delete it")
    return value


# --- scoring --------------------------------------------------------------------------------------


def score(
    benchmark: Benchmark, found: Answers, mode: str = "ours", judge: Judge | None = None
) -> list[dict[str, Any]]:
    """Score answered rows, in the file's order.

    Returns:
        What `scoring.score_all` says of each, with its tokens, whether it was truncated (None
        where an imported file does not say), and its counts of aha keywords.
    """
    rows = [row for row in benchmark.rows if row["index"] in found]
    texts = [found[row["index"]]["prediction"] for row in rows]
    made = []
    for row, text in zip(score_all(benchmark.name, rows, texts, mode, judge), texts, strict=True):
        answered = found[row["index"]]
        more = {key: answered.get(key) for key in ("tokens", "truncated")}
        made.append(row | more | {"aha": aha_counts(text)})
    return made


def aha_counts(text: str) -> dict[str, int]:
    """Count each aha keyword (paper §2, step 6) that occurs; a plain substring test, as there.

    >>> aha_counts("Wait. Wait, let me check.")
    {'wait': 2, 'check': 1}
    """
    lowered = text.lower()
    return {word: n for word in AHA_KEYWORDS if (n := lowered.count(word))}


def finish(
    out: str | Path,
    benchmark: Benchmark,
    found: Answers,
    mode: str = "ours",
    judge: Judge | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Score, write `rows-MODE.jsonl` and `scores-MODE.csv`; return the rows and the scores.

    With a judge the files are of MODE-judge, and the scores name it.
    """
    rows = score(benchmark, found, mode, judge)
    label, rule = (f"{mode}-judge", f"{mode}, then {judge.name}") if judge else (mode, mode)
    table = [{"extraction": rule} | row for row in summarise(benchmark.name, rows, resamples=1000)]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    folders.write_lines(Path(out) / f"rows-{label}.jsonl", lines)
    folders.write_csv(Path(out) / f"scores-{label}.csv", table)
    return rows, table
