"""The pocket VLM: processor, tokenizer, labels, loading, and batches that change nothing."""

import json
import logging
import re
import subprocess
import sys

import pytest
import torch

from vlaa_lib import ROOT, models, prompts
from vlaa_lib.evaluate import generate
from vlaa_lib.evaluate.generate import ask, render
from vlaa_lib.pocket import lessons as pocket_data
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket import tower as pocket_tower
from vlaa_lib.pocket.card import CLOSED, measure
from vlaa_lib.pocket.microworld import truth


def test_processor_reloads_and_counts_visual_tokens(tiny_model):
    processor = models.load_processor(tiny_model)
    sample = microworld.generate("solids", "train", 0)
    policy = models.Policy(None, processor, "")
    text = render(policy.processor, ask(sample.record))
    batch = processor(images=[sample.image], text=[text], return_tensors="pt")
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == pocket_data.CELLS
    assert prompts.SYSTEM_PROMPT in text and text.endswith("<|im_start|>assistant\n")
    user = text[text.index("<|im_start|>user") :]
    assert user.index("<|image_pad|>") < user.index(sample.record.question[:10])
    assert processor.tokenizer.padding_side == "left"


def test_processor_loads_a_folder_of_a_real_checkpoint(tiny_model, tmp_path):
    """The hub folders name Qwen2_5_VLProcessor and bring a video processor."""
    models.load_processor(tiny_model).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    config["processor_class"] = "Qwen2_5_VLProcessor"
    config["video_processor"] = {"video_processor_type": "Qwen2VLVideoProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(config), encoding="utf-8")
    processor = models.load_processor(tmp_path, max_pixels=50_000, min_pixels=12_544)
    size = processor.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (12_544, 50_000)


def test_saved_folders_name_what_other_programs_know(tiny_model, tmp_path):
    """transformers and vLLM look up `processor_class`; with torchvision a video part is needed."""
    policy = models.load_policy(tiny_model)
    policy.processor.save_pretrained(tmp_path)
    for folder in (tmp_path, *(ROOT / "data" / "pocket" / name for name in ("base", "instruct"))):
        saved, tokens = (json.loads((folder / f"{name}_config.json").read_text(encoding="utf-8"))
                         for name in ("processor", "tokenizer"))  # fmt: skip
        assert saved["processor_class"] == tokens["processor_class"] == "Qwen2_5_VLProcessor"
        assert tokens["backend"] == "tokenizers"
        assert saved["image_processor"]["image_processor_type"] == "Qwen2VLImageProcessor"
        video = saved["video_processor"]
        assert video.pop("video_processor_type") == "Qwen2VLVideoProcessor"
        assert video == {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    policy.processor.stock = "Qwen2VLProcessor"  # as load_policy says of the older family
    policy.processor.save_pretrained(tmp_path)
    assert "Qwen2VLProcessor" in (tmp_path / "tokenizer_config.json").read_text(encoding="utf-8")
    # read again by ours, cut with PIL whatever else is installed
    again = models.ImageProcessor.from_pretrained(tmp_path)
    assert type(again.image_processor).__name__ == "Qwen2VLImageProcessorPil"


@pytest.mark.parametrize("size", [(84, 56), (100, 75), (31, 640), (900, 700)])
def test_a_picture_in_whole_patches_is_the_one_that_the_processor_makes(size, tiny_model):
    from PIL import Image

    processor = models.load_processor(tiny_model)
    pixels = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8).numpy()
    image = Image.fromarray(pixels)
    cut = models.whole_patches(image, processor)
    assert not cut.width % 28 and not cut.height % 28
    assert models.whole_patches(cut, processor) is cut
    one, two = (processor.image_processor(i, return_tensors="pt") for i in (image, cut))
    assert one["image_grid_thw"].tolist() == two["image_grid_thw"].tolist()
    assert torch.equal(one["pixel_values"], two["pixel_values"])


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_frozen_tower_stays_out_of_the_backward_pass(mode, tiny_model):
    """Gradient checkpointing hooks the tower's patch embedding into it; gradients stay the same."""
    from peft import get_peft_model

    sample, found = microworld.generate("solids", "train", 0), {}
    for frozen in (True, False):
        policy = models.load_policy(tiny_model)
        model = policy.model
        if not frozen:  # as transformers has it
            del model.model.visual.forward
        batch = policy.processor(
            images=[sample.image],
            text=[render(policy.processor, ask(sample.record))],
            return_tensors="pt",
        )
        tower, outputs = model.model.visual, []
        if mode == "lora":
            torch.manual_seed(0)
            model = get_peft_model(model, models.adapter(mode))

        def note(module, given, made, to=outputs):  # older transformers return one tensor
            to.append(getattr(made, "pooler_output", made).grad_fn)

        tower.register_forward_hook(note)
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
        model(**batch, labels=batch["input_ids"]).loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found[frozen] = (outputs[0], grads)
    (kept, ours), (hooked, theirs) = found[True], found[False]
    assert kept is None and hooked is not None
    assert ours and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_bad_pixels_modes_and_paths_are_refused(tiny_model):
    with pytest.raises(ValueError, match="min_pixels 9000 is above max_pixels 1000"):
        models.load_processor(tiny_model, max_pixels=1000, min_pixels=9000)
    with pytest.raises(ValueError, match="unknown mode '8bit'"):
        models.load_policy(tiny_model, mode="8bit")
    with pytest.raises(FileNotFoundError, match="models build-pocket"):
        models.load_policy("data/pocket/nothing")


def test_tags_survive_decoding(tiny_model):
    tokenizer = models.load_processor(tiny_model).tokenizer
    text = prompts.join_think_answer("2 + 1", "3")
    ids = tokenizer.encode(text + "<|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[-1] == tokenizer.eos_token_id


def test_vision_tower_is_frozen_and_language_is_not(tiny_model):
    policy = models.load_policy(tiny_model)
    for name, parameter in policy.model.named_parameters():
        assert parameter.requires_grad is ("visual" not in name)
    with pytest.raises(ValueError, match="no parameter named 'visual'"):
        models.freeze_vision(torch.nn.Linear(2, 2))


def test_labels_cover_only_what_the_model_should_say(tiny_model):
    processor = models.load_processor(tiny_model)
    batch = pocket_data.collate_text([pocket_data.chat_text(0, 2, 1.0, 0.0)], processor, 1)
    said = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0])
    assert said.count(prompts.THINK_OPEN) == said.count("<|im_end|>") == 1
    assert "system" not in said and "user" not in said and "<|image_pad|>" not in said


