"""Six micro benchmarks in the shape of the real ones, written as VLMEvalKit-style TSV.

They are small stand-ins, never the real benchmarks. All scenes come from the split `bench`, which
nothing else draws from. What training never asks:

* micro-MathVision, and micro-WeMath's questions in several steps: all are `compositions` (WeMath's
  sub-steps are in part training questions);
* micro-LogicVista: judging a list of statements, with a set of letters as the answer;
* micro-MathVerse: training questions, but drawn into the picture instead of given as text.

micro-MathVista and micro-DynaMath ask training questions of new scenes.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from contextlib import suppress
from itertools import count as counter
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vlaa_lib import VlaaError, folders
from vlaa_lib.images import font
from vlaa_lib.prompts import lettered

from . import compositions, facts, questions, scenes, solve, truth
from .compositions import Problem
from .render import INK, render
from .scenes import COLORS, FIELDS, SHAPES

Row = dict[str, Any]

BENCHMARKS = {  # name -> what it stands for
    "micro-MathVista": "MathVista testmini: mixed skills, free answers and choices",
    "micro-MathVision": "MathVision test: harder problems by level and category",
    "micro-MathVerse": "MathVerse testmini, vision only: the question is in the picture",
    "micro-DynaMath": "DynaMath: ten variants of a seed question, average and worst case",
    "micro-WeMath": "We-Math testmini: problems in two and three steps, and each step alone",
    "micro-LogicVista": "LogicVista: sets of letters",
}
_OWN = {
    "micro-MathVista": (
        "question_type", "answer_type", "choices", "answer", "answer_option", "task", "skills",
    ),
    "micro-MathVision": ("choices", "answer", "category", "level"),
    "micro-MathVerse": (
        "query_cot", "question_for_eval", "answer", "question_type", "problem_version", "metadata",
    ),
    "micro-DynaMath": ("qid", "varid", "answer", "answer_type", "subject", "knowledge_level"),
    "micro-WeMath": ("ID", "key", "knowledge concept", *"ABCDE", "answer", "hint"),
    "micro-LogicVista": ("answer", "skill"),
}  # fmt: skip
# ours are the last two: the scene as JSON, and the verifier that the answer is meant for
COLUMNS = {
    name: ("index", "image", "question", *own, "micro_scene", "micro_reward")
    for name, own in _OWN.items()
}
VARIANTS = 10  # DynaMath: variants of a seed question
NONE_RIGHT = "No correct answer"  # We-Math's last option; here it never is the answer


def generate(name: str, index: int, seed: int = 0) -> list[Row]:
    """Make group number `index` of a benchmark: one row, ten variants, or a problem's steps.

    The same values make the same rows. `index` of the rows, `qid`, and the image of a row that
    shares one are left to `rows`.
    """
    if name not in BENCHMARKS:
        raise VlaaError(f"unknown benchmark {name!r}; use one of {', '.join(BENCHMARKS)}")
    return _BUILD[name](index, random.Random(f"{name}/{index}/{seed}"))


def rows(name: str, n: int, seed: int = 0) -> list[Row]:
    """Make at most `n` rows in whole groups, at least one group; no scene occurs in two of them."""
    if n < 1:
        raise VlaaError(f"{n} rows: ask for at least one")
    made: list[Row] = []
    seen: set[str] = set()
    number = 0
    for index in counter():
        group = generate(name, index, seed)
        shown = {scenes.content(json.loads(row["micro_scene"])) for row in group}
        if shown & seen:
            continue
        if made and len(made) + len(group) > n:
            break
        seen |= shown
        number += 1
        made += [row | {"qid": number} if "varid" in row else row for row in group]
    # as in DynaMath, whose worst case needs `qid` to be the index of variant 1
    made.sort(key=lambda row: row.get("varid", 0))
    owner = 0
    for index, row in enumerate(made, 1):
        row["index"] = index
        owner = index if row["image"] else owner
        row["image"] = row["image"] or str(owner)  # short text names the row that has the image
    return [{column: row[column] for column in COLUMNS[name]} for row in made]


def write_tsv(name: str, path: str | Path, n: int, seed: int = 0) -> list[Row]:
    """Write at most `n` rows of a benchmark as a TSV file, atomically; return them."""
    made, text = rows(name, n, seed), io.StringIO()
    writer = csv.DictWriter(text, COLUMNS[name], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(made)
    folders.write_text(path, text.getvalue())
    return made


def draw_question(picture: Image.Image, text: str, width_px: int = 6 * 28) -> Image.Image:
    """Put a picture on a white sheet with a question below it, both sides multiples of 28 px."""
    size_px, gap_px = 12, 3  # ours: the smallest that reads well at a picture's own size
    lines = [""]
    for word in text.replace("\n", " \n ").split(" "):
        if word == "\n" or font(size_px).getlength(f"{lines[-1]} {word}") > width_px - 8:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    strip_px = -(-(len(lines) * (size_px + gap_px) + 6) // 28) * 28
    made = Image.new("RGB", (width_px, picture.height + strip_px), "white")
    made.paste(picture, ((width_px - picture.width) // 2, 0))
    pen = ImageDraw.Draw(made)
    for number, line in enumerate(lines):
        pen.text((4, picture.height + 3 + number * (size_px + gap_px)), line, INK, font(size_px))
    return made


def _row(scene: dict, reward: str, image: Image.Image | None = None, **columns: Any) -> Row:
    """Start a row with its picture, by default the scene's, and our own columns."""
    stream = io.BytesIO()
    (image or render(scene)).save(stream, "PNG")
    return {
        "image": base64.b64encode(stream.getvalue()).decode(),
        "micro_scene": json.dumps(scene),
        "micro_reward": reward,
        **columns,
    }


