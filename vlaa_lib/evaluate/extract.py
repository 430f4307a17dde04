"""Find the answer in a completion: where it stands, then the rules of the question's kind.

Nothing is guessed and nothing random: where no rule names one answer there is none, and the path
says so. Which text was read is the path's first half, which rule read it the second:

* `tags`: both blocks as asked for. `answer-tag`: an answer block alone, or one inside a broken
  format, or behind We-Math's own label `<Answer>:`. `after-think`: what follows the thought.
  `plain`: a reply without any tag. Behind a colon `json`: DynaMath's object was read; `judge`: an
  LLM's reply, see `judge`.
* without an answer: `empty`, `too-long`, `unclosed` (cut off while thinking or answering),
  `repeated` (answer blocks that differ), `malformed`, or any of the above with `:none`.
* rules: none (the whole text is the answer), `:boxed`, `:phrase` ("the answer is"), `:line` (the
  last line, then the first), `:letter`, `:option-text`, `:equals`, `:number`, `:yes-no`, `:list`.

Only `tags` kept the format; the share of other paths is the share of format failures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

from vlaa_lib import VlaaError, prompts
from vlaa_lib.rewards import quantities, verifiers
from vlaa_lib.rewards.boxes import parse_box
from vlaa_lib.rewards.choices import MAX_SENTENCE_CHARS, choose, plain, standing
from vlaa_lib.rewards.maths import MAX_MATH_CHARS
from vlaa_lib.rewards.mixed import MAX_COMPLETION_CHARS
from vlaa_lib.rewards.notation import clean, is_one
from vlaa_lib.rewards.verifiers import MAX_ANSWER_CHARS, bare, predicates, shortened

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
_LABEL = re.compile(r"<(?:thought process|(answer))>\s{0,3}[:：]", re.IGNORECASE)  # We-Math's own
_END_OF_TURN = re.compile(r"(?:\s{0,9}(?:<\|[a-z_]{2,20}\|>|</s>|<eos>|<end_of_turn>)){1,9}\s*\Z")
_LEAD = re.compile(
    r"\b(?:answer|choice|option|result)\b[*_\s]{0,4}(?:(?:(?:is|are|would be|must be|should be)\b"
    r"|[:=：])[:*_\s]{0,6}|\n\s{0,6})|\b(?:answers|choices|options) are\b[:*_\s]{0,6}|"
    r"(?:答案|选项)\s{0,3}[是为:：]\s{0,3}", re.IGNORECASE,
)
_BOXED = re.compile(r"\\boxed\s?\{((?:[^{}]|\{(?:[^{}]|\{[^{}]{0,99}\}){0,99}\}){1,300})\}")
# a letter by itself; no label of a point in `=`, and not the A of N/A
_TOKEN = re.compile(r"(?<![\w'’\\])(?<!N/)(?<!n/)([A-I])(?![\w'’]|\s?=)")
# where a letter is a choice, or nothing: points have letters, too
_SAYS_SO = re.compile(
    r"(?:\b(?:(?:options?|choices?|answers?)(?:\s(?:is|are))?|choose|select|pick|say)|[选项案])"
    r"\W{0,4}$", re.IGNORECASE,
)
_IS_RIGHT = re.compile(
    r"[)\].:*]{0,3}\s{1,2}(?:is|are|must be|would be)\s(?:therefore\s|thus\s)?(?:the\s)?"
    r"(?:(?:only|best|most)\s)?(?:correct|right|true|answer|option|choice)\b", re.IGNORECASE,
)
_FIRST = re.compile(r"\W{0,9}(?:\b(option|choice)\s\W{0,3})?$", re.IGNORECASE)
_AT_END = re.compile(r"[^\w?]{0,9}(?:</\w{1,6}>[^\w?]{0,9})?")
_COMES_TO = re.compile(  # what stands before a letter at the end of a line that is a choice
    r"(?:\A|[,:;→>–—*-]|\b(?:is|be|so|thus|hence|therefore|say|go with|(?:corresponds|leads|points)"
    r" to|options?|choices?|answers?|letter|figure|picture|image|pattern|diagram|choose|pick)|"
    r"\bselect|[是选为项案])[\s(\[*_$\"'<>b]{0,6}$", re.IGNORECASE,
)
_BEGINS = re.compile(r"\s?[.:),;*\]]|\s[-–—]|,?\s(?:because|since|as)\b")
# `A cube`, `I see`; but `option A is`
_NOUN = re.compile(r"\s(?!(?:or|nor|and|is|because|since|as|which|but)\b)[a-z]")
_NOT_BEFORE = re.compile(  # `not B`, and names of points, which are no choices
    r"(?:\b(?:not|than|points?|line|angle|side|triangle|circle|segment|vertex|label(?:led)?|at|on|"
    r"of|through|from|by|in|and|or|"
    r"(?:midpoint|cent(?:er|re)|vertex|foot|origin|intersection)\b[^,.;]{0,20}\s(?:is|be))"
    r"|n't|∠|=|[不非点角])\s{0,2}(?:option\s|choice\s)?[*(]{0,3}$", re.IGNORECASE,
)
_SEVERAL = re.compile(
    r"(?<!\w)[A-I][)\]*]{0,3}(?:\s{0,2}[,/&、或和]\s{0,2}|\s(?:and|or)\s)[(\[*]{0,3}[A-I](?!\w)"
)
_LABELLED = re.compile(
    r"\W{0,4}(?:[Oo]ption\s|[Cc]hoice\s)?\W{0,3}([A-I])\s?[).:*：]{1,4}\s{0,3}(..+)"
)
_LISTED = re.compile(r"\W{0,4}([A-I])\s?[).:：．]")
_AMOUNT = re.compile(r"(?<![\w./^])[+\-−]?\d[\d,]{0,30}(?:\.\d{1,30})?(?![\w/^]|\.\d)")
_FIRST_WORD = re.compile(
    r"(?:a total of |just |exactly |only )?([a-z]{3,9}(?:-[a-z]{3,5})?)(?! of\b)\b"
)
_HEDGE_BEFORE = re.compile(
    r"(?:\b(?:not|never|or|about|around|roughly|nearly|almost|than|least|most|between|over|under|"
    r"up to|either|from|to|except)|n['’]t)\s(?:be\s|equal to\s|exactly\s)?[$*(\\]{0,4}$",
    re.IGNORECASE,
)
_HEDGE_AFTER = re.compile(
    r"\W{0,3}(?:or|to|and a half|hundred|thousand|million|billion|dozen|times|"
    + "|".join(quantities.NUMBER_WORDS) + r")\b", re.I)  # fmt: skip
_AND_MORE = re.compile(r"\band\s(?:an?|one|another|some|several)\b", re.IGNORECASE)
_NOTHING = ("empty", "too-long", "unclosed", "repeated", "malformed")
_SAYS = re.compile("=|:|" + verifiers.VERB.pattern)
_SENTENCE = re.compile(
    r"\b(?:is|are|the|we|it|so|hence|therefore|not|about|around|than|least|most|between)\b", re.I)
_YES_NO = re.compile(r"(yes|no)(?=[,!;:]|\.(?!\s?\d)|$)", re.IGNORECASE)  # but not `No. 5`
_LIST = re.compile(r"\[[^\[\]]{1,400}\]")


def extract_answer(completion: str) -> Extracted:
    r"""Return the text in which a completion gives its answer, and where that stands (see above).

    >>> extract_answer("<answer>B</answer>")[:], extract_answer("<think>so B")[:]
    (('B', 'answer-tag'), ('', 'unclosed'))
    >>> extract_answer("<Thought process>: 1 < 2 <Answer>: <<B>>")[:], extract_answer("B\n")[:]
    (('<<B>>', 'answer-tag'), ('B', 'plain'))
    """
    if len(completion) > MAX_COMPLETION_CHARS:
        return Extracted("", "too-long")
    text = _END_OF_TURN.sub("", completion).strip()
    parsed = prompts.split_think_answer(text)
    if parsed.problem is None:
        return Extracted(parsed.answer, "tags")
    tags, labels = list(prompts.ANY_TAG.finditer(text)), list(_LABEL.finditer(text))
    names = [tag[0].lower() for tag in tags]
    ends = [label.start() for label in labels[1:]] + [len(text)]
    if labels and _CLOSE not in names:
        blocks = [text[label.end() : end].strip()
                  for label, end in zip(labels, ends, strict=True) if label[1]]  # fmt: skip
    elif not tags:
        return Extracted(text, "plain" if text else "empty")
    elif names[-1] in (_OPEN, prompts.THINK_OPEN):
        return Extracted("", "unclosed")
    else:
        blocks = [
            text[tag.end() : tags[i + 1].start()].strip()
            for i, tag in enumerate(tags[:-1]) if names[i : i + 2] == [_OPEN, _CLOSE]
        ]  # fmt: skip
    if blocks:
        is_one = len({bare(block) for block in blocks}) == 1
        return Extracted(blocks[-1], "answer-tag") if is_one else Extracted("", "repeated")
    if not labels and names[-1] == prompts.THINK_CLOSE:
        return Extracted(text[tags[-1].end() :].strip(), "after-think")
    return Extracted("", "unclosed" if labels else "malformed")


def extract(benchmark: str, row: Row, completion: Any, mode: str = "ours") -> Extracted:
    """Find the answer of a completion (any cell) to a row of a benchmark by one of `MODES`.

    It never looks at the gold; the kit's answer may come from rules that do.
    """
    return extract_task(family(benchmark), task(benchmark, row), row, completion, mode)


def extract_task(name: str, made: Task, row: Row, completion: Any, mode: str) -> Extracted:
    """Do what `extract` does, for a row that is read already."""
    check_mode(mode)
    if not (text := text_of(completion)):
        return Extracted("", "empty")
    if mode in kit.MODES:
        verdict = kit.verdict(name, made, row, text, mode)
        return Extracted(verdict.answer, verdict.path)
    answer, path = extract_answer(text)
    if mode == "strict" and path not in ("tags", "plain", *_NOTHING):
        return Extracted("", "malformed")
    if not answer:
        return Extracted("", path if path in _NOTHING else f"{path}:none")
    if mode == "strict":
        if path == "plain" and prompts.ANSWER_PHRASE in answer:
            answer = answer.rpartition(prompts.ANSWER_PHRASE)[2]
        found = read_whole(made, answer)
        return Extracted(found, path if found else f"{path}:none")
    if name == "DynaMath" and (short := _short_answer(answer)) is not None:
        answer, path = short, f"{path}:json"
    if not path.startswith("plain") and len(answer) > MAX_ANSWER_CHARS:
        return Extracted("", f"{path}:none")
    found, rule = _search(answer, _reader(made), made)
    if not found and made.kind == "letters":  # one letter may be said in more ways than a set
        found, rule = _search(answer, _reader(_ONE_LETTER), _ONE_LETTER)
    return Extracted(found, f"{path}:{rule}" if rule else path)


def check_mode(mode: str) -> None:
    """Refuse a mode that is none of `MODES`."""
    if mode not in MODES:
        raise VlaaError(f"unknown extraction mode {mode!r}; use one of {', '.join(MODES)}")


def _short_answer(text: str) -> str | None:
    """Return the short answer of the JSON object that DynaMath's prompt asks for; None without."""
    first, last = text.find("{"), text.rfind("}")
    for body in (text[first : last + 1], text[first : last + 1].replace("\\", "")):
        try:  # as it is, then without the backslashes of LaTeX, which JSON may refuse
            found = json.loads(body, strict=False)
        except (ValueError, RecursionError):
            continue
        short = found.get("short answer") if isinstance(found, dict) else None
        return text_of(short) if isinstance(short, (str, int, float)) else None
    return None


