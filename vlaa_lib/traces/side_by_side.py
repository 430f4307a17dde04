"""Rows of several models side by side: flips, and what the viewer is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT
from vlaa_lib import records as files
from vlaa_lib.records import Record
from vlaa_lib.tables import known, number

from .store import load, parts_of

FOLDER, CARD = ROOT / "data" / "traces", "card.json"  # a small set of a measured run

Rows = Sequence[Mapping[str, Any]]


def is_right(row: Mapping[str, Any]) -> bool:
    """Say whether a row counts as right: as evaluation judged, else by a reward of 0.5 or more."""
    correct = known(row.get("correct"))
    return bool(correct) if correct is not None else (known(row.get("reward")) or 0.0) >= 0.5


def flipped(wrong: Rows, right: Rows) -> list[str]:
    """Return the records that the first run gets wrong and the second right, in their order.

    Of several rollouts of a record the last counts; rows in front of a grey picture do not.
    """
    first, second = ({row["record_id"]: is_right(row) for row in run if not row.get("blank")}
                     for run in (wrong, right))
    return [name for name, was_right in first.items() if second.get(name) and not was_right]


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
        sides = [_side(name, mine[record.id]) for name, mine in groups.items() if record.id in mine]
        path = Path(images) / record.image if images is not None else None
        if sides:
            made.append({
                "id": record.id, "source": record.source, "question": record.question,
                "image": str(path) if path and path.is_file() else None, "gold": record.solution,
                "scene": record.meta.get("scene"), "frame": record.frame or None, "sides": sides,
            })
    return made


def _groups(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Return by record the rows of its last sampling round."""

    found: dict[str, dict[tuple, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if not row.get("blank"):
            at = (row.get("optimizer_step"), row.get("sampling_round"))
            when = tuple(-1 if value is None else value for value in at)
            found.setdefault(row["record_id"], {}).setdefault(when, []).append(row)
    return {name: rounds[max(rounds)] for name, rounds in found.items()}


def _side(name: str, group: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is known of a record's traces; a number that is none (NaN: not scored) is not."""
    row = group[0]
    side = {"name": name, "text": row["completion"], "tokens": row.get("completion_tokens")}
    numbers = ("reward", "advantage", "mean_logp", "entropy")
    side |= {key: number(row.get(key)) for key in numbers}
    # answer: what evaluation read, also where the tags are missing
    others = ("reason", "answer", "clipped", "correct", "pieces", "logps", "entropies", "verdicts")
    side |= {key: row.get(key) for key in others}
    if parts := row.get("parts") or parts_of(row):  # rows of an evaluation lie in no store
        side["parts"] = {part["name"]: number(part["value"]) for part in parts}
        side["reasons"] = {part["name"]: part["reason"] for part in parts}
    if len(group) > 1:
        side["group"] = [
            {"text": one["completion"], "reward": number(one.get("reward")),
             "advantage": number(one.get("advantage")), "tokens": one.get("completion_tokens")}
            for one in group
        ]
    return {key: value for key, value in side.items() if value is not None}


def curated(folder: str | Path = FOLDER) -> list[dict[str, Any]]:
    """Return the curated traces as the viewer's examples."""
    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise FileNotFoundError(
            f"{folder}: no curated traces; make them with: python -m vlaa_lib traces curate "
            "--run runs/laptop"
        )
    runs: dict[str, list] = {}
    for row in load(folder):
        runs.setdefault(row["model"], []).append(row)
    return examples(files.load(folder / "records.jsonl").records, folder / "images", runs)
