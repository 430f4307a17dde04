"""ViLPRM: a policy with a scalar head that is read at the last token of each step.

The accessible parts of the paper say which base it has (Qwen2.5-VL-3B) and that it gives each step
a score between 0 and 1. Ours: one linear unit and a sigmoid, squared error on the search's values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5_VLForConditionalGeneration, Trainer, TrainingArguments
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from vlaa_lib import VlaaError, folders, models
from vlaa_lib.escape import say
from vlaa_lib.images import fit_image, open_image
from vlaa_lib.models import Policy, plain
from vlaa_lib.profiles import Settings
from vlaa_lib.prompts import ANY_TAG, SYSTEM_PROMPT, split_think_answer
from vlaa_lib.records import Record, RecordError, from_columns
from vlaa_lib.rewards.mixed import text_of
from vlaa_lib.rewards.signs import mean
from vlaa_lib.train import checkpoints
from vlaa_lib.train.callbacks import Guard, complete
from vlaa_lib.train.sft import starting_policy, supervised_args

from . import steps
from .scorers import Scorer
from .search import Process

CARD = "vilprm.json"  # beside the weights: says that their head is trained, and how
UNKNOWN = -100.0  # a step without a label; the Trainer counts the others
SEPARATOR = "\n"  # ours: closes each step, whatever stood between steps


class StepScorer(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with a head that scores steps; its own language head rests."""

    accepts_loss_kwargs = True  # the loss is a mean over the steps of a whole batch

    def __init__(self, config: Any):
        super().__init__(config)
        self.step_head = nn.Linear(config.text_config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        ends: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> dict[str, Tensor]:
        """Score steps; with labels also return the mean loss over those that have one.

        Args:
            ends: [B, S] position of each step's last token; anything where there is no step.
            labels: [B, S] values in [0, 1], UNKNOWN where there is none.
            num_items_in_batch: labels of the whole batch, of which this is a part.
        """
        hidden = self.model(**inputs, use_cache=False).last_hidden_state  # [B, T, D]
        at_ends = hidden.gather(1, ends[..., None].expand(-1, -1, hidden.shape[-1]))  # [B, S, D]
        logits = self.step_head(at_ends.float())[..., 0].float()  # [B, S]
        scores = logits.sigmoid()
        if labels is None:
            return {"scores": scores}
        losses = {"mse": (mse_loss, scores), "bce": (binary_cross_entropy_with_logits, logits)}
        loss, given = losses[self.config.step_loss]  # a setting that is saved with the weights
        is_told = labels != UNKNOWN
        total = loss(given[is_told], labels[is_told], reduction="sum")
        return {"loss": total / (num_items_in_batch or is_told.sum().clamp(min=1)),
                "scores": scores}  # fmt: skip


# Releases of transformers that know the hub's names of weights by class, not by the type of the
# model, are told that a StepScorer has those of its parent.
_NAMES = get_checkpoint_conversion_mapping(Qwen2_5_VLForConditionalGeneration.__name__)
if _NAMES is not None:
    register_checkpoint_conversion_mapping(StepScorer.__name__, _NAMES, overwrite=True)


@dataclass(frozen=True)
class Solution:
    """A solution with the values of its steps."""

    image: str
    question: str
    steps: tuple[str, ...]
    # None where it is not known, or stands with another solution that begins alike
    values: tuple[float | None, ...]

    @property
    def id(self) -> str:
        """Name the solution by what it holds."""
        return sha256(repr(self).encode()).hexdigest()[:16]


def solutions(rows: Iterable[Process]) -> list[Solution]:
    """Join rows that are prefixes of one another, so that a path is read once for all its steps."""
    groups: dict[tuple[str, str], dict[tuple[str, ...], list[float]]] = {}
    for row in rows:
        if path := tuple(steps.split(row.process)):
            values = groups.setdefault((row.image, row.question), {})
            values.setdefault(path, []).append(row.value)
    made = []
    for (image, question), values in groups.items():
        while values:
            path = max(values, key=len)
            found = [values.pop(path[: i + 1], None) for i in range(len(path))]
            # rows that are alike share their mean
            labels = tuple(sum(v) / len(v) if v else None for v in found)
            made.append(Solution(image, question, path, labels))
    return made


def parted(rows: Iterable[Process], share: float) -> tuple[list[Process], list[Process]]:
    """Split rows into training and held-out ones by question, the same whatever else is there."""
    kept: tuple[list[Process], list[Process]] = [], []
    for row in rows:
        name = sha256(f"{row.image}\n{row.question}".encode()).hexdigest()
        kept[int(name[:8], 16) < share * 16**8].append(row)
    return kept


def load(path: str | Path, **budget: int) -> Policy:
    """Load a trained ViLPRM; budget: `max_pixels` and `min_pixels` of `models.load_policy`."""
    card = Path(models.resolve(path)) / CARD
    if not card.is_file():
        raise VlaaError(
            f"{path}: no ViLPRM (no {CARD}); train one with `python -m vlaa_lib process train-prm`"
        )
    # an adapter that was trained beside 4-bit weights scores otherwise on whole ones
    is_4bit = folders.read_json(card)["mode"] == "4bit"
    mode = "4bit" if is_4bit else "full"
    policy = models.load_policy(path, mode, kind=StepScorer, merge=not is_4bit, **budget)
    policy.model.step_head.float()
    policy.model.eval()
    return policy


def encode(policy: Policy, images: str | Path, made: Sequence[Solution]) -> dict[str, Tensor]:
    """Return a batch: prompt with picture, padded on the left, then steps, padded on the right."""
    processor, limit = policy.processor, policy.processor.image_processor.size["longest_edge"]
    pictures = [fit_image(open_image(s.image, images), max_pixels=limit) for s in made]
    # the question alone: the released rows do not say how it is to be answered
    chats = [[
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": [{"type": "image"},
                                     {"type": "text", "text": plain(processor, s.question)}]},
    ] for s in made]  # fmt: skip
    asked = processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    batch = dict(processor(images=pictures, text=asked, padding=True, return_tensors="pt"))
    pieces = [[step_ids(processor, step) for step in s.steps] for s in made]
    tails = [torch.tensor([i for ids in row for i in ids]) for row in pieces]
    begin = batch["input_ids"].shape[1]
    ends = [torch.tensor([len(ids) for ids in row]).cumsum(0) + begin - 1 for row in pieces]
    values = [torch.tensor([UNKNOWN if v is None else v for v in s.values]) for s in made]
    added = {"input_ids": tails, "attention_mask": [torch.ones_like(tail) for tail in tails],
             "mm_token_type_ids": [torch.zeros_like(tail) for tail in tails]}  # fmt: skip
    for name in added.keys() & batch.keys():
        tail = pad_sequence(added[name], batch_first=True)
        batch[name] = torch.cat([batch[name], tail.to(batch[name].dtype)], 1)
    batch["ends"] = pad_sequence(ends, batch_first=True)
    batch["labels"] = pad_sequence(values, batch_first=True, padding_value=UNKNOWN)
    return batch


