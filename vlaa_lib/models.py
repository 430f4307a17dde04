"""Models: the image-only processor, the loader of policies, and the pocket VLM's shape."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, BatchFeature
from transformers.models.qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl import Qwen2VLConfig
from transformers.processing_utils import ProcessorMixin

from . import ROOT, VlaaError, progress
from .images import MAX_PIXELS, MIN_PIXELS
from .profiles import MODES

IMAGE_PAD, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"

# Names that Qwen2.5-VL's modules carry; PEFT and bitsandbytes match on them.
LANGUAGE_LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
NOT_QUANTISED = ["model.visual", "lm_head", "step_head"]  # a bare "visual" would match nothing


class ImageProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without video, so that torchvision is never needed.

    Loads folders that it saved itself and the folders of real Qwen2.5-VL checkpoints.
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = IMAGE_PAD, "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, **kwargs) -> BatchFeature:
        return super().__call__(images=images, text=text, **kwargs)


# lets TRL and users' AutoProcessor find the class for folders that we saved
for config in (Qwen2_5_VLConfig, Qwen2VLConfig):  # the paper trains both families
    AutoProcessor.register(config, ImageProcessor, exist_ok=True)


def load_processor(
    path: str | Path, max_pixels: int = MAX_PIXELS, min_pixels: int = MIN_PIXELS
) -> ImageProcessor:
    """Load a processor with left padding and an image budget in pixels (area)."""
    if min_pixels > max_pixels:
        raise VlaaError(f"min_pixels {min_pixels} is above max_pixels {max_pixels}")
    processor = ImageProcessor.from_pretrained(str(path))
    processor.image_processor.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    # generation needs left padding; TRL pads training rows itself
    processor.tokenizer.padding_side = "left"
    return processor


@dataclass
class Policy:
    """A model with the processor that feeds it, and the folder both came from."""

    model: Any
    processor: ImageProcessor
    path: str


def load_policy(
    path: str | Path,
    mode: str = "full",
    max_pixels: int = MAX_PIXELS,
    min_pixels: int = MIN_PIXELS,
    dtype: str | None = None,
    kind: Any = None,
    merge: bool = True,
) -> Policy:
    """Load a Qwen2-VL or Qwen2.5-VL policy with a frozen vision tower (paper §3).

    Args:
        mode: `full` and `lora` load the weights as they are (the trainer adds the adapter),
            `4bit` loads the language model in nf4.
        dtype: `float32`, `bfloat16`...; by default float32 on a CPU and bfloat16 on a GPU.
        kind: class of the model, as ViLPRM's with a head of its own; by default a language model.
        merge: add an adapter to the weights; not so it stays beside them, and 4-bit ones exact.
    """
    import torch
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    progress.take_over_transformers()
    path = resolve(path)
    if mode not in MODES:
        raise VlaaError(f"unknown mode {mode!r}; use one of {', '.join(MODES)}")
    gpu = torch.cuda.is_available()
    dtype = dtype or ("bfloat16" if gpu else "float32")
    # a launcher spreads weights by itself; packed ones stay on the GPU that they were loaded to
    is_spread = int(os.environ.get("WORLD_SIZE", "1")) > 1 and mode != "4bit"
    place = {"": int(os.environ.get("LOCAL_RANK", "0")) if gpu else "cpu"}
    quantisation = None
    if mode == "4bit":
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            llm_int8_skip_modules=NOT_QUANTISED,
        )
    weights, adapter_config = path, Path(path) / "adapter_config.json"
    if adapter_config.is_file():  # an adapter names the checkpoint that it was trained on
        weights = resolve(json.loads(adapter_config.read_text())["base_model_name_or_path"])
    model = (kind or AutoModelForImageTextToText).from_pretrained(
        weights,
        dtype=getattr(torch, dtype),
        quantization_config=quantisation,
        device_map=None if is_spread else place,
    )
    if adapter_config.is_file():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, path)
        model = model.merge_and_unload() if merge else model
    freeze_vision(model)
    return Policy(model, load_processor(path, max_pixels, min_pixels), path)


def whole(path: str | Path, into: str | Path) -> str:
    """Return a folder with a policy's whole weights: `path`, or `into` where an adapter is merged.

    GRPO reads its reference from the folder that the policy came from, and a new adapter names it
    as its base: neither may be the adapter's own base, which has not learnt what it has.
    """
    if not (Path(resolve(path)) / "adapter_config.json").is_file():
        return str(path)
    if not Path(into).is_dir():
        policy, draft = load_policy(path), Path(f"{into}.{os.getpid()}")
        policy.model.save_pretrained(draft)
        policy.processor.save_pretrained(draft)
        with contextlib.suppress(OSError):  # another process of this run was first
            draft.replace(into)
        shutil.rmtree(draft, ignore_errors=True)
    return str(into)


def resolve(path: str | Path) -> str:
    """Return a checkpoint's folder, looked for here and at the repository root, or a hub name."""
    for folder in (Path(path), ROOT / path):
        if folder.is_dir():
            return str(folder)
    # `owner/name` is a name on the hub; anything deeper, or local by its look, is a folder
    if str(path).startswith((".", "/")) or str(path).count("/") != 1:
        raise FileNotFoundError(
            f"{path}: no model folder; build the pocket VLM with `python -m vlaa_lib models "
            "build-pocket` or give a checkpoint folder"
        )
    return str(path)


def freeze_vision(model: Any) -> int:
    """Switch off gradients in the vision tower (paper §3); return how many tensors that were.

    The tower keeps nothing for a backward pass either: gradient checkpointing makes the output of
    every embedding require gradients (transformers 5.23), the tower's patch embedding included.
    """
    import torch

    frozen = [p for name, p in model.named_parameters() if ".visual." in f".{name}"]
    for parameter in frozen:
        parameter.requires_grad_(False)
    if not frozen:
        raise VlaaError("no parameter named 'visual': not a Qwen2-VL or Qwen2.5-VL model?")
    for name, module in model.named_modules():
        if name.endswith("visual"):
            module.forward = torch.no_grad()(module.forward)
    return len(frozen)


def adapter(mode: str) -> Any:
    """Return the LoRA settings of a mode, or None for full-parameter training."""
    if mode == "full":
        return None
    from peft import LoraConfig

    # on the language model only: the vision tower stays frozen (paper §3). Ours: the paper trains
    # full parameters; r = 64 fits one 24 GB card at 3B
    return LoraConfig(r=64, lora_alpha=128, target_modules=LANGUAGE_LINEARS, task_type="CAUSAL_LM")
