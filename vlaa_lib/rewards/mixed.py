"""The mixed reward: the record chooses its verifier; format is implicit (paper §4)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from vlaa_lib import prompts
from vlaa_lib.escape import say
from vlaa_lib.folders import atomic
from vlaa_lib.images import MAX_PIXELS, problem_of
from vlaa_lib.records import REWARDS, Record, RecordError, Reject, from_columns, line_of, numbered

from . import boxes, choices, maths, open_ended, verifiers
from .open_ended import RewardModel
from .verifiers import MAX_ANSWER_CHARS, GoldError, Score, gold_text

AUDITED = 256  # ours: records whose gold is checked together
MAX_COMPLETION_CHARS = 100_000  # ours: twelve times the longest completion of the paper's settings
_VERIFIERS: dict[str, Callable[[Record, str], Any]] = {
    "digit": verifiers.digit, "mcq": choices.mcq, "iou": boxes.box, "math": maths.submit,
}  # fmt: skip


def read_answer(completion: str) -> tuple[str, Score | None]:
    """Return the answer of a completion, or the zero that its format earns (paper §4)."""
    answer, problem = "", f"more than {MAX_COMPLETION_CHARS} characters"
    if len(completion) <= MAX_COMPLETION_CHARS:
        parsed = prompts.split_think_answer(completion)
        answer, problem = parsed.answer, parsed.problem
    if len(answer) > MAX_ANSWER_CHARS:
        answer, problem = "", f"answer of more than {MAX_ANSWER_CHARS} characters"
    return answer, Score(0.0, f"format: {problem}", is_format=True) if problem else None


def is_misformed(completion: str) -> bool:
    """Say whether a completion earns 0 for its format, whatever its answer."""
    return read_answer(completion)[1] is not None


def score(record: Record, completion: str, reward_model: RewardModel | None = None) -> Score:
    """Score one completion with its record's verifier; see `score_all`."""
    return score_all([record], [completion], reward_model)[0]


def score_all(
    records: Sequence[Record],
    completions: Sequence[str],
    reward_model: RewardModel | None = None,
) -> list[Score]:
    """Score completions, each with its own record; mathematics runs in parallel workers.

    Args:
        reward_model: for open answers; default: the facts of the installed world.
    Raises:
        GoldError: a gold that its verifier cannot use; run `audit` when loading data.
    """
    scores = _score_each(records, completions, reward_model)
    for record, found in zip(records, scores, strict=True):
        if isinstance(found, GoldError):
            raise GoldError(f"record {record.id}: {found} (`rewards.audit` lists all such records)")
    return scores


def _score_each(
    records: Sequence[Record], completions: Sequence[str], model: RewardModel | None
) -> list[Score | GoldError]:
    """Score like `score_all`, with a gold's error in the place of its score."""
    if len(records) != len(completions):
        raise ValueError(f"{len(records)} records for {len(completions)} completions")
    read = [read_answer(text) for text in completions]
    scores: list[Any] = [problem for _, problem in read]
    rows = [(i, records[i], answer) for i, (answer, problem) in enumerate(read) if not problem]
    rows.sort(key=lambda row: row[1].reward != "math")  # so that the workers run meanwhile
    for i, record, answer in rows:
        if record.reward != "open":
            scores[i] = _or_error(_verify, record, answer)
    asked = [row for row in rows if row[1].reward == "open"]
    found = open_ended.score_open([r for _, r, _ in asked], [a for *_, a in asked], model)
    for (i, *_), score in zip(asked, found, strict=True):
        scores[i] = score
    for i, record, answer in rows:
        if isinstance(scores[i], Future):
            scores[i] = _or_error(maths.collect, record, answer, scores[i])
    return scores