def step_ids(processor: Any, step: str) -> list[int]:
    """Return a step's tokens with its separator, at which the head reads.

    Without the think and answer tags: what is scored must not tell which model wrote it.
    """
    words = plain(processor, ANY_TAG.sub("", step)).strip()
    return processor.tokenizer.encode(words + SEPARATOR, add_special_tokens=False)


@torch.inference_mode()
def score(
    policy: Policy, images: str | Path, made: Sequence[Solution], batch: int = 64
) -> list[list[float]]:
    """Score the steps of solutions, in [0, 1]; equal ones once, similar lengths in one pass."""
    scores: dict[Solution, list[float]] = {}
    order = [solution for solution in dict.fromkeys(made) if solution.steps]
    order.sort(key=lambda s: len(s.question) + sum(map(len, s.steps)))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        inputs = encode(policy, images, chosen)
        del inputs["labels"]
        inputs = {name: tensor.to(policy.model.device) for name, tensor in inputs.items()}
        found = policy.model(**inputs)["scores"].tolist()
        for solution, row in zip(chosen, found, strict=True):
            scores[solution] = row[: len(solution.steps)]
    return [list(scores.get(solution, [])) for solution in made]


def scorer(policy: Policy, images: str | Path, batch: int = 64) -> Scorer:
    """Return a trained ViLPRM as a scorer of pools and solutions."""

    def scored(records: Sequence[Record], given: Sequence[list[str]]) -> list[list[float]]:
        made = [Solution(record.image, record.question, tuple(found), (None,) * len(found))
                for record, found in zip(records, given, strict=True)]  # fmt: skip
        return score(policy, images, made, batch)

    return scored


