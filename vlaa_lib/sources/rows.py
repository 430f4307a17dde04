r"""Rows of the nine public datasets -> objects that `records.from_json` reads; the paper's repairs.

A row function returns an object, or a list of objects and of a RecordError in the place of one.
`origin` is where the picture lies in the dataset: a path as the row states it, or bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from vlaa_lib import prompts, rewards
from vlaa_lib.images import image_extension
from vlaa_lib.records import RecordError, clean_image_path, normalise_gold
from vlaa_lib.rewards.notation import latex

Row = dict[str, Any]


def field(row: Any, key: str, kind: type | tuple[type, ...] = str) -> Any:
    """Return a field of a row, or refuse the row; a RecordError in its place is raised."""
    if isinstance(row, RecordError):
        raise row
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, kind) and value not in ("", []) and not isinstance(value, bool):
        return value
    there = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
    said = "is missing or empty" if value in (None, "", []) else f"is {type(value).__name__}"
    raise RecordError(f"field {key!r} {said}; the row has: {there[:200]}")


def digest(text: str | bytes) -> str:
    """Name a text or picture by its content, in 16 letters."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def flat(path: str) -> str:
    """Write a path as one file name, as the released files do: from below `images` on.

    >>> flat("images/geoqa_plus/2905.png")
    'geoqa_plus-2905.png'
    """
    parts = clean_image_path(path).split("/")
    if "images" in parts[:-1]:
        parts = parts[len(parts) - parts[::-1].index("images") :]
    return "-".join(parts)


# --- choices -------------------------------------------------------------------------------------

_MARK = re.compile(r"\s*[(\[]?([A-Za-z])\s{0,2}[).:\]]{1,2}\s*(.*)", re.DOTALL)
_LABEL = re.compile(r"(?:(?:option|answer)\s*:?\s*)?[(\[]?([A-Za-z])\s{0,2}[).:\]]{0,2}", re.I)


def with_choices(question: str, choices: list[str]) -> str:
    r"""Write choices as `rewards.options` reads them; marks such as `A)`, `(a)` or `A:` go.

    >>> with_choices("Which?", ["(a) red", "(b) dark blue"])
    'Which?\nChoices:\nA: red\nB: dark blue'
    """
    letters = [chr(65 + i) for i in range(len(choices))]
    if not 2 <= len(choices) <= 26 or not all(isinstance(c, str) for c in choices):
        raise RecordError(f"{len(choices)} choices; a question needs 2 to 26, each a text")
    marked = [_MARK.fullmatch(choice) for choice in choices]
    if [mark and mark[1].upper() for mark in marked] == letters:
        choices = [mark[2] for mark in marked]
    elif any(marked):
        raise RecordError(f"the choices' marks do not go {', '.join(letters)}; leave the row out")
    texts = [" ".join(choice.split()) for choice in choices]
    written = dict(zip(letters, texts, strict=True))
    lines = (f"{letter}: {text}" for letter, text in written.items())
    whole = "\n".join([question.strip(), "Choices:", *lines])
    if not all(texts) or rewards.options(whole) != written:
        raise RecordError("the choices cannot be told apart in the question; leave the row out")
    return whole


def arxivqa_label(label: str, choices: list[str]) -> str:
    """Repair an ArxivQA label: its letter alone (paper §2: they come as `A`, `A)`, `(a)`).

    Ours: `A. text` and a choice's whole text count as well, when they name one choice.

    >>> [arxivqa_label(text, ["A) 1", "B) 2"]) for text in ("B", "B)", "(b)", "B. 2", "2", "B) 2")]
    ['B', 'B', 'B', 'B', 'B', 'B']
    """
    shown = rewards.options(with_choices("", choices))
    match = _LABEL.fullmatch(label.strip())
    if match and match[1].upper() in shown:
        return match[1].upper()
    marked = _MARK.fullmatch(label)
    text = " ".join((marked[2] if marked else label).split())
    named = [letter for letter, choice in shown.items() if choice == text]
    if marked:
        named = [letter for letter in named if letter == marked[1].upper()]
    if len(named) == 1:
        return named[0]
    raise RecordError(f"field 'label' {label[:40]!r} names none of the {len(choices)} choices")


