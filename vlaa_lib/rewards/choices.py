"""Multiple choice: the choices of a question, and the one that an answer names.

A letter, a choice's text, or both when they agree; inside a sentence a text only, since letters in
sentences are names of points as often as choices. Where two are named there is none.
"""

from __future__ import annotations

import re

from vlaa_lib.records import Record

from . import verifiers
from .verifiers import GoldError, Score, bare, excerpt, gold_text, scored

_MARKS = tuple(re.compile(pattern, re.MULTILINE) for pattern in (
    # in this order: A. on lines, A. inside a line, a. on lines
    r"^[ \t]{0,8}\(?([A-Z])[).:]\s{0,8}",
    r"(?:\A|(?<=[\s,;'\"\[]))\(?([A-Z])[).:]\s{1,8}",
    r"^[ \t]{0,8}\(?([a-z])[).:]\s{0,8}",
))
_CHOICES_WORD = re.compile(r"\b(?:choices|options)\s{0,3}:|选项\s{0,3}:", re.IGNORECASE)
_NOUN = r"(?:(?:option|choice|answer)\s{1,3}|(?:选项|应选|故选|选)\s{0,3})?"
_LETTER = re.compile(
    rf"{_NOUN}[(\[]?([A-Z])\s{{0,2}}[)\].:]{{0,2}}"
    r"(?:\s{1,3}is\s{1,3}(?:the\s{1,3})?(?:correct|right)(?:\s{1,3}(?:answer|option|choice))?)?",
    re.IGNORECASE | re.ASCII,
)
_LETTER_AND_TEXT = re.compile(  # B. 45, (B) 45, **B**: 45, B - 45, B (45)
    rf"(?i:{_NOUN})[*_]{{0,3}}[(\[]?([A-Za-z])[*_]{{0,3}}\s{{0,2}}"
    r"(?:[)\].:]{1,2}[*_]{0,3}|\s[-–—](?=\s)|(?=\(.{1,400}\)\Z))(.+)",
    re.DOTALL,
)
MAX_SENTENCE_CHARS = 400  # ours: what may be read as one sentence
_MORE = re.compile(  # what may turn the text behind a letter into another one
    r"\b(?:or|and|not|no|never|than|least|most|about|between|almost|nearly|half|times|[A-Z])\b"
    r"|n['’]t\b|[?或不非\d]"
)


def options(question: str) -> dict[str, str]:
    r"""Read the choices of a question: `A: ...`, `A) ...`, `(A) ...` or `A. ...`, from A on.

    >>> options("Which?\nChoices:\nA: 1\nB: \\frac{1}{2}")
    {'A': '1', 'B': '\\frac{1}{2}'}
    >>> options("Which? (A) red (B) dark blue"), options("How many?")
    ({'A': 'red', 'B': 'dark blue'}, {})
    """
    tail = _CHOICES_WORD.split(question.translate(verifiers.ASCII))[-1]
    for mark in _MARKS:
        run: list[re.Match] = []
        for match in mark.finditer(tail):
            if match[1] in "Aa" and len(run) < 2:
                run = [match]
            elif run and ord(match[1]) == ord(run[-1][1]) + 1:
                run.append(match)
        if len(run) >= 2:
            ends = [match.start() for match in run[1:]] + [len(tail)]
            return {
                m[1].upper(): _choice_text(tail, m, end) for m, end in zip(run, ends, strict=True)
            }
    return {}


def _choice_text(tail: str, mark: re.Match, end: int) -> str:
    text, quote = tail[mark.end() : end], tail[max(0, mark.start() - 1) : mark.start()]
    if quote and quote in "'\"" and quote in text:  # ['A) 1', 'B) 2']
        text = text.rpartition(quote)[0]
    return text.strip().rstrip(",;").strip()


_SAME = tuple((re.compile(pattern), same) for pattern, same in (
    (r"\\[dt]frac", r"\\frac"), (r"\\frac(\d)(\d)", r"\1/\2"),
    (r"\\(?:left|right)(?![a-z])|\\[,;:! ]", " "),
    (r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}", r" \1 "),
    (r"\s?\^\s?\{?\s?\\circ\s?\}?|\\degree\b|\s?\bdegrees?\b", "° "),
    (r"\\sqrt\s?(?:\{(\w{1,20})\}|(\w))", r"√\1\2"), (r"\\sqrt\s?\{([^{}]*)\}", r"√(\1)"),
    *[(r"\\frac\s?\{([^{}+-]+)\}\s?\{(\w+)\}", r"\1/\2")] * 2,
    (r"(?<=\d),(?=\d{3}(?!\d))", ""), (r"(?<=\d)(\.\d{0,30}?)0{1,30}(?!\d)", r"\1"),
    (r"(?<=\d)\.(?!\d)", ""),
    (r"\s*([-+*/=^√:()])\s*", r"\1"), (r"\s*,\s*", ", "), (r"\s+°", "°"),
    (r"(?<=\d)\s+(?=(?:[cmk]?m|k?g|s|h)\b|%)", ""),
))  # fmt: skip