def process_reward(scorer: Scorer) -> Callable[..., list[float]]:
    """Return the reward part that TRL's trainer is given: the mean score of the steps (ours)."""

    def process(prompts: list, completions: list, **columns: Any) -> list[float]:
        texts = [text_of(completion) for completion in completions]
        # the format is implicit, as in the mixed reward (paper §4): else a fluent completion
        # without an answer would be paid
        solved = [[] if split_think_answer(t).problem else steps.split(t) for t in texts]
        found = scorer(from_columns(columns), solved)
        return [sum(scores) / len(scores) if scores else 0.0 for scores in found]

    return process


def chosen_reward(cfg: Settings, images: str | Path) -> Callable[..., list[float]] | None:
    """Return the reward part of a profile's ViLPRM; None where its weight is 0."""
    given = cfg.grpo.process_model
    return process_reward(scorer(load(given), images)) if cfg.grpo.process_weight else None


# --- training -------------------------------------------------------------------------------------


class PrmTrainer(checkpoints.Resumable, Trainer):
    """Trainer whose checkpoints are whole, and resumed with the weights that they hold."""


@checkpoints.alone
def train(
    cfg: Settings,
    rows: Sequence[Process],
    images: str | Path,
    out: str | Path,
    start: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Train a ViLPRM and save it in `out`, with its measures on held-out questions; return the log.

    A run that was cut off goes on from its last checkpoint in `out`.

    Args:
        start: checkpoint to start from; by default the profile's policy.
    """
    s, out = cfg.prm, Path(out)
    trained, held_out = parted(rows, s.held_out)
    if not (made := solutions(trained)):
        raise RecordError(f"none of {len(rows)} rows to train on; search more questions")
    resume = checkpoints.begin(cfg, "prm", made, out, start)
    policy = begin(cfg, start, out)
    trainer = PrmTrainer(
        model=policy.model,
        # rows are solutions, the collator reads them
        args=TrainingArguments(**supervised_args(cfg, s, out), remove_unused_columns=False),
        train_dataset=within(policy, made, s.max_tokens),
        data_collator=partial(encode, policy, images),
        processing_class=policy.processor,
        callbacks=[Guard(out)],
    )
    log = complete(trainer, out, resume)
    if trainer.is_world_process_zero():
        policy.model.eval()
        found, table = report(policy, images, held_out, cfg.evaluate.batch)
        folders.write_csv(out / "held_out.csv", [found])
        folders.write_csv(out / "calibration.csv", table)
        card = {"rows": len(trained), "held_out": found, "loss": s.loss, "mode": s.mode}
        folders.write_json(out / CARD, card)
    return log


def begin(cfg: Settings, start: str | Path | None, out: str | Path) -> Policy:
    """Load the policy that training starts from, with a new head, and an adapter by the mode."""
    mode = cfg.prm.mode
    torch.manual_seed(cfg.seed)  # of the head's first weights
    policy = starting_policy(cfg, mode, out, start, StepScorer, new=("step_head",))
    model = policy.model
    model.config.step_loss = cfg.prm.loss
    model.step_head.float()
    if model.lm_head.weight is not model.get_input_embeddings().weight:
        model.lm_head.requires_grad_(False)  # not read; DDP would wait for its gradient
    if mode == "full":
        return policy
    from peft import get_peft_model, prepare_model_for_kbit_training

    if mode == "4bit":
        gpu = torch.cuda.is_available()
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=gpu)
    config = models.adapter(mode)
    config.task_type, config.modules_to_save = None, ["step_head"]
    policy.model = get_peft_model(model, config)
    return policy


def within(policy: Policy, made: Sequence[Solution], limit: int) -> list[Solution]:
    """Keep solutions of at most `limit` tokens of text, and name the others; none is cut."""
    kept = []
    for one in made:
        tokens = sum(len(step_ids(policy.processor, text)) for text in (one.question, *one.steps))
        if tokens <= limit:
            kept.append(one)
        else:
            say(f"left out: {one.image}: {tokens} tokens of text, the limit is {limit}")
    if not kept:
        raise RecordError(f"all {len(made)} solutions are too long; raise prm.max_tokens")
    return kept


# --- measures -------------------------------------------------------------------------------------


Pair = tuple[float, float]  # score and value of a step


def report(
    policy: Policy, images: str | Path, rows: Sequence[Process], batch: int = 64
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure a ViLPRM on held-out rows: (one row of `measures`, calibration table)."""
    made, groups = solutions(rows), {}
    for one, scores in zip(made, score(policy, images, made, batch), strict=True):
        told = [(s, v) for s, v in zip(scores, one.values, strict=True) if v is not None]
        groups.setdefault((one.image, one.question), []).extend(told)
    pairs = [pair for group in groups.values() for pair in group]
    return measures(list(groups.values())), calibration(pairs)


def measures(groups: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    """Compare (score, value) pairs, one group a question; None where a measure is undefined.

    `mse_constant` is the error of the best constant, `spearman` the rank correlation over all
    steps, `spearman_within` its mean over the questions whose values differ, which is what
    choosing among solutions of one question lives on.
    """
    pairs = [pair for group in groups for pair in group]
    constant = mean([value for _, value in pairs])
    ranked = [found for group in groups if (found := spearman(group)) is not None]
    return {
        "questions": len(groups),
        "steps": len(pairs),
        "mse": mean([(score - value) ** 2 for score, value in pairs]),
        "mse_constant": mean([(constant - value) ** 2 for _, value in pairs]),
        "spearman": spearman(pairs),
        "spearman_within": mean(ranked),
    }


def spearman(pairs: Sequence[Pair]) -> float | None:
    """Return the rank correlation, ties at their mean rank; None where one side is constant.

    >>> spearman([(0.1, 0.0), (0.2, 0.5), (0.9, 1.0)]), spearman([(0.1, 1.0), (0.2, 1.0)])
    (1.0, None)
    """
    import pandas

    found = pandas.DataFrame(pairs, columns=["score", "value"]).corr("spearman").iloc[0, 1]
    return None if math.isnan(found) else round(float(found), 12)


def calibration(pairs: Sequence[Pair], bins: int = 5) -> list[dict[str, Any]]:
    """Compare mean score and mean value in equal bins of the score; empty bins are left out."""
    inside: dict[int, list[Pair]] = {}
    for pair in pairs:
        inside.setdefault(min(bins - 1, int(pair[0] * bins)), []).append(pair)
    return [
        {"low": k / bins, "high": (k + 1) / bins, "steps": len(inside[k]),
         "score": mean([score for score, _ in inside[k]]),
         "value": mean([value for _, value in inside[k]])}
        for k in sorted(inside)
    ]  # fmt: skip
