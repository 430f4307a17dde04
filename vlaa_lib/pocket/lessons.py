"""What the pocket VLM's language model learns from: documents, drills and chats."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from vlaa_lib import prompts
from vlaa_lib.models import IMAGE_PAD, VISION_END, VISION_START, ImageProcessor

from . import microworld
from .microworld import SOURCES, facts, narrator, questions, scenes, truth

CELLS = scenes.GRID**2  # visual tokens of a micro-world picture
POOL = 8  # batches that are sorted by length together
# ours: how often each source is asked; what needs more seeing is seen more
SHARES = {"solids": 4, "figure": 4, "plot": 4, "panel": 4, "slip": 1, "closeup": 1, "describe": 1,
          "locate": 5, "relation": 5}  # fmt: skip
# ours: how often each kind of scene is described; the others once. Objects are many and small
DESCRIBED = {"objects": 12, "scatter": 2, "function": 3, "triangle": 2, "rectangle": 2}
# a box that comes first has only to be found, not found again by a name
BOX_FIRST = "{box} holds the {thing}"
# kind of fact -> the facts that name its extremes
EXTREMES = {
    "bar": (("tallest", max), ("shortest", min)),
    "point": (("peak", max), ("dip", min)),
    "count": (("most", max),),
}
Piece = tuple[str, bool]  # text, and whether the loss counts it


class Stream(IterableDataset):
    """An endless stream of training batches; `make(index)` gives one sample, `collate` a batch.

    Each worker process of a loader takes every n-th pool of batches.
    """

    def __init__(self, make: Any, collate: Any, batch: int, start: int = 0):
        self.make, self.collate, self.batch, self.start = make, collate, batch, start

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        size = POOL * self.batch  # rows of similar length go together: less padding
        index = (self.start + number) * size
        while True:
            pool = [self.make(index + i) for i in range(size)]
            if isinstance(pool[0], tuple):  # samples with text, by its characters
                pool.sort(key=lambda sample: sum(len(text) for text, _ in sample[1]))
            batches = [pool[i : i + self.batch] for i in range(0, len(pool), self.batch)]
            random.Random(index).shuffle(batches)
            yield from normalise_by_tokens([self.collate(rows) for rows in batches])
            index += workers * size


def normalise_by_tokens(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tell each batch of a pool the pool's mean number of target tokens, `num_items_in_batch`.

    A batch holds rows of one length, and a mean over its own tokens would favour short rows: an
    answer without a trace, 15 of 100, was then begun with probability 0.6.
    """
    if counts := [(b["labels"][:, 1:] >= 0).sum() for b in batches if "labels" in b]:
        for batch in batches:
            batch["num_items_in_batch"] = sum(counts) / len(counts)
    return batches


def draw(index: int, seed: int) -> tuple[str, dict, str, str, random.Random]:
    """Draw (source, scene, question, gold) for pretraining, and the generator that goes on."""
    rng = random.Random(f"pocket/{seed}/{index}")
    source = rng.choices(list(SHARES), list(SHARES.values()))[0]
    asked = None
    while asked is None:
        scene = scenes.draw(rng.choice(list(questions.KINDS[source])), "pretrain", rng)
        asked = questions.ask(source, scene, rng)
    return source, scene, *asked, rng


def dense(scene: dict, rng: random.Random) -> str:
    """Describe everything in a scene plainly, in reading order."""
    told = truth.of_scene(scene)
    phrase = None
    if scene["kind"] == "objects" and rng.random() < 0.7:
        told = truth.places(scene)
        phrase = rng.choice((None, BOX_FIRST))
    elif "objects" in scene:
        told = truth.seen(scene) + told
    lines = [facts.say(fact, phrase=phrase) for fact in told]
    lines += [scenes.expression(curve) for curve in scene.get("curves", [])]
    return " ".join(lines)


def in_words(question: str, gold: str, rng: random.Random) -> str:
    """Return the gold or, half the time, the sentence that a bare gold stands for."""
    return gold if rng.random() < 0.5 else questions.as_sentence(questions.read(question), gold)