def plain(text: str) -> str:
    r"""Write a choice's text in the one way that is compared.

    >>> plain(r"\dfrac{√3}{3}"), plain("√3 / 3"), plain("15.0"), plain(r"45^{\circ}"), plain("12 m")
    ('√3/3', '√3/3', '15', '45°', '12m')
    """
    text = verifiers.symbols(bare(text)).casefold()
    for pattern, same in _SAME:
        text = pattern.sub(same, text)
    return " ".join(text.split())


def standing(text: str, choices: dict[str, str]) -> dict[str, int]:
    """Return the letters of the choices whose texts stand in a plain text, and where they begin.

    `blue` does not count inside `dark blue`.
    """
    text, found = plain(text), set()
    for letter, choice in choices.items():
        if words := plain(choice):
            pattern = rf"(?<![\w.\-/^*+√]){re.escape(words)}(?![\w/^*+]|[.,]\d)"
            found |= {(*match.span(), letter) for match in re.finditer(pattern, text)}
    return {
        letter: start for start, end, letter in sorted(found)
        if not any(s <= start and end <= e and e - s > end - start for s, e, _ in found)
    }  # fmt: skip


def choose(text: str, choices: dict[str, str]) -> tuple[str | None, str]:
    """Find the one choice that an answer names: (letter, "") or (None, what is wrong).

    Without known choices, as where they stand in the picture, a letter may have any text behind it.

    >>> choose("(b)", {"A": "1", "B": "2"}), choose("A", {})
    (('B', ''), ('A', ''))
    >>> choose("A. 2", {"A": "1", "B": "2"}), choose("The sum at A is 2", {"A": "1", "B": "2"})
    ((None, "letter A does not go with '2'"), ('B', ''))
    """
    text = bare(text)
    if match := _LETTER.fullmatch(text):
        letter = match[1].upper()
        if choices and letter not in choices:
            return None, f"{letter} is none of the choices {', '.join(choices)}"
        return letter, ""
    match = _LETTER_AND_TEXT.fullmatch(text)
    named = _named(text, choices)
    if not named and match and (letter := match[1].upper()) in (choices or letter):
        if _goes_with(letter, match[2].strip("*_ "), choices):
            return letter, ""
        return None, f"letter {letter} does not go with {excerpt(match[2].strip())}"
    if not named and len(text) <= MAX_SENTENCE_CHARS and "\n" not in text:
        said = (_named(said, choices) for said in verifiers.predicates(text))
        named = next(filter(None, said), [])
    if len(named) == 1:
        return named[0], ""
    if named:
        return None, f"{excerpt(text)} is the text of choices {', '.join(named)}"
    return None, f"{excerpt(text)} names no single choice"


def _named(text: str, choices: dict[str, str]) -> list[str]:
    """Return the letters of the choices that have this very text."""
    text = plain(text)
    return [letter for letter, choice in choices.items() if text and plain(choice) == text]


def _goes_with(letter: str, said: str, choices: dict[str, str]) -> bool:
    """Say whether the text behind a letter is that choice's: in its words, or with more of them."""
    if not choices:
        return not _MORE.search(re.sub(r"\d", "", said))
    own, text = plain(choices[letter]), plain(said)
    if own == text:
        return True
    if [key for key, choice in choices.items() if standing(choice, {"": said})] == [letter]:
        return True  # a part of that choice's text and of no other one's
    return list(standing(said, choices)) == [letter] and not _MORE.search(text.replace(own, " "))


def mcq(record: Record, answer: str) -> Score:
    """Score 1 when the answer is the gold's letter, or exactly that choice's text."""
    known = options(record.question)
    gold, problem = choose(gold_text(record), known)
    if gold is None:
        raise GoldError(f"mcq: gold: {problem}; correct 'gt' or the choices in 'question'")
    found, problem = choose(answer, known)
    return verifiers.compared("mcq", found, gold) if found else scored("mcq", 0.0, problem)
