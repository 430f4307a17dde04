"""Score what a model said, with the reason: rows of benchmarks, and records of ours."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from vlaa_lib import VlaaError, prompts, rewards
from vlaa_lib.records import Record
from vlaa_lib.rewards import maths
from vlaa_lib.rewards.choices import plain
from vlaa_lib.rewards.notation import unit_of
from vlaa_lib.rewards.verifiers import GoldError, excerpt

from . import kit
from .benchmarks import Row, family
from .extract import Extracted, extract_task, read_whole
from .tasks import Task, letters, numbers, of_record, real, task, text_of

if TYPE_CHECKING:
    from .judge import Judge

CHUNK = 512  # ours: rows whose mathematics the workers hold at a time


def score_rows(records: list[Record], completions: list[str], **columns: Any) -> list[Row]:
    """Score completions of records: strict reward, and correctness of the extracted answer."""
    answers = [
        extract_task("", of_record(record), {}, text, "ours")
        for record, text in zip(records, completions, strict=True)
    ]
    wrapped = [prompts.join_think_answer("", answer) for answer, _ in answers]
    scores = (rewards.score_all(records, texts) for texts in (completions, wrapped))
    rows, told = [], zip(records, completions, answers, *scores, strict=True)
    for record, text, (answer, path), reward, score in told:
        if record.reward == "open":  # it states as many facts as the gold
            is_correct = bool(answer) and rewards.is_as_good(record, answer)
        else:
            is_correct = score.value >= (0.5 if record.reward == "iou" else 1.0)
        rows.append({
            "record_id": record.id, "source": record.source, "part": record.reward,
            "image": record.image, "question": record.question, "gold": record.solution,
            "completion": text, "answer": answer, "path": path,
            "reward": reward.value, "reason": reward.reason,
            "score": score.value, "correct": is_correct, **columns,
        })  # fmt: skip
    return rows


def score_row(benchmark: str, row: Row, completion: Any, mode: str = "ours") -> Row:
    """Score one completion; see `score_all`."""
    return score_all(benchmark, [row], [completion], mode)[0]


def score_all(
    benchmark: str,
    rows: Sequence[Row],
    completions: Sequence[Any],
    mode: str = "ours",
    judge: Judge | None = None,
) -> list[Row]:
    """Score completions of a benchmark's rows; mathematics runs in parallel workers.

    Empty cells and NaN are empty completions. A judge reads those in which no rule finds an answer
    (mode ours only). Returned are the row's columns, and: benchmark, prediction (the raw
    completion), extracted, path (see `extract`), gold, hit, reason. `hit` is None where nobody can
    say: the gold cannot be used, or the kit would ask its judge.
    """
    if len(rows) != len(completions):
        raise VlaaError(f"{len(rows)} rows for {len(completions)} completions")
    name, scored = family(benchmark), []
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        pairs = zip(rows[part], completions[part], strict=True)
        asked = [(row, task(benchmark, row), completion) for row, completion in pairs]
        found = [extract_task(name, made, row, c, mode) for row, made, c in asked]
        if judge is not None and mode == "ours":
            found = _with_judge(judge, asked, found)
        for (_, made, _), (answer, _) in zip(asked, found, strict=True):
            if mode not in kit.MODES and made.kind == "maths" and answer and not made.problem:
                with suppress(GoldError):  # the workers begin; `_verdict` finds it done, or waits
                    maths.submit(_record(made), answer)
        for (row, made, completion), one in zip(asked, found, strict=True):
            text = text_of(completion)
            if mode in kit.MODES and text and not made.problem:
                hit, reason = kit.verdict(name, made, row, text, mode)[2:]
            else:
                hit, reason = _verdict(made, one)
            own = {key: value for key, value in row.items() if key != "image"}
            scored.append(own | {
                "benchmark": benchmark,
                "prediction": completion if isinstance(completion, str) else text,
                "extracted": one.answer, "path": one.path, "gold": made.gold,
                "hit": hit, "reason": reason,
            })  # fmt: skip
    return scored


def _with_judge(
    judge: Judge, asked: list[tuple[Row, Task, Any]], found: list[Extracted]
) -> list[Extracted]:
    """Let the judge read what no rule could; its reply must be an answer and nothing else."""
    open_ones = [i for i, one in enumerate(found) if not one.answer and one.path.endswith(":none")]
    replies = judge.extract([(asked[i][1], text_of(asked[i][2])) for i in open_ones])
    for i, reply in zip(open_ones, replies, strict=True):
        if answer := read_whole(asked[i][1], reply or ""):
            found[i] = Extracted(answer, f"{found[i].path.removesuffix(':none')}:judge")
    return found


# --- comparing ------------------------------------------------------------------------------------


def _verdict(made: Task, found: Extracted) -> tuple[bool | None, str]:
    """Compare an extracted answer with the gold: (hit, reason); None where the gold is at fault."""
    if made.problem:
        return None, made.problem
    if not (answer := found.answer):
        return False, f"no answer: {found.path}"
    problem = ""
    match made.kind:
        case "option":
            hit = answer == made.gold
        case "letters":
            hit = letters(answer) == letters(made.gold)
        case "list":
            hit = numbers(answer) == numbers(made.gold)
        case "number":
            hit, problem = _same_number(made, answer)
        case "maths":
            hit, problem = _same_maths(made, answer)
        case _:
            hit = _same_text(made, answer)
    said = f"{made.kind}: {excerpt(answer)}, gold {excerpt(made.gold)}"
    return hit, f"{said}: {problem}" if problem else said


def _same_number(made: Task, answer: str) -> tuple[bool, str]:
    gold, found = real(made.gold, made.question), real(answer, made.question)
    if gold is None or found is None:
        return False, "not one number"
    units = [unit_of(text) for text in (made.gold, answer)]
    if all(units) and units[0] != units[1]:
        return False, f"unit {units[1]} instead of {units[0]}"
    unit = Decimal(1).scaleb(-(made.places or 0))
    # a small gold is not rounded away; 28 digits can round what is below 10^15
    if made.places is not None and unit <= max(abs(gold), abs(found)) < Decimal(10) ** 15:
        gold, found = gold.quantize(unit), found.quantize(unit)
    # ours: nor is it lost in a tolerance that is larger than itself
    return abs(gold - found) <= min(made.tolerance or 0, abs(gold) / 50), ""


def _same_text(made: Task, answer: str) -> bool:
    gold, found = plain(made.gold), plain(answer)
    said = real(gold), real(found)
    return gold == found or (None not in said and said[0] == said[1])


def _same_maths(made: Task, answer: str) -> tuple[bool, str]:
    record = _record(made)
    try:
        score = maths.collect(record, answer, maths.submit(record, answer))
    except GoldError:  # a sentence
        is_same = _same_text(made, answer)
        return is_same, "" if is_same else "the gold is no expression, and the texts differ"
    return score.value == 1.0, score.reason


def _record(made: Task) -> Record:
    return Record(id="", image="", question=made.question, gt=made.gold, reward="math",
                  solution=made.gold)  # fmt: skip
