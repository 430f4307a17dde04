"""A vLLM in the process that trains or evaluates, and what other programs read of our folders."""

import functools
import importlib
import json

import pytest
import torch

from vlaa_lib import models
from vlaa_lib.__main__ import main
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld import benchmarks

generation = importlib.import_module("vlaa_lib.evaluate.generate")
FOLDERS = ["data/pocket/base", "data/pocket/instruct", "grpo"]


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    """A full-parameter training's folder."""
    out = tmp_path_factory.mktemp("trained") / "grpo"
    done = train(out, "grpo.sampler=vllm-colocate")
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(params=FOLDERS)
def folder(request):
    return request.getfixturevalue("trained") if request.param == "grpo" else request.param


def test_a_colocated_vllm_samples_from_the_policy(trained, check_renewal):
    check_renewal(trained)


def test_a_colocated_vllm_samples_from_a_policy_with_an_adapter(train, check_renewal, tmp_path):
    done = train(tmp_path, "grpo.sampler=vllm-colocate", "grpo.mode=lora")
    assert done.returncode == 0, done.stderr[-3000:]
    check_renewal(tmp_path)


def test_prompts_as_trl_makes_them_are_stopped(train, tmp_path):
    done = train(tmp_path, "grpo.sampler=vllm-colocate", flag="--repeated")
    assert "above 0.02 it reads other prompts" in done.stderr, done.stderr[-3000:]
    assert done.returncode


def test_stock_transformers_reads_and_answers_as_ours(folder):
    """With torchvision present, as AutoProcessor wants it for a model that knows videos."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    stock, ours = AutoProcessor.from_pretrained(folder), models.load_policy(folder)
    assert type(stock).__name__ == "Qwen2_5_VLProcessor" and stock.video_processor is not None
    assert type(ours.processor.image_processor).__name__ == "Qwen2VLImageProcessorPil"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    sample = microworld.generate("solids", "test", 3)
    text = generation.render(ours.processor, generation.ask(sample.record))
    size = dict(ours.processor.image_processor.size)
    picture = models.whole_patches(sample.image, ours.processor)  # nothing is left to resize
    one = ours.processor(images=[picture], text=[text], return_tensors="pt")
    two = stock(images=[picture], text=[text], return_tensors="pt", size=size)
    assert torch.equal(one["input_ids"], two["input_ids"])
    assert torch.allclose(one["pixel_values"], two["pixel_values"], atol=1e-6)
    said = [m.generate(**given, max_new_tokens=24, do_sample=False)
            for m, given in ((ours.model, one), (model, two))]  # fmt: skip
    assert torch.equal(*said)


def test_vllm_answers_as_hugging_face_does(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # two processes less to start
    import vllm
    from vllm.distributed import cleanup_dist_env_and_memory

    monkeypatch.setattr(vllm, "LLM", functools.partial(vllm.LLM, enforce_eager=True))
    tsv, texts = tmp_path / "we.tsv", []
    benchmarks.write_tsv("micro-WeMath", tsv, 12)
    for backend in ("hf", "vllm"):
        words = ["evaluate", "--benchmark", "micro-WeMath", "--tsv", tsv, "--model", folder,
                 "--backend", backend, "--dtype", "float32", "--max-new-tokens", 48,
                 "--out", tmp_path / backend]  # fmt: skip
        assert main([str(word) for word in words]) == 0
        lines = (tmp_path / backend / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        rows = sorted(map(json.loads, lines), key=lambda row: row["index"])
        texts.append([(row["prediction"], row["tokens"], row["truncated"]) for row in rows])
    cleanup_dist_env_and_memory()
    assert texts[0] == texts[1] and len(texts[0]) >= 10
