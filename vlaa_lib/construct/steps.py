"""The steps of the dataset pipeline (paper §2): what each asks a teacher, and what it makes of it.

A step is two pure functions. `ask(record, templates)` returns the request, or None when the record
already has what the step would pay for. `take(record, reply)` returns the record grown by the
reply, or a Drop with the reason; it is also called, with None, when nothing was asked. All calls
and waiting live in `llm` and `pipeline`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

from vlaa_lib import VlaaError, prompts
from vlaa_lib.folders import read_text
from vlaa_lib.llm import NO_TEXT, Reply, Request, fill, quoted
from vlaa_lib.llm.messages import SLOT
from vlaa_lib.records import Record

MAX_WORDS_CHANGED = 15  # paper §2, step 4

# paper §2, step 2: what the teacher is told beside the caption, by source; keys of `meta`
EXTRA_CONTEXT = {"CLEVR-Math": "rationale", "Math PUMA": "text_question"}
UNCAPTIONED = ("Math PUMA",)  # paper §2, step 2: its textual version stands in for the caption

_EMPTY_THINK = re.compile(rf"^\s*{prompts.THINK_OPEN}\s*{prompts.THINK_CLOSE}")


@dataclass(frozen=True)
class Templates:
    """The prompt of each step; the defaults are in our own words."""

    caption: str = prompts.CAPTION_PROMPT
    distil: str = prompts.DISTIL_PROMPT
    rewrite: str = prompts.REWRITE_PROMPT
    verify: str = prompts.VERIFY_PROMPT


OURS = Templates()
# step -> the authors' name for its template, slots it must have, slots it may have besides
_FILES = {
    "caption": ("1.captioning.txt", (), ("question",)),
    "distil": ("2.r1cot.txt", ("caption", "question"), ()),
    "rewrite": ("3.rewrite.txt", ("input",), ()),
    "verify": ("4.verify.txt", ("gold", "pred"), ("question",)),
}


def read_templates(folder: str | Path) -> Templates:
    """Read a user's own templates by the authors' file names; a file not there keeps ours.

    Raises:
        VlaaError: none of the files is there, or one lacks a slot or has a foreign one.
    """
    found = {}
    for step, (name, needed, allowed) in _FILES.items():
        path = Path(folder) / name
        if not path.exists():
            continue
        try:
            found[step] = read_text(path)
        except OSError as error:
            raise VlaaError(f"{path}: cannot be read ({error.strerror}); mend or move it") from None
        slots = set(SLOT.findall(found[step]))
        if missing := set(needed) - slots:
            raise VlaaError(f"{path}: no slot {{{min(missing)}}}; the step cannot do without")
        if foreign := slots - {*needed, *allowed}:
            known = ", ".join(f"{{{slot}}}" for slot in (*needed, *allowed))
            raise VlaaError(f"{path}: slot {{{min(foreign)}}} has no value here; use {known}")
    if not found:
        names = ", ".join(name for name, *_ in _FILES.values())
        raise VlaaError(f"{folder}: holds none of {names}")
    return Templates(**found)


@dataclass(frozen=True)
class Drop:
    """Why a record leaves the pipeline: `reason` is counted, `detail` is about this record."""

    reason: str
    detail: str = ""


class Step(NamedTuple):
    """One step of the pipeline; see the module's docstring."""

    name: str
    ask: Callable[[Record, Templates], Request | None]
    take: Callable[[Record, Reply | None], Record | Drop]


def extra_context(record: Record) -> str:
    """Return what the source knows of the image in words, besides the caption (paper §2)."""
    text = record.meta.get(EXTRA_CONTEXT.get(record.source, ""), "")
    return text.strip() if isinstance(text, str) else ""


def ask_caption(record: Record, templates: Templates = OURS) -> Request | None:
    """Ask for a caption of the image, unless the record has one or its source needs none."""
    if record.caption or (record.source in UNCAPTIONED and extra_context(record)):
        return None
    return Request("caption", fill(templates.caption, question=record.question), record.image)


def take_caption(record: Record, reply: Reply | None) -> Record | Drop:
    """Keep the caption, and who wrote it, as the released files do (`meta.caption_model_id`)."""
    if reply is None:
        return record
    if not (caption := prompts.without_thinking(reply.text)):
        return Drop(NO_TEXT, reply.text[:80])
    meta = record.meta | {"caption_model_id": reply.model}
    return replace(record, caption=caption, meta=meta)


def ask_distil(record: Record, templates: Templates = OURS) -> Request | None:
    """Ask a text-only reasoner, unless the record has a reply or a trace already (paper §2)."""
    if record.ds_answer or record.answer:
        return None
    sight = "\n\n".join(filter(None, (record.caption, extra_context(record))))
    return Request("distil", fill(templates.distil, caption=sight, question=record.question))


