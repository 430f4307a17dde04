"""Models: the image-only processor, the loader of policies, and the pocket VLM's shape."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, BatchFeature, dynamic_module_utils, modeling_utils
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin

from . import ROOT, VlaaError, folders, progress
from .images import MAX_PIXELS, MIN_PIXELS
from .profiles import MODES

IMAGE_PAD, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"

# Names that Qwen2.5-VL's modules carry; PEFT and bitsandbytes match on them.
LANGUAGE_LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
NOT_QUANTISED = ["model.visual", "lm_head", "step_head"]  # a bare "visual" would match nothing

PROGRAM_S = 20  # ours: a chat template, or names' patterns, take a thousandth of that
MEMORY_BYTES = 2**30  # ours: they take a thousandth of that, too
ANOTHER = (
    "fetch it again, or take another checkpoint: a Qwen2-VL or Qwen2.5-VL as safetensors, without "
    "Python code of its own"
)
# a checkpoint brings no code that we run: also where others load (TRL the reference) nobody is
# asked, which a `y` on standard input would answer
SAFE = {"trust_remote_code": False}
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
modeling_utils.is_kernel = lambda name: False  # nor a kernel that its config takes from the hub

# torchvision, where it is installed, would take over: it opens paths as tensors, which GRPO's fast
# paths cannot tell apart, and its resizing moves pixels by up to 0.33 of their normalised units
BACKEND = "pil"


class ImageProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without video, so that torchvision is never needed.

    Loads folders that it saved itself and the folders of real Qwen2.5-VL checkpoints. What it
    saves bears the stock class's name and a video processor: transformers and vLLM want both.
    """

    stock = Qwen2_5_VLProcessor.__name__  # `load_policy` asks the model's family

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = IMAGE_PAD, "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, **kwargs) -> BatchFeature:
        return super().__call__(images=images, text=text, **kwargs)

    def apply_chat_template(self, *args, **kwargs) -> Any:
        """Write chats with the checkpoint's template, a program: it may not run for ever."""
        if kwargs.get("tokenize"):  # TRL's, with pictures; the same chats were counted before
            return super().apply_chat_template(*args, **kwargs)
        with bounded(PROGRAM_S):
            return self._chats(*args, **kwargs)

    def _chats(self, *args, **kwargs) -> Any:
        try:
            return super().apply_chat_template(*args, **kwargs)
        except Exception as error:  # a template is somebody else's program
            raise VlaaError(
                f"the checkpoint's chat template fails ({said(error)}); take its chat_template "
                "from the model that it was made of"
            ) from error

    @classmethod
    def from_pretrained(cls, path, **kwargs) -> ImageProcessor:
        made = super().from_pretrained(path, **kwargs)  # hands every argument to the tokenizer too
        made.image_processor = AutoImageProcessor.from_pretrained(path, backend=BACKEND, **kwargs)
        return made

    def to_dict(self) -> dict[str, Any]:
        sizes = ("patch_size", "temporal_patch_size", "merge_size")
        video = {name: getattr(self.image_processor, name) for name in sizes}
        video["video_processor_type"] = "Qwen2VLVideoProcessor"
        return super().to_dict() | {"processor_class": self.stock, "video_processor": video}

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        files = super().save_pretrained(save_directory, push_to_hub, **kwargs)
        path = Path(save_directory) / "tokenizer_config.json"  # it names this class there
        held = folders.read_json(path) | {"processor_class": self.stock}
        folders.write_json(path, held)
        return files


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """End what takes longer, or a GiB of memory, with an error.

    Only in a program's main thread and on POSIX: elsewhere nothing can end it.
    """
    try:
        import resource

        before = signal.signal(signal.SIGALRM, lambda *_: _late(seconds))
    except (ImportError, ValueError):
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError, OSError):  # macOS has none
        held = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _late(seconds: float) -> None:
    raise TimeoutError(f"stopped after {seconds:g} s")


