"""The pocket VLM's tokens: Qwen's special ones, whole numbers, and bytes joined on our text."""

from __future__ import annotations

import json
import random

from tokenizers import AddedToken, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from vlaa_lib import prompts
from vlaa_lib.models import IMAGE_PAD, VISION_END, VISION_START

from . import microworld
from .microworld import SOURCES, narrator

# Qwen's special tokens, in Qwen's order
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>",
           "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
           VISION_START, VISION_END, "<|vision_pad|>", IMAGE_PAD, "<|video_pad|>")  # fmt: skip
NUMBERS = (*map(str, range(10, 200)), *(f"{n / 100:.2f}" for n in range(101)))


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
