"""The size of a policy from its config alone: parameters by part, bytes, visual tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

from vlaa_lib import images, models

# The paper's four policies, for machines that have not downloaded them: their published configs.
# Qwen2.5-VL's vision tower has gated MLPs of 3,420; Qwen2-VL's has plain ones of 4 x 1,280.
_VISION = {
    "qwen2_vl": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4},
    "qwen2_5_vl": {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420},
}
# family, hidden, MLP, layers, heads, key-value heads, vocabulary, tied embeddings
_PAPER_POLICIES = {
    "Qwen2-VL-2B": ("qwen2_vl", 1536, 8960, 28, 12, 2, 151_936, True),
    "Qwen2-VL-7B": ("qwen2_vl", 3584, 18_944, 28, 28, 4, 152_064, False),
    "Qwen2.5-VL-3B": ("qwen2_5_vl", 2048, 11_008, 36, 16, 2, 151_936, True),
    "Qwen2.5-VL-7B": ("qwen2_5_vl", 3584, 18_944, 28, 28, 4, 152_064, False),
}


@dataclass(frozen=True)
class Shape:
    """What memory arithmetic needs to know of a Qwen2-VL or Qwen2.5-VL policy."""

    name: str
    origin: str  # where the config came from, for the reader
    total: int  # parameters
    vision: int
    linears: int  # of the language model, where LoRA sits and 4 bit applies
    embeddings: int  # with the head, which is the same matrix where it is tied
    adapter_units: int  # LoRA parameters for each unit of rank: inputs + outputs of the linears
    hidden: int
    mlp: int
    layers: int
    kv_width: int  # key-value heads x head size
    vocabulary: int
    pixels_per_token: int  # side of the square (px) that one visual token covers

    def trained(self, mode: str, rank: int) -> int:
        """Return the parameters that a mode trains; the vision tower is frozen (paper §3)."""
        return self.total - self.vision if mode == "full" else rank * self.adapter_units

    def kv_bytes_per_token(self, width: int = 2) -> int:
        """Return the KV cache's bytes a token, keys and values of all layers."""
        return 2 * self.layers * self.kv_width * width


def shape_of(model: str | Path) -> Shape:
    """Count a policy's parameters on the meta device: nothing is loaded, nothing downloaded.

    Args:
        model: checkpoint folder, config file, or hub name; a hub name that is not in the local
            cache falls back to the shapes of the paper's four policies.
    Raises:
        ValueError: no such config here, or not a Qwen2-VL or Qwen2.5-VL.
    """
    from transformers import AutoConfig

    if Path(model).is_file():
        return _counted(str(model), f"its config {model}", _from_file(Path(model)))
    place = models.resolve(model)
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True)
        return _counted(str(model), "its own config", config)
    except OSError as error:
        try:
            config = published(model)
        except ValueError:
            raise ValueError(
                f"{model}: no config here ({str(error).splitlines()[0]}); download it, name its "
                f"config.json, or use one of {', '.join(_PAPER_POLICIES)}"
            ) from None
        return _counted(str(model), f"its published shape: {model} is not downloaded", config)


def _from_file(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        values = json.loads(path.read_text())
        return AutoConfig.for_model(**values)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a model's config ({error}); name a config.json") from None


def published(model: str | Path, part: int = 1) -> Any:
    """Return the config of one of the paper's four policies; a `part` of it is so much smaller.

    Args:
        part: what widths and depths are divided by, heads apart.
    Raises:
        ValueError: another policy, or a part that leaves its heads no width.
    """
    from transformers import AutoConfig

    asked = str(model).rsplit("/", 1)[-1]  # may end in -Instruct, -AWQ...: the same shape
    known = [name for name in _PAPER_POLICIES if re.match(rf"{re.escape(name)}(-|$)", asked)]
    if not known:
        raise ValueError(f"{model}: not one of {', '.join(_PAPER_POLICIES)}")
    family, hidden, mlp, layers, heads, kv, words, tied = _PAPER_POLICIES[known[0]]
    half = hidden // part // heads // 2 if part else 0  # the angles of a head
    if half < 4:
        raise ValueError(f"{model}: heads of 1/{part} are too narrow; use a part from 1 to 16")
    time = half // 4
    sections = [time, (half - time) // 2, half - time - (half - time) // 2]
    text = {
        "hidden_size": hidden // part,
        "intermediate_size": mlp // part,
        "num_hidden_layers": -(-layers // part),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": words // part,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
        "tie_word_embeddings": tied,
    }
    inner, outer = (
        ("embed_dim", "hidden_size") if family == "qwen2_vl" else ("hidden_size", "out_hidden_size")
    )
    vision = _VISION[family] | {outer: hidden // part}
    if part > 1:
        depth, heads = -(-vision["depth"] // part), vision["num_heads"]
        # rotary angles come in fours, so a head is never narrower than 8
        vision |= {"depth": depth, inner: heads * max(8, vision[inner] // part // heads)}
        if "intermediate_size" in vision:
            vision |= {"intermediate_size": vision["intermediate_size"] // part,
                       "fullatt_block_indexes": [depth - 1]}  # fmt: skip
    return AutoConfig.for_model(
        family, text_config=text, vision_config=vision, tie_word_embeddings=tied
    )


def _counted(name: str, origin: str, config: Any) -> Shape:
    """Build the model on the meta device and add up its parameters by part."""
    import torch
    from transformers import AutoModelForImageTextToText

    if config.model_type not in _VISION:
        raise ValueError(
            f"{name}: model type {config.model_type!r} is not one of {', '.join(_VISION)}"
        )
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    sizes = {n: p.numel() for n, p in model.named_parameters()}  # a tied head appears once
    linears = [m for n, m in model.named_modules() if re.fullmatch(models.LANGUAGE_LINEARS, n)]
    text, vision = config.text_config, config.vision_config
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        name=name,
        origin=origin,
        total=sum(sizes.values()),
        vision=sum(size for n, size in sizes.items() if ".visual." in f".{n}"),
        linears=sum(m.weight.numel() for m in linears),
        embeddings=sum(size for n, size in sizes.items() if "embed_tokens" in n or "lm_head" in n),
        adapter_units=sum(m.in_features + m.out_features for m in linears),
        hidden=text.hidden_size,
        mlp=text.intermediate_size,
        layers=text.num_hidden_layers,
        kv_width=text.num_key_value_heads * head_size,
        vocabulary=text.vocab_size,
        pixels_per_token=vision.patch_size * vision.spatial_merge_size,
    )


def visual_tokens(
    sizes: Iterable[tuple[int, int]], min_pixels: int, max_pixels: int, unit: int = 28
) -> dict[str, int]:
    """Return the fewest, the median and the most tokens that pictures of these sizes (px) take.

    >>> visual_tokens([(224, 224), (640, 480), (4000, 3000)], 3136, 262144)
    {'min': 64, 'median': 315, 'max': 315}
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    counts = []
    for width, height in sizes:
        width, height = images.fitted_size(width, height, min_pixels, max_pixels)
        rows, columns = smart_resize(height, width, unit, min_pixels, max_pixels)
        counts.append(rows * columns // unit**2)
    if not counts:
        raise ValueError("no picture size given; write them as 640x480")
    return {"min": min(counts), "median": median_low(counts), "max": max(counts)}
