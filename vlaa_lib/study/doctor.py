"""The command `doctor`: is there anything to learn from these completions?"""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlaa_lib import folders, records, rewards
from vlaa_lib.records import Record, RecordError
from vlaa_lib.rewards import signs
from vlaa_lib.rewards.verifiers import excerpt

SHOWN = 12  # reasons printed; all are in the JSON file
SAMPLES = 4  # completions of a record, where a model is asked


@dataclass(frozen=True)
class Sampled:
    """Completions with their records and groups."""

    records: list[Record] = field(default_factory=list)
    completions: list[str] = field(default_factory=list)
    groups: list[Hashable] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)  # completions of ids without a record


def main(args: Namespace, show: Callable[[list[dict]], None]) -> int:
    """Print what the reward doctor finds; 0 alive, 1 where nothing can be learnt."""
    with tempfile.TemporaryDirectory() as folder:
        made = list(rewards.usable(args.records, args.images, folder))
        rejects = folders.whole_lines(Path(folder) / "rejects.jsonl")
    sampled = read(args.completions, made) if args.completions else _sample(args, made)
    found = rewards.examine(sampled.records, sampled.completions, sampled.groups)
    table = [{k: v for k, v in row.items() if k != "bad_golds"} for row in found.table]
    seen = [signs.kinds(text, record.question, record.reward) for record, text in found.usable]
    counts = Counter(kind for kinds in seen for kind in kinds)
    show(table)
    print(f"\ngold audit: {len(rejects)} of {len(made) + len(rejects)} records rejected")
    asked = len({record.id for record in sampled.records})
    print(f"completions: {len(sampled.completions)}, for {asked} of {len(made)} usable records")
    if sampled.unknown:
        total, ids = sampled.unknown.total(), len(sampled.unknown)
        print(f"not scored: {total} completions of {ids} unknown ids, named above")
    details = "".join(f"; {count} {signs.KINDS[kind]}" for kind, count in counts.most_common())
    print(f"suspicious: {sum(map(bool, seen))} of {len(seen)}{details}\n")
    show(found.reasons[:SHOWN])
    if len(found.reasons) > SHOWN:
        print(f"and {len(found.reasons) - SHOWN} rarer reasons; --json keeps them all")
    print("".join(f"\nwarning: {text}" for text in found.warnings))
    print(found.problem or "the reward is alive")
    if args.json:
        report = {
            "problem": found.problem, "warnings": found.warnings, "table": table,
            "reasons": found.reasons, "suspicious": counts, "rejects": rejects,
            "unknown_ids": sampled.unknown,
        }  # fmt: skip
        folders.write_text(args.json, json.dumps(report, indent=1) + "\n")
    return 1 if found.problem else 0


def _sample(args: Namespace, made: list[Record]) -> Sampled:
    from vlaa_lib import evaluate, models

    asked = [record for record in made[: args.n] for _ in range(SAMPLES)]
    policy = models.load_policy(args.model)
    texts = evaluate.generate(policy, asked, args.images, temperature=0.8)
    return Sampled(asked, texts, [record.id for record in asked])


def read(path: str | Path, made: list[Record]) -> Sampled:
    """Read completions for records: JSON Lines, a JSON array, or the folder of a trace store.

    A row holds `id` (or `record_id`), `completion` and, optionally, `group`; the default group is
    the id, in a trace store the sampling round and the id. Bad lines and ids without a record are
    named on the screen.
    """
    by_id, sampled, bad = {record.id: record for record in made}, Sampled(), 0
    for place, row in _rows(Path(path)):
        try:
            name, completion, group = _fields(row)
        except RecordError as error:
            print(f"error: {place}: {error}", file=sys.stderr)
            bad += 1
            continue
        if name in by_id:
            sampled.records.append(by_id[name])
            sampled.completions.append(completion)
            sampled.groups.append(group)
            continue
        if name not in sampled.unknown:
            print(
                f"unknown id: {place}: {excerpt(name)} is no usable record's; add the record, or "
                "sample again from these",
                file=sys.stderr,
            )
        sampled.unknown[name] += 1
    if bad:
        raise RecordError(f"{path}: {bad} bad lines, named above; repair or delete them")
    if not sampled.records:
        raise RecordError(f"{path}: no completion of any usable record; do the files go together?")
    return sampled


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, row or its error) of a completions file or a trace store."""
    if path.is_dir():
        from vlaa_lib import traces

        for number, row in enumerate(traces.load(path), 1):
            group = "/".join(str(row.get(k)) for k in ("model", "optimizer_step", "record_id"))
            yield f"{path.name}: row {number}", row | {"group": group}
        return
    for line, row in records.iter_file(path):
        yield f"{path.name}:{line}", row


def _fields(row: Any) -> tuple[str, str, Hashable]:
    if isinstance(row, RecordError):
        raise row
    if not isinstance(row, dict):
        raise RecordError(f"expected a JSON object, found {type(row).__name__}")
    name, completion = row.get("id", row.get("record_id")), row.get("completion")
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise RecordError("key 'id' is missing or no text; name the record that was asked")
    if not isinstance(completion, str):
        raise RecordError("key 'completion' is missing or no text; put the sampled text there")
    group = row.get("group")
    if not isinstance(group, (str, int, type(None))):
        raise RecordError(f"key 'group' is {type(group).__name__}; use text, a number or none")
    return str(name), completion, str(name) if group is None else group
