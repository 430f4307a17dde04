"""The trace store: an append-only folder of parquet parts with one typed schema, never pixels."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib import folders
from vlaa_lib.records import Record
from vlaa_lib.rewards.mixed import is_misformed

from .measures import step_counts

if TYPE_CHECKING:
    import pyarrow


@cache
def schema() -> pyarrow.Schema:
    """Return the columns of every trace store; whatever is not known stays null."""
    import pyarrow as pa

    part = pa.struct([("name", pa.string()), ("value", pa.float64()), ("reason", pa.string())])
    groups = (
        # who was asked what: the picture is a path below the image root
        (pa.string(), "record_id source part image"),
        # who answered, when: a sampling round is one rollout batch, a step one weight update
        (pa.string(), "model profile"),
        (pa.int64(), "seed sampling_round optimizer_step"),
        # which candidate of a pool this is (`process.pools`); -1: the greedy one
        (pa.int64(), "sample"),
        # what was said; clipped: it ended at the length limit, not by itself
        (pa.string(), "completion"),
        (pa.int64(), "completion_tokens words"),
        (pa.bool_(), "clipped blank"),  # blank: in front of a grey picture
        # what it earned; correct and score count an answer without tags as well (evaluation)
        (pa.float64(), "reward advantage score"),
        (pa.string(), "reason suspicious answer"),
        (pa.bool_(), "correct"),
        (pa.list_(part), "parts"),
        # means over the completion's tokens, in nats, at the sampling temperature
        (pa.float64(), "mean_logp entropy kl"),
        # of `steps.step_counts`; null where no scene is known
        (pa.int64(), "steps checked_steps false_steps first_false_step"),
        # token by token, where asked for
        (pa.list_(pa.string()), "pieces"),
        (pa.list_(pa.float32()), "logps entropies"),
    )
    return pa.schema([(name, kind) for kind, names in groups for name in names.split()])


class TraceStore:
    """An append-only folder of parquet parts, one a sampling round and process."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def forget(self, step: int, rank: int = 0) -> None:
        """Delete this process's parts from optimizer step `step` on: a resumed run makes them."""
        import pyarrow.parquet

        for path in self.folder.glob(f"part-*-{rank}.parquet"):
            rows = pyarrow.parquet.read_table(path, columns=["optimizer_step"])
            first = rows["optimizer_step"][0].as_py() if rows.num_rows else None
            if first is not None and first >= step:
                path.unlink()

    def append(self, rows: Sequence[Mapping[str, Any]], rank: int = 0) -> Path:
        """Write one part; it appears whole or not at all. Each process writes parts of its own."""
        import pyarrow as pa
        import pyarrow.parquet

        for row in rows:
            if unknown := sorted(set(row) - set(schema().names)):
                raise ValueError(f"no such column: {', '.join(unknown)}; see traces.schema()")
        try:
            made = pa.Table.from_pylist([_complete(row) for row in rows], schema=schema())
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"{self.folder}: a value of a wrong type: {error}") from None
        numbers = [int(path.name.split("-")[1]) for path in self.folder.glob(f"*-{rank}.parquet")]
        path = self.folder / f"part-{max(numbers, default=-1) + 1:06d}-{rank}.parquet"
        with folders.staged(path) as draft:
            pa.parquet.write_table(made, draft, compression="zstd")
        return path


def _complete(row: Mapping[str, Any]) -> dict[str, Any]:
    """Add words and reward parts; replace what no file can hold (half a surrogate pair)."""
    row = {key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
           for key, value in row.items()}
    if isinstance(signs := row.get("suspicious"), list):
        row["suspicious"] = ", ".join(signs)
    if row.get("words") is None and row.get("completion") is not None:
        row["words"] = len(row["completion"].split())
    return row | {"parts": row.get("parts") or parts_of(row)}


def parts_of(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the mixed reward's parts: the format, then, if that is right, the verifier's.

    >>> [part["name"] for part in parts_of({"part": "mcq", "reward": 0.0, "completion": "B"})]
    ['format']
    """
    if not row.get("part") or row.get("reward") is None or row.get("completion") is None:
        return None
    reason = row.get("reason") or ""
    if is_misformed(row["completion"]):
        return [{"name": "format", "value": 0.0, "reason": reason}]
    verified = {"name": row["part"], "value": row["reward"], "reason": reason}
    return [{"name": "format", "value": 1.0, "reason": ""}, verified]


def from_evaluation(
    rows: Iterable[Mapping[str, Any]], records: Iterable[Record], profile: str | None = None,
    seed: int | None = None,
) -> list[dict[str, Any]]:
    """Turn rows of an evaluation, or of the teacher, into rows of a store.

    Question and gold stay in the records; steps are held against the records' scenes. Profile and
    seed are the run's, for rows that do not hold them.
    """
    known, stamp = set(schema().names), {"profile": profile, "seed": seed}
    scenes = {record.id: record.meta.get("scene") for record in records}
    return [stamp | {key: value for key, value in row.items() if key in known}
            | step_counts(row["completion"], scenes.get(row["record_id"])) for row in rows]


def load(folder: str | Path, *args: Any, **options: Any) -> list[dict[str, Any]]:
    """Read rows of a trace store, oldest first; arguments and errors are those of `table`."""
    return table(folder, *args, **options).to_pylist()


def table(
    folder: str | Path, columns: Sequence[str] | None = None,
    where: pyarrow.dataset.Expression | None = None, sample: int | None = None, seed: int = 0,
) -> pyarrow.Table:
    """Read a trace store as a table; what is not asked for is not kept in memory.

    Args:
        where: a filter of pyarrow's, such as `pyarrow.dataset.field("source") == "solids"`.
        sample: so many of the rows, drawn at random with `seed`, in their order.
    Raises:
        FileNotFoundError: no part in the folder, with what to run.
        ValueError: a column that the schema does not know, or a part that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.dataset

    parts = sorted(Path(folder).glob("part-*.parquet"))
    if not parts:
        raise FileNotFoundError(f"{folder}: no traces; train or evaluate first")
    if unknown := sorted(set(columns or ()) - set(schema().names)):
        known = ", ".join(schema().names)
        raise ValueError(f"no such column: {', '.join(unknown)}; known are {known}")
    stored = pa.dataset.dataset([str(part) for part in parts], schema=schema())
    asked = {"columns": list(columns) if columns else None, "filter": where}
    try:
        if sample is None:
            return stored.to_table(**asked)
        total = stored.count_rows(filter=where)
        drawn = random.Random(seed).sample(range(total), min(sample, total))
        return stored.take(pa.array(sorted(drawn), pa.int64()), **asked)
    except pa.ArrowInvalid as error:
        said = "ask for other rows, or delete a part that is broken"
        raise ValueError(f"{folder}: {error}; {said}") from None
