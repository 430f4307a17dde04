"""The local teacher: it captions scenes with mistakes, and answers the rest from text alone.

At the end its mistakes under measurement: false steps by noise, and the step checker's eye.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import string
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from vlaa_lib import prompts, rewards
from vlaa_lib.llm.messages import SLOT
from vlaa_lib.records import Record
from vlaa_lib.rewards.boxes import iou, parse_box
from vlaa_lib.rewards.verifiers import MAX_ANSWER_CHARS
from vlaa_lib.traces.measures import check_steps, measure

from . import microworld
from .microworld import facts, narrator, truth
from .microworld.narrator import Rates

TEMPLATES = {
    "teacher-caption": prompts.CAPTION_PROMPT,
    "teacher-distil": prompts.DISTIL_PROMPT,
    "teacher-rewrite": prompts.REWRITE_PROMPT,
    "teacher-verify": prompts.VERIFY_PROMPT,
}


class Refusal(Exception):
    """A request that the teacher does not answer: HTTP status and an OpenAI error code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class LocalTeacher:
    """Answer the four kinds of request, which the model names; arguments as of `serve_teacher`."""

    def __init__(self, scenes: Mapping[str, dict], rates: Rates | None = None) -> None:
        self._scenes, self._rates = scenes, rates or Rates()

    def reply(self, model: str, messages: list[dict[str, Any]]) -> tuple[str, str]:
        """Return (prompt text, reply text) to the last message, or raise a Refusal."""
        if model not in TEMPLATES:
            said = f"no model {model!r} here; use {', '.join(TEMPLATES)}"
            raise Refusal(404, "model_not_found", said)
        text, image = _read(messages[-1]["content"])
        slots = read_back(TEMPLATES[model], text)
        if slots is None:
            said = f"{model} only understands this library's own prompt for it"
            raise Refusal(422, "unknown_prompt", said)
        # chance comes from what is asked, not from sampling settings or the order of requests;
        # escapes of half a character are legal JSON
        named = f"{model}\0{text}\0{image}".encode("utf-8", "surrogatepass")
        rng = random.Random(int(hashlib.sha256(named).hexdigest(), 16))
        if model == "teacher-caption":
            if image not in self._scenes:
                said = (
                    "the local teacher only knows micro-world images, and this is none of those it "
                    "was started with; give records with captions, or a real endpoint's address"
                )
                raise Refusal(422, "unknown_image", said)
            return text, narrator.caption(self._scenes[image], self._rates, rng)
        if model == "teacher-distil":
            try:
                told = narrator.reason(slots["caption"], slots["question"], self._rates, rng)
            except narrator.CannotAnswer as error:
                raise Refusal(422, "cannot_answer", str(error)) from None
            return text, prompts.join_think_answer(*told)
        if model == "teacher-rewrite":
            return text, rewrite(slots["input"])
        return text, "Yes" if agrees(slots["gold"], slots["pred"]) else "No"


