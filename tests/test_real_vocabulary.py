"""A hub-like folder with the true Qwen2.5 vocabulary: 151,665 tokens instead of the pocket's 1,024.

Its weights are random and tiny, so nothing is said about answers: only what is read, masked,
trained, sampled and decoded.
"""

import csv
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from test_train import with_traces
from tests.size import qwen
from vlaa_lib import ROOT, VlaaError, models, profiles, prompts, records, subsets, traces, train
from vlaa_lib.__main__ import main
from vlaa_lib.evaluate.generate import ask, generate, render
from vlaa_lib.images import open_image
from vlaa_lib.pocket.microworld import benchmarks
from vlaa_lib.process import prm


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The folder; without its vocabulary skip, but in CI only where the index does not answer."""
    try:
        return qwen.write(tmp_path_factory.mktemp("hub") / "Qwen2.5-VL-tiny", "tiny")
    except (qwen.Unreachable, VlaaError) as error:
        if os.environ.get("CI") and not isinstance(error, qwen.Unreachable):
            raise
        pytest.skip(f"NOT TESTED, no real vocabulary: {error}")


@pytest.fixture(scope="module")
def traced(micro_data):
    """An image folder and eighteen records with traces."""
    folder, made = micro_data
    return folder / "images", with_traces(made)


@pytest.fixture
def cfg(hub):
    """Settings of two small steps of both methods."""
    return profiles.load("smoke", **{
        "model.policy": str(hub), "sft.global_batch": 4, "sft.per_device_batch": 2,
        "sft.warmup": 0.0, "grpo.warmup": 0.0, "grpo.rollout_prompts": 2, "grpo.train_batch": 8,
        "grpo.per_device_batch": 4, "grpo.max_completion_tokens": 6, "grpo.save_rounds": 1,
        "grpo.learning_rate": 1e-3, "grpo.process_weight": 1.0, "grpo.process_model": "the test",
    })  # fmt: skip


def moved(before, after):
    """Return the names of weights that a training changed."""
    one, two = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert one.keys() == two.keys()
    return {name for name in one if not torch.equal(one[name].float(), two[name].float())}


@pytest.mark.slow
def test_the_vocabulary_is_qwens(hub, tmp_path):
    words = models.load_processor(hub).tokenizer
    assert len(words) == 151_665 and words.vocab_size == 151_643
    assert words.encode("Hello, world!") == [9707, 11, 1879, 0]  # as published
    assert words.convert_ids_to_tokens(words.encode("<think>")) == ["<th", "ink", ">"]
    named = {"<|endoftext|>": 151643, "<|im_end|>": 151645, "<|image_pad|>": 151655,
             "<|video_pad|>": 151656, "<tool_call>": 151657, "<|file_sep|>": 151664}  # fmt: skip
    assert {name: words.convert_tokens_to_ids(name) for name in named} == named
    text = "Winkel β = 37,5° → 三角形 🔺\n\n\\frac{1}{2}"
    assert words.decode(words.encode(text)) == text
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):  # an older layout
        shutil.copy(hub / name, tmp_path)
    older = type(words).from_pretrained(tmp_path)
    assert older.encode(text + "<|im_end|>") == words.encode(text + "<|im_end|>")


@pytest.mark.slow
def test_a_prompt_and_its_masks(hub, traced):
    images, made = traced
    processor = models.load_processor(hub)
    text = render(processor, ask(made[0]))
    assert text.startswith(f"<|im_start|>system\n{prompts.SYSTEM_PROMPT}<|im_end|>\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    picture = open_image(made[0].image, images)
    inputs = processor(images=[picture], text=[text], return_tensors="pt")
    is_image = inputs["input_ids"] == 151655
    assert int(is_image.sum()) == int(inputs["image_grid_thw"].prod()) // 4 > 0
    assert torch.equal(inputs["mm_token_type_ids"].bool(), is_image)


@pytest.mark.slow
def test_labels_are_the_completion_alone(hub, traced):
    images, made = traced
    policy = models.load_policy(hub)
    encoded = subsets._Encoded(policy, made, images)
    for i in range(0, len(made), 3):
        inputs = encoded[i][1]
        ids, labels = inputs["input_ids"][0], inputs["labels"][0]
        learnt = labels != -100
        assert (labels[learnt] == ids[learnt]).all()
        said = policy.processor.tokenizer.decode(labels[learnt])
        assert said == f"{made[i].answer}<|im_end|>\n"


@pytest.mark.skipif(not importlib.util.find_spec("torchvision"), reason="torchvision is not here")
def test_stock_transformers_reads_the_folder_as_ours_does(hub, traced):
    from transformers import AutoProcessor

    images, made = traced
    stock, ours = AutoProcessor.from_pretrained(hub), models.load_processor(hub)
    text, picture = render(ours, ask(made[0])), open_image(made[0].image, images)
    one, two = (p(images=[picture], text=[text], return_tensors="pt") for p in (stock, ours))
    assert torch.equal(one["input_ids"], two["input_ids"])
    assert torch.allclose(one["pixel_values"], two["pixel_values"], atol=1e-6)


@pytest.mark.slow
def test_two_steps_of_sft(hub, cfg, traced, tmp_path):
    images, made = traced
    log = train.sft(cfg, made[:4], images, tmp_path)  # the same batch twice
    assert log[0]["loss"] == pytest.approx(math.log(151_936), abs=0.5)  # it knows nothing yet
    assert log[1]["loss"] < log[0]["loss"]
    changed = moved(hub, tmp_path)
    assert changed and not any("visual" in name for name in changed)
    text = f"{made[0].answer}<|im_end|>"
    one, two = (models.load_processor(folder).tokenizer for folder in (hub, tmp_path))
    assert one.encode(text) == two.encode(text)


@pytest.mark.slow
def test_two_steps_of_grpo(hub, cfg, traced, tmp_path):
    """A random policy earns nothing; a reward of short words moves it all the same."""
    images, made = traced

    def brevity(prompts, completions, **columns):
        return [1 / (1 + len(said[0]["content"])) for said in completions]

    log = train.grpo(cfg, made, images, tmp_path, process_reward=brevity)
    assert [row["step"] for row in log] == [1, 2]
    assert all(row["grad_norm"] > 0 and math.isfinite(row["kl"]) for row in log)
    assert not any("visual" in name for name in moved(hub, tmp_path))
    rows = traces.load(tmp_path / "traces")
    assert len(rows) == 2 * cfg.grpo.rollouts
    ceiling = math.log(151_936)
    assert all(row["mean_logp"] == pytest.approx(-ceiling, abs=3) for row in rows)
    assert all("<|image_pad|>" not in row["completion"] for row in rows)
    assert len({row["completion"] for row in rows}) > 1 and max(r["reward"] for r in rows) == 0
    last = tmp_path / "checkpoint-2"
    assert models.load_policy(last).processor.tokenizer.vocab_size == 151_643


@pytest.mark.slow
def test_perplexity_chooses_a_subset(hub, traced, tmp_path):
    images, made = traced
    records.write(made[:6], tmp_path / "r.jsonl")
    words = ["subset", "--records", tmp_path / "r.jsonl", "--images", images, "--out",
             tmp_path / "out", "--perplexity", hub, "--top", 3]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    with (tmp_path / "out" / "perplexity.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    assert all(5e4 < float(row["perplexity"]) < 5e5 for row in rows)
    assert len(records.load(tmp_path / "out" / "top-3.jsonl").records) == 3


@pytest.mark.slow
def test_a_benchmark_is_answered_without_the_folders_own_penalty(hub, traced, tmp_path):
    """generation_config.json asks for samples and a penalty of 1.05; here 50, to be seen."""
    strict = shutil.copytree(hub, tmp_path / "strict")
    own = json.loads((strict / "generation_config.json").read_text(encoding="utf-8"))
    assert own["repetition_penalty"] == 1.05
    own["repetition_penalty"] = 50.0
    (strict / "generation_config.json").write_text(json.dumps(own), encoding="utf-8")
    benchmarks.write_tsv("micro-WeMath", tmp_path / "we.tsv", 4)
    words = ["evaluate", "--benchmark", "micro-WeMath", "--tsv", tmp_path / "we.tsv", "--model",
             strict, "--out", tmp_path / "out", "--max-new-tokens", 6, "--batch", 4]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    lines = (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 3 and all(json.loads(line)["tokens"] == 6 for line in lines)
    images, made = traced
    policy = models.load_policy(strict)
    inputs = policy.processor(
        images=[open_image(made[0].image, images)],
        text=[render(policy.processor, ask(made[0]))], return_tensors="pt",
    )  # fmt: skip
    start = inputs["input_ids"].shape[1]
    short = {"max_new_tokens": 6, "do_sample": False}
    said = [
        policy.processor.tokenizer.decode(ids[0, start:], skip_special_tokens=True) for ids in (
            policy.model.generate(**inputs, **short),
            policy.model.generate(**inputs, **short, repetition_penalty=1.0),
        )
    ]  # fmt: skip
    assert said[0] != said[1]
    assert generate(policy, made[:1], images, max_new_tokens=6) == said[1:]


@pytest.mark.slow
def test_steps_of_a_process_end_at_tokens_of_their_own(hub, traced):
    """`>\\n\\n` is one token: in one piece, the end of a step and the next one would share it."""
    images, made = traced
    policy = models.load_policy(hub, kind=prm.StepScorer, new=("step_head",))
    words = policy.processor.tokenizer
    process = ("<think>First: a >", "\n\nthen: b >", "3</think>\n\n<answer>3</answer>")
    seen = ("First: a >\n", "then: b >\n", "3\n\n3\n")  # as said, without tags
    assert len(words.encode(">\n\n")) == 1
    solution = prm.Solution(made[0].image, made[0].question, process, (0.1, 0.5, 0.9))
    batch = prm.encode(policy, images, [solution])
    ids, ends = batch["input_ids"][0], batch["ends"][0].tolist()
    start = len(ids) - sum(len(prm.step_ids(policy.processor, step)) for step in process)
    assert words.decode(ids[:start]).endswith("<|im_start|>assistant\n")
    for end, text in zip(ends, seen, strict=True):
        assert words.decode(ids[start : end + 1]) == text
        start = end + 1
    assert start == len(ids)


@pytest.mark.slow
def test_the_gpu_script_without_a_gpu(hub, tmp_path):
    """The measured shape, roofline and benchmarks run, tiny; what needs CUDA is named."""
    words = ["bash", ROOT / "tests/gpu/run.sh", "--dry", "--model", hub, "--out", tmp_path]
    given = {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*map(str, words)], env=os.environ | given, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["steps"]
    outcomes = {row["step"]: row["outcome"] for row in found}
    needy = {"4-bit LoRA", "FSDP2 on one GPU", "vLLM colocate, full"}
    assert all(outcomes[name].startswith("not run: needs CUDA") for name in needy)
    assert {said for name, said in outcomes.items() if name not in needy} == {"ran"}
    shape = {row["phase"]: row for row in found[0]["figures"]["rows"]}
    for phase in ("load, forward, 8 tokens", "GRPO: sampling", "resumed: training"):
        assert shape[phase]["measured GB"] > 0 < shape[phase]["planned GB"]
    assert "| resumed: training" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