def test_training_tokens_equal_the_processors(tiny_model):
    """Pretraining tokenises piece by piece; the processor tokenises the whole chat."""
    processor = models.load_processor(tiny_model)
    for index in range(6):
        scene, pieces = pocket_data.chat_text(index, 2, 0.4, 0.3)
        ours = pocket_data.collate_text([(scene, pieces)], processor, 1)["input_ids"][0].tolist()
        head, *rest = (text for text, _ in pieces)
        image = f"{models.VISION_START}{models.IMAGE_PAD}{models.VISION_END}"
        whole = processor(
            images=[microworld.render(scene)],
            text=[head + image + "".join(rest)],
            return_tensors="pt",
        )["input_ids"][0].tolist()
        assert ours == whole


def test_cell_labels_point_at_the_objects():
    scene = microworld.generate("solids", "train", 1).record.meta["scene"]
    labels = pocket_tower.cell_labels(scene)
    for name in ("color", "shape"):
        assert int((labels[:, pocket_tower.CELL.index(name)] > 0).sum()) == truth.count(scene)


def test_generation_does_not_depend_on_the_batch(tiny_model, micro_data):
    folder, made = micro_data
    policy = models.load_policy(tiny_model)
    alone = generate(policy, made, folder / "images", batch=1, max_new_tokens=8)
    together = generate(policy, made, folder / "images", batch=len(made), max_new_tokens=8)
    assert alone == together


@pytest.mark.parametrize("name", ["base", "instruct"])
def test_committed_checkpoints_are_what_their_card_says(name):
    import hashlib

    folder = ROOT / "data" / "pocket" / name
    digest, file = (folder / "SHA256").read_text(encoding="utf-8").split()
    assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
    assert (folder / file).stat().st_size < 16 * 2**20
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    policy = models.load_policy(f"data/pocket/{name}")
    assert policy.model.config.text_config.hidden_size == recipe["hidden"]


def test_instruct_meets_its_targets():
    """As its card says, which `python -m vlaa_lib models card` measures."""
    card = (ROOT / "data/pocket/instruct/README.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split("|") for line in card.splitlines() if line.startswith("| ")]
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    found = {row[0]: dict(zip(header[1:], map(float, row[1:]), strict=True)) for row in rows}
    assert found["all"]["n"] >= 500
    closed = [name for name, (reward, *_) in microworld.SOURCES.items() if reward in CLOSED]
    assert len(closed) == 6
    for name in closed:
        accuracy, blank = found[name]["accuracy"], found[name]["blank_accuracy"]
        assert blank + 0.15 <= accuracy <= 0.95, name
    assert float(re.search(r"([\d.]+)% right", card)[1]) >= 55
    assert 5 <= float(re.search(r"([\d.]+)% of the replies", card)[1]) <= 40


def test_a_checkpoint_is_measured_the_same_twice(tiny_model):
    assert measure(tiny_model, "instruct", 1) == measure(tiny_model, "instruct", 1)


def test_instruct_sees():
    """Held-out answers with the picture beat the same with a blank one, by a wide margin."""
    import tempfile

    from vlaa_lib import evaluate
    from vlaa_lib.evaluate import benchmarks, prompting

    with tempfile.TemporaryDirectory() as folder:
        made = microworld.write_split(folder, list(microworld.SOURCES), "test", 8)
        policy = models.load_policy("data/pocket/instruct")
        asked = [benchmarks.held_out(made, f"{folder}/images")]
        chosen = prompting.settings(max_new_tokens=prompts.MAX_NEW_TOKENS)
        rows = evaluate.run(policy, asked, chosen, folder, "instruct", batch=64)
    total = evaluate.summary(rows, resamples=10)[-1]
    assert total["accuracy"] > total["blank_accuracy"] + 0.25


def test_bitsandbytes_is_silent_of_a_faster_package_alone(caplog):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from %s", "elsewhere")
    logger.warning("something else")
    assert caplog.messages == ["something else"]
    command = [sys.executable, "-c", "import vlaa_lib.pocket"]  # imports transformers before models
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "gemm_4bit" not in done.stderr
