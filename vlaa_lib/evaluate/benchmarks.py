"""Micro benchmark files: read the TSV, answer and score its rows, and the benchmarks' own metrics.

Formulas are those of the real benchmarks, over the groups that are there; a group that lacks a
row is left out and counted, never taken for right.
"""

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
from ..microworld.benchmarks import BENCHMARKS, COLUMNS, VARIANTS, lettered
from ..records import Record, RecordError
from ..rewards.answers import bare
from . import bootstrap, evaluate, score_rows
from .files import MAX_REFERENCE_CHARS, tsv_rows

if TYPE_CHECKING:
    from ..models import Policy

# the metric of each benchmark that the paper reports (table 4; DynaMath's is the worst case)
HEADLINES = dict.fromkeys(BENCHMARKS, "overall")
HEADLINES |= {"micro-DynaMath": "worst case", "micro-WeMath": "strict"}
_SETS = ("micro-LogicVista",)  # the answer is a set of letters

Rows = list[dict[str, Any]]


# --- reading --------------------------------------------------------------------------------------


def read(name: str, path: str | Path, images: str | Path) -> list[Record]:
    """Read a micro benchmark's TSV; write its pictures to `images/name`, return its records.

    The row's own columns are kept in `meta["columns"]`, its scene in `meta["scene"]`.

    Raises:
        RecordError: naming file, line and column of what cannot be used.
    """
    path = Path(path)
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; use one of {', '.join(BENCHMARKS)}")
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


def letters(text: str, question: str) -> frozenset[str] | None:
    r"""Read a set of a question's letters strictly: `A, C`, `AC`, `A and C`; else None.

    >>> asked = "Which?\nChoices:\nA: 1\nB: 2\nC: 3"
    >>> sorted(letters("A and C", asked)), letters("A, A", asked), letters("A or C", asked)
    (['A', 'C'], None, None)
    """
    text = bare(text)
    if not re.fullmatch(r"[A-Z]{1,26}|[A-Z](?:\s{0,3}(?:,|,? and)\s{1,3}[A-Z]|,[A-Z]){1,25}", text):
        return None
    named = re.findall(r"[A-Z]", text)
    known = rewards.options(question)
    return frozenset(named) if len(set(named)) == len(named) and set(named) <= set(known) else None


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
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; use one of {', '.join(BENCHMARKS)}")
    table = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        seen, blank = (
            _PARTS[name]([row for row in mine if row["blank"] is is_blank])
            for is_blank in (False, True)
        )
        left_out = len(seen.pop(_LEFT_OUT, []))
        for metric, values in seen.items():
            low, high = bootstrap(values, resamples) if values else (None, None)
            table.append(
                {
                    "model": model,
                    "benchmark": name,
                    "metric": metric,
                    "n": len(values),
                    "points": sum(values),
                    "value": _mean(values),
                    "low": low,
                    "high": high,
                    "blank_value": _mean(blank.get(metric, [])),
                    "left_out": left_out,
                }
            )
    return table


def headline(name: str, rows: Rows, resamples: int = 1000) -> Rows:
    """Return of `metrics` only the one that the paper reports."""
    return [row for row in metrics(name, rows, resamples) if row["metric"] == HEADLINES[name]]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


Parts = dict[str, list[float]]  # metric -> what each row, seed or problem earned
_LEFT_OUT = "left out"  # no metric: one entry for each group that lacks a row or has one twice


def _by(rows: Rows, *columns: str) -> Parts:
    """Collect correctness over all rows, and over each value of columns (or list literals)."""
    parts: Parts = {"overall": [float(row["correct"]) for row in rows]}
    for column in columns:
        of: Parts = {}
        for row in rows:
            text = row["columns"][column]
            for value in re.findall(r"'([^']*)'", text) if text.startswith("[") else [text]:
                of.setdefault(f"{column}: {value}", []).append(float(row["correct"]))
        parts |= dict(sorted(of.items()))
    return parts