# --- what is an answer of each kind ---------------------------------------------------------------


def _reader(made: Task) -> Reader:
    """Return the function that reads a text which is nothing but an answer of the task's kind."""
    known = made.choices or set(LETTERS)
    match made.kind:
        case "option":
            return lambda text: (
                found if (found := choose(text, made.choices or {})[0]) in known else None
            )
        case "letters":
            return lambda text: ", ".join(
                sorted(letters(re.sub(r"[()\[\]]", "", bare(text)), made.question) or ())
            )
        case "number":
            return lambda text: bare(text) if real(text, made.question) is not None else None
        case "list":
            return lambda text: bare(text) if numbers(text) else None
        case "box":
            return lambda text: text if parse_box(text, made.frame, made.size) else None
        case "open":
            return lambda text: text.rpartition(prompts.ANSWER_PHRASE)[2].strip()
    return _expression if made.kind == "maths" else _words


def read_whole(made: Task, text: str) -> str:
    """Read a text that is to be an answer of the task's kind and nothing else; else nothing."""
    return (_reader(made)(text) if len(text) <= MAX_ANSWER_CHARS else None) or ""


_ONE_LETTER = Task("option", "")


def _expression(text: str) -> str | None:
    """Take what is short enough to be one expression and is no sentence."""
    text = bare(text)
    if text.endswith((",", ":", ";")) or verifiers.UNSURE.search(text):  # cut off, or a premise
        return None
    if len(text) > MAX_MATH_CHARS or _SENTENCE.search(text) or not is_one(clean(text)):
        return None
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", clean(text))  # functions have a backslash
    return text if len(words) <= 2 else None


