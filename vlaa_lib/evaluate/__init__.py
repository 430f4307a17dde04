"""Evaluation: greedy generation on records, extraction, accuracy by source with intervals."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib import prompts, rewards
from vlaa_lib.records import Record

from .generate import generate

if TYPE_CHECKING:
    from vlaa_lib.models import Policy

__all__ = ["bootstrap", "evaluate", "extract_answer", "generate", "score_rows", "summary"]


def extract_answer(completion: str) -> tuple[str, str]:
    """Return (answer, path): from the tags, from a reply without any tag, or nothing.

    A reply without tags counts in accuracy, not in the strict reward: `base` never saw the format,
    and of the chats that `instruct` learnt from all ask for it, but only some of the replies keep
    it (`pocket_data.chat_text`). Of such a reply, what follows the last "the answer is" counts
    (path `phrase`), or all of it (path `plain`).

    >>> extract_answer("3"), extract_answer("2 + 1 = 3. The answer is 3.")
    (('3', 'plain'), ('3', 'phrase'))
    >>> extract_answer("<think>2 + 1")
    ('', 'malformed')
    """
    parsed = prompts.split_think_answer(completion)
    if parsed.problem is None:
        return parsed.answer, "tags"
    if any(tag in completion.lower() for tag in prompts.TAGS):
        return "", "malformed"
    _before, phrase, answer = completion.rpartition(prompts.ANSWER_PHRASE)
    if phrase and answer.strip(" .\n"):
        return answer.strip().removesuffix(".").strip(), "phrase"
    return completion.strip(), "plain"


def score_rows(records: list[Record], completions: list[str], **columns: Any) -> list[dict]:
    """Score completions: strict reward, and correctness of the extracted answer.

    `correct` is reward 1 for digit, mcq and math, an intersection over union of at least 0.5
    for boxes, and for open ones an answer that states as many facts as the gold.
    """
    answers = [extract_answer(text) for text in completions]
    wrapped = [prompts.join_think_answer("", answer) for answer, _ in answers]
    strict = rewards.score_all(records, completions)
    lenient = rewards.score_all(records, wrapped)
    rows = []
    for record, text, (answer, path), reward, score in zip(
        records, completions, answers, strict, lenient, strict=True
    ):
        rows.append(
            {
                "record_id": record.id,
                "source": record.source,
                "part": record.reward,
                "image": record.image,
                "question": record.question,
                "gold": record.solution,
                "completion": text,
                "answer": answer,
                "path": path,
                "reward": reward.value,
                "reason": reward.reason,
                "score": score.value,
                "correct": _is_correct(record, answer, score.value),
                **columns,
            }
        )
    return rows


def _is_correct(record: Record, answer: str, value: float) -> bool:
    if record.reward == "open":
        return bool(answer) and rewards.is_as_good(record, answer)
    return value >= (0.5 if record.reward == "iou" else 1.0)


def evaluate(
    policy: Policy,
    records: list[Record],
    images: str | Path,
    model: str,
    batch: int = 64,
    max_new_tokens: int = prompts.MAX_NEW_TOKENS,
    blank: bool = True,
) -> list[dict[str, Any]]:
    """Answer every record greedily, and once more with a blank picture; return scored rows.

    The blank picture tells seeing from guessing: same prompts, grey, of the same size.
    """
    rows = []
    for is_blank in (False, True) if blank else (False,):
        texts = generate(policy, records, images, batch, max_new_tokens, blank=is_blank)
        rows += score_rows(records, texts, model=model, blank=is_blank)
    return rows


def bootstrap(
    values: Iterable[float], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return a percentile bootstrap interval of the mean over rows.

    >>> bootstrap([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    import numpy

    data = numpy.asarray(list(values), dtype=float)
    if not len(data):
        return float("nan"), float("nan")
    draws = numpy.random.default_rng(seed).integers(0, len(data), (resamples, len(data)))
    tail = (1 - level) / 2
    low, high = numpy.quantile(data[draws].mean(axis=1), (tail, 1 - tail))
    return float(low), float(high)


def summary(rows: list[dict[str, Any]], resamples: int = 1000) -> list[dict[str, Any]]:
    """Average rows by model and source, and over all sources (`all`), beside the blank picture."""
    table = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        for source in (*dict.fromkeys(row["source"] for row in mine), "all"):
            chosen = [row for row in mine if source in ("all", row["source"])]
            seen = [row for row in chosen if not row["blank"]]
            blank = [row for row in chosen if row["blank"]]
            low, high = bootstrap((row["correct"] for row in seen), resamples)
            table.append(
                {
                    "model": model,
                    "source": source,
                    "n": len(seen),
                    "accuracy": _mean(seen, "correct"),
                    "low": low,
                    "high": high,
                    "blank_accuracy": _mean(blank, "correct"),
                    "reward": _mean(seen, "reward"),
                    "format_rate": sum(row["path"] == "tags" for row in seen) / max(1, len(seen)),
                }
            )
    return table


def _mean(rows: list[dict], key: str) -> float | None:
    return sum(float(row[key]) for row in rows) / len(rows) if rows else None