def _mathverse(rows: Rows) -> Parts:
    return _by(rows, "problem_version", "question_type")


def _dynamath(rows: Rows) -> Parts:
    """Average over rows; worst case over the seeds of which every variant is there once."""
    parts = _by(rows, "subject", "knowledge_level")
    seeds: dict[str, dict[str, list[bool]]] = {}
    for row in rows:
        seed = seeds.setdefault(row["columns"]["qid"], {})
        seed.setdefault(row["columns"]["varid"], []).append(bool(row["correct"]))
    wanted = {str(number) for number in range(1, VARIANTS + 1)}
    complete = [
        [one for (one,) in seed.values()]
        for seed in seeds.values()
        if seed.keys() == wanted and all(len(found) == 1 for found in seed.values())
    ]
    worst = {"worst case": [float(all(seed)) for seed in complete]}
    left_out = {_LEFT_OUT: [0.0] * (len(seeds) - len(complete))}
    return worst | {"average": parts.pop("overall")} | parts | left_out


def wemath_class(steps: list[bool], multi: bool, is_loose: bool = False) -> str:
    """Return We-Math's class of a problem: CM, RM, IG or IK.

    Complete mastery, rote memorisation, inadequate generalisation, insufficient knowledge. Loose
    asks only for any step, not for all, where the problem itself is right.

    >>> wemath_class([True, False], True), wemath_class([True, False], True, is_loose=True)
    ('RM', 'CM')
    >>> wemath_class([True, True], False), wemath_class([True, False], False)
    ('IG', 'IK')
    """
    if multi:
        return "CM" if (any(steps) if is_loose else all(steps)) else "RM"
    return "IG" if all(steps) else "IK"


def _wemath(rows: Rows) -> Parts:
    """Score complete problems: (CM + IG / 2) / problems; RM's share is of all solved ones."""
    problems: dict[str, dict[str, list[bool]]] = {}
    for row in rows:
        one = problems.setdefault(row["columns"]["ID"], {})
        one.setdefault(row["columns"]["key"], []).append(bool(row["correct"]))
    complete = [found for found in map(_complete, problems.items()) if found]
    parts: Parts = {}
    for label, is_loose in (("strict", False), ("loose", True)):
        classes = [wemath_class(*found, is_loose) for found in complete]
        parts[label] = [{"CM": 1.0, "IG": 0.5}.get(c, 0.0) for c in classes]
        for wanted in ("IK", "IG", "CM"):
            parts[f"{label} {wanted}"] = [float(c == wanted) for c in classes]
        parts[f"{label} RM"] = [float(c == "RM") for c in classes if c in ("CM", "RM")]
    for row in rows:
        steps, _, part = row["columns"]["key"].partition("steps_")
        label = f"S{steps}" if part == "multi" else "S1"
        parts.setdefault(label, []).append(float(row["correct"]))
    return parts | {_LEFT_OUT: [0.0] * (len(problems) - len(complete))}


def _complete(problem: tuple[str, dict[str, list[bool]]]) -> tuple[list[bool], bool] | None:
    """Return (steps, multi) of a problem that has each of its rows once, else None."""
    prefix, found = problem[0].partition("_")[0], problem[1]
    keys = [f"{prefix}_{part}" for part in (*range(1, int(prefix[0]) + 1), "multi")]
    if sorted(found) != sorted(keys) or any(len(values) != 1 for values in found.values()):
        return None
    *steps, multi = (found[key][0] for key in keys)
    return steps, multi


_PARTS = {
    "micro-MathVista": lambda rows: _by(rows, "task", "skills"),
    "micro-MathVision": lambda rows: _by(rows, "level", "category"),
    "micro-MathVerse": _mathverse,
    "micro-DynaMath": _dynamath,
    "micro-WeMath": _wemath,
    "micro-LogicVista": lambda rows: _by(rows, "skill"),
}