def _words(text: str) -> str | None:
    """Take a few words, of a short sentence what it says that something is."""
    text = bare(text)
    if match := _YES_NO.match(text):
        return match[1]
    if not 0 < len(text) <= 120 or "\n" in text or _LEAD.search(text):
        return None
    if _SENTENCE.search(text) and (said := next(predicates(text), "")):
        return re.sub(r"^(?:an?|the)\s", "", bare(said))
    return text


# --- where an answer stands -----------------------------------------------------------------------


def _search(text: str, read: Reader, made: Task) -> tuple[str, str]:
    """Return (answer, rule) by the first rule that finds one, ("", "none") when none does."""
    if len(text) <= MAX_ANSWER_CHARS and (found := read(text)):
        return found, ""
    tail = text[-MAX_ANSWER_CHARS:]  # conclusions stand at the end
    lines = _unlisted([line.strip() for line in tail.split("\n") if line.strip()])
    if not lines:
        return "", "none"
    last, boxes, leads = lines[-1], _BOXED.findall(tail), list(_LEAD.finditer(tail))
    if boxes and (found := _first(read, shortened(boxes[-1]))):
        return found, "boxed"
    said = tail[leads[-1].end() :].partition("\n")[0][:MAX_MATH_CHARS] if leads else ""
    if said and (found := _first(read, shortened(said))):
        return found, "phrase"
    match made.kind:
        case "option":
            return _option(read, lines, made.choices or {})
        case "number":
            return _by_line(read, lines) or _amount(last, read)
        case "maths":
            if found := read(last):
                return found, "line"
            # then a clause in front, unless it is but words: `Note, the angle ...`
            ends = (s for s in shortened(last) if re.search(r"[^A-Za-z\s]|^[A-Za-z]$", s))
            found = _first(read, predicates(bare(last)[:MAX_MATH_CHARS])) or _first(read, ends)
            return (found, "equals") if found else ("", "none")
        case "list":
            found = _first(read, reversed(_LIST.findall(tail)))
            return (found, "list") if found else ("", "none")
        case "text" if match := _YES_NO.match(lines[0]):
            return match[1], "yes-no"
    return _by_line(read, lines[-1:]) or ("", "none")


