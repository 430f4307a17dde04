"""What can be measured in one trace, step by step against its scene, and averages over many."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vlaa_lib import worlds
from vlaa_lib.prompts import AHA_KEYWORDS, ANY_TAG, has_aha, sentences, split_think_answer
from vlaa_lib.records import Record

FIGURE7_PHRASES = ("alternatively", "double-check", "i should check", "wait")  # paper figure 7
NGRAM = 4  # seq-rep-4 of Welleck et al. 2020
# longest first: "double-check" is one word, not its parts
_AHA = re.compile("|".join(map(re.escape, sorted(AHA_KEYWORDS, key=len, reverse=True))))


@dataclass(frozen=True)
class Step:
    """One sentence of a trace: True or False against the scene, None where it cannot be checked."""

    text: str
    truth: bool | None


def untagged(trace: str) -> str:
    """Return a trace with its tags blank, each character where it was."""
    return ANY_TAG.sub(lambda tag: "\n" * len(tag[0]), trace)


def split(trace: str) -> list[str]:
    """Return the sentences of a trace, without tags."""
    return sentences(untagged(trace))


def check_steps(trace: str, scene: dict | None) -> list[Step]:
    """Split a trace into sentences and hold each against the scene; False if any part is false.

    Without a scene, as for real pictures, no sentence can be checked.

    >>> scene = {"kind": "bars", "bars": [{"color": "red", "value": 3}]}
    >>> [s.truth for s in check_steps("The red bar reaches 3. It reaches 4. Hmm.", scene)]
    [True, None, None]
    """
    check = worlds.known().check
    return [Step(part, check(part, scene) if scene else None) for part in split(trace)]


def step_counts(trace: str, scene: dict | None) -> dict[str, int | None]:
    """Count steps, checked ones, false ones, and number the first false one from 1 (all ours).

    >>> step_counts("One. Two.", None)
    {'steps': 2, 'checked_steps': None, 'false_steps': None, 'first_false_step': None}
    """
    found = [step.truth for step in check_steps(trace, scene)]
    return {
        "steps": len(found),
        "checked_steps": len(found) - found.count(None) if scene else None,
        "false_steps": found.count(False) if scene else None,
        "first_false_step": found.index(False) + 1 if False in found else None,
    }


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

    >>> repetition("a b c d a b c d"), repetition("a b c")
    (0.2, None)
    """
    words = trace.lower().split()
    runs = list(zip(*(words[i:] for i in range(NGRAM)), strict=False))
    return (len(runs) - len(set(runs))) / len(runs) if runs else None


def measure(trace: str, scene: dict | None = None, question: str = "") -> dict[str, Any]:
    """Measure one trace; what needs the scene, or a micro-world question, is None without it."""
    text, words, counts = trace.lower(), len(trace.split()), step_counts(trace, scene)
    checked, aha_words = counts["checked_steps"], len(_AHA.findall(text))
    return {
        "aha": has_aha(trace),
        "words": words,
        # as the paper counts them, by plain substrings: "check" also in "double-check"
        **{word: text.count(word) for word in (*FIGURE7_PHRASES, *AHA_KEYWORDS)},
        "aha_words": aha_words,
        "hesitation": 100 * aha_words / max(1, words),  # keywords: paper §2, step 6; the rate: ours
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
    asked, table = {record.id: record for record in records}, []
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

    def total(key: str) -> int:
        return sum(row[key] or 0 for row in rows)

    def mean(key: str) -> float | None:
        known = [float(row[key]) for row in rows if row[key] is not None]
        return sum(known) / len(known) if known else None

    checked = total("checked_steps")
    return {
        "n": len(rows),
        "aha_rate": mean("aha"),
        "format_rate": mean("format"),
        "mean_words": mean("words"),
        "mean_steps": mean("steps"),
        "checked_steps": checked,
        "false_share": mean("false_share"),
        "false_step_rate": total("false_steps") / checked if checked else None,
        **{name: mean(name) for name in ("hesitation", "compression", "repetition")},
        "follows_rate": mean("follows"),
        **{name: total(name) for name in ("helped", "hurt", "unchanged", *FIGURE7_PHRASES)},
    }