def worked(think: str, answer: str, reward: str) -> str:
    """Join a plain trace and its answer without tags, as an instruct model replies."""
    if reward == "open" or not think:
        return answer
    return f"{think} {prompts.ANSWER_PHRASE} {answer}."


def describe_text(index: int, seed: int, drill_share: float) -> tuple[dict | None, list[Piece]]:
    """Write a description of everything in a scene, or a drill."""
    rng = random.Random(f"describe/{seed}/{index}")
    if rng.random() < drill_share:
        return drill_text(index, seed)
    kind = rng.choices(list(scenes.KINDS), [DESCRIBED.get(kind, 1) for kind in scenes.KINDS])[0]
    scene = scenes.draw(kind, "pretrain", rng)
    if kind == "objects":
        scene = fewer(scene, rng)
    return scene, [(dense(scene, rng) + "\n", True), ("<|endoftext|>", True)]


def fewer(scene: dict, rng: random.Random) -> dict:
    """Leave some objects out: how to read one is learnt before which of many comes next."""
    while True:
        some = sorted(rng.sample(range(n := len(scene["objects"])), rng.randint(1, n)))
        left = scene | {"objects": [scene["objects"][i] for i in some]}
        if scenes.bucket(left) in scenes.SPLITS["pretrain"]:
            return left


def drill_text(
    index: int, seed: int, copies: int = 0, choices: int = 0
) -> tuple[None, list[Piece]]:
    """Write an exercise without a picture: copying, looking up, counting, extremes, sums, ...

    Args:
        copies: the first documents only copy, since looking up is not learnt before.
        choices: the next ones copy or choose: among all drills letters stay at chance.
    """
    rng = random.Random(f"drill/{seed}/{index}")
    drill = rng.choices(list(DRILLS), list(DRILLS.values()))[0]
    if index < copies:
        drill = _copy_drill
    elif index < copies + choices:
        drill = rng.choice((_copy_drill, _choice_drill))
    return None, [*drill(rng), ("<|endoftext|>", True)]


def _copy_drill(rng: random.Random) -> list[Piece]:
    """Say words without sense again and again: only what stood there before tells the next."""
    words = [*map(str, range(100)), *scenes.COLORS, *facts.PLURALS, *facts.LENGTHS, *"ABCDxy"]
    said = " ".join(rng.sample(words, rng.randint(5, 14)))
    return [(f"{said}.", False), *[(f" {said}.", True)] * 2]


def _told_drill(rng: random.Random) -> list[Piece]:
    """Tell what a picture shows, then ask questions: what is asked for must be looked up."""
    scene = scenes.draw(rng.choice(list(scenes.KINDS)), "pretrain", rng)
    sources = [s for s, kinds in questions.KINDS.items() if scene["kind"] in kinds]
    told = truth.of_scene(scene)
    rng.shuffle(told)
    if scene["kind"] == "objects":
        sources = rng.choice((["solids"], ["locate", "relation"]))
    if "objects" in scene and rng.random() < 0.7:
        told = truth.places(scene) if "locate" in sources else truth.seen(scene)
    elif "locate" in sources:
        told = rng.sample(truth.places(scene), len(scene["objects"]))
    pieces = [(" ".join(map(facts.say, told)), False)]
    for _ in range(3):
        source = rng.choice(sources)
        if asked := questions.ask(source, scene, rng):
            steps, answer = narrator.plain_steps(scene, asked[0])
            reply = worked(" ".join(steps), answer, SOURCES[source][0])
            pieces += [(f"\n{asked[0]}", False), (f" {reply}", True)]
    return pieces


def _choice_drill(rng: random.Random) -> list[Piece]:
    """List choices as a question does, then name the letters of some, in any order."""
    numbers = [str(n) for n in rng.sample(range(rng.choice((10, 100))), 4)]
    values = rng.choice((numbers, rng.sample(list(scenes.COLORS), 4)))
    listed = questions.choices_text(values[0], values[1:], rng)
    choices = questions.read_choices(listed)
    letters = rng.choices("ABCD", k=3)
    told, _ = narrator.pick(choices, "A")
    said = [f"{narrator.pick(choices, x)[1]} {prompts.ANSWER_PHRASE} {x}." for x in letters]
    return [(listed + "\n", False), (" ".join([told, *said]), True)]


