"""The hacking watch: signs that a policy learns the reward and not the task (all limits ours)."""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlaa_lib import prompts
from vlaa_lib.folders import write_csv
from vlaa_lib.records import Record

from .answers import MAX_ANSWER_CHARS, Score
from .mixed import MAX_COMPLETION_CHARS
from .verifiers import choose, options, read_number

ECHO_WORDS = 5  # a run of words that stands in the prompt and in the completion
ECHO_SHARE = 0.5  # of a completion's words
PACKED_SHARE = 0.2  # of a completion's bytes, after zlib; English prose packs to 0.4 or more
PACKED_BYTES = 200  # shorter texts are not judged
WINDOW = 5  # rounds that an alarm looks at; before there are so many, none is raised
MAX_SHARE = 0.1  # of completions that show one kind of sign
MAX_CLIPPED = 0.25  # of completions that end at the length limit
MAX_GROWTH = 2.0  # of the mean length, last rounds to first rounds
MARGIN = 0.05  # reward up, held-out accuracy down, each by more than that

# Bounded quantifiers throughout: model text may be built to make a pattern backtrack.
_TAG_LIKE = re.compile(
    r"<\s{0,3}/?\s{0,3}(?:think(?:ing)?|thoughts?|reason(?:ing)?|answers?)\s{0,3}/?>", re.IGNORECASE
)
_SPECIAL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|</?s>|<(?:image|img|video|pad|bos|eos|unk)>|\[/?(?:INST|IMG)\]|"
    r"<(?:start|end)_of_(?:turn|image)>",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\b(?:[B-Z]|A(?!\s{1,3}(?!or\b|and\b)[a-z]))\b")  # not the article
_NUMBER = re.compile(r"\d{1,30}(?:,\d{3}){0,6}(?:\.\d{1,30})?")
_BRACKETS = re.compile(r"\[[^\[\]]{1,200}\]")
_WORD = re.compile(r"[^\W_]{1,40}")


# --- one completion ------------------------------------------------------------------------------


def has_odd_tags(text: str) -> bool:
    """Say whether a think or answer tag stands twice, or a variant such as `<Thinking>` once."""
    found = _TAG_LIKE.findall(text)
    return len(set(found)) < len(found) or not set(found) <= set(prompts.TAGS)


def lists_options(text: str, question: str = "", part: str = "") -> bool:
    r"""Say whether the last answer block offers two or more answers where one is asked for.

    Two different letters (mcq) or numbers (digit) that the verifier does not read as one answer,
    two brackets `[...]` (iou), an "or" or a second `\boxed` (math); open answers may list.
    """
    if prompts.ANSWER_OPEN not in text:
        return False
    answer = text.rpartition(prompts.ANSWER_OPEN)[2].partition(prompts.ANSWER_CLOSE)[0]
    answer = answer[:MAX_ANSWER_CHARS]
    if part == "mcq":
        several = len(set(_LETTER.findall(answer))) > 1
        return several and choose(answer, options(question))[0] is None
    if part == "digit":
        return len(set(_NUMBER.findall(answer))) > 1 and read_number(answer, question) is None
    if part == "iou":
        return len(_BRACKETS.findall(answer)) > 1
    has_or = re.search(r"\bor\b", answer) is not None
    return part == "math" and (has_or or answer.count("\\boxed") > 1)


def has_special_tokens(text: str) -> bool:
    """Say whether an image, role or end token stands in the text, as `<|im_start|>` or `<image>`.

    The trainer decodes with special tokens for this; in a trace they are left out.
    """
    return _SPECIAL.search(text) is not None


def echoes_prompt(text: str, question: str = "", part: str = "") -> bool:
    """Say whether half of the words stand in runs of five or more that are copied from the prompt.

    The prompt is system prompt, question and task instruction; tags count as no words, nor does the
    answer to a multiple choice, which may be a choice's text.
    """
    if part == "mcq" and prompts.ANSWER_OPEN in text:
        text = text.rpartition(prompts.ANSWER_OPEN)[0]
    runs, words = _prompt_runs(question, part), _words(_TAG_LIKE.sub(" ", text))
    copied = end = 0
    for start, run in enumerate(_runs(words)):
        if run in runs:
            copied += start + ECHO_WORDS - max(start, end)
            end = start + ECHO_WORDS
    return copied > 0 and copied >= ECHO_SHARE * len(words)


