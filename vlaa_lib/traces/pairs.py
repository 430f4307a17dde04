"""Rows of several models side by side: pairs, flips, and what the viewer is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT
from vlaa_lib import records as files
from vlaa_lib.records import Record

from .store import load, parts_of

FOLDER, CARD = ROOT / "data" / "traces", "card.json"  # a small set of a measured run

Rows = Sequence[Mapping[str, Any]]


def pair(*runs: Rows) -> list[tuple[Mapping[str, Any], ...]]:
    """Line up rows of several runs by record id; records that one of them lacks are left out.

    Of several rollouts of a record the last counts.
    """
    by_id = [{row["record_id"]: row for row in run} for run in runs]
    return [tuple(rows[i] for rows in by_id) for i in by_id[0] if all(i in rows for rows in by_id)]


def is_right(row: Mapping[str, Any]) -> bool:
    """Say whether a row counts as right: as evaluation judged, else by a reward of 0.5 or more."""
    correct = known(row.get("correct"))
    return bool(correct) if correct is not None else (known(row.get("reward")) or 0.0) >= 0.5


def known(value: Any) -> Any:
    """Return a value, or None for what stands for none in tables: NaN, pandas' NA and NaT.

    >>> known(float("nan")), known(0)
    (None, 0)
    """
    try:
        return None if value is None or bool(value != value) else value
    except TypeError:  # NA is neither equal to itself nor not
        return None
    except ValueError:  # an array
        return value


def flipped(wrong: Rows, right: Rows) -> list[str]:
    """Return the records that the first run gets wrong and the second right, in their order."""
    return [
        a["record_id"] for a, b in pair(_seen(wrong), _seen(right)) if is_right(b) > is_right(a)
    ]


def _seen(rows: Rows) -> list[Mapping[str, Any]]:
    """Return the rows that were asked with their picture."""
    return [row for row in rows if not row.get("blank")]


def examples(
    records: Sequence[Record], images: str | Path | None, runs: Mapping[str, Rows]
) -> list[dict[str, Any]]:
    """Return what the viewer shows: each record with the traces of every run that has one.

    Of a record that a run sampled several times, the last sampling round counts: its first rollout
    is the side's text, all of them its group. Records without any trace are left out, rows in
    front of a grey picture too.

    Args:
        images: image root; an example's image is None where the file is not there.
        runs: by the name to show: rows of a store, an evaluation or `taught`; a judge's `verdicts`
            on the steps of a row go along, see `show.prepare.prepare`.
    """
    groups = {name: _groups(rows) for name, rows in runs.items()}
    made = []
    for record in records:
        sides = [
            _side(name, mine[record.id]) for name, mine in groups.items() if record.id in mine
        ]
        path = Path(images) / record.image if images is not None else None
        if sides:
            made.append(
                {
                    "id": record.id,
                    "source": record.source,
                    "image": str(path) if path and path.is_file() else None,
                    "question": record.question,
                    "gold": record.solution,
                    "scene": record.meta.get("scene"),
                    "frame": record.frame or None,
                    "sides": sides,
                }
            )
    return made


def _groups(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Return by record the rows of its last sampling round."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in _seen(rows):
        mine = found.setdefault(row["record_id"], [])
        if mine and _when(mine[0]) < _when(row):
            mine.clear()
        if not mine or _when(mine[0]) == _when(row):
            mine.append(row)
    return found


def _when(row: Mapping[str, Any]) -> tuple[int, int]:
    return tuple(-1 if row.get(k) is None else row[k] for k in ("optimizer_step", "sampling_round"))


def _side(name: str, group: list[Mapping[str, Any]]) -> dict[str, Any]:
    row = group[0]
    side = {"name": name, "text": row["completion"], "reason": row.get("reason")}
    side |= {key: _number(row.get(key)) for key in ("reward", "advantage", "mean_logp", "entropy")}
    # answer: what evaluation read, also where the tags are missing
    known = ("answer", "clipped", "correct", "pieces", "logps", "entropies", "verdicts")
    side |= {key: row.get(key) for key in known} | {"tokens": row.get("completion_tokens")}
    if parts := row.get("parts") or parts_of(row):  # rows of an evaluation lie in no store
        side["parts"] = {part["name"]: _number(part["value"]) for part in parts}
        side["reasons"] = {part["name"]: part["reason"] for part in parts}
    if len(group) > 1:
        side["group"] = [_rollout(one) for one in group]
    return {key: value for key, value in side.items() if value is not None}


def _rollout(row: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {key: _number(row.get(key)) for key in ("reward", "advantage")}
    return {"text": row["completion"], **numbers, "tokens": row.get("completion_tokens")}


def _number(value: Any) -> float | None:
    """Return None for what was not scored, which a trainer writes as NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def curated(folder: str | Path = FOLDER) -> list[dict[str, Any]]:
    """Return the curated traces as the viewer's examples.

    Raises:
        FileNotFoundError: there are none, with the command that makes them.
    """
    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise FileNotFoundError(
            f"{folder}: no curated traces; make them with: python -m vlaa_lib traces curate "
            "--run runs/laptop"
        )
    runs: dict[str, list] = {}
    for row in load(folder):
        runs.setdefault(row["model"], []).append(row)
    kept = files.load(folder / "records.jsonl").records
    return examples(kept, folder / "images", runs)
