"""The ledger: every reply that was paid for, in one SQLite file, found again by its question."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

VERSION = 2  # of the tables below, kept in the file's `user_version`


@dataclass(frozen=True)
class Reply:
    """What a teacher answered to one request.

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


class LedgerError(OSError):
    """A ledger file that cannot be used; the message says what to do."""


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


_COLUMNS = tuple(field.name for field in fields(Reply))
_TABLES = """
CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, step TEXT, text TEXT, model TEXT,
    reasoning TEXT, problem TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, seconds REAL,
    cost REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS exported (key TEXT PRIMARY KEY, step TEXT) WITHOUT ROWID;
CREATE TEMP TABLE met (key TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class Ledger:
    """Replies by key; each `put` is one transaction, so a killed run loses no finished call.

    Write-ahead log with `synchronous=NORMAL`: safe against the death of the process; a power cut
    can cost the last moments, never the file. Use it from the thread that opened it.

    Raises:
        LedgerError: the file is no ledger of this version, damaged, locked, or the disk is full.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._guard():
            # ours: 30 s, for a second program; autocommit: one statement, one transaction
            self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
        try:
            with self._guard():
                self._open()
        except LedgerError:
            self._db.close()
            raise

    def _open(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        is_new = not self._db.execute("SELECT 1 FROM sqlite_master").fetchone()
        if not is_new and version != VERSION:
            raise LedgerError(
                f"{self.path}: a ledger of version {version}, this library writes {VERSION}; use "
                "another folder, or the library that wrote it"
            )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(f"PRAGMA user_version={VERSION};{_TABLES}")

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise LedgerError(
                f"{self.path}: cannot be used ({error}); free space, check the rights or wait for "
                "the other program, then start again: what it holds already is safe"
            ) from None
        except sqlite3.DatabaseError as error:
            raise LedgerError(
                f"{self.path}: not a ledger, or damaged ({error}); use another folder, or a copy"
            ) from None

    def get(self, key: str) -> Reply | None:
        """Return the reply of a finished call, or None."""
        with self._guard():
            row = self._db.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM calls WHERE key = ?", (key,)
            ).fetchone()
        return Reply(*row) if row else None

    def put(self, key: str, step: str, reply: Reply) -> bool:
        """Keep a reply; of two to one question the first stays. Return whether it was new."""
        names = ("key", "step", *_COLUMNS)
        with self._guard():
            found = self._db.execute(
                f"INSERT OR IGNORE INTO calls ({', '.join(names)}) "
                f"VALUES ({', '.join('?' for _ in names)})",
                (key, step, *asdict(reply).values()),
            )
        return found.rowcount == 1

    def knows(self, step: str, model: str) -> bool:
        """Return whether a model has ever replied in a step."""
        query = "SELECT 1 FROM calls WHERE step = ? AND model = ? LIMIT 1"
        with self._guard():
            return self._db.execute(query, (step, model)).fetchone() is not None

    def meet(self, key: str) -> bool:
        """Return whether a key is met for the first time since the ledger was opened."""
        found = self._db.execute("INSERT OR IGNORE INTO met VALUES (?)", (key,))
        return found.rowcount == 1

    def export(self, key: str, step: str) -> None:
        """Remember a call that was written out to be answered elsewhere."""
        with self._guard():
            self._db.execute("INSERT OR IGNORE INTO exported VALUES (?, ?)", (key, step))

    def exported(self, key: str) -> str | None:
        """Return the step of a call that was written out, or None."""
        row = self._db.execute("SELECT step FROM exported WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def waiting(self) -> int:
        """Return how many calls were written out and have no reply yet."""
        query = "SELECT COUNT(*) FROM exported WHERE key NOT IN (SELECT key FROM calls)"
        return self._db.execute(query).fetchone()[0]

    def models(self) -> list[dict[str, Any]]:
        """Return how many replies, and unusable ones among them, each step has of each model."""
        rows = self._db.execute(
            "SELECT step, model, COUNT(*), SUM(problem != '') FROM calls GROUP BY step, model"
        )
        return [dict(zip(("step", "model", "replies", "unusable"), r, strict=True)) for r in rows]

    def means(self) -> dict[str, tuple[int, float, float]]:
        """Return calls, mean prompt tokens and mean completion tokens of each step."""
        rows = self._db.execute(
            "SELECT step, COUNT(*), AVG(prompt_tokens), AVG(completion_tokens) FROM calls "
            "GROUP BY step"
        )
        return {step: tuple(rest) for step, *rest in rows}

    def take_in(self, path: str | Path) -> int:
        """Add the replies of another ledger, such as another shard's; return how many were new.

        Raises:
            LedgerError: the other file is missing or no ledger of this version.
        """
        if not Path(path).is_file():
            raise LedgerError(f"{path}: no such ledger; name the files of the shards")
        Ledger(path).close()  # its version and its tables are checked
        before = len(self)
        with self._guard():
            self._db.execute("ATTACH ? AS other", (str(path),))
            try:
                self._db.execute("INSERT OR IGNORE INTO main.calls SELECT * FROM other.calls")
            finally:
                self._db.execute("DETACH other")
        return len(self) - before

    def __len__(self) -> int:
        return self._db.execute("SELECT COUNT(*) FROM calls").fetchone()[0]

    def close(self) -> None:
        """Close the file."""
        self._db.close()
