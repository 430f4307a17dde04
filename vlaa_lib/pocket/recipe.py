"""The pocket VLM: a 3.6-million-parameter Qwen2.5-VL and the one command that rebuilds it.

Five stages, since a narrow model left to itself learns the language and ignores the picture: the
tower alone (each cell's colour, shape and pixels, and the facts of the whole), then the language
model on looking up, comparing and reckoning in text (`drill`), on descriptions (`describe`), on
bare questions (`base`), and on chat (`instruct`).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, get_scheduler
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlaa_lib import folders, prompts
from vlaa_lib.escape import say
from vlaa_lib.models import IMAGE_PAD, VISION_END, VISION_START, ImageProcessor

from . import microworld
from .card import write_card
from .lessons import POOL, base_text, chat_text, collate_text, describe_text, drill_text, loader
from .microworld import SOURCES, narrator, scenes
from .muon import optimizers
from .tower import TowerTask, collate_tower, tower_scene

STAGES = ("tower", "drill", "describe", "base", "instruct")
MROPE = [4, 6, 6]  # angles of M-RoPE (of 16) that tell time, height and width: Qwen's shares
LOGGED = 3 * POOL  # steps between two logged losses: whole pools, whose tokens count alike
KEEP = 8 * LOGGED  # steps between two kept states: resuming repeats no batch, loses no loss
# seconds a step, measured on two cores
PACE_S = {"tower": 0.4, "drill": 1.1, "describe": 1.1, "base": 1.0, "instruct": 1.5}

# Qwen's special tokens, in Qwen's order
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>",
           "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
           VISION_START, VISION_END, "<|vision_pad|>", IMAGE_PAD, "<|video_pad|>")  # fmt: skip
NUMBERS = (*map(str, range(10, 200)), *(f"{n / 100:.2f}" for n in range(101)))

CHAT_TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n"
    "{%- if message.content is string %}{{ '\n' + message.content }}{% else %}{{ '\n' }}"
    "{%- for part in message.content %}{% if part.type == 'image' %}"
    f"{VISION_START}{IMAGE_PAD}{VISION_END}"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# base knows no chat: picture and bare question, the answer follows on the same line
BASE_TEMPLATE = (
    f"{VISION_START}{IMAGE_PAD}{VISION_END}"
    "{%- for message in messages if message.role == 'user' %}{%- for part in message.content %}"
    "{%- if part.type == 'text' %}{{ part.text.rsplit('\n', 1)[0] }}{% endif %}"
    "{%- endfor %}{%- endfor %}"
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the two checkpoints. All values are ours, chosen by trial."""

    hidden: int = 192
    layers: int = 5
    vision_hidden: int = 128
    vision_layers: int = 4
    vocabulary: int = 1024
    tower_batch: int = 32
    batch: int = 32
    tower_steps: int = 4500
    copy_steps: int = 200  # of the drills, the first: copying alone
    choice_steps: int = 300  # the next: copying and choices
    drill_steps: int = 1400
    describe_steps: int = 900
    base_steps: int = 3000
    instruct_steps: int = 700
    tower_lr: float = 1.5e-3
    drill_lr: float = 2e-3
    describe_lr: float = 2e-3
    base_lr: float = 1.5e-3
    instruct_lr: float = 1e-3
    tower_muon_lr: float = 1.2e-2
    drill_muon_lr: float = 6e-3
    describe_muon_lr: float = 4e-3
    base_muon_lr: float = 3e-3
    instruct_muon_lr: float = 1.5e-3
    describe_share: float = 0.2  # base documents that describe instead of answering
    drill_share: float = 0.15  # documents of describe, base and instruct without a picture
    think_share: float = 0.2  # chat replies in the think/answer format
    direct_share: float = 0.2  # chat replies that are the bare answer; the rest work it out
    seed: int = 0
    # all but the tower; where the processor multiplies bfloat16 itself, others imitate it slowly
    bf16: bool = field(
        default_factory=lambda: bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    )


def build_tokenizer(vocabulary: int, seed: int) -> Qwen2Tokenizer:
    """Train a byte-level BPE tokenizer with Qwen's splitting rule on micro-world text."""
    rng = random.Random(seed)
    corpus = [prompts.SYSTEM_PROMPT, *prompts.TASK_INSTRUCTIONS.values()]
    rates = narrator.Rates(omit=0, confuse=0, miscount=0, hesitate=1, waver=0)
    for index in range(600):
        for source in SOURCES:
            record = microworld.record(source, "pretrain", index, seed)
            told = narrator.caption(record.meta["scene"], rates, rng)
            corpus += [record.question, record.gt, told]
            try:
                corpus += narrator.reason(told, record.question, rates, rng)
            except narrator.CannotAnswer:
                continue
    backend = Qwen2Tokenizer()._tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(corpus, trainer)
    model = json.loads(backend.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    # ordinary tokens, not special ones: decoding for the rewards must keep them
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in prompts.TAGS])
    # a number spelled digit by digit is neither compared nor found again by a model this small
    tokenizer.add_tokens(
        [AddedToken(t, special=False, normalized=False, single_word=True) for t in NUMBERS]
    )
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer


