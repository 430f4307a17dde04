"""The reward doctor: is there anything to learn from, before a training starts?"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from vlaa_lib.prompts import TAGS, join_think_answer
from vlaa_lib.records import Record

from .mixed import audit, read_answer, score_all
from .open_ended import RewardModel
from .signs import mean
from .verifiers import Score, excerpt

HIT = 0.5  # ours: the usual box threshold; digit, mcq and math score 0 or 1
SHOWN_CHARS = 40  # ours: of an answer in a table, so that a megabyte stays a line
_VARYING = re.compile(  # what differs between reasons of one kind: quoted text, letter, number
    r"(?P<quoted>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|"
    r"(?<![\w<])(?:[A-Z](?:, [A-Z])*|[+-]?\d+(?:[.,]\d+)*(?:[eE][+-]?\d+)?)(?![\w>])"
)


@dataclass(frozen=True)
class Checkup:
    """What the doctor found.

    Attributes:
        table: rows `part, n, hit_rate, format_rate, mean, low, high, zero_variance, bad_golds` of
            each reward part, and of all of them (`all`): shares in [0, 1]; `low, high` the extreme
            rewards; `zero_variance` the share of groups of two or more whose rewards are all equal
            (None without such groups); `bad_golds` a count of records.
    """

    table: list[dict[str, Any]]
    reasons: list[dict[str, Any]]
    problem: str | None  # why nothing can be learnt
    warnings: list[str]  # the same, said of single parts where others are alive
    usable: list[tuple[Record, str]]  # record and completion, without those of bad golds


def examine(
    records: Sequence[Record],
    completions: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    reward_model: RewardModel | None = None,
) -> Checkup:
    """Score sampled completions, each of its own record, and say what can be learnt from them.

    Args:
        groups: group id of each completion; default: the record's id.
    """
    ids = list(groups) if groups is not None else [record.id for record in records]
    distinct = list({record.id: record for record in records}.values())
    bad = {reject.id for reject in audit(distinct, reward_model=reward_model)}
    usable = [row for row in zip(records, completions, ids, strict=True) if row[0].id not in bad]
    made, texts = [record for record, *_ in usable], [text for _, text, _ in usable]
    scores = score_all(made, texts, reward_model)
    table = []
    for part in (*dict.fromkeys(record.reward for record in records), "all"):
        mine = [(group, score) for (record, _, group), score in zip(usable, scores, strict=True)
                if part in (record.reward, "all")]  # fmt: skip
        by_group: dict[Hashable, list[float]] = {}
        for group, score in mine:
            by_group.setdefault(group, []).append(score.value)
        values = [score.value for _, score in mine]
        table.append({
            "part": part,
            "n": len(values),
            "hit_rate": mean([value >= HIT for value in values]),
            "format_rate": mean([not score.is_format for _, score in mine]),
            "mean": mean(values),
            "low": min(values, default=None),
            "high": max(values, default=None),
            "zero_variance": mean([len(set(g)) == 1 for g in by_group.values() if len(g) > 1]),
            "bad_golds": sum(r.id in bad and part in (r.reward, "all") for r in distinct),
        })  # fmt: skip
    problem = _problem(table[-1])
    warnings = [f"{row['part']}: {said}" for row in table[:-1] if (said := _problem(row))]
    found, pairs = reasons(made, texts, scores), list(zip(made, texts, strict=True))
    return Checkup(table, found, problem, [] if problem else warnings, pairs)


def reasons(
    records: Sequence[Record], completions: Sequence[str], scores: Sequence[Score]
) -> list[dict[str, Any]]:
    """Count the reasons of scores, most frequent first, each with an escaped example.

    Reasons that differ in a quoted text, a letter or a number only are one: `digit: # instead of
    #`. The example is the answer, or the whole completion where its format is wrong.
    """
    found: dict[str, list[int]] = {}
    for i, score in enumerate(scores):
        found.setdefault(_kind(score.reason), []).append(i)
    return [
        {
            "reason": kind,
            "count": len(those),
            "share": len(those) / len(scores),
            "mean": mean([scores[i].value for i in those]),
            "id": records[those[0]].id,
            "example": excerpt(read_answer(completions[those[0]])[0] or completions[those[0]]),
        }
        for kind, those in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def _kind(reason: str) -> str:
    """Take out what differs between reasons of one kind; of tags, what follows the first mistake.

    >>> _kind("iou: 0.531"), _kind("format: tags are <think> <think> </think> instead of <think> x")
    ('iou: #', 'format: tags are <think> <think> ...')
    """
    said, _, right_order = reason.partition(" instead of <")
    if not right_order:
        return _VARYING.sub(lambda m: "'...'" if m["quoted"] else "#", reason)
    tags = said.removeprefix("format: tags are ").split()
    right = takewhile(lambda pair: pair[0] == pair[1], zip(tags, TAGS, strict=False))
    end = len(list(right)) + 1
    return " ".join(["format: tags are", *tags[:end], *["..."] * (len(tags) > end)])


def _problem(row: dict[str, Any]) -> str | None:
    """Say why a row of the table means that nothing can be learnt, with the remedy."""
    if not row["n"]:
        return "no completion could be scored: sample some, and see the golds that fail the audit"
    if row["high"] == 0:
        remedy = "the answers are wrong: take easier records or a stronger start, read the reasons"
        if row["format_rate"] < HIT:
            remedy = "train the format with SFT first, or look at the completions' reasons"
        return f"every reward is 0 (format right in {row['format_rate']:.0%}): {remedy}"
    if row["low"] == row["high"]:
        return f"every reward is {row['high']:g}: nothing left to learn; take harder records"
    if row["zero_variance"] == 1:
        return "in every group all rewards are equal: no advantage; sample hotter or more"
    return None


def tried(record: Record, answers: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Score answers to one record, all in the right format: `kind, answer, reward, reason`.

    Args:
        answers: by kind, such as right, near miss and hostile.
    """
    rows = [(kind, answer) for kind, texts in answers.items() for answer in texts]
    scores = score_all([record] * len(rows), [join_think_answer("I look.", a) for _, a in rows])
    return [
        {"kind": kind, "answer": _shown(answer), "reward": s.value, "reason": s.reason}
        for (kind, answer), s in zip(rows, scores, strict=True)
    ]


def _shown(text: str) -> str:
    start = text[:SHOWN_CHARS]
    # marks that cannot be seen or turn a line around are spelt
    start = start if start.isprintable() else repr(start)[1:-1]
    return start if len(text) <= SHOWN_CHARS else f"{start}... ({len(text):,} characters)"