def said(error: BaseException) -> str:
    """Return an error in one line, the first of what it says."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:300]}"


@contextlib.contextmanager
def readable(path: str | Path, remedy: str = ANOTHER) -> Iterator[None]:
    """Say in one line why a checkpoint does not load, whatever its files make others raise.

    By design a checkpoint's own Python code and pickled weights are refused: nothing of it runs.
    """
    import torch

    try:
        yield
    except (VlaaError, FileNotFoundError, MemoryError, torch.OutOfMemoryError, ImportError):
        raise
    except Exception as error:  # broken JSON, cut weights, pickles, code, other shapes...
        raise VlaaError(f"{path}: does not load ({said(error)}); {remedy}") from error


def check_keys(
    path: str | Path, missing: Iterable[str], unexpected: Iterable[str], new: Iterable[str] = ()
) -> None:
    """Refuse a checkpoint whose weights do not fit: what is missing would be random.

    Args:
        missing, unexpected: names of weights that the model has and the files have not; or only
            the files have.
        new: modules that may be missing, e.g. a head that is to be trained.
    """
    new = set(new)
    found = {
        "missing": sorted(key for key in missing if not new & set(key.split("."))),
        # tables that older releases saved and every release computes
        "unexpected": sorted(
            key for key in unexpected if not key.endswith((".inv_freq", ".position_ids"))
        ),
    }
    if any(found.values()):
        told = ", ".join(
            f"{len(keys)} {kind} (e.g. {keys[0]})" for kind, keys in found.items() if keys
        )
        raise VlaaError(
            f"{path}: its weights do not fit the model: {told}; it was cut short, or made for "
            "another model or by another release: fetch it again, or take another checkpoint"
        )


def load_processor(
    path: str | Path, max_pixels: int = MAX_PIXELS, min_pixels: int = MIN_PIXELS
) -> ImageProcessor:
    """Load a processor with left padding and an image budget in pixels (area)."""
    if min_pixels > max_pixels:
        raise VlaaError(f"min_pixels {min_pixels} is above max_pixels {max_pixels}")
    from PIL import Image

    with readable(path):
        processor = ImageProcessor.from_pretrained(str(path), **SAFE)
        processor.image_processor(Image.new("RGB", (56, 56)))  # patches of 0 pixels, say
    processor.image_processor.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    # generation needs left padding; TRL pads training rows itself
    processor.tokenizer.padding_side = "left"
    return processor


def whole_patches(image: Any, processor: ImageProcessor) -> Any:
    """Resize a picture as the processor would: whoever reads it next has nothing left to resize.

    vLLM's own processor resizes with torchvision, whose pixels are others.
    """
    from PIL.Image import Resampling
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    cutter = processor.image_processor
    side, limits = cutter.patch_size * cutter.merge_size, cutter.size
    within = limits["shortest_edge"], limits["longest_edge"]
    height, width = smart_resize(image.height, image.width, side, *within)
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Resampling(cutter.resample))


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
    dtype: str = "auto",
    kind: Any = None,
    merge: bool = True,
    new: Iterable[str] = (),
) -> Policy:
    """Load a Qwen2-VL or Qwen2.5-VL policy with a frozen vision tower (paper §3).

    Args:
        mode: `full` and `lora` load the weights as they are (the trainer adds the adapter),
            `4bit` loads the language model in nf4.
        dtype: `float32`, `bfloat16`...; `auto` is float32 on a CPU and bfloat16 on a GPU.
        kind: class of the model, as ViLPRM's with a head of its own; by default a language model.
        merge: add an adapter to the weights; not so it stays beside them, and 4-bit ones exact.
        new: modules that the checkpoint may lack, as it has none of them yet.
    """
    import torch
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    progress.take_over_transformers()
    path = resolve(path)
    if mode not in MODES:
        raise VlaaError(f"unknown mode {mode!r}; use one of {', '.join(MODES)}")
    gpu = torch.cuda.is_available()
    if dtype == "auto":
        dtype = "bfloat16" if gpu else "float32"
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
    weights, config = path, None
    if (Path(path) / "adapter_config.json").is_file():
        from peft import LoraConfig

        with readable(path):
            config = LoraConfig.from_pretrained(path)
        # an adapter names the checkpoint that it was trained on
        weights = resolve(config.base_model_name_or_path or "")
        new = {*new, *(config.modules_to_save or ())}  # these it brings itself
    with readable(weights):
        model, found = (kind or AutoModelForImageTextToText).from_pretrained(
            weights,
            dtype=getattr(torch, dtype),
            quantization_config=quantisation,
            device_map=None if is_spread else place,
            output_loading_info=True,
            **SAFE,
        )
        check_keys(weights, found["missing_keys"], found["unexpected_keys"], new)
    if config:
        with readable(path):
            model = adapted(model, path, config)
        model = model.merge_and_unload() if merge else model
    freeze_vision(model)
    processor = load_processor(path, max_pixels, min_pixels)
    processor.stock = PROCESSOR_MAPPING_NAMES[model.config.model_type]
    return Policy(model, processor, path)


def adapted(model: Any, path: str | Path, config: Any) -> Any:
    """Put the adapter of a folder on its base; refuse weights that are not those it would save."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import check_target_module_exists

    # names of modules may be patterns, and a pattern can take for ever
    named = (*config.rank_pattern, *config.alpha_pattern, *(config.modules_to_save or ()))
    if odd := [name for name in named if not re.fullmatch(r"\^?(\w|\\?\.)+", name)]:
        raise VlaaError(f"{path}: adapter_config.json has the pattern {odd[0]!r}; write names out")
    if config.target_modules != "all-linear":
        with bounded(PROGRAM_S):
            names = [name for name, _ in model.named_modules()]
            chosen = {name for name in names if check_target_module_exists(config, name)}
        config.target_modules, config.exclude_modules = chosen, None
        config.layers_to_transform = config.layers_pattern = None
    model = PeftModel.from_pretrained(model, path, config=config)
    check_adapter(model, path)
    return model


def check_adapter(model: Any, path: str | Path) -> None:
    """Refuse the adapter of a folder where a model with it holds, or would save, other weights."""
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    given = load_peft_weights(str(path), device="cpu").keys()
    held = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    check_keys(path, held - given, given - held)


def whole(path: str | Path, into: str | Path, kind: Any = None) -> str:
    """Return a folder with a policy's whole weights: `path`, or `into` where an adapter is merged.

    GRPO reads its reference from the folder that the policy came from, and a new adapter names it
    as its base: neither may be the adapter's own base, which has not learnt what it has.
    """
    if not (Path(resolve(path)) / "adapter_config.json").is_file():
        return str(path)
    if not Path(into).is_dir():
        policy, draft = load_policy(path, kind=kind), folders.draft_of(into)
        policy.model.save_pretrained(draft)
        policy.processor.save_pretrained(draft)
        with contextlib.suppress(OSError):  # another process of this run was first
            draft.replace(into)
        shutil.rmtree(draft, ignore_errors=True)
    return str(into)


def spelt(processor: Any, text: str) -> str:
    """Return the first special token that a text spells, or nothing: it would be read as one."""
    added = processor.tokenizer.added_tokens_decoder.values()
    return next((token.content for token in added if token.special and token.content in text), "")


def plain(processor: Any, text: str) -> str:
    """Take special tokens out of a text: a spelt image token would ask for another picture."""
    while token := spelt(processor, text):
        text = text.replace(token, " ")
    return text


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