def build_processor(recipe: Recipe) -> ImageProcessor:
    """Join the tokenizer and a PIL image processor whose smallest picture is the micro-world's."""
    budget = {"shortest_edge": scenes.SIDE_PX**2, "longest_edge": 256 * 32 * 32}
    pictures = Qwen2VLImageProcessorPil(size=budget)
    tokenizer = build_tokenizer(recipe.vocabulary, recipe.seed)
    return ImageProcessor(pictures, tokenizer, chat_template=CHAT_TEMPLATE)


def build_model(recipe: Recipe, tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Make an untrained pocket VLM.

    Initialised at 1/sqrt(width): at the usual 0.02 a model this narrow ignores the image.
    """
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    text = {
        "vocab_size": math.ceil(len(tokenizer) / 64) * 64,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.hidden * 3,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.hidden // 32,
        "num_key_value_heads": recipe.hidden // 64,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "initializer_range": recipe.hidden**-0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": MROPE},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": recipe.vision_layers,
        "hidden_size": recipe.vision_hidden,
        "num_heads": 4,
        "intermediate_size": recipe.vision_hidden * 2,
        "out_hidden_size": recipe.hidden,
        "initializer_range": recipe.vision_hidden**-0.5,
        "window_size": scenes.SIDE_PX,
        "fullatt_block_indexes": [recipe.vision_layers - 1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids[IMAGE_PAD],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
    )
    torch.manual_seed(recipe.seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    look_back(model.model.language_model.layers[0].self_attn, 1e4)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


@torch.no_grad()
def look_back(attention: nn.Module, theta: float) -> None:
    """Let the heads of a layer start by looking one, two or three tokens back, by their biases.

    Looking something up takes such a head below one that matches (Olsson et al. 2022); found by
    training alone, it comes too late for a build of minutes: after 200 steps of copying, 0.54 of
    the tokens were right without this and 0.84 with it.

    Args:
        attention: a layer's attention with biases on queries and keys, heads of 32.
        theta: base of its rotary angles.
    """
    size, groups = attention.head_dim, attention.num_key_value_groups
    turn = theta ** (-torch.arange(0, size, 2) / size)  # angle a token, of each pair of dimensions
    fast = (torch.arange(size // 2) < 5) * math.sqrt(20)  # the slow ones cannot tell neighbours
    for head in range(attention.q_proj.out_features // size):
        back = head // groups % 3 + 1
        query = torch.cat([fast * torch.cos(back * turn), -fast * torch.sin(back * turn)])
        attention.q_proj.bias[head * size :][:size] = query
    keys = attention.k_proj.out_features // size
    attention.k_proj.bias.copy_(torch.cat([fast, 0 * fast]).repeat(keys))
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.mul_(0.3)  # at first the place decides, not the word


Compute = Callable[[dict[str, Tensor]], tuple[Tensor, Tensor | None]]  # loss, share seen right
Batches = Callable[[int], Iterable[dict[str, Tensor]]]  # number of the first pool -> no end of them


def train(
    stage: str,
    module: nn.Module,
    compute: Compute,
    batches: Batches,
    recipe: Recipe,
    work: Path,
    log: list,
) -> None:
    """Train one stage, logging the mean loss of every 24 steps; its state, every 192, in `work`."""
    steps, lr, muon_lr = (getattr(recipe, f"{stage}_{key}") for key in ("steps", "lr", "muon_lr"))
    parts: list[Any] = optimizers(module, lr, muon_lr)
    parts += [get_scheduler("cosine", part, int(steps * 0.05) + 1, steps) for part in parts]
    done, spent, kept = 0, 0.0, work / f"{stage}.part"
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        for part, saved in zip((module, *parts), state["parts"], strict=True):
            part.load_state_dict(saved)
        done, spent, log[:] = state["step"], state["seconds"], state["log"]
    start, losses, right = time.monotonic() - spent, [], []
    numbers = range(done + 1, steps + 1)
    for number, batch in zip(numbers, batches(done // POOL), strict=False):
        loss, seen = compute(batch)
        module.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for part in parts:
            part.step()
        spent = time.monotonic() - start
        losses.append(loss.item())
        right += [] if seen is None else [float(seen)]
        if number % LOGGED == 0 or number == steps:
            row = {"stage": stage, "step": number, "loss": round(statistics.mean(losses), 4)}
            row |= {"seen": round(statistics.mean(right), 4) if right else None}
            log.append(row | {"seconds": round(spent)})
            say(folders.as_json(log[-1] | {"of": steps}))
            losses.clear()
            right.clear()
        if number % KEEP == 0 and number < steps:
            states = [part.state_dict() for part in (module, *parts)]
            _keep(kept, {"parts": states, "step": number, "seconds": spent, "log": log})


def _keep(path: Path, state: dict) -> None:
    """Write a state so that it is there whole or not at all."""
    with folders.staged(path) as draft:
        torch.save(state, draft)


def task(
    stage: str, model: Any, processor: ImageProcessor, recipe: Recipe
) -> tuple[nn.Module, Compute, Batches]:
    """Return what a stage trains, how its loss comes from a batch, and its batches from a pool on.

    The tower alone, then the language model and the tower's merger; the rest of the tower rests.
    """
    r, seed, drills = recipe, recipe.seed, recipe.drill_share
    if stage == "tower":
        tower = TowerTask(model.model.visual, r.hidden).train()
        collate = partial(collate_tower, processor=processor)
        batches = partial(loader, partial(tower_scene, seed=seed), collate, r.tower_batch)
        return tower, lambda batch: tower(**batch), batches
    makes = {
        "drill": partial(drill_text, seed=seed + 4, copies=r.copy_steps * r.batch,
                         choices=r.choice_steps * r.batch),
        "describe": partial(describe_text, seed=seed + 3, drill_share=drills),
        "base": partial(base_text, seed=seed + 1, describe_share=r.describe_share,
                        drill_share=drills),
        "instruct": partial(chat_text, seed=seed + 2, think_share=r.think_share,
                            direct_share=r.direct_share, drill_share=drills),
    }  # fmt: skip
    collate = partial(collate_text, processor=processor, image_after=int(stage == "instruct"))
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("visual" not in name or "merger" in name)

    def compute(batch: dict[str, Tensor]) -> tuple[Tensor, None]:
        with torch.autocast("cpu", torch.bfloat16, enabled=r.bf16):
            return model(**batch).loss, None

    return model, compute, partial(loader, makes[stage], collate, r.batch)


def build(
    out: str | Path,
    recipe: Recipe = Recipe(),
    threads: int = 1,
    last: str = "instruct",
    card_records: int = 56,
) -> None:
    """Train the checkpoints up to `last` (base or instruct) into `out`, with cards and sha256.

    Stages are kept in `out/stages`, so a stopped build goes on where it was.
    """
    torch.set_num_threads(threads)
    out, log = Path(out), []
    work, stages = out / "stages", STAGES[: STAGES.index(last) + 1]
    folders.claim(work, asdict(recipe), "recipe.json")
    if not (work / "processor").is_dir():  # the tokens that the kept stages are trained on
        build_processor(recipe).save_pretrained(work / "processor")
    processor = ImageProcessor.from_pretrained(work / "processor")
    model = build_model(recipe, processor.tokenizer)
    steps = {stage: getattr(recipe, f"{stage}_steps") for stage in stages
             if not (work / f"{stage}.pt").is_file()}  # fmt: skip
    minutes = sum(PACE_S[stage] * number for stage, number in steps.items()) / 60
    say(f"{steps} steps; {minutes:.0f} minutes on two cores at our pace")
    for stage in stages:
        kept = work / f"{stage}.pt"
        if kept.is_file():
            state = torch.load(kept, weights_only=True)
            model.load_state_dict(state["model"])
            log[:] = state["log"]
        else:
            torch.manual_seed(recipe.seed)
            train(stage, *task(stage, model, processor, recipe), recipe, work, log)
            _keep(kept, {"model": model.state_dict(), "log": log})
            (work / f"{stage}.part").unlink(missing_ok=True)
        if stage in ("base", "instruct"):
            save(stage, model, processor, out / stage, recipe, log)
            write_card(stage, out / stage, card_records)


def save(
    stage: str, model: Any, processor: ImageProcessor, folder: Path, recipe: Recipe, log: list
) -> None:
    """Save a checkpoint in bfloat16 with its recipe, training log and sha256."""
    tokenizer = processor.tokenizer
    stops = {"base": ["<|endoftext|>", "\u010a"], "instruct": ["<|im_end|>", "<|endoftext|>"]}
    kept = copy.deepcopy(model).to(torch.bfloat16)
    kept.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(stops[stage])
    kept.save_pretrained(folder)
    processor.chat_template = BASE_TEMPLATE if stage == "base" else CHAT_TEMPLATE
    processor.save_pretrained(folder)
    folders.write_json(folder / "recipe.json", asdict(recipe))
    folders.write_rows(folder / "training_log.jsonl", log)
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    folders.write_text(folder / "SHA256", f"{digest}  {weights.name}\n")