def _first(read: Reader, pieces: Any) -> str | None:
    return next(filter(None, map(read, pieces)), None)


def _by_line(read: Reader, lines: list[str]) -> tuple[str, str] | None:
    for line in (lines[-1], lines[0]):
        if found := _first(read, shortened(bare(line))):
            return found, "line"
    return None


def _unlisted(lines: list[str]) -> list[str]:
    """Drop lines that tell choices one after the other: they repeat the question."""
    marks = [match[1] if (match := _LISTED.match(line)) else "" for line in lines]
    pairs = [{a, b} for a, b in pairwise(marks) if a and b and a < b]
    return [line for line, mark in zip(lines, marks, strict=True)
            if not any(mark in pair for pair in pairs)]  # fmt: skip


def _option(read: Reader, lines: list[str], choices: dict[str, str]) -> tuple[str, str]:
    """Read the one choice of the last line: its letter, or its text; two of them are none."""
    last = lines[-1]
    if match := _LABELLED.match(last[:MAX_SENTENCE_CHARS]):  # `B. 30` where A is 30, or none is
        others = any(read(said) not in (None, match[1]) for said in shortened(match[2]))
        if others or (choices and not re.search(r"[A-Za-z]{3}", match[2]) and not read(last)):
            return "", "none"
    if found := _by_line(read, lines):
        return found
    letter, text = _letter(last, choices), _option_text(last[-MAX_SENTENCE_CHARS:], choices)
    if letter and text not in ("", letter):
        return "", "none"
    return (letter, "letter") if letter else (text, "option-text" if text else "none")


