"""The ledger: every reply that was paid for, in one SQLite file, found again by its question."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What a teacher answered to one request.

    Attributes:
        reasoning: the thinking, where the endpoint hands it over beside the text.
        problem: why the reply is unusable as a whole (cut off, refused, empty); usually empty.
        seconds: from the request to the reply, retries included.
    """

    text: str
    model: str = ""
    reasoning: str = ""
    problem: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


class LedgerError(RuntimeError):
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


class Ledger:
    """Replies by key; each `put` is one transaction, so a killed run loses no finished call.

    Write-ahead log with `synchronous=NORMAL`: safe against the death of the process; a power cut
    can cost the last moments, never the file. Use it from the thread that opened it.

    Raises:
        LedgerError: the file is no ledger.
    """

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # ours: 30 s, for a second run on the same file; autocommit: one statement, one transaction
        self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, step TEXT, text TEXT, "
                "model TEXT, reasoning TEXT, problem TEXT, prompt_tokens INTEGER, "
                "completion_tokens INTEGER, seconds REAL)"
            )
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise LedgerError(f"{path}: not a ledger ({error}); move it away") from None

    def get(self, key: str) -> Reply | None:
        """Return the reply of a finished call, or None."""
        row = self._db.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM calls WHERE key = ?", (key,)
        ).fetchone()
        return Reply(*row) if row else None

    def put(self, key: str, step: str, reply: Reply) -> None:
        """Keep a reply; of two replies to one question the first stays."""
        names = ("key", "step", *_COLUMNS)
        self._db.execute(
            f"INSERT OR IGNORE INTO calls ({', '.join(names)}) "
            f"VALUES ({', '.join('?' for _ in names)})",
            (key, step, *asdict(reply).values()),
        )

    def __len__(self) -> int:
        return self._db.execute("SELECT COUNT(*) FROM calls").fetchone()[0]

    def close(self) -> None:
        """Close the file."""
        self._db.close()
