"""The six benchmarks' metrics: what scored rows earned, and what they lack.

Formulas are those of VLMEvalKit on complete data. On partial data a number is over what is there:
a seed or problem that lacks a row or has one twice is left out and counted, an index that is there
twice counts for nothing, and a row without verdict counts as wrong and as undecided.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .benchmarks import Row, family, listed, literal
from .tasks import text_of

Rows = list[Row]
Values = dict[str, float]  # what each row, seed or problem earned, by its id
Parts = dict[str, Values]  # by metric, the headline first
Earned = tuple[Parts, int, int]  # with the seeds or problems left out, and the rows they lack

VARIANTS = 10  # DynaMath: variants of a seed question
# the metric of each benchmark that the paper reports (table 4; DynaMath's is the worst case)
HEADLINES = {
    "MathVista": "overall", "MathVision": "overall", "MathVerse": "overall",
    "DynaMath": "worst case", "WeMath": "strict", "LogicVista": "overall",
}  # fmt: skip


class Measured(NamedTuple):
    """What rows earned, and what they lack."""

    parts: Parts
    left_out: int  # seeds or problems that lack a row or have one twice
    missing: int  # rows that those lack
    duplicated: int  # rows that count for nothing: their index is there more than once
    undecided: int  # rows without verdict, counted as wrong


def measure(benchmark: str, rows: Rows) -> Measured:
    """Collect what the scored rows of one model, in any order, earned under each metric."""
    by_index: dict[str, Rows] = {}
    for number, row in enumerate(rows):
        by_index.setdefault(text_of(row.get("index")) or f"row {number}", []).append(row)
    unique = {index: found[0] for index, found in by_index.items() if len(found) == 1}
    parts, left_out, missing = _METRICS[family(benchmark)](unique)
    undecided = sum(row["hit"] is None for row in unique.values())
    return Measured(parts, left_out, missing, len(rows) - len(unique), undecided)


# --- accuracies -----------------------------------------------------------------------------------


def _by(rows: dict[str, Row], *columns: str) -> Parts:
    """Collect hits over all rows, and over each value of columns, some of them lists."""
    parts: Parts = {"overall": {index: _hit(row) for index, row in rows.items()}}
    for column in columns:
        of: Parts = {}
        if not any(column in row for row in rows.values()):
            continue
        for index, row in rows.items():
            cell = row.get(column)
            for value in listed(cell) or [text_of(cell) or "(none)"]:
                of.setdefault(f"{column}: {value}", {})[index] = _hit(row)
        parts |= dict(sorted(of.items()))
    return parts


def _hit(row: Row) -> float:
    return float(bool(row["hit"]))


def _mathverse(rows: dict[str, Row]) -> Earned:
    """Also group by subject and subfield, which stand in the column `metadata`."""
    told = {}
    for index, row in rows.items():
        more = literal(row.get("metadata"))  # apostrophes in texts too, which the kit cannot read
        own = more if isinstance(more, dict) else {}
        told[index] = row | {key: text_of(own.get(key)) for key in ("subject", "subfield") if own}
    return _by(told, "problem_version", "question_type", "subject", "subfield"), 0, 0


def _grouped(rows: dict[str, Row], group: str, member: str) -> dict[str, dict[str, Rows]]:
    """Group rows by one column, and inside by another: a seed's variants, a problem's steps."""
    groups: dict[str, dict[str, Rows]] = {}
    for row in rows.values():
        one = groups.setdefault(text_of(row.get(group)), {})
        one.setdefault(text_of(row.get(member)), []).append(row)
    return groups


def _is_whole(found: dict[str, Rows], wanted: set[str]) -> bool:
    return found.keys() == wanted and all(len(rows) == 1 for rows in found.values())


def _dynamath(rows: dict[str, Row]) -> Earned:
    """Average over rows; worst case over the seeds of which every variant is there once."""
    seeds = _grouped(rows, "qid", "varid")
    wanted = {str(number) for number in range(1, VARIANTS + 1)}
    worst = {
        qid: seed["1"][0] | {"hit": all(_hit(row) for (row,) in seed.values())}
        for qid, seed in seeds.items() if _is_whole(seed, wanted)
    }  # fmt: skip
    columns = ("subject", "knowledge_level")
    average, least = _by(rows, *columns), _by(worst, *columns)
    parts = {"worst case": least.pop("overall"), "average": average.pop("overall")} | average
    parts |= {f"worst case, {metric}": values for metric, values in least.items()}
    missing = sum(len(wanted - seed.keys()) for seed in seeds.values())
    return parts, len(seeds) - len(worst), missing


# --- We-Math --------------------------------------------------------------------------------------


def wemath_class(steps: list[bool], multi: bool, is_loose: bool = False) -> str:
    """Return We-Math's class of a problem: CM, RM, IG or IK.

    Complete mastery, rote memorisation, inadequate generalisation, insufficient knowledge. Loose
    asks only for any step, not for all, where the problem itself is right.

    >>> wemath_class([True, False], True), wemath_class([True, False], True, is_loose=True)
    ('RM', 'CM')
    """
    if multi:
        return "CM" if (any(steps) if is_loose else all(steps)) else "RM"
    return "IG" if all(steps) else "IK"


def _wemath(rows: dict[str, Row]) -> Earned:
    """Score complete problems: (CM + IG / 2) / problems; RM's share is of all solved ones."""
    problems = _grouped(rows, "ID", "key")
    complete: dict[str, tuple[list[bool], bool]] = {}
    missing = 0
    for ID, found in problems.items():
        keys = _keys(ID)
        missing += len(keys - found.keys())
        if keys and _is_whole(found, keys):
            *steps, multi = (bool(_hit(found[key][0])) for key in sorted(keys))
            complete[ID] = steps, multi
    parts: Parts = {}
    for label, is_loose in (("strict", False), ("loose", True)):
        classes = {ID: wemath_class(*found, is_loose) for ID, found in complete.items()}
        parts[label] = {ID: {"CM": 1.0, "IG": 0.5}.get(c, 0.0) for ID, c in classes.items()}
        for wanted in ("IK", "IG", "CM"):
            parts[f"{label} {wanted}"] = {ID: float(c == wanted) for ID, c in classes.items()}
        solved = {ID: c for ID, c in classes.items() if c in ("CM", "RM")}
        parts[f"{label} RM"] = {ID: float(c == "RM") for ID, c in solved.items()}
    single: dict[str, Row] = {}
    for index, row in rows.items():
        steps, mark, part = text_of(row.get("key")).partition("steps_")
        label = "key: (none)" if not mark else f"S{steps}" if part == "multi" else "S1"
        parts.setdefault(label, {})[index] = _hit(row)
        if label == "S1":
            single[index] = row
    concepts = _by(single, "knowledge concept")
    del concepts["overall"]
    return parts | concepts, len(problems) - len(complete), missing


def _keys(ID: str) -> set[str]:
    """Return a problem's keys: 2steps_1, 2steps_2, 2steps_multi; the last sorts last."""
    match = re.fullmatch(r"[2-9]steps_\d{1,9}", ID, re.ASCII)
    parts = (*range(1, int(ID[0]) + 1), "multi") if match else ()
    return {f"{ID[:6]}_{part}" for part in parts}


_METRICS: dict[str, Callable[[dict[str, Row]], Earned]] = {
    "MathVista": lambda rows: (_by(rows, "task", "skills"), 0, 0),
    "MathVision": lambda rows: (_by(rows, "level", "category"), 0, 0),
    "MathVerse": _mathverse,
    "DynaMath": _dynamath,
    "WeMath": _wemath,
    "LogicVista": lambda rows: (_by(rows, "skill"), 0, 0),
}
