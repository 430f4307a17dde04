"""Find the answer in a completion: the answer tag first, then the rules of the row's kind.

Nothing is guessed and nothing random: where no rule names one answer there is none, and the path
says so. Which text was read is the path's first half, which rule read it the second:

* `tags`: both blocks as asked for. `answer-tag`: an answer block alone, or one inside a broken
  format. `after-think`: what follows the thought. `plain`: a reply without any tag.
  `phrase`: mode strict, what follows "The answer is" in a reply without tags. Behind a colon
  `json`: DynaMath's object was read; `judge`: an LLM's reply, see `judge`.
* without an answer: `empty`, `too-long`, `unclosed` (cut off while thinking or answering),
  `repeated` (answer blocks that differ), or any of the above with `:none`.
* rules: none (the whole text is the answer), `:boxed`, `:phrase` ("the answer is"), `:line` (the
  last line, then the first), `:letter`, `:option-text`, `:equals`, `:number`, `:yes-no`, `:list`.

Only `tags` kept the format; the share of other paths is the share of format failures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vlaa_lib import VlaaError, prompts
from vlaa_lib.rewards.maths import MAX_MATH_CHARS, clean, is_one
from vlaa_lib.rewards.mixed import MAX_COMPLETION_CHARS
from vlaa_lib.rewards.verifiers import MAX_ANSWER_CHARS, bare, choose

from . import kit
from .benchmarks import Row, family
from .tasks import LETTERS, Task, letters, numbers, real, task, text_of

# ours; strict: the tags, or a reply without any, whole; the kit's rules of two times, each also
# with the tag rule of its VLAA-Thinker class in front
MODES = ("ours", "strict", *kit.MODES)


class Extracted(NamedTuple):
    """An answer, and by which path it was found; the answer is empty where there is none."""

    answer: str
    path: str


Reader = Callable[[str], "str | None"]

# Bounded quantifiers throughout: model text may be built to make a pattern backtrack.
_OPEN, _CLOSE = prompts.ANSWER_OPEN, prompts.ANSWER_CLOSE
_TAG = re.compile("|".join(map(re.escape, prompts.TAGS)), re.IGNORECASE)
_LEAD = re.compile(
    r"\b(?:answer|choice|option|result)\b[*_\s]{0,4}"
    r"(?:(?:is|are|would be|must be|should be)\b|[:=])[:*_\s]{0,6}", re.IGNORECASE,
)
_BOXED = re.compile(r"\\boxed\s?\{((?:[^{}]|\{(?:[^{}]|\{[^{}]{0,99}\}){0,99}\}){1,300})\}")
# a sentence's end, and what begins a reason; never inside `A, C`, `3.5` or `B, or C`
_CUT = re.compile(
    r"[.;!?](?=\s|$)|,(?=\s(?!or\b|and\b)[a-z]{2})|\s(?:because|since|as|which|so|where|for|with)\b"
)
# a letter by itself; `A cube` and `I see` are none unless the word before says so
_TOKEN = re.compile(r"(?<![\w'’\\])([A-I])(?![\w'’]|\s?=)")
_NOUN = re.compile(r"\s(?!(?:or|nor|and|is|because|since|as|which|but)\b)[a-z]")
_LABELLED = re.compile(
    r"\W{0,4}(?:[Oo]ption\s|[Cc]hoice\s)?\W{0,3}([A-I])\s?[).:*]{1,4}\s{1,3}(.+)"
)
_SAYS_SO = re.compile(r"\b(?:option|choice|answer)\s{1,3}[*(]{0,3}$", re.IGNORECASE)
_NOT_BEFORE = re.compile(  # `not B`, and names of points, which are no choices
    r"(?:\b(?:not|than|points?|line|angle|side|triangle|circle|segment|vertex|label(?:led)?)"
    r"|n't|∠|=)\s{0,2}(?:option\s|choice\s)?[*(]{0,3}$", re.IGNORECASE,
)
_AMOUNT = re.compile(r"(?<![\w.])[+\-−]?\d[\d,]{0,30}(?:\.\d{1,30})?(?![\w/^]|\.\d)")
_HEDGE = re.compile(
    r"\b(?:not|or|about|around|more than|less than|fewer than|at least|at most|between)\b", re.I
)
_NOTHING = ("unclosed", "repeated", "malformed")
_SENTENCE = re.compile(
    r"\b(?:is|are|the|we|it|so|hence|therefore|not|about|around|than|least|most|between|cannot)\b",
    re.IGNORECASE,
)
_YES_NO = re.compile(r"(yes|no)(?=[,!;:]|\.(?!\s?\d)|$)", re.IGNORECASE)  # but not `No. 5`
_LIST = re.compile(r"\[[^\[\]]{1,400}\]")


def extract_answer(completion: str) -> tuple[str, str]:
    """Return (answer, path): from the tags, from a reply without any tag, or nothing.

    A reply without tags counts in accuracy, not in the strict reward: `base` never saw the format.

    >>> extract_answer("3"), extract_answer("2 + 1 = 3. The answer is 3.")
    (('3', 'plain'), ('3', 'phrase'))
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