def take_distil(record: Record, reply: Reply | None) -> Record | Drop:
    """Keep the reply and turn it into a trace; a trace that is already there is checked only."""
    if reply is not None:
        text = _EMPTY_THINK.sub("", reply.text) if reply.reasoning else reply.text
        if prompts.THINK_OPEN not in text:
            if reply.reasoning:
                text = f"{prompts.THINK_OPEN}{reply.reasoning}{prompts.THINK_CLOSE}{text}"
            elif prompts.THINK_CLOSE in text:  # R1's template puts the opening tag into the prompt
                text = prompts.THINK_OPEN + text
        record = replace(record, ds_answer=text)
    given = record.answer and prompts.split_think_answer(record.answer)
    parsed = given or parse_reply(record.ds_answer)
    if parsed.problem or not parsed.think:
        return Drop("malformed trace", parsed.problem or "empty think block")
    return replace(record, answer=prompts.join_think_answer(parsed.think, parsed.answer))


def parse_reply(text: str) -> prompts.Parsed:
    """Split a reasoner's reply: a think block, then an answer block or plain prose.

    DeepSeek-R1 and the real records write prose after the think block; all of it is the answer
    until it is verified (see `take_verify`). Tags anywhere else, or none, are a `problem`.

    >>> parse_reply("<think>two and one</think> Three of them.").answer
    'Three of them.'
    """
    parsed = prompts.split_think_answer(text)
    if parsed.problem is None:
        return parsed
    head, close, prose = text.partition(prompts.THINK_CLOSE)
    tagged = head + close + prompts.ANSWER_OPEN + prose + prompts.ANSWER_CLOSE
    as_prose = prompts.split_think_answer(tagged)
    return parsed if as_prose.problem else as_prose


def ask_rewrite(record: Record, templates: Templates = OURS) -> Request | None:
    """Ask to turn "the caption says" into "the image shows" in the whole trace (paper §2)."""
    return Request("rewrite", fill(templates.rewrite, input=record.answer))


def take_rewrite(record: Record, reply: Reply | None) -> Record | Drop:
    """Keep the rewritten trace if its length changed by at most 15 words (paper §2, step 4).

    Words are what white space separates, in the think and answer blocks together, tags not counted.
    """
    if reply is None:
        return record
    before, parsed = prompts.split_think_answer(record.answer), _trace_in(reply.text)
    if parsed.problem:
        return Drop("rewrite broke the trace", parsed.problem)
    words = [len(f"{text.think} {text.answer}".split()) for text in (before, parsed)]
    if (changed := abs(words[0] - words[1])) > MAX_WORDS_CHANGED:
        reason = f"rewrite changed the length by more than {MAX_WORDS_CHANGED} words"
        return Drop(reason, f"{changed} words")
    return replace(record, answer=prompts.join_think_answer(parsed.think, parsed.answer))


def _trace_in(text: str) -> prompts.Parsed:
    """Split a reply that is a trace, or thinking of the rewriter's own and then a trace."""
    parsed = prompts.split_think_answer(text)
    # a trace has one closing tag: what thinking there is ends with the one before it
    before = text.rpartition(prompts.THINK_CLOSE)[0].rpartition(prompts.THINK_CLOSE)
    if parsed.problem and before[1]:
        after = prompts.split_think_answer(text[len(before[0]) + len(before[1]) :])
        return parsed if after.problem else after
    return parsed


def changed_words(before: str, after: str) -> list[tuple[str, str]]:
    """Return (before, after) of each run of words that a rewrite changed.

    >>> changed_words("the caption says two", "the image shows two")
    [('caption says', 'image shows')]
    """
    old, new = before.split(), after.split()
    codes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [(" ".join(old[i:j]), " ".join(new[k:n])) for tag, i, j, k, n in codes if tag != "equal"]


def ask_verify(record: Record, templates: Templates = OURS) -> Request | None:
    """Ask whether the trace's answer is the gold (paper §2, step 5)."""
    pred = prompts.split_think_answer(record.answer).answer
    given = {"question": record.question, "gold": record.solution, "pred": pred}
    made = fill(templates.verify, **{name: quoted(text) for name, text in given.items()})
    return Request("verify", made)


def take_verify(record: Record, reply: Reply | None) -> Record | Drop:
    """Keep the record on Yes; No and anything else drop it, counted apart (paper §2, step 5).

    Ours: a closed question whose teacher answered in prose gets the gold, which the prose was just
    found to agree with, as its answer, since verifiers read a bare number, letter, expression or
    box. Open questions keep the prose; an answer block stays as the teacher wrote it.
    """
    if reply is None:
        return record
    verdict = prompts.without_thinking(reply.text).rstrip(".").lower()
    trace = prompts.split_think_answer(record.answer)
    if verdict == "no":
        detail = f"gold {record.solution!r}, answer {trace.answer[:80]!r}"
        return Drop("answer is not the gold", detail)
    if verdict != "yes":
        return Drop("verdict is neither Yes nor No", reply.text[:80])
    in_prose = record.ds_answer and prompts.split_think_answer(record.ds_answer).problem
    if not in_prose or record.reward == "open":
        return record
    return replace(record, answer=prompts.join_think_answer(trace.think, record.solution))


STEPS = (
    Step("caption", ask_caption, take_caption),
    Step("distil", ask_distil, take_distil),
    Step("rewrite", ask_rewrite, take_rewrite),
    Step("verify", ask_verify, take_verify),
)