@lru_cache(maxsize=256)  # a group of completions has one prompt
def _prompt_runs(question: str, part: str) -> frozenset[tuple[str, ...]]:
    asked = prompts.user_text(question, part) if part in prompts.TASK_INSTRUCTIONS else question
    texts = [_words(prompts.SYSTEM_PROMPT), _words(asked)]
    return frozenset(run for words in texts for run in _runs(words))


def _runs(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(ECHO_WORDS)), strict=False)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def is_repetitive(text: str) -> bool:
    """Say whether a text of 200 bytes or more packs with zlib to less than a fifth of its size."""
    data = text.encode("utf-8", errors="replace")
    return len(data) >= PACKED_BYTES and len(zlib.compress(data, 1)) < PACKED_SHARE * len(data)


KINDS = {  # kind -> what completions that show it do
    "tags": "repeat or misspell the format's tags",
    "options": "offer several answers",
    "special": "contain special tokens",
    "echo": "copy the prompt",
    "repetition": "repeat themselves",
}


def kinds(completion: str, question: str = "", part: str = "") -> list[str]:
    """Name the suspicious signs in a completion, of `KINDS`; the start of a very long one is read.

    Args:
        completion: text as sampled, with special tokens if those are to be seen.
        part: the record's reward; without it no list of options is looked for.

    >>> kinds("<think>Hm.</think><answer>A or B</answer>", "Which? (A) 1 (B) 2", "mcq")
    ['options']
    """
    text, question = completion[:MAX_COMPLETION_CHARS], question[:MAX_COMPLETION_CHARS]
    found = {
        "tags": has_odd_tags(text),
        "options": lists_options(text, question, part),
        "special": has_special_tokens(text),
        "echo": echoes_prompt(text, question, part),
        "repetition": is_repetitive(text),
    }
    return [kind for kind, is_there in found.items() if is_there]


# --- rounds --------------------------------------------------------------------------------------


def rows(
    records: Sequence[Record], completions: Sequence[str], scores: Sequence[Score], step: int = 0
) -> list[dict[str, Any]]:
    """Return what `measure` needs of scored completions, in the columns of the trace store."""
    return [
        {
            "optimizer_step": step,
            "part": record.reward,
            "completion": text,
            "reward": score.value,
            "reason": score.reason,
            "suspicious": ", ".join(kinds(text, record.question, record.reward)),
        }
        for record, text, score in zip(records, completions, scores, strict=True)
    ]