# --- Math PUMA -----------------------------------------------------------------------------------

_ANSWER_LINE = re.compile(r"(?:^|\n)[ \t]{0,8}†?[ \t]{0,8}answer\s{0,3}:", re.IGNORECASE)
_WANTS_WHOLE = re.compile(
    r"\b(?:equation|expression|formula|(?:what is|find|determine|write|give) the function)\b", re.I
)
_WANTS_VALUE = re.compile(r"\b(?:values?|solve|solutions?|roots?|coefficients?)\b", re.IGNORECASE)
_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?|\\frac\{[-\d.]+\}\{[\d.]+\})"
_VALUE = re.compile(rf"\s*([a-z])\s*=\s*({_NUMBER})\s*", re.IGNORECASE)
_FORM = re.compile(  # y = ... or f(x) = ..., as far as it goes on in numbers, letters and functions
    r"(?:\b[a-z]\([a-z]\)|\by)\s{0,3}=(?:\d+(?:\.\d+)?|(?:sin|cos|tan|log|ln|exp|abs|sqrt|pi)\b|"
    r"\b[a-z]\b|[-+*/^()| ])+"
)
_NAME = re.compile(r"(?<![\\a-z])[a-z](?![a-z])", re.IGNORECASE)


class Repair(NamedTuple):
    """A gold, and what was done about it: `kept`, `rewritten`, or `left` undecided."""

    gold: str
    how: str


def whole_expression(question: str, text_question: str, gold: str) -> Repair:
    """Put solved unknowns back into the expression that the question wants (paper §2, repairs).

    The paper says that it did this, not how; the rule is ours. It acts only if (1) the question
    asks for an equation, expression or function, and for no value, (2) the gold is a list of
    `letter = number`, (3) the textual version states exactly one form `y = ...` or `f(x) = ...`,
    and (4) the letters of that form, its variable and `e` aside, are exactly the ones solved. A
    gold that fails (3) or (4), or is one number under (1), is `left` as it is, since nothing says
    of what it is the value; anything else is `kept`.

    >>> whole_expression("What is the function's equation?", "y = a * sin(-5 * x) ...", "a = -5")
    Repair(gold='y = (-5) * sin(-5 * x)', how='rewritten')
    >>> whole_expression("What is a?", "y = a * x goes through (1, 2).", "a = 2").how
    'kept'
    """
    parts = re.split(r",|;|\band\b", gold.strip().rstrip("."))
    solved = [_VALUE.fullmatch(part) for part in parts]
    is_number = re.fullmatch(_NUMBER, parts[0].strip()) and len(parts) == 1
    wants_whole = _WANTS_WHOLE.search(question) and not _WANTS_VALUE.search(question)
    if not wants_whole or not (is_number or all(solved)):
        return Repair(gold, "kept")
    values = {match[1]: match[2].strip() for match in solved if match}
    if values.keys() == {"y"}:
        return Repair(gold, "kept")  # `y = 3` is a whole equation: a level line
    stated = re.sub(r"\b([a-wyz])x\b", r"\1 * x", text_question[:2_000])  # ax means a * x
    forms = list(dict.fromkeys(match[0].strip() for match in _FORM.finditer(stated)))
    if len(forms) != 1:
        return Repair(gold, "left")
    left, right = (side.strip() for side in forms[0].split("=", 1))
    unknown = set(_NAME.findall(right)) - {left[2] if "(" in left else "x", "e"}
    if not unknown or values.keys() != unknown:
        return Repair(gold, "left")
    values = {  # a plain number needs no brackets
        name: value if re.fullmatch(r"\w+(?:\.\d+)?", value) else f"({value})"
        for name, value in values.items()
    }
    filled = _NAME.sub(lambda match: values.get(match[0], match[0]), right)
    return Repair(f"{left} = {filled}", "rewritten")


# --- conversations, boxes ------------------------------------------------------------------------