def _read(content: str | list[dict[str, Any]]) -> tuple[str, str]:
    """Return a message's text and the sha256 hex digest of its image, if any."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    if not urls:
        return text, ""
    data = base64.b64decode(urls[-1].partition(";base64,")[2], validate=True)
    return text, hashlib.sha256(data).hexdigest()


def read_back(template: str, text: str) -> dict[str, str] | None:
    """Read the slot values back out of a filled template; None when the text is not one.

    >>> read_back("Q: {question} A: {gold}", "Q: how many? A: 3")
    {'question': 'how many?', 'gold': '3'}
    """
    pieces = SLOT.split(template)  # text, slot, text, slot, ..., text
    pattern = "".join(
        f"(?P<{piece}>.*?)" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)
    )
    match = re.fullmatch(pattern, text, re.DOTALL)
    return match.groupdict() if match else None


# --- rewrite and verify: plain text in, plain text out -------------------------------------------

_WORDS = "caption|description|rationale"
_SAYS = "says|states|mentions|describes|notes|reads|tells"
# said of the text, then said of the picture; the first letter keeps its case
_SEEN = (
    (rf"\baccording to the (?:{_WORDS})\b,?", "the image shows"),
    (rf"\b(?:the|this) (?:{_WORDS}) (?:{_SAYS})\b", "the image shows"),
    (rf"\b(?:the|this) (?:{_WORDS})\b", "the image"),
)

_NUMBER = re.compile(r"(?<![\w./])[-+]?\d+(?:\.\d+)?(?![\w%/])")
_LETTER = re.compile(
    r"\b(?:option|choice|answer(?: is)?):?\s*\(?([A-H])\b|^\W*([A-H])\W*$", re.IGNORECASE
)


def rewrite(text: str) -> str:
    """Turn wording such as "the caption says" into "the image shows", and change nothing else.

    >>> rewrite("According to the description, there are two. So the caption has two.")
    'The image shows there are two. So the image has two.'
    """
    for said, seen in _SEEN:
        cased = {True: seen[0].upper() + seen[1:], False: seen}
        pattern = re.compile(said, re.IGNORECASE)
        text = pattern.sub(lambda match, cased=cased: cased[match[0][0].isupper()], text)
    return text


def agrees(gold: str, pred: str) -> bool:
    """Tell whether an answer is the gold, by the kind of gold: box, number, letter or text.

    Boxes agree at an intersection over union of 0.5; of several numbers or letters in prose the
    last counts; texts are equal without case, spaces and punctuation, or a gold of plain words
    stands as such in the answer; a description shares a fact with the gold; mathematics goes
    through the reward's verifier. Ours: rules a fair reader would accept on the micro-world.

    >>> agrees("3", "There are 3 left."), agrees("C", "So it is 2 (Option C)"), agrees("3", "4")
    (True, True, False)
    """
    if box := parse_box(gold):
        other = parse_box(pred)
        return other is not None and iou(box, other) >= 0.5
    # signs and brackets count
    plain = [re.sub(r"[\s$]", "", text.lower()).rstrip(".") for text in (gold, pred)]
    if plain[0] and plain[0] == plain[1]:
        return True
    if _NUMBER.fullmatch(gold.strip()):
        if "\\" in pred or "^" in pred:
            return _is_same_maths(gold, pred)
        numbers = _NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3}\b)", "", pred))
        return bool(numbers) and float(numbers[-1]) == float(gold)
    if re.fullmatch(r"[A-H]", gold.strip()):
        letters = ["".join(found).upper() for found in _LETTER.findall(pred)]
        return bool(letters) and letters[-1] == gold.strip()
    is_words = re.fullmatch(r"[A-Za-z' -]{3,}", gold.strip())
    if is_words and f" {_bare(gold)} " in f" {_bare(pred)} ":
        return True
    if known := set(facts.extract(gold)):
        return bool(known & set(facts.extract(pred)))
    return not is_words and _is_same_maths(gold, pred)


_ONE_AT_A_TIME = threading.Lock()  # the server answers from many threads, the verifier is one
_EXPRESSION = re.compile(r"\$([^$]+)\$|\\\(((?:(?!\\\)).)+)\\\)")


def _is_same_maths(gold: str, pred: str) -> bool:
    """Ask the verifier whether the answer, or the last expression in its prose, equals the gold."""
    record = Record("verify", "", "", gold, reward="math")
    last = ["".join(found) for found in _EXPRESSION.findall(pred[-MAX_ANSWER_CHARS:])][-1:]
    try:
        with _ONE_AT_A_TIME:
            said = [prompts.join_think_answer("so", text) for text in (pred, *last) if text.strip()]
            return any(rewards.score(record, text).value == 1.0 for text in said)
    except rewards.GoldError:  # the gold is no mathematics
        return False


def _bare(text: str) -> str:
    """Lower-case, without dollar signs and the punctuation around words."""
    words = (word.strip(string.punctuation) for word in text.lower().replace("$", " ").split())
    return " ".join(filter(None, words))


# --- the teacher under measurement ---------------------------------------------------------------


def false_steps_by_noise(
    sources: Iterable[str],
    rates: Rates,
    factors: Iterable[float] = (0.0, 0.5, 1.0, 2.0),
    n: int = 60,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Let the text-only teacher answer from captions of several noise levels (ours).

    One row a source and factor, over `n` scenes of the `dev` split: how many traces answered, the
    share of answers that verification accepts, and the share of traces with a false step among
    all of them (`false_all`) and among the verified ones (`false_verified`).

    Args:
        rates: omission, confusion and miscount are multiplied by each factor, at most to 1.
    """
    table, caught = [], ("omit", "confuse", "miscount")
    for source, factor in product(sources, factors):
        noisy = replace(rates, **{k: min(1.0, getattr(rates, k) * factor) for k in caught})
        told = [trial for trial in _trials(source, n, seed, noisy) if trial[1]]
        is_false = [measure(_text(said), r.meta["scene"])["false_steps"] > 0 for r, said, _ in told]
        is_right = [agrees(record.gt, answer) for record, _, answer in told]
        kept = [false for false, right in zip(is_false, is_right, strict=True) if right]
        table.append({
            "source": source, "noise": factor, "answered": len(told),
            "verified": len(kept) / max(1, len(told)),
            "false_all": sum(is_false) / max(1, len(told)),
            "false_verified": sum(kept) / max(1, len(kept)),
        })  # fmt: skip
    return table