def measure(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Sum up one round of trace rows: rewards by part, signs by kind, length.

    Returns:
        `step, n, reward, reward_low, reward_high, reward_<part>..., format_rate`, `suspicious`
        (share with any sign), `suspicious_<kind>...`, `tokens` (mean), `clipped` (share). None
        where rows lack the column.
    """
    signs = [_signs(row) for row in rows]
    found: dict[str, float | None] = {"step": rows[0]["optimizer_step"], "n": len(rows)}
    rewards = _values(rows, "reward")
    found |= {"reward": _mean(rewards)}
    found |= {"reward_low": min(rewards, default=None), "reward_high": max(rewards, default=None)}
    for part in sorted({row["part"] for row in rows}):
        mine = [row for row in rows if row["part"] == part]
        found[f"reward_{part}"] = _mean(_values(mine, "reward"))
    found["format_rate"] = _mean([not row["reason"].startswith("format:") for row in rows])
    found["suspicious"] = _mean([bool(names) for names in signs])
    for kind in KINDS:
        found[f"suspicious_{kind}"] = _mean([kind in names for names in signs])
    found["tokens"] = _mean(_values(rows, "completion_tokens"))
    found["clipped"] = _mean(_values(rows, "clipped"))
    return found


def _signs(row: Mapping[str, Any]) -> list[str]:
    """Read the signs kept in a trace row; in one of an older store, find them in its text."""
    if row.get("suspicious") is None:
        return kinds(row["completion"], part=row["part"])
    return row["suspicious"].split(", ") if row["suspicious"] else []


def curve(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    """Measure each round of a trace store: the rows of one optimizer step, in order."""
    rounds: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        rounds.setdefault(row["optimizer_step"], []).append(row)
    return [measure(rounds[step]) for step in sorted(rounds)]


def alarms(
    curve: Sequence[Mapping[str, float | None]], held_out: Mapping[int, float] | None = None
) -> dict[str, str]:
    """Say what is wrong at the end of a curve: name -> a sentence with the numbers.

    Args:
        held_out: optimizer step -> accuracy on held-out records, in [0, 1].
    """
    if len(curve) < WINDOW:
        return {}
    first, last, found = curve[:WINDOW], curve[-WINDOW:], {}
    is_young = len(curve) < 2 * WINDOW  # first and last rounds overlap
    for name, does in {**KINDS, "clipped": "end at the length limit"}.items():
        column = name if name == "clipped" else f"suspicious_{name}"
        limit = MAX_CLIPPED if name == "clipped" else MAX_SHARE
        share, before = _average(last, column), _average(first, column)
        if share is not None and share > limit:
            since = "" if is_young else f", {before or 0:.0%} in the first rounds"
            found[name] = f"{share:.0%} of completions {does}{since}"
    now, before = _average(last, "tokens"), _average(first, "tokens")
    if not is_young and now and before and now >= MAX_GROWTH * before:
        found["length"] = f"mean length is {now:.0f} tokens, {before:.0f} in the first rounds"
    extremes = {row.get(key) for row in last for key in ("reward_low", "reward_high")}
    if len(extremes) == 1 and None not in extremes:
        found["constant"] = f"every reward of the last {WINDOW} rounds is {extremes.pop():g}"
    points = [(s, value) for s, value in sorted((held_out or {}).items()) if s <= last[-1]["step"]]
    if len(points) > 1:
        (start, then), (end, value) = points[0], points[-1]
        up, old = _reward_at(curve, end), _reward_at(curve, start)
        if None not in (up, old) and up - old > MARGIN and then - value > MARGIN:
            found["held_out"] = (
                f"reward rises from {old:.3f} to {up:.3f} while held-out accuracy falls from "
                f"{then:.3f} to {value:.3f}"
            )
    return found


def _reward_at(curve: Sequence[Mapping[str, float | None]], step: int) -> float | None:
    """Average the reward over the rounds up to a step; near the start, over the first ones."""
    until = [row for row in curve if row["step"] <= step][-WINDOW:]
    return _average(until if len(until) == WINDOW else curve[:WINDOW], "reward")


def episodes(
    curve: Sequence[Mapping[str, float | None]], held_out: Mapping[int, float] | None = None
) -> list[dict[str, Any]]:
    """List the alarms of a whole curve: `alarm, from_step, to_step, text`, the text as it began.

    `to_step` is the first step without it, None where it lasts to the end.
    """
    found: list[dict[str, Any]] = []
    ringing: dict[str, dict[str, Any]] = {}
    for end, row in enumerate(curve, 1):
        now = alarms(curve[:end], held_out)
        for name in [name for name in ringing if name not in now]:
            ringing.pop(name)["to_step"] = row["step"]
        for name in [name for name in now if name not in ringing]:
            ringing[name] = {
                "alarm": name, "from_step": row["step"], "to_step": None, "text": now[name]
            }  # fmt: skip
            found.append(ringing[name])
    return found


class Watch:
    """Follow a training round by round; keeps the curve in a CSV, says when an alarm changes."""

    def __init__(self, path: str | Path | None = None) -> None:
        """Start an empty curve; without a path (processes other than the first) stay silent."""
        self.path = path
        self.curve: list[dict[str, float | None]] = []
        self._ringing: dict[str, str] = {}

    def add(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Measure a round of trace rows; return its shares for the trainer's log."""
        found = measure(rows)
        self.curve.append(found)
        now, before = alarms(self.curve), self._ringing
        self._ringing = now
        if self.path:
            write_csv(self.path, self.curve)
            changes = [f"alarm {n!r}: {text}" for n, text in now.items() if n not in before]
            changes += [f"alarm {name!r} is over" for name in before if name not in now]
            for text in changes:
                print(f"step {found['step']}: hacking watch, {text}", file=sys.stderr, flush=True)
        return {f"watch/{k}": v for k, v in found.items() if k.startswith("suspicious")}


def _values(rows: Sequence[Mapping[str, Any]], column: str) -> list[float]:
    """Return a column's numbers; None and NaN, as TRL has them for what is not scored, left out."""
    found = [row.get(column) for row in rows]
    return [value for value in found if value is not None and value == value]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _average(curve: Sequence[Mapping[str, float | None]], column: str) -> float | None:
    """Average a column over rounds, each weighing as many completions as it has."""
    kept = [(row[column], row["n"]) for row in curve if row.get(column) is not None]
    return sum(v * n for v, n in kept) / sum(n for _, n in kept) if kept else None