# --- training questions in another dress ----------------------------------------------------------


def _pose(text: str, scene: dict, rng: random.Random) -> Problem:
    """Pose a training question on a scene; CannotAnswer where it does not show what is asked."""
    asked = questions.read(text)
    if problem := _absence(asked, scene):
        raise solve.CannotAnswer(problem)
    if asked.kind in ("field", "hue", "what"):
        right, wrong = _reading(asked, scene, rng)
        return Problem(text, right, asked.kind, "digit" if right.isdigit() else "", wrong=wrong)
    right = solve.found(asked, truth.knowledge(scene))[1]
    if asked.kind == "more" and int(right) < 0:
        raise solve.CannotAnswer("it is the other way round")
    reward = "math" if asked.kind == "equation" else "" if right in COLORS else "digit"
    return Problem(text, right, asked.kind, reward)


def _absence(asked: questions.Question, scene: dict) -> str:
    """Say what a question names and the scene does not show; empty text where all is there."""
    color, key = asked.slots.get("color"), asked.slots.get("key")
    if color and f'"color": "{color}"' not in scenes.content(scene):
        return f"nothing is {color}"
    if key and key.lower() not in scene["fields"]:
        return f"there is no {key}"
    named = ("things", "other") if asked.kind in ("count", "subtract", "more") else ()
    for words in [asked.slots[slot] for slot in named if slot in asked.slots]:
        if not truth.count(scene, *facts.split_things(words)):
            return f"there are no {words}"  # so it would be in most scenes: a dull question
    return ""


def _reading(
    asked: questions.Question, scene: dict, rng: random.Random
) -> tuple[str, tuple[str, ...]]:
    """Return the bare answer and three wrong ones to a question about a slip or a close-up."""
    unclear = "too blurred to tell"
    if asked.kind == "field":
        key = asked.slots["key"].lower()
        right, pool = scene["fields"][key], list(FIELDS[key])
    elif asked.kind == "hue":
        right, pool = scene["color"], list(COLORS)
    else:
        right = f"{scene['color']} {scene['shape']}"
        pool = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    if asked.kind == "what" and not scene["clear"]:
        return unclear, tuple(rng.sample(pool, 3))
    wrong = rng.sample([v for v in pool if v != right], 3)
    return right, (*wrong[:2], unclear) if asked.kind == "what" else tuple(wrong)


def _training(source: str, rng: random.Random) -> tuple[dict, Problem]:
    """Draw a scene of a micro source and pose one of its training questions."""
    while True:
        scene = scenes.draw(rng.choice(list(questions.KINDS[source])), "bench", rng)
        asked = questions.ask(source, scene, rng)
        with suppress(solve.CannotAnswer):
            if asked:
                return scene, _pose(asked[0].partition("\nChoices:")[0], scene, rng)


def _options(
    problem: Problem, scene: dict, rng: random.Random, is_choice: bool | None = None
) -> tuple[list[str], str, str]:
    """Return (options, letter, "mcq") or, of a free answer, ([], the answer itself, its reward)."""
    if is_choice is None:  # never of a negative one: its minus would give it away
        is_choice = problem.right.isdigit() and rng.random() < 0.4
    if problem.reward and not is_choice:
        return [], problem.right, problem.reward
    wrong = problem.wrong or questions.rivals(problem.kind, problem.right, scene, rng)
    options = [problem.right, *wrong]
    rng.shuffle(options)
    return options, "ABCD"[options.index(problem.right)], "mcq"


# source -> MathVista's task and skills, MathVerse's subject, DynaMath's subject and level
_MATHVISTA = {
    "solids": ("math word problem", ["arithmetic reasoning"]),
    "figure": ("geometry problem solving", ["geometry reasoning", "arithmetic reasoning"]),
    "plot": ("textbook question answering", ["algebraic reasoning"]),
    "panel": ("figure question answering", ["statistical reasoning"]),
    "slip": ("visual question answering", ["numeric commonsense"]),
    "closeup": ("visual question answering", ["scientific reasoning"]),
}
_MATHVERSE = {"figure": "Plane Geometry", "plot": "Functions", "solids": "Solid Geometry"}
_DYNAMATH = {
    "solids": ("arithmetic", "elementary school"),
    "figure": ("plane geometry", "high school"),
    "plot": ("analytic geometry", "high school"),
    "panel": ("statistics", "elementary school"),
}
_HINTS = {
    "mcq": "Choose one of the options and give its letter.",
    "digit": "The answer is a whole number.",
    "math": "The answer is an equation.",
}