def extract(benchmark: str, row: Row, completion: Any, mode: str = "ours") -> Extracted:
    """Find the answer of a completion (any cell) to a row of a benchmark by one of `MODES`.

    It never looks at the gold; the kit's answer may come from rules that do.
    """
    return extract_task(family(benchmark), task(benchmark, row), row, completion, mode)


def extract_task(name: str, made: Task, row: Row, completion: Any, mode: str) -> Extracted:
    """Do what `extract` does, for a row that is read already."""
    check_mode(mode)
    text = text_of(completion)
    if not text:
        return Extracted("", "empty")
    if mode in kit.MODES:
        verdict = kit.verdict(name, made, row, text, mode)
        return Extracted(verdict.answer, verdict.path)
    if len(text) > MAX_COMPLETION_CHARS:
        return Extracted("", "too-long")
    if mode == "strict":
        answer, path = extract_answer(text)
        found = read_whole(made, answer)
        return Extracted(found, path if found or path in _NOTHING else f"{path}:none")
    return _ours(name, made, text)


def check_mode(mode: str) -> None:
    """Refuse a mode that is none of `MODES`."""
    if mode not in MODES:
        raise VlaaError(f"unknown extraction mode {mode!r}; use one of {', '.join(MODES)}")


def _ours(name: str, made: Task, text: str) -> Extracted:
    text, path = answer_text(text)
    if not text:
        return Extracted("", path if path in _NOTHING else f"{path}:none")
    if name == "DynaMath" and (short := _short_answer(text)):
        text, path = short, f"{path}:json"
    if path.startswith(("tags", "answer-tag")) and len(text) > MAX_ANSWER_CHARS:
        return Extracted("", f"{path}:none")
    answer, rule = _search(text, _reader(made), made)
    if not answer and made.kind == "letters":  # one letter may be said in more ways than a set
        answer, rule = _search(text, _reader(_ONE_LETTER), _ONE_LETTER)
    return Extracted(answer, f"{path}:{rule}" if rule else path)


def answer_text(text: str) -> tuple[str, str]:
    """Return the part of a completion to look in, and the path so far.

    >>> answer_text("<answer>B</answer>"), answer_text("<think>so B"), answer_text("B")
    (('B', 'answer-tag'), ('', 'unclosed'), ('B', 'plain'))
    """
    parsed = prompts.split_think_answer(text)
    if parsed.problem is None:
        return parsed.answer, "tags"
    tags = list(_TAG.finditer(text))
    if not tags:
        return text.strip(), "plain"
    names = [tag[0].lower() for tag in tags]
    blocks = [
        text[tag.end() : tags[i + 1].start()].strip()
        for i, tag in enumerate(tags[:-1]) if names[i : i + 2] == [_OPEN, _CLOSE]
    ]  # fmt: skip
    if names[-1] in (_OPEN, prompts.THINK_OPEN):
        return "", "unclosed"
    if blocks:
        return ("", "repeated") if len(set(blocks)) > 1 else (blocks[0], "answer-tag")
    if names[-1] == prompts.THINK_CLOSE:
        return text[tags[-1].end() :].strip(), "after-think"
    return "", "malformed"


def _short_answer(text: str) -> str:
    """Return the short answer of the JSON object that DynaMath's prompt asks for."""
    first, last = text.find("{"), text.rfind("}")
    for body in (text[first : last + 1], text[first : last + 1].replace("\\", "")):
        try:  # as it is, then without the backslashes of LaTeX, which JSON may refuse
            found = json.loads(body, strict=False)
        except (ValueError, RecursionError):
            continue
        short = found.get("short answer") if isinstance(found, dict) else None
        return text_of(short) if isinstance(short, (str, int, float)) else ""
    return ""


# --- what is an answer of each kind ---------------------------------------------------------------


def _reader(made: Task) -> Reader:
    """Return the function that reads a text which is nothing but an answer of the task's kind."""
    if made.kind == "option":
        return lambda text: choose(text, made.choices or dict.fromkeys(LETTERS, "\0"))[0]
    if made.kind == "letters":
        return lambda text: ", ".join(
            sorted(letters(re.sub(r"[()\[\]]", "", bare(text)), made.question) or ())
        )
    if made.kind == "number":
        return lambda text: bare(text) if real(text, made.question) is not None else None
    if made.kind == "list":
        return lambda text: bare(text) if numbers(text) else None
    return _expression if made.kind == "maths" else _words


def read_whole(made: Task, text: str) -> str:
    """Read a text that is to be an answer of the task's kind and nothing else; else nothing."""
    return (_reader(made)(text) if len(text) <= MAX_ANSWER_CHARS else None) or ""


_ONE_LETTER = Task("option", "")


def _expression(text: str) -> str | None:
    """Take what is short enough to be one expression and is no sentence."""
    text = bare(text)
    if len(text) > MAX_MATH_CHARS or _SENTENCE.search(text) or not is_one(clean(text)):
        return None
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", clean(text))  # functions have a backslash
    return text if len(words) <= 2 else None


