"""Micro benchmark files: read the TSV, answer and score its rows; metrics beside the blank twin."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import images as pictures
from .. import rewards
from ..microworld.benchmarks import BENCHMARKS, COLUMNS, lettered
from ..records import Record, RecordError
from . import evaluate, score_rows
from .files import MAX_REFERENCE_CHARS, tsv_rows
from .metrics import HEADLINES as OF_SIX
from .metrics import measure, totals, wemath_class
from .tasks import family, letters

if TYPE_CHECKING:
    from ..models import Policy

HEADLINES = {name: OF_SIX[family(name)] for name in BENCHMARKS}
_SETS = ("micro-LogicVista",)  # the answer is a set of letters

__all__ = ["HEADLINES", "answer", "headline", "letters", "metrics", "read", "score", "wemath_class"]

Rows = list[dict[str, Any]]


# --- reading --------------------------------------------------------------------------------------


def read(name: str, path: str | Path, images: str | Path) -> list[Record]:
    """Read a micro benchmark's TSV; write its pictures to `images/name`, return its records.

    The row's own columns are kept in `meta["columns"]`, its scene in `meta["scene"]`.

    Raises:
        RecordError: naming file, line and column of what cannot be used.
    """
    path = Path(path)
    _check(name)
    found: dict[str, Record] = {}
    places: dict[str, str] = {}
    for line, row in _rows(name, path):
        index, place = row["index"], f"{path.name}:{line}"
        if not re.fullmatch(r"\d{1,9}", index):
            raise RecordError(f"{place}: column 'index': {index[:40]!r} is not a number")
        if index in found:
            raise RecordError(f"{place}: column 'index': {index} is used above; number the rows")
        image = _image(name, row, Path(images), place, found)
        found[index], places[f"{name}-{index}"] = _record(name, row, image, place), place
    asked = list(found.values())
    for reject in rewards.audit([_one_letter(record) for record in asked]):
        raise RecordError(f"{places[reject.id]}: column 'answer': {reject.reason}")
    return asked


def _rows(name: str, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (first line, row) of a TSV whose header holds every column of the benchmark."""
    if not path.is_file():
        raise RecordError(
            f"{path}: no such file; `python -m vlaa_lib microworld --benchmark {name}` writes one"
        )
    for line, row in tsv_rows(path, COLUMNS[name], name):
        if isinstance(row, RecordError):
            raise RecordError(f"{path.name}:{line}: {row}")
        yield line, row


def _image(
    name: str, row: dict[str, str], root: Path, place: str, found: dict[str, Record]
) -> str:
    """Write a row's picture below the root and return its path, or that of the row it names."""
    text, place = row["image"].strip(), f"{place}: column 'image'"
    if len(text) <= MAX_REFERENCE_CHARS:
        if text not in found:
            raise RecordError(f"{place}: {text!r} is neither a picture nor an index above")
        return found[text].image
    target = f"{name}/{row['index']}.png"
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordError(f"{place}: not base64 ({error}); write the file again") from None
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    (root / target).write_bytes(data)
    try:
        pictures.open_image(target, root)
    except pictures.ImageError as error:
        raise RecordError(f"{place}: {error}") from None
    return target


def _record(name: str, row: dict[str, str], image: str, place: str) -> Record:
    reward = row["micro_reward"]
    if reward not in ("digit", "mcq", "math"):
        raise RecordError(f"{place}: column 'micro_reward': {reward!r} is not digit, mcq or math")
    try:
        scene = json.loads(row["micro_scene"])
    except json.JSONDecodeError as error:
        raise RecordError(f"{place}: column 'micro_scene': not JSON ({error})") from None
    question, gold = row["question"], row.get("answer_option") or row["answer"]
    for column, value in (("question", question), ("answer", gold)):
        if not value.strip():
            raise RecordError(f"{place}: column {column!r} is empty")
    if name == "micro-WeMath":
        question += lettered([row[letter] for letter in "ABCDE"])
    if name in _SETS and letters(gold, question) is None:
        raise RecordError(f"{place}: column 'answer': {gold!r} is no set of the question's letters")
    columns = {k: v for k, v in row.items() if k not in ("image", "question", "micro_scene")}
    return Record(
        id=f"{name}-{row['index']}",
        image=image,
        question=question,
        gt=gold,
        source=name,
        reward=reward,
        solution=gold,
        meta={"scene": scene, "columns": columns},
    )


# --- answering and scoring ------------------------------------------------------------------------


def _one_letter(record: Record) -> Record:
    """Give a record with a set of letters one of them as gold, which the mcq verifier can read."""
    if record.source not in _SETS:
        return record
    return replace(record, solution=min(letters(record.gt, record.question) or ""))


def score(asked: list[Record], completions: list[str], **columns: Any) -> Rows:
    """Score completions as `evaluate.score_rows` does, sets of letters as sets."""
    scored = score_rows([_one_letter(record) for record in asked], completions, **columns)
    for record, row in zip(asked, scored, strict=True):
        row["columns"] = record.meta["columns"]
        if record.source not in _SETS:
            continue
        named = letters(row["answer"], record.question)
        is_right = named == letters(record.gt, record.question)
        said = "no set of letters" if named is None else ", ".join(sorted(named))
        row |= {
            "gold": record.gt,
            "score": float(is_right),
            "correct": is_right,
            "reward": float(is_right and row["path"] == "tags"),
            "reason": f"letters: {said}, gold {record.gt}",
        }
    return scored


def answer(
    policy: Policy,
    asked: list[Record],
    images: str | Path,
    model: str,
    batch: int = 64,
    max_new_tokens: int = 160,
    blank: bool = True,
) -> Rows:
    """Answer records of benchmarks greedily, and once more with a blank picture."""
    return evaluate(policy, asked, images, model, batch, max_new_tokens, blank, score)


# --- metrics --------------------------------------------------------------------------------------


def metrics(name: str, rows: Rows, resamples: int = 1000) -> Rows:
    """Return a benchmark's metrics for each model, each beside its blank twin.

    Columns: model, benchmark, metric, n (rows, seeds or problems that it is over), points (what
    they earned together), value (points / n; None over nothing), low, high, blank_value, left_out
    (seeds or problems that lack a row or have one twice).

    Raises:
        ValueError: unknown benchmark.
    """
    _check(name)
    table = []
    for model in dict.fromkeys(row["model"] for row in rows):
        seen, blank = (
            measure(name, [
                row["columns"] | {"hit": row["correct"]}
                for row in rows if row["model"] == model and row["blank"] is is_blank
            ])
            for is_blank in (False, True)
        )  # fmt: skip
        for metric, values in seen.parts.items():
            table.append(
                {
                    "model": model,
                    "benchmark": name,
                    "metric": metric,
                    **totals(values, resamples),
                    "blank_value": totals(blank.parts.get(metric, {}))["value"],
                    "left_out": seen.left_out,
                }
            )
    return table


def headline(name: str, rows: Rows, resamples: int = 1000) -> Rows:
    """Return of `metrics` only the one that the paper reports."""
    return [row for row in metrics(name, rows, resamples) if row["metric"] == HEADLINES[name]]


def _check(name: str) -> None:
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; use one of {', '.join(BENCHMARKS)}")