def _mathvista(index: int, rng: random.Random) -> list[Row]:
    source, (task, skills) = list(_MATHVISTA.items())[index % len(_MATHVISTA)]
    scene, problem = _training(source, rng)
    options, answer, reward = _options(problem, scene, rng)
    return [
        _row(
            scene,
            reward,
            question=f"Hint: {_HINTS[reward]}\nQuestion: {problem.text}{lettered(options)}",
            question_type="multi_choice" if options else "free_form",
            answer_type="integer" if reward == "digit" else "text",
            choices=repr(options),
            answer=problem.right,
            answer_option=answer if options else "",
            task=task,
            skills=repr(skills),
        )
    ]


def _mathverse(index: int, rng: random.Random) -> list[Row]:
    source, subject = list(_MATHVERSE.items())[index % len(_MATHVERSE)]
    scene, problem = _training(source, rng)
    options, answer, reward = _options(problem, scene, rng)
    generic = "Read the question in the picture and answer it."
    drawn = lettered(options).partition("\nChoices:\n")[2].replace("\n", "   ")
    return [
        _row(
            scene,
            reward,
            draw_question(render(scene), f"{problem.text}\n{drawn}".strip()),
            question=generic,
            query_cot=f"{generic} Reason step by step first.",
            question_for_eval=problem.text + lettered(options),
            answer=answer,
            question_type="multi-choice" if options else "free-form",
            problem_version="Vision Only",
            metadata=repr({"subject": subject, "subfield": scene["kind"]}),
        )
    ]


def _dynamath(index: int, rng: random.Random) -> list[Row]:
    """Ask the very same words of ten scenes."""
    source = list(_DYNAMATH)[index % len(_DYNAMATH)]
    scene, problem = _training(source, rng)
    is_choice = problem.kind != "equation" and rng.random() < 0.4
    made: dict[str, Row] = {}
    golds = set()
    while len(made) < VARIANTS:
        golds.add(problem.right)
        options, answer, reward = _options(problem, scene, rng, is_choice)
        free = "text" if problem.reward == "math" else "float"
        row = _row(
            scene,
            reward,
            question=problem.text + lettered(options),
            varid=len(made) + 1,
            answer=answer,
            answer_type="multiple choice" if options else free,
        )
        row |= dict(zip(("subject", "knowledge_level"), _DYNAMATH[source], strict=True))
        made.setdefault(scenes.content(scene), row)
        posed = None
        while posed is None:
            scene = scenes.draw(scene["kind"], "bench", rng)
            with suppress(solve.CannotAnswer):
                posed = _pose(problem.text, scene, rng)
        problem = posed
    if len(golds) == 1:  # as of "How many more red cubes than cubes are there?"
        return _dynamath(index, rng)
    return list(made.values())


# --- compositions ---------------------------------------------------------------------------------


def _mathvision(index: int, rng: random.Random) -> list[Row]:
    number = index % len(compositions.SINGLE)
    problem = None
    while problem is None:
        scene = scenes.draw(compositions.SINGLE[number][0], "bench", rng)
        problem = compositions.single(number, scene, rng)
    options, answer, reward = _options(problem, scene, rng)
    return [
        _row(
            scene,
            reward,
            question=problem.text + lettered(options),
            choices=repr(options),
            answer=answer,
            category=problem.topic,
            level=problem.level,
        )
    ]


def _wemath(index: int, rng: random.Random) -> list[Row]:
    """Ask the sub-steps, then the question that needs them all, of one picture."""
    kind, template = compositions.MULTI[index % len(compositions.MULTI)]
    problems = None
    while problems is None:
        scene = scenes.draw(kind, "bench", rng)
        problems = template(scene, rng)
    steps, made = f"{len(problems) - 1}steps", []
    for number, problem in enumerate(problems, 1):
        options, answer, _ = _options(problem, scene, rng, is_choice=True)
        row = _row(scene, "mcq", question=problem.text, answer=answer, hint="")
        row |= dict(zip("ABCDE", [*options, NONE_RIGHT], strict=True))
        row |= {"ID": f"{steps}_{index // 2 + 1}", "knowledge concept": problem.topic}
        row["key"] = f"{steps}_{'multi' if number == len(problems) else number}"
        made.append(row if number == 1 else row | {"image": ""})
    return made


# --- statements -----------------------------------------------------------------------------------


def _logicvista(index: int, rng: random.Random) -> list[Row]:
    scene, skill, chosen = compositions.draw_statements(index, rng)
    asked = "Which of these statements about the picture are true? Give all their letters."
    letters = [c for c, f in zip("ABCDE", chosen, strict=False) if truth.holds(f, scene)]
    question = asked + lettered([facts.say(fact, rng) for fact in chosen])
    return [_row(scene, "mcq", question=question, answer=", ".join(letters), skill=repr([skill]))]


_BUILD = {
    "micro-MathVista": _mathvista,
    "micro-MathVision": _mathvision,
    "micro-MathVerse": _mathverse,
    "micro-DynaMath": _dynamath,
    "micro-WeMath": _wemath,
    "micro-LogicVista": _logicvista,
}
