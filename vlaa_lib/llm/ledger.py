"""The ledger: every reply that was paid for, in one SQLite file, found again by its question."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from vlaa_lib import VlaaError, folders

VERSION = 2  # of the tables below, kept in the file's `user_version`
WAIT_S = 30.0  # ours: for a second program that writes


@dataclass(frozen=True)
class Reply:
    """What a model answered to one request.

    Attributes:
        reasoning: the thinking, where the endpoint hands it over beside the text.
        problem: why the reply is unusable as a whole (cut off, refused, empty); usually empty.
        seconds: from the request to the reply, retries included.
        cost: US dollars at the price that was given; 0 without a price.
    """

    text: str
    model: str = ""
    reasoning: str = ""
    problem: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0


def call_key(
    step: str, model: str, settings: Mapping[str, Any], prompt: str, image_sha256: str = ""
) -> str:
    """Return the sha256 that names a call; the address of the endpoint is not part of it.

    >>> one = call_key("verify", "m", {"a": 1, "b": 2}, "p")
    >>> one == call_key("verify", "m", {"b": 2, "a": 1}, "p")
    True
    """
    question = json.dumps([step, model, dict(settings), prompt, image_sha256], sort_keys=True)
    return hashlib.sha256(question.encode()).hexdigest()


_COLUMNS = ", ".join(field.name for field in fields(Reply))
_TABLE = """CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, step TEXT, text TEXT,
    model TEXT, reasoning TEXT, problem TEXT, prompt_tokens INTEGER, completion_tokens INTEGER,
    seconds REAL, cost REAL) WITHOUT ROWID"""


class Ledger:
    """Replies by key; each `put` is one transaction, so a killed run loses no finished call.

    Safe against the death of the process; a power cut can cost the last moments, never the file. A
    context manager, for the thread that opened it.

    Args:
        is_alone: the caller holds the folder's lock. Then, and on a disk of this machine, a
            write-ahead log makes each `put` a hundred times faster. SQLite forbids one where
            several machines share the file, as they do the output of a training.
    Raises:
        VlaaError: the file is no ledger of this version, damaged, locked, or the disk is full or
            cannot lock.
    """

    def __init__(self, path: str | Path, is_alone: bool = False) -> None:
        self.path, self._db = Path(path), None
        folders.check_locks(self.path.parent)
        try:
            ((version,),) = self._run("PRAGMA user_version")
            is_old = bool(self._run("SELECT 1 FROM sqlite_master"))
            if is_old and version != VERSION:
                raise VlaaError(
                    f"{self.path}: a ledger of version {version}, this library writes {VERSION}; "
                    "use another folder, or the library that wrote it"
                )
            if is_alone:
                has_log = folders.is_on_this_machine(self.path.parent)
                self._run(f"PRAGMA journal_mode={'WAL' if has_log else 'DELETE'}")
                self._run(f"PRAGMA synchronous={'NORMAL' if has_log else 'FULL'}")
            if not is_old:
                self._run(_TABLE)
                self._run(f"PRAGMA user_version={VERSION}")
            self._run("CREATE TEMP TABLE met (key TEXT PRIMARY KEY) WITHOUT ROWID")
        except VlaaError:
            self.__exit__()
            raise

    def _run(self, statement: str, *values: Any) -> list[tuple]:
        try:
            if self._db is None:
                # autocommit: one statement, one transaction
                self._db = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)
            return self._db.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            remedy = "free space and check the rights"
            if "locked" in str(error):
                remedy = "another program is writing to it: wait for that"
            raise VlaaError(f"{self.path}: cannot be used ({error}); {remedy}, then start again: "
                            "what it holds already is safe") from None  # fmt: skip
        except sqlite3.DatabaseError as error:
            raise VlaaError(
                f"{self.path}: not a ledger, or damaged ({error}); use another folder, or a copy"
            ) from None

    def get(self, key: str) -> Reply | None:
        found = self._run(f"SELECT {_COLUMNS} FROM calls WHERE key = ?", key)
        return Reply(*found[0]) if found else None

    def put(self, key: str, step: str, reply: Reply) -> None:
        """Keep a reply; of two to one question the first stays."""
        values = key, step, *astuple(reply)
        slots = ", ".join("?" * len(values))
        into = f"INSERT OR IGNORE INTO calls (key, step, {_COLUMNS})"
        self._run(f"{into} VALUES ({slots})", *values)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Keep what is put inside in one transaction, which costs as much as a single `put`."""
        self._run("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            self._run("COMMIT")

    def knows(self, step: str, model: str) -> bool:
        """Return whether a model has ever replied in a step."""
        asked = "SELECT 1 FROM calls WHERE step = ? AND model = ? LIMIT 1"
        return bool(self._run(asked, step, model))

    def meet(self, key: str) -> bool:
        """Return whether a key is met for the first time since the ledger was opened."""
        self._run("INSERT OR IGNORE INTO met VALUES (?)", key)
        return self._run("SELECT changes()") == [(1,)]

    def models(self) -> list[dict[str, Any]]:
        """Return of each step's models: replies, unusable ones among them, mean tokens of each."""
        names = ("step", "model", "replies", "unusable", "prompt_tokens", "completion_tokens")
        rows = self._run(
            "SELECT step, model, COUNT(*), SUM(problem != ''), AVG(prompt_tokens), "
            "AVG(completion_tokens) FROM calls GROUP BY step, model"
        )
        return [dict(zip(names, row, strict=True)) for row in rows]

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        if self._db:
            self._db.close()