def _words(text: str) -> str | None:
    text = bare(text)
    if match := _YES_NO.match(text):
        return match[1]
    is_short = 0 < len(text) <= 120 and "\n" not in text
    return text if is_short and not _LEAD.search(text) else None


# --- where an answer stands -----------------------------------------------------------------------


def _search(text: str, read: Reader, made: Task) -> tuple[str, str]:
    """Return (answer, rule) by the first rule that finds one, ("", "none") when none does."""
    if len(text) <= MAX_ANSWER_CHARS and (found := _first(read, [text])):
        return found, ""
    tail = text[-MAX_ANSWER_CHARS:]  # conclusions stand at the end
    lines = [line.strip() for line in tail.split("\n") if line.strip()]
    if not lines:
        return "", "none"
    boxes, leads = _BOXED.findall(tail), list(_LEAD.finditer(tail))
    if boxes and (found := _first(read, _shortened(boxes[-1]))):
        return found, "boxed"
    if leads:
        said = tail[leads[-1].end() :].partition("\n")[0][:MAX_MATH_CHARS]
        if found := _first(read, _shortened(said)):
            return found, "phrase"
    last = lines[-1]
    if made.kind == "option":
        if _contradicts(last, made.choices or {}):
            return "", "none"
        found = _by_line(read, lines) or _letter(last, made)
        return found or _option_text(last, made.choices or {}) or ("", "none")
    if made.kind == "number":
        return _by_line(read, lines) or _amount(last, read)
    if made.kind == "maths":
        # `the line is y = 2x`: an equation whole, else its right side
        ends = (re.split(sign, last)[-1] for sign in (r"\b(?:is|are)\b", "="))
        found = _first(read, (piece for end in ends for piece in _shortened(end)))
        return _by_line(read, lines[-1:]) or ((found, "equals") if found else ("", "none"))
    if made.kind == "list":
        found = _first(read, reversed(_LIST.findall(tail)))
        return (found, "list") if found else ("", "none")
    if made.kind == "text" and (match := _YES_NO.match(lines[0])):
        return match[1], "yes-no"
    return _by_line(read, lines[-1:]) or ("", "none")


def _first(read: Reader, pieces: Any) -> str | None:
    return next((found for piece in pieces if (found := read(piece))), None)


def _by_line(read: Reader, lines: list[str]) -> tuple[str, str] | None:
    for line in (lines[-1], lines[0]):
        if found := _first(read, _shortened(line)):
            return found, "line"
    return None


def _shortened(piece: str) -> Iterator[str]:
    """Yield a piece whole, and up to the end of its first clause."""
    piece = piece.strip().strip("*_ ")
    yield piece
    if cut := _CUT.search(piece):
        yield piece[: cut.start()].strip("*_ ")


def _letter(line: str, made: Task) -> tuple[str, str] | None:
    """Read the one letter of a choice that a line speaks of; two letters are none."""
    choices, named = made.choices or dict.fromkeys(LETTERS, "\0"), set()
    for match in _TOKEN.finditer(line):
        before, after = line[max(0, match.start() - 30) : match.start()], line[match.end() :]
        is_word = match[1] in "AI" and _NOUN.match(after) and not _SAYS_SO.search(before)
        if match[1] not in choices or is_word or _NOT_BEFORE.search(before):
            continue
        named.add(match[1])
    return (named.pop(), "letter") if len(named) == 1 else None


def _contradicts(line: str, choices: dict[str, str]) -> bool:
    """Say whether a line begins with one choice's letter and another one's text: `B. 30`."""
    match = _LABELLED.match(line[:MAX_MATH_CHARS])
    said = list(_shortened(match[2])) if match else []
    return any(choose(text, choices)[0] not in (None, match[1]) for text in said if len(text) > 1)


def _option_text(line: str, choices: dict[str, str]) -> tuple[str, str] | None:
    """Read the one choice whose text stands in a line as words of its own."""
    line, found = line[-400:].casefold(), set()
    for letter, text in choices.items():
        pattern = rf"(?<![\w.\-]){re.escape(text.casefold())}(?!\w|[.,]\d)"
        found |= {(*match.span(), letter) for match in re.finditer(pattern, line) if text}
    longest = {  # `blue` does not count inside `dark blue`
        letter for start, end, letter in found
        if not any(s <= start and end <= e and e - s > end - start for s, e, _ in found)
    }  # fmt: skip
    is_negated = any(re.search(r"(?:\bnot|n't)\s(?:\w+\s)?$", line[:start]) for start, *_ in found)
    return (longest.pop(), "option-text") if len(longest) == 1 and not is_negated else None


def _amount(line: str, read: Reader) -> tuple[str, str]:
    """Read what a line's last equation ends in, or its only number."""
    if "=" in line and (found := _first(read, _shortened(line.rpartition("=")[2]))):
        return found, "equals"
    values = {match.rstrip(",") for match in _AMOUNT.findall(line)}
    if len(values) != 1 or _HEDGE.search(line):
        return "", "none"
    found = read(values.pop())
    return (found, "number") if found else ("", "none")
