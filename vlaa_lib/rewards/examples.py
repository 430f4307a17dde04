"""Rewards to look at: answers tried on a record, the format ablation, what trips the peers."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlaa_lib.prompts import ANSWER_CLOSE, ANSWER_OPEN, join_think_answer
from vlaa_lib.records import Record

from .answers import GoldError
from .mixed import audit, score, score_all
from .reward_models import RewardModel

PEERS = Path(__file__).with_name("peers.csv")
SHOWN_CHARS = 40  # ours: of an answer in a table, so that a megabyte stays a line


def tried(
    record: Record, answers: Mapping[str, Sequence[str]], reward_model: RewardModel | None = None
) -> list[dict[str, Any]]:
    """Score answers to one record, all in the right format: `kind, answer, reward, reason`.

    Args:
        answers: by kind, such as right, near miss and hostile.
    """
    rows = [(kind, answer) for kind, texts in answers.items() for answer in texts]
    texts = [join_think_answer("I look.", answer) for _, answer in rows]
    scores = score_all([record] * len(rows), texts, reward_model)
    return [
        {"kind": kind, "answer": _shown(answer), "reward": s.value, "reason": s.reason}
        for (kind, answer), s in zip(rows, scores, strict=True)
    ]


def _shown(text: str, limit_chars: int = SHOWN_CHARS) -> str:
    """Return the start of a text, with marks that cannot be seen or turn a line around spelt."""
    start = text[:limit_chars]
    start = start if start.isprintable() else repr(start)[1:-1]
    return start if len(text) <= limit_chars else f"{start}... ({len(text):,} characters)"


def without_format(completion: str) -> str:
    """Put a completion's last answer block, or all of it, into the right format (ablation, ours).

    >>> without_format("I count. <ANSWER>3</ANSWER>") == join_think_answer("", "3")
    True
    >>> without_format("3") == join_think_answer("", "3")
    True
    """
    last = re.split(ANSWER_OPEN, completion, flags=re.IGNORECASE)[-1]
    return join_think_answer("", re.split(ANSWER_CLOSE, last, flags=re.IGNORECASE)[0])


def peers() -> list[dict[str, Any]]:
    """Score what trips other reward functions, beside what those do with it (`peers.csv`).

    Their scores are facts found in their code and issues; ours are computed here.

    Returns:
        rows `repository, gold, completion, theirs, what happens there, ours, is_right, reason`;
        `refused`: the gold is a data error, so that nothing is ever scored with it.
    """
    with PEERS.open(encoding="utf-8", newline="") as stream:
        cases = list(csv.DictReader(stream))
    table = []
    for case in cases:
        record = Record(
            "peer", "peer.png", case["question"], case["gold"], reward=case["reward"],
            solution=case["gold"], frame=case["frame"],
        )  # fmt: skip
        try:
            found = score(record, case["completion"])
            ours, reason = f"{found.value:g}", found.reason
        except GoldError:
            ours, reason = "refused", audit([record])[0].reason
        table.append({
            "repository": case["repository"], "gold": case["gold"],
            "completion": _shown(case["completion"], 100), "theirs": case["theirs"],
            "what happens there": case["because"], "ours": ours,
            "is_right": ours == case["right"], "reason": reason,
        })  # fmt: skip
    return table