def turns(row: Row) -> list[tuple[str, str]]:
    """Return the (question, reply) pairs of a conversation in LLaVA's form, `<image>` taken out."""
    said = [
        (field(turn, "from"), field(turn, "value").replace("<image>", "").strip())
        for turn in field(row, "conversations", list)
    ]
    roles = [role for role, _ in said]
    if roles != ["human", "gpt"] * (len(said) // 2):
        raise RecordError(f"field 'conversations' goes {', '.join(roles[:6])}; not human, gpt, ...")
    texts = [text for _, text in said]
    return list(zip(texts[::2], texts[1::2], strict=True))


def asked(text: str) -> str:
    """Drop instructions before `Question:` and the mark itself."""
    return re.split(r"(?:^|\n)[ \t]{0,8}Question:", text)[-1].strip()


def _tagged(text: str, tag: str) -> str:
    match = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return match[1].strip() if match else ""


def fractions(text: str) -> str:
    """Return the one box of four fractions in a text, as JSON."""
    box = rewards.parse_box(text)
    stated = re.findall(r"[-+.\deE]+", text[text.find("[") + 1 : text.find("]")]) if box else []
    if box is None or [float(number) for number in stated] != list(box):
        raise RecordError(
            "gold is not one box [x1, y1, x2, y2] of fractions; the paper scores this source by "
            "boxes alone (figure 4), so the turn is left out"
        )
    return json.dumps(list(box))


# --- one function a dataset ----------------------------------------------------------------------


def _made(
    folder: str, key: str, name: str, origin: str | bytes, question: str, gt: str, **meta: Any
) -> Row:
    """Write a record as all datasets do: its id begins with the folder that holds its picture."""
    return {"id": f"{folder}-{key}", "image": f"{folder}/{name}", "origin": origin,
            "question": question, "gt": gt, "meta": meta}  # fmt: skip


def clevr_math(row: Row) -> Row:
    """CLEVR-Math: one counting question; the scene's description is joined later."""
    name = flat(field(row, "image_filename"))
    origin = f"CLEVR_v1.0/images/{field(row, 'split')}/{name}"
    gold = str(field(row, "answer", (int, str)))
    return _made("clevr_math", name, name, origin, field(row, "question"), gold)


def clevr_scene(row: Row) -> Row:
    """Put a CLEVR scene into words: the extra context that the paper gives (§2, step 2)."""
    kinds = ("size", "color", "material", "shape")
    things = [" ".join(field(o, k) for k in kinds) for o in field(row, "objects", list)]
    listed = ", ".join(f"a {thing}" for thing in things)
    return {"meta": {"rationale": f"Number of objects in the scene: {len(things)}; {listed}."}}


def geoqa(row: Row) -> Row:
    """GeoQA170K: the question with its choices, the letter from the reply's last line."""
    question, reply = turns(row)[0]
    stem, _, tail = asked(question).rpartition("Choices:")
    choices = rewards.options(f"Choices:{tail}")
    if not stem or not choices:
        raise RecordError("field 'conversations': the question has no 'Choices:' with A, B, ...")
    letters = re.findall(r"Answer:\s{0,3}\(?([A-Z])\b", reply)
    if not letters:
        raise RecordError("field 'conversations': the reply names no letter after 'Answer:'")
    if isinstance(row.get("image"), dict):  # parquet: the picture itself
        origin = field(row["image"], "bytes", bytes)
        name = digest(origin) + image_extension(origin)
    else:
        origin = field(row, "image")
        name = flat(origin)
    whole = with_choices(stem, list(choices.values()))
    key = f"{PurePosixPath(name).stem}-{digest(whole)[:8]}"
    return _made("geoqa170k", key, name, origin, whole, letters[-1])


def math_puma(row: Row) -> Row:
    """Math PUMA: the question on the picture; its textual version goes to the teacher (§2).

    Each row pairs two versions of one problem, without saying which is which: the longer question
    states in words what the picture shows. A pair of equal questions has no textual version.
    """
    versions = [
        (asked(field(row, f"instruction{n}").replace("<image>", "")), row.get(f"image_url{n}"))
        for n in ("", "_2")
    ]
    (question, image), (text, other) = sorted(versions, key=lambda version: len(version[0]))
    if question == text:
        raise RecordError("fields 'instruction' and 'instruction_2' are equal: no textual version")
    origin = field({**row, "image_url": image or other}, "image_url")
    output = field(row, "output")
    if not _ANSWER_LINE.search(output):
        raise RecordError("field 'output' has no '†Answer:' line; the solution names no answer")
    repair = whole_expression(question, text, normalise_gold(_ANSWER_LINE.split(output)[-1]))
    name = flat(origin)
    key = f"{PurePosixPath(name).stem}-{digest(question + text)[:8]}"
    made = _made("synthesis", key, name, origin, question, output,
                 text_question=text, gold_repair=repair.how)  # fmt: skip
    return made | {"solution": latex(repair.gold)}


def arxivqa(row: Row) -> Row:
    """ArxivQA: choices in one form, the label repaired; its rationale stays in `meta`."""
    choices, origin = field(row, "options", list), field(row, "image")
    question = with_choices(field(row, "question"), choices)
    return _made(
        "arxivqa", field(row, "id", (int, str)), flat(origin), origin, question,
        arxivqa_label(field(row, "label"), choices), rationale=row.get("rationale") or "",
    )  # fmt: skip


def docvqa(row: Row) -> Row:
    """DocVQA: the first of the accepted answers is the gold, all of them stay in `meta`."""
    answers, origin = field(row, "answers", list), field(row, "image")
    gold = field({"answers[0]": answers[0]}, "answers[0]")
    name = PurePosixPath(clean_image_path(origin)).name
    key = field(row, "questionId", int)
    return _made("docvqa", key, name, origin, field(row, "question"), gold, answers=answers)


def vizwiz(row: Row) -> Row:
    """VizWiz: the answer that most of the ten people gave (the earliest on a tie) is the gold."""
    answers = [field(answer, "answer").strip() for answer in field(row, "answers", list)]
    gold = Counter(answer.lower() for answer in answers).most_common(1)[0][0]
    name = flat(field(row, "image"))
    return _made("vizwiz", PurePosixPath(name).stem, name, name, field(row, "question"), gold,
                 answers=answers, answerable=row.get("answerable"))  # fmt: skip


def allava(row: Row) -> Row:
    """ALLaVA-LAION: the first turn; the dataset's own caption is joined later."""
    origin, (question, reply) = clean_image_path(field(row, "image")), turns(row)[0]
    name = PurePosixPath(origin).name
    key = "allava-" + field(row, "id").replace("_inst", "")
    meta = {"url": row["url"]} if isinstance(row.get("url"), str) else {}
    made = _made("allava_laion/images", key, name, origin, question, reply, **meta)
    return made | {"id": key}


def allava_caption(row: Row) -> Row:
    """Take ALLaVA's caption as it is (paper §2, step 2)."""
    return {"caption": turns(row)[0][1], "meta": {"caption_model_id": "ALLaVA-Caption (GPT-4V)"}}


def llava_cot(folder: str, row: Row) -> list[Row | RecordError]:
    """LLaVA-CoT rows on COCO or Visual Genome pictures: each turn whose gold is a box.

    The four-part reply becomes caption and trace, so that nothing is distilled again: the paper
    takes these sources as they are. Rows on other pictures belong to other datasets: none made.
    """
    origin = clean_image_path(field(row, "image"))
    top, _, name = origin.partition("/")
    if top != folder:
        return []
    made: list[Row | RecordError] = []
    for question, reply in turns(row):
        try:
            gold = fractions(_tagged(reply, "CONCLUSION") or reply)
        except RecordError as error:
            made.append(error)
            continue
        key = f"{PurePosixPath(origin).stem}-{digest(question)[:8]}"
        one = _made(folder, key, name, origin, question, gold)
        parts = [_tagged(reply, tag) for tag in ("SUMMARY", "CAPTION", "REASONING")]
        if all(parts):
            one["caption"] = parts[1]
            one["answer"] = prompts.join_think_answer("\n\n".join(parts), gold)
        made.append(one)
    return made