def checker_quality(
    sources: Iterable[str], rates: Rates, n: int = 60, seed: int = 0
) -> dict[str, float]:
    """Hold `check_steps` against what the teacher meant to say, sentence by sentence (ours).

    The teacher knows the facts that it put into a sentence, the checker only has the words. Over
    `n` scenes a source: sentences, how many are false, and precision and recall of finding those.
    """
    meant, marked = [], []
    for source in sources:
        for record, told, _ in _trials(source, n, seed, rates):
            scene = record.meta["scene"]
            meant += [any(truth.holds(fact, scene) is False for fact in t.facts) for t in told]
            marked += [s.truth is False for s in check_steps(_text(told), scene)]
    both = sum(a and b for a, b in zip(meant, marked, strict=True))
    return {"sentences": len(meant), "false": sum(meant),
            "precision": both / max(1, sum(marked)),
            "recall": both / max(1, sum(meant))}  # fmt: skip


def taught(records: Sequence[Record], rates: Rates) -> list[dict[str, Any]]:
    """Return the teacher's trace of each record as scored rows of a store.

    That is the record's own trace, or for a scene without one what the narrator says of a caption
    at these rates; records whose question the caption does not answer have no row.
    """
    texts = {record.id: record.answer for record in records}
    for record in records:
        if not record.answer and record.meta.get("scene"):
            told, answer = _told(record, record.id, rates)
            texts[record.id] = prompts.join_think_answer(_text(told), answer) if told else ""
    known = [record for record in records if texts[record.id]]
    scores = rewards.score_all(known, [texts[record.id] for record in known])
    return [
        {
            "record_id": record.id, "source": record.source, "part": record.reward,
            "image": record.image, "model": "teacher", "completion": texts[record.id],
            "reward": score.value, "reason": score.reason,
        }
        for record, score in zip(known, scores, strict=True)
    ]  # fmt: skip


def _trials(
    source: str, n: int, seed: int, rates: Rates
) -> Iterator[tuple[Record, list[narrator.Told], str]]:
    """Yield records of the `dev` split, each with the teacher's sentences and its answer."""
    for index in range(n):
        record = microworld.record(source, "dev", index, seed)
        yield record, *_told(record, f"{source}/{index}/{seed}", rates)


def _told(record: Record, seed: str, rates: Rates) -> tuple[list[narrator.Told], str]:
    """Return what the teacher says of a scene's caption; no sentences without an answer."""
    rng = random.Random(seed)
    caption = narrator.caption(record.meta["scene"], rates, rng)
    try:
        return narrator.tell(caption, record.question, rates, rng)
    except narrator.CannotAnswer:
        return [], ""


def _text(told: list[narrator.Told]) -> str:
    return " ".join(sentence.text for sentence in told)