def _or_error(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except GoldError as error:
        return error


def _verify(record: Record, answer: str) -> Any:
    if record.reward not in _VERIFIERS:
        raise GoldError(f"unknown reward {record.reward!r}; use one of {', '.join(REWARDS)}")
    return _VERIFIERS[record.reward](record, answer)


def audit(
    records: Sequence[Record],
    file: str = "",
    reward_model: RewardModel | None = None,
    lines: Mapping[str, int] | None = None,
) -> list[Reject]:
    """List the records whose gold does not score 1.0 against itself, with the remedy.

    An open gold can never beat itself; it must be possible to score it.

    Args:
        file, lines: of the records, lines by id; put into the rejects.
    """
    golds = [prompts.join_think_answer("", gold_text(record)) for record in records]
    rejects = []
    for record, found in zip(records, _score_each(records, golds, reward_model), strict=True):
        if isinstance(found, GoldError):
            problem = str(found)
        elif found.is_format:
            problem = f"gold cannot stand in an answer ({found.reason}); correct 'gt'"
        elif not found.kind:
            problem = f"{found.reason}; ask again, or leave the record out"
        elif record.reward != "open" and found.value < 1.0:
            problem = f"gold scores below 1.0 on itself ({found.reason}); correct 'gt'"
        else:
            continue
        rejects.append(Reject(file, (lines or {}).get(record.id), record.id, problem))
    return rejects


def usable(
    path: str | Path,
    images: str | Path,
    out: str | Path | None = None,
    any_open: bool = False,
) -> Iterator[Record]:
    """Yield a file's records whose image is there and whose gold can be scored.

    The others go to the screen and, with their reasons, into `out/rejects.jsonl`.

    Args:
        any_open: keep open questions without a scene, which only a reward model could score.
    Raises:
        RecordError: the file is missing or not text, or holds no usable record.
    """
    rows, seen, found = numbered(path, images), 0, 0
    with ExitStack() as stack:
        rejects = stack.enter_context(atomic(Path(out) / "rejects.jsonl")) if out else None
        while chunk := list(islice(rows, AUDITED)):
            seen += len(chunk)
            made = [row for _, row in chunk if isinstance(row, Record)]
            lines = {row.id: line for line, row in chunk if isinstance(row, Record)}
            if any_open:
                made = [row for row in made if row.reward != "open" or "scene" in row.meta]
            bad = {reject.id: reject for reject in audit(made, Path(path).name, lines=lines)}
            for _, row in chunk:
                reject = row if isinstance(row, Reject) else bad.get(row.id)
                if reject is None:
                    found += 1
                    yield row
                    continue
                say(f"rejected: {reject}", is_error=True)
                if rejects:
                    rejects.write(line_of(reject))
    if not seen:
        raise RecordError(f"{path}: the file holds no records; was the download complete?")
    if not found:
        raise RecordError(f"{path}: no usable record; every reason is above")


def pictured(
    made: Iterable[Record], images: str | Path, max_pixels: int = MAX_PIXELS
) -> Iterator[Record]:
    """Yield the records whose image a model can be shown; the others are named on the screen.

    For who cannot leave a record out later; it opens each image. A RecordError where none is left.
    """
    found = 0
    for record in made:
        if why := problem_of(record.image, images, max_pixels):
            say(f"rejected: {Reject('', None, record.id, why)}", is_error=True)
        else:
            found += 1
            yield record
    if not found:
        raise RecordError("no record has a usable image; every reason is above")


def text_of(completion: str | list[dict]) -> str:
    """Return the text of a completion as TRL passes it: plain, or one assistant message."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [])


def mixed_reward(
    prompts: list,
    completions: list,
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    parts: Collection[str] = REWARDS,
    reward_model: RewardModel | None = None,
    **columns: Any,
) -> list[float | None]:
    """Score a batch as TRL's GRPOTrainer asks for it (paper §4, mixed reward).

    TRL names a reward by its `__name__`: give `parts` or a reward model with
    `functools.update_wrapper(partial(mixed_reward, ...), mixed_reward)`.

    Args:
        columns: of the dataset, one value a completion; `Record.to_columns` made them.
        parts: rewards to score; other records get None, which TRL leaves out.
    """
    records = from_columns(columns)
    if len(records) != len(completions):
        raise ValueError(f"{len(records)} records for {len(completions)} completions")
    chosen = [i for i, r in enumerate(records) if r.reward in parts]
    texts = [text_of(completions[i]) for i in chosen]
    found = score_all([records[i] for i in chosen], texts, reward_model)
    scores: list[Score | None] = [None] * len(records)
    for i, score in zip(chosen, found, strict=True):
        scores[i] = score
    if log_extra:
        log_extra("reason", [s.reason if s else "" for s in scores])
        log_extra("record_id", [r.id for r in records])
    if log_metric and found:
        # TRL collects the names of all processes: a part may be missing on some of them
        for part in dict.fromkeys(records[i].reward for i in chosen):
            values = [scores[i].value for i in chosen if records[i].reward == part]
            log_metric(f"reward_{part}", sum(values) / len(values))
        log_metric("format_rate", sum(not s.is_format for s in found) / len(found))
    return [s.value if s else None for s in scores]


def start(columns: Mapping[str, Sequence[Any]], completions: Sequence) -> None:
    """Let the workers begin with the mathematics of what `mixed_reward` will get: see `maths`."""
    for made, completion in zip(from_columns(columns), completions, strict=True):
        answer, problem = read_answer(text_of(completion))
        if made.reward == "math" and not problem:
            _or_error(maths.submit, made, answer)  # a bad gold is raised by `mixed_reward`