def _letter(line: str, choices: dict[str, str]) -> str:
    """Return the one letter that a line names as its choice, in words or by its place."""
    said, placed, told = set(), set(), set()
    for match in _TOKEN.finditer(line):
        before, after = line[max(0, match.start() - 40) : match.start()], line[match.end() :]
        is_word = match[1] in "AI" and _NOUN.match(after) and not _FIRST.search(before)[1]
        if is_word or match[1] not in (choices or LETTERS) or _NOT_BEFORE.search(before):
            continue
        told.add(match[1])
        is_first = _FIRST.fullmatch(before) and _BEGINS.match(after)
        is_marked = before[-1:] + after[:1] in ("()", "**")
        if is_first or (_AT_END.fullmatch(after) and _COMES_TO.search(before)):
            placed.add(match[1])
        elif is_marked or _SAYS_SO.search(before) or _IS_RIGHT.match(after):
            said.add(match[1])
    if _SEVERAL.search(line) or len(said | placed) != 1:
        return ""
    is_lonely = told == placed and not verifiers.UNSURE.search(verifiers.CLAUSE.split(line)[-1])
    return (said | placed).pop() if said or is_lonely else ""


def _option_text(line: str, choices: dict[str, str]) -> str:
    """Return the one choice whose text stands in a line; a number only where a clause ends in it.

    For `the 30° angle` and `given that it is 30°` are no answers.
    """
    for piece in shortened(line):
        clause = verifiers.CLAUSE.split(piece)[-1]
        if len(standing(plain(piece), choices)) == 1 and not re.search(r"\d", clause):
            clause = piece
        text = plain(clause if _SAYS.search(clause) else piece)
        found = standing(text, choices)
        if len(found) > 1 or verifiers.UNSURE.search(clause):
            return ""
        for letter, start in found.items():
            said = plain(choices[letter])
            before, after = text[:start].rstrip(), text[start + len(said) :]
            is_said = not re.search(r"\w", after) or verifiers.VERB.fullmatch(before.split(" ")[-1])
            if (is_said or not re.search(r"\d", said)) and not _HEDGE_BEFORE.search(before + " "):
                return letter
    return ""


def _amount(line: str, read: Reader) -> tuple[str, str]:
    """Read what a line's last equation ends in, or the only number of what it says, or of it."""
    if "=" in line and (found := _first(read, shortened(line.rpartition("=")[2]))):
        return found, "equals"
    for said in (*predicates(line), "" if verifiers.UNSURE.search(line) else line):
        word = None if said == line else _FIRST_WORD.match(said)
        found = [(match[0].rstrip(","), *match.span()) for match in _AMOUNT.finditer(said)]
        if word and verifiers.read_number(word[1]) is not None:
            found.append((word[1], *word.span(1)))
        if len({value for value, *_ in found}) > 1 or _AND_MORE.search(said):
            return "", "none"
        for value, start, end in found:
            if _HEDGE_BEFORE.search(said[:start]) or _HEDGE_AFTER.match(said[end:]):
                return "", "none"
            if value := read(value):
                return value, "number"
    return "", "none"
