"""The command `doctor`: is there anything to learn from these completions?"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vlaa_lib import folders, records, rewards
from vlaa_lib.escape import say
from vlaa_lib.records import Record, RecordError
from vlaa_lib.rewards import signs
from vlaa_lib.rewards.verifiers import excerpt
from vlaa_lib.tables import text_table

SHOWN = 12  # reasons printed
SAMPLES = 4  # completions of a record, where a model is asked


@dataclass(frozen=True)
class Sampled:
    """Completions with their records and groups."""

    records: list[Record] = field(default_factory=list)
    completions: list[str] = field(default_factory=list)
    groups: list[Hashable] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)  # completions of ids without a record


def examine(
    file: str, images: str, completions: str | None = None, model: str | None = None, n: int = 32
) -> bool:
    """Print what the reward doctor finds; say whether something can be learnt.

    Args:
        completions: a file or a trace store (see `read`); else `model` answers the first `n`
            records, `SAMPLES` times each.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = list(rewards.usable(file, images, folder))
        rejects = folders.whole_lines(Path(folder) / "rejects.jsonl")
    sampled = read(completions, made) if completions else _sample(model, made, images, n)
    found = rewards.examine(sampled.records, sampled.completions, sampled.groups)
    say(text_table({k: v for k, v in row.items() if k != "bad_golds"} for row in found.table))
    say(f"\ngold audit: {len(rejects)} of {len(made) + len(rejects)} records rejected")
    asked = len({record.id for record in sampled.records})
    say(f"completions: {len(sampled.completions)}, for {asked} of {len(made)} usable records")
    if sampled.unknown:
        total, ids = sampled.unknown.total(), len(sampled.unknown)
        say(f"not scored: {total} completions of {ids} unknown ids, named above")
    seen = [signs.kinds(text, record.question, record.reward) for record, text in found.usable]
    counts = Counter(kind for kinds in seen for kind in kinds)
    details = "".join(f"; {count} {signs.KINDS[kind]}" for kind, count in counts.most_common())
    say(f"suspicious: {sum(map(bool, seen))} of {len(seen)}{details}\n")
    say(text_table(found.reasons[:SHOWN]))
    if len(found.reasons) > SHOWN:
        say(f"and {len(found.reasons) - SHOWN} rarer reasons")
    say("".join(f"\nwarning: {text}" for text in found.warnings))
    say(found.problem or "the reward is alive")
    return not found.problem


def _sample(model: str | None, made: list[Record], images: str, n: int) -> Sampled:
    from vlaa_lib import evaluate, models

    shown = islice(rewards.pictured(made, images), n)
    asked = [record for record in shown for _ in range(SAMPLES)]
    texts = evaluate.generate(models.load_policy(model), asked, images, temperature=0.8)
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
            say(f"error: {place}: {error}", is_error=True)
            bad += 1
            continue
        if name in by_id:
            sampled.records.append(by_id[name])
            sampled.completions.append(completion)
            sampled.groups.append(group)
            continue
        if name not in sampled.unknown:
            say(f"unknown id: {place}: {excerpt(name)} is no usable record's; add the record, or "
                "sample again from these", is_error=True)  # fmt: skip
        sampled.unknown[name] += 1
    if bad:
        raise RecordError(f"{path}: {bad} bad lines, named above; repair or delete them")
    if not sampled.records:
        raise RecordError(f"{path}: no completion of any usable record; do the files go together?")
    return sampled


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, row or its error) of a completions file or a trace store."""
    from vlaa_lib import traces

    if not path.is_dir():
        yield from ((f"{path.name}:{line}", row) for line, row in records.iter_file(path))
        return
    for number, row in enumerate(traces.load(path), 1):
        group = "/".join(str(row.get(k)) for k in ("model", "optimizer_step", "record_id"))
        yield f"{path.name}: row {number}", row | {"group": group}


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
