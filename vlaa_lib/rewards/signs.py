"""Signs of reward hacking: that a policy learns the reward and not the task (limits ours)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlaa_lib import prompts, tables
from vlaa_lib.folders import write_csv

from .boxes import BRACKETS
from .choices import choose, options
from .mixed import MAX_COMPLETION_CHARS, is_misformed
from .verifiers import MAX_ANSWER_CHARS, read_number

ECHO_WORDS = 5  # a run of words that stands in the prompt and in the completion
ECHO_SHARE = 0.5  # of a completion's words
PACKED_SHARE = 0.2  # of a completion's bytes, after zlib; English prose packs to 0.4 or more
PACKED_BYTES = 200  # shorter texts are not judged

# Bounded quantifiers throughout: model text may be built to make a pattern backtrack.
_TAG_LIKE = re.compile(
    r"<\s{0,3}/?\s{0,3}(?:think(?:ing)?|thoughts?|reason(?:ing)?|answers?)\s{0,3}/?>", re.IGNORECASE
)
_SPECIAL = re.compile(  # image, role and end tokens; in a trace they are left out
    r"<\|[^<>|\s]{1,40}\|>|</?s>|<(?:image|img|video|pad|bos|eos|unk)>|\[/?(?:INST|IMG)\]|"
    r"<(?:start|end)_of_(?:turn|image)>",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\b(?:[B-Z]|A(?!\s{1,3}(?!or\b|and\b)[a-z]))\b")  # not the article
_NUMBER = re.compile(r"\d{1,30}(?:,\d{3}){0,6}(?:\.\d{1,30})?")
_WORD = re.compile(r"[^\W_]{1,40}")


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
        return len(BRACKETS.findall(answer)) > 1
    has_or = re.search(r"\bor\b", answer) is not None
    return part == "math" and (has_or or answer.count("\\boxed") > 1)


def echoes_prompt(text: str, question: str = "", part: str = "") -> bool:
    """Say whether half of the words stand in runs of five or more that are copied from the prompt.

    The prompt is system prompt, question and task instruction; tags count as no words.
    """
    if part == "mcq" and prompts.ANSWER_OPEN in text:  # the answer may be a choice's text
        text = text.rpartition(prompts.ANSWER_OPEN)[0]
    asked, words = _prompt_runs(question, part), _WORD.findall(_TAG_LIKE.sub(" ", text).lower())
    copied = end = 0
    for start, run in enumerate(_runs(words)):
        if run in asked:
            copied += start + ECHO_WORDS - max(start, end)
            end = start + ECHO_WORDS
    return copied > 0 and copied >= ECHO_SHARE * len(words)


@lru_cache(maxsize=256)  # a group of completions has one prompt
def _prompt_runs(question: str, part: str) -> frozenset[tuple[str, ...]]:
    asked = prompts.user_text(question, part) if part in prompts.TASK_INSTRUCTIONS else question
    texts = [_WORD.findall(text.lower()) for text in (prompts.SYSTEM_PROMPT, asked)]
    return frozenset(run for words in texts for run in _runs(words))


def _runs(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(ECHO_WORDS)), strict=False)


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
    data = text.encode("utf-8", errors="replace")
    is_long, tags = len(data) >= PACKED_BYTES, _TAG_LIKE.findall(text)
    found = {
        # one that stands twice, or a variant such as `<Thinking>`
        "tags": len(set(tags)) < len(tags) or not set(tags) <= set(prompts.TAGS),
        "options": lists_options(text, question, part),
        "special": _SPECIAL.search(text) is not None,
        "echo": echoes_prompt(text, question, part),
        "repetition": is_long and len(zlib.compress(data, 1)) < PACKED_SHARE * len(data),
    }
    return [kind for kind, is_there in found.items() if is_there]


def measure(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Sum up one round of trace rows: rewards by part, signs by kind, length.

    Args:
        rows: with `optimizer_step, part, completion, reward`, the list `suspicious` of `kinds`,
            and, where known, `completion_tokens, clipped`.
    Returns:
        means and shares in [0, 1]; None where rows lack the column.
    """

    def values(column: str, part: str | None = None) -> list[float]:
        found = [row.get(column) for row in rows if part in (None, row["part"])]
        # TRL has None and NaN for what is not scored
        return [value for value in found if value is not None and value == value]

    rewards, parts = values("reward"), sorted({row["part"] for row in rows})
    signs = {f"suspicious_{k}": mean([k in row["suspicious"] for row in rows]) for k in KINDS}
    return {
        "step": rows[0]["optimizer_step"], "n": len(rows), "reward": mean(rewards),
        "reward_low": min(rewards, default=None), "reward_high": max(rewards, default=None),
        **{f"reward_{part}": mean(values("reward", part)) for part in parts},
        "format_rate": mean([not is_misformed(row["completion"]) for row in rows]),
        "suspicious": mean([bool(row["suspicious"]) for row in rows]), **signs,
        "tokens": mean(values("completion_tokens")), "clipped": mean(values("clipped")),
    }  # fmt: skip


class Watch:
    """Follow a training round by round in a CSV, one row a round of `measure`."""

    def __init__(self, path: str | Path | None = None, step: int = 0) -> None:
        """Go on with the rounds kept before an optimizer step; no path, no file."""
        self.path = Path(path) if path else None
        kept = tables.read(self.path) if self.path and self.path.is_file() else []
        self.curve: list[dict[str, Any]] = [row for row in kept if int(row["step"]) < step]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
        """Measure a round of trace rows; return its shares for the trainer's log."""
        self.curve.append(found := measure(rows))
        if self.path:
            write_csv(self.path, self.curve)
        return {f"watch/{k}": v for k, v in found.items() if k.startswith("suspicious")}


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