def _extreme_drill(rng: random.Random) -> list[Piece]:
    """Tell heights, counts or points of a line in some order, then ask for the most and least."""
    pieces: list[Piece] = []
    for _ in range(4):
        kind = rng.choice(list(EXTREMES))
        values = rng.sample(range(1, 10), rng.randint(2, 4))
        names: list[Any] = rng.sample(list(scenes.COLORS), len(values))
        if kind == "point":
            names = list(range(1, len(values) + 1))
        pairs = list(zip(names, values, strict=True))
        args = [(v, n, "point") for n, v in pairs] if kind == "count" else pairs
        told = [facts.say_plainly(facts.Fact(kind, arg), kind != "count") for arg in args]
        asked = list(EXTREMES[kind])
        rng.shuffle(asked)
        pieces.append((f"\n{' '.join(told)}", False))
        for most, best in asked:
            pieces.append((f"\n{rng.choice(questions.WORDINGS[most])}", False))
            at = values.index(best(values))
            found = facts.say(facts.Fact(most, (names[at],)))
            pieces.append((f" {found}" if kind == "count" else f" {told[at]} {found}", True))
    return pieces


def _count_drill(rng: random.Random) -> list[Piece]:
    """Number things one after the other, each kind for itself, then say how many there are."""
    pieces: list[Piece] = []
    for _ in range(2):
        shapes = ("point",) if rng.random() < 0.3 else scenes.SHAPES
        some = [(rng.choice(list(scenes.COLORS)), rng.choice(shapes)) for _ in range(3)]
        seen = [rng.choice(some) for _ in range(rng.randint(2, 9))]
        told = [facts.Fact("seen", (*thing, seen[:at].count(thing)))
                for at, thing in enumerate(seen, 1)]  # fmt: skip
        told += [facts.Fact("count", (seen.count(x), *x)) for x in rng.sample(some, 2)]
        for name, number in (facts.say_plainly(fact).rsplit(" ", 1) for fact in told):
            pieces += [(f" {name}", False), (f" {number}", True)]
    return pieces


def _teacher_drill(rng: random.Random) -> list[Piece]:
    """Tell what a caption says and reason from it in the teacher's words, as R1 would."""
    while True:
        source = rng.choices(list(SHARES), list(SHARES.values()))[0]
        scene = scenes.draw(rng.choice(list(questions.KINDS[source])), "pretrain", rng)
        asked = questions.ask(source, scene, rng)
        told = narrator.caption(scene, narrator.Rates(), rng)
        try:
            think, answer = narrator.reason(told, asked[0] if asked else "", narrator.Rates(), rng)
        except narrator.CannotAnswer:
            continue  # no question suits the scene, or the caption leaves out what it needs
        answer = worked(think, answer.removesuffix("."), "")  # a description ends in a stop
        return [(f"{told}\n{asked[0]}", False), (f" {answer}\n", True)]


def _sum_drill(rng: random.Random) -> list[Piece]:
    """Write the kinds of sums that traces need."""
    sums = []
    for _ in range(6):
        a, b, e = (rng.randint(0, 12) for _ in range(3))
        c, d = 5 * rng.randint(2, 20), 5 * rng.randint(2, 15)
        sums.append(rng.choice((
            f"{a} + {b} = {a + b}.",
            f"{a} + {b} + {e} = {a + b + e}.",
            f"{max(a, b)} - {min(a, b)} = {abs(a - b)}.",
            f"{a} * {b} = {a * b}.",
            f"2 * {a + b} = {2 * (a + b)}.",
            f"180 - {c} - {d} = {180 - c - d}." if c + d < 180 else f"{a} + {a} = {2 * a}.",
        )))  # fmt: skip
    return [(" ".join(sums) + "\n", True)]


