"""The size of a policy from its config alone: parameters by part, bytes, visual tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaa_lib import VlaaError, images, models
from vlaa_lib.profiles import Model

# ours: sizes of CLEVR, COCO and a scanned page (px), three of the paper's sources
PICTURES = ((480, 320), (640, 480), (1700, 2200))

# The paper's four policies, for machines that have not downloaded them: their published configs.
# Qwen2.5-VL's vision tower has gated MLPs of 3,420; Qwen2-VL's has plain ones of 4 x 1,280.
VISION = {
    "qwen2_vl": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4},
    "qwen2_5_vl": {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420},
}
# family, hidden, MLP, layers, heads, key-value heads, vocabulary, tied embeddings
PAPER_POLICIES = {
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
    """Count a policy's parameters by part on the meta device; nothing is loaded or downloaded.

    Args:
        model: checkpoint folder, config file, or hub name; one that is not in the local cache falls
            back to the shapes of the paper's four policies.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    origin = "its own config"
    try:
        place = model if Path(model).is_file() else models.resolve(model)
        config = AutoConfig.from_pretrained(place, local_files_only=True, **models.SAFE)
    except Exception as error:  # transformers raises whatever a broken config makes it
        if (config := _published(model)) is None:
            why = (str(error) or type(error).__name__).split("\n")[0]
            raise VlaaError(
                f"{model}: no config here ({why}); download it, name its config.json, or use one "
                f"of {', '.join(PAPER_POLICIES)}"
            ) from None
        origin = f"its published shape: {model} is not downloaded"
    if config.model_type not in VISION:
        raise VlaaError(
            f"{model}: model type {config.model_type!r} is not one of {', '.join(VISION)}"
        )
    with torch.device("meta"):
        built = AutoModelForImageTextToText.from_config(config)
    sizes = {n: p.numel() for n, p in built.named_parameters()}  # a tied head appears once
    linears = [m for n, m in built.named_modules() if re.fullmatch(models.LANGUAGE_LINEARS, n)]
    text, vision = config.text_config, config.vision_config
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        name=str(model),
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


def _published(model: str | Path) -> Any | None:
    """Return the config of one of the paper's four policies; None for another name."""
    from transformers import AutoConfig

    # a name may end in -Instruct, -AWQ...: the same shape
    known = [n for n in PAPER_POLICIES if f"{model}-".rpartition("/")[2].startswith(f"{n}-")]
    if not known:
        return None
    family, hidden, mlp, layers, heads, kv, words, tied = PAPER_POLICIES[known[0]]
    outer = "hidden_size" if family == "qwen2_vl" else "out_hidden_size"  # of the vision tower
    text = {
        "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": words,
        # heads of 128: 64 angles, for time, height and width
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]
        },
        "tie_word_embeddings": tied,
    }  # fmt: skip
    vision = VISION[family] | {outer: hidden}
    return AutoConfig.for_model(
        family, text_config=text, vision_config=vision, tie_word_embeddings=tied
    )


def visual_tokens(m: Model, unit: int) -> dict[str, int]:
    """Return the fewest, the median and the most tokens that `PICTURES` take (unit: px a token)."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    counts = []
    for size in PICTURES:
        width, height = images.fitted_size(*size, m.min_pixels, m.max_pixels)
        rows, columns = smart_resize(height, width, unit, m.min_pixels, m.max_pixels)
        counts.append(rows * columns // unit**2)
    return dict(zip(("min", "median", "max"), sorted(counts), strict=True))
