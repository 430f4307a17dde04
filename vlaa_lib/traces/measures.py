"""What can be measured in one trace, and its averages over many."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import Any

from vlaa_lib import worlds
from vlaa_lib.prompts import AHA_KEYWORDS, has_aha, split_think_answer
from vlaa_lib.records import Record

from .steps import step_counts

FIGURE7_PHRASES = ("alternatively", "double-check", "i should check", "wait")  # paper figure 7
# longest first: "double-check" is one word, not its parts
_AHA = re.compile("|".join(map(re.escape, sorted(AHA_KEYWORDS, key=len, reverse=True))))
NGRAM = 4  # seq-rep-4 of Welleck et al. 2020


def hesitation(trace: str) -> float:
    """Return aha keywords per 100 words (keywords: paper §2, step 6; the rate is ours).

    >>> hesitation("Wait, let me double-check it."), hesitation("")
    (40.0, 0.0)
    """
    return 100 * _aha_words(trace) / max(1, len(trace.split()))


def _aha_words(trace: str) -> int:
    return len(_AHA.findall(trace.lower()))


def compression(trace: str) -> float | None:
    """Return the share of its bytes that zlib leaves of a trace; repetition packs well (ours).

    Short texts pack badly whatever they say: compare traces of similar length. None when empty.

    >>> compression("wait " * 100) < 0.1 < 1 < compression("wait")
    True
    """
    data = trace.encode("utf-8", errors="replace")
    return len(zlib.compress(data)) / len(data) if data else None


def repetition(trace: str) -> float | None:
    """Return the share of four-word runs that stood in the trace before (Welleck et al. 2020).

    None for fewer than four words.

    >>> repetition("a b c d a b c d"), repetition("a b c")
    (0.2, None)
    """
    words = trace.lower().split()
    runs = list(zip(*(words[i:] for i in range(NGRAM)), strict=False))
    return (len(runs) - len(set(runs))) / len(runs) if runs else None


def measure(trace: str, scene: dict | None = None, question: str = "") -> dict[str, Any]:
    """Measure one trace; each measure is defined where it is made.

    aha keywords and figure-7 phrases are counted as the paper tests them, by plain substrings
    ("check" also in "double-check"). `false_share` is the share of false steps among the checked
    ones, None where there is none. What needs the scene is None without it, and `truth_from` says
    so; `follows` needs the micro-world question.
    """
    text, counts = trace.lower(), step_counts(trace, scene)
    checked = counts["checked_steps"]
    return {
        "aha": has_aha(trace),
        "words": len(trace.split()),
        **{word: text.count(word) for word in (*FIGURE7_PHRASES, *AHA_KEYWORDS)},
        "aha_words": _aha_words(trace),
        "hesitation": hesitation(trace),
        "compression": compression(trace),
        "repetition": repetition(trace),
        "format": split_think_answer(trace).problem is None,
        "truth_from": "scene" if scene else None,
        **counts,
        "false_share": counts["false_steps"] / checked if checked else None,
        "follows": worlds.known().follows(trace, question) if question else None,
        **worlds.known().corrections(trace, scene),
    }


def measured(rows: Iterable[dict[str, Any]], records: Iterable[Record]) -> list[dict[str, Any]]:
    """Add to rows of a store or an evaluation the measures of their completions.

    Raises:
        KeyError: a row's record is not among the records.
    """
    asked = {record.id: record for record in records}
    table = []
    for row in rows:
        if (record := asked.get(row["record_id"])) is None:
            raise KeyError(f"record {row['record_id']!r} is not among the records given")
        made = measure(row["completion"], record.meta.get("scene"), record.question)
        table.append({**row, **made})
    return table


def summarise(traces: Iterable[tuple]) -> dict[str, Any]:
    """Sum phrases and average the rest over traces: (text, scene or None[, question]).

    A mean leaves out traces without a value. `false_share`, the mean over traces, is the one to
    quote; `false_step_rate` is pooled over all checked steps, where long traces count more.
    """
    rows = [measure(*trace) for trace in traces]
    if not rows:
        return {"n": 0}
    checked = _total(rows, "checked_steps")
    return {
        "n": len(rows),
        "aha_rate": _mean(rows, "aha"),
        "format_rate": _mean(rows, "format"),
        "mean_words": _mean(rows, "words"),
        "mean_steps": _mean(rows, "steps"),
        "checked_steps": checked,
        "false_share": _mean(rows, "false_share"),
        "false_step_rate": _total(rows, "false_steps") / checked if checked else None,
        "hesitation": _mean(rows, "hesitation"),
        "compression": _mean(rows, "compression"),
        "repetition": _mean(rows, "repetition"),
        "follows_rate": _mean(rows, "follows"),
        **{name: _total(rows, name) for name in ("helped", "hurt", "unchanged")},
        **{phrase: _total(rows, phrase) for phrase in FIGURE7_PHRASES},
    }


def _total(rows: list[dict[str, Any]], key: str) -> int:
    return sum(row[key] or 0 for row in rows)


def _mean(rows: list[dict[str, Any]], key: str) -> float | None:
    known = [float(row[key]) for row in rows if row[key] is not None]
    return sum(known) / len(known) if known else None