# drill -> how often
DRILLS = {_copy_drill: 1, _told_drill: 4, _choice_drill: 4, _extreme_drill: 4, _count_drill: 3,
          _teacher_drill: 8, _sum_drill: 5}  # fmt: skip


def base_text(
    index: int, seed: int, describe_share: float, drill_share: float
) -> tuple[dict | None, list[Piece]]:
    """Write one question that only the picture answers or, at times, a description or a drill."""
    source, scene, question, gold, rng = draw(index, seed)
    if rng.random() < describe_share + drill_share:
        return describe_text(index, seed, drill_share / (describe_share + drill_share))
    think, _ = narrator.plain_trace(scene, question)
    answer = in_words(question, gold, rng)
    if rng.random() >= 0.15:
        answer = worked(think, answer, SOURCES[source][0])
    return scene, [(question, False), (f" {answer}\n", True), ("<|endoftext|>", True)]


def chat_text(
    index: int, seed: int, think_share: float, direct_share: float, drill_share: float = 0.0
) -> tuple[dict | None, list[Piece]]:
    """Write a chat of one turn, whose image follows its first piece, or a drill.

    The reply is in the think/answer format, a bare answer, or else a plain trace and the answer.
    """
    source, scene, question, gold, rng = draw(index, seed)
    if rng.random() < drill_share:
        return drill_text(index, seed)
    reward = SOURCES[source][0]
    think, _ = narrator.plain_trace(scene, question)
    kind, answer = rng.random(), in_words(question, gold, rng)
    if kind < think_share:
        reply = prompts.join_think_answer(think, answer)
    else:
        reply = answer if kind < think_share + direct_share else worked(think, answer, reward)
    asked = prompts.user_text(question, reward)
    return scene, [
        (f"<|im_start|>system\n{prompts.SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n", False),
        (f"{asked}<|im_end|>\n<|im_start|>assistant\n", False),
        (f"{reply}<|im_end|>", True),
    ]


def collate_text(
    samples: list[tuple[dict | None, list[Piece]]], processor: ImageProcessor, image_after: int
) -> dict[str, Tensor]:
    """Tokenise pieces and put the image tokens after piece number `image_after`; no scene, none.

    Returns:
        input_ids, labels, attention_mask, mm_token_type_ids [B, T]; pixel_values; image_grid_thw.
    """
    tokenizer = processor.tokenizer
    image = tokenizer.encode(f"{VISION_START}{IMAGE_PAD * CELLS}{VISION_END}")
    rows, labels = [], []
    for scene, pieces in samples:
        is_first = scene is not None and not image_after
        ids, marks = (list(image), [-100] * len(image)) if is_first else ([], [])
        for number, (text, target) in enumerate(pieces, 1):
            piece = tokenizer.encode(text)
            ids, marks = ids + piece, marks + (piece if target else [-100] * len(piece))
            if number == image_after and scene is not None:
                ids, marks = ids + image, marks + [-100] * len(image)
        rows.append(torch.tensor(ids))
        labels.append(torch.tensor(marks))
    images = [microworld.render(scene) for scene, _ in samples if scene]
    padded = nn.utils.rnn.pad_sequence(rows, True, tokenizer.pad_token_id)
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": padded,
        "labels": nn.utils.rnn.pad_sequence(labels, True, -100),
        "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long(),
        "mm_token_type_ids": (padded == processor.image_token_id).int(),
        **(pixels(images, processor) if images else {}),
    }


def pixels(images: list, processor: ImageProcessor) -> dict[str, Tensor]:
    """Return pixel_values [patches, 1176] and image_grid_thw [B, 3]."""
    return dict(processor.image_processor(images, return_tensors="pt"))


def loader(make: Any, collate: Any, batch: int, start: int = 0) -> DataLoader:
    """Prepare batches in one process of its own, beside the training."""
    return DataLoader(
        Stream(make, collate, batch, start), batch_size=None, num_workers=1, prefetch_factor=8
    )
