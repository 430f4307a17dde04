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
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, get_scheduler
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlaa_lib import folders
from vlaa_lib.models import IMAGE_PAD, VISION_END, VISION_START, ImageProcessor

from .card import write_card
from .lessons import POOL, base_text, chat_text, collate_text, describe_text, drill_text, loader
from .microworld import scenes
from .muon import optimizers
from .tokenizer import SPECIAL, build_tokenizer
from .tower import TowerTask, collate_tower, tower_scene

STAGES = ("tower", "drill", "describe", "base", "instruct")
MROPE = [4, 6, 6]  # angles of M-RoPE (of 16) that tell time, height and width: Qwen's shares
LOGGED = 3 * POOL  # steps between two logged losses: whole pools, whose tokens count alike
KEEP = 8 * LOGGED  # steps between two kept states: resuming repeats no batch, loses no loss
# seconds a step
PACE_S = {"tower": 0.4, "drill": 1.1, "describe": 1.1, "base": 1.0, "instruct": 1.5}

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


def _has_bf16() -> bool:
    """Say whether this processor multiplies bfloat16 by itself; others imitate it, slowly."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


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
    bf16: bool = field(default_factory=_has_bf16)  # all but the tower, where that is faster


def build_processor(recipe: Recipe) -> ImageProcessor:
    """Join the tokenizer and a PIL image processor whose smallest picture is the micro-world's."""
    budget = {"shortest_edge": scenes.SIDE_PX**2, "longest_edge": 256 * 32 * 32}
    tokenizer = build_tokenizer(recipe.vocabulary, recipe.seed)
    return ImageProcessor(
        Qwen2VLImageProcessorPil(size=budget), tokenizer, chat_template=CHAT_TEMPLATE
    )


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
    attention.k_proj.bias.copy_(
        torch.cat([fast, 0 * fast]).repeat(attention.k_proj.out_features // size)
    )
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.mul_(0.3)  # at first the place decides, not the word


def train(
    stage: str, module: nn.Module, compute: Any, batches: Any, recipe: Recipe, work: Path, log: list
) -> None:
    """Train one stage, printing the mean loss of every 24 steps and keeping its state every 192.

    Args:
        compute: batch -> (loss, share seen right or None).
        batches: first pool of batches (8 each) -> endless batches.
        work: folder of the kept states.
    """
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
            print(json.dumps(log[-1] | {"of": steps}), flush=True)
            losses.clear()
            right.clear()
        if number % KEEP == 0 and number < steps:
            states = [part.state_dict() for part in (module, *parts)]
            _keep(kept, {"parts": states, "step": number, "seconds": spent, "log": log})


def _keep(path: Path, state: dict) -> None:
    """Write a state so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def train_tower(model: Any, processor: ImageProcessor, recipe: Recipe, work: Path, log: list):
    """Stage 1: the tower alone."""
    task = TowerTask(model.model.visual, recipe.hidden).train()

    def batches(first: int) -> Any:
        make = partial(tower_scene, seed=recipe.seed)
        collate = partial(collate_tower, processor=processor)
        return loader(make, collate, recipe.tower_batch, first)

    train("tower", task, lambda b: task(**b), batches, recipe, work, log)


def train_language(
    stage: str, model: Any, processor: ImageProcessor, recipe: Recipe, work: Path, log: list
) -> None:
    """Stages 2 to 5: the language model and the tower's merger; the rest of the tower rests."""
    if stage == "drill":
        make = partial(
            drill_text,
            seed=recipe.seed + 4,
            copies=recipe.copy_steps * recipe.batch,
            choices=recipe.choice_steps * recipe.batch,
        )
    elif stage == "describe":
        make = partial(describe_text, seed=recipe.seed + 3, drill_share=recipe.drill_share)
    elif stage == "base":
        make = partial(
            base_text,
            seed=recipe.seed + 1,
            describe_share=recipe.describe_share,
            drill_share=recipe.drill_share,
        )
    else:
        make = partial(
            chat_text,
            seed=recipe.seed + 2,
            think_share=recipe.think_share,
            direct_share=recipe.direct_share,
            drill_share=recipe.drill_share,
        )
    collate = partial(collate_text, processor=processor, image_after=int(stage == "instruct"))
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("visual" not in name or "merger" in name)

    def batches(first: int) -> Any:
        return loader(make, collate, recipe.batch, first)

    def compute(batch: dict[str, Tensor]) -> tuple[Tensor, None]:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            return model(**batch).loss, None

    train(stage, model, compute, batches, recipe, work, log)


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
    _claim(work / "recipe.json", recipe)
    if not (work / "processor").is_dir():  # the tokens that the kept stages are trained on
        build_processor(recipe).save_pretrained(work / "processor")
    processor = ImageProcessor.from_pretrained(work / "processor")
    model = build_model(recipe, processor.tokenizer)
    left = [stage for stage in stages if not (work / f"{stage}.pt").is_file()]
    steps = {stage: getattr(recipe, f"{stage}_steps") for stage in left}
    print(f"{steps} steps; {expected_minutes(recipe, left):.0f} minutes on two cores at our pace")
    for stage in stages:
        kept = work / f"{stage}.pt"
        if kept.is_file():
            state = torch.load(kept, weights_only=True)
            model.load_state_dict(state["model"])
            log[:] = state["log"]
        else:
            torch.manual_seed(recipe.seed)
            if stage == "tower":
                train_tower(model, processor, recipe, work, log)
            else:
                train_language(stage, model, processor, recipe, work, log)
            _keep(kept, {"model": model.state_dict(), "log": log})
            (work / f"{stage}.part").unlink(missing_ok=True)
        if stage in ("base", "instruct"):
            save(stage, model, processor, out / stage, recipe, log)
            write_card(stage, out / stage, card_records)


def _claim(path: Path, recipe: Recipe) -> None:
    """Write a build's recipe beside its kept stages, or hold it against the one that is there."""
    wanted = asdict(recipe)
    kept = json.loads(path.read_text()) if path.is_file() else wanted
    if differ := [key for key in wanted if kept.get(key) != wanted[key]]:
        raise ValueError(
            f"{path.parent} holds stages of another recipe ({', '.join(differ)});"
            " build into another folder, or delete it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    folders.write_text(path, json.dumps(wanted, indent=1) + "\n")


def expected_minutes(recipe: Recipe, stages: Iterable[str] = STAGES) -> float:
    """Return the minutes of these stages at the seconds a step measured on two cores."""
    return sum(getattr(recipe, f"{stage}_steps") * PACE_S[stage] for stage in stages) / 60


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
    folders.write_text(folder / "recipe.json", json.dumps(asdict(recipe), indent=1) + "\n")
    folders.write_lines(folder / "training_log.jsonl", (json.dumps(row) + "\n" for row in log))
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    folders.write_text(folder / "SHA256", f"{digest}  {weights.name}\n")
