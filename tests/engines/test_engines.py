"""The real engines on a CPU, in the virtual environment of `make test-engines`: vLLM, torchvision.

Everything is float32, where vLLM and the trainer agree to 1e-6.
"""

import contextlib
import csv
import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from vlaa_lib import ROOT, llm, models, records
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld import benchmarks
from vlaa_lib.rewards import reward_models

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM runs in `make test-engines`", allow_module_level=True)

generation = importlib.import_module("vlaa_lib.evaluate.generate")
RUN = Path(__file__).with_name("run.py")
POCKET = ["data/pocket/base", "data/pocket/instruct"]
SAME = 1e-5  # nats a token: sampler and trainer, with equal weights


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with records and images, and instruct in float32 as `model`."""
    folder = tmp_path_factory.mktemp("engines")
    microworld.write_split(folder, list(microworld.SOURCES), "dev", 2)
    policy = models.load_policy("data/pocket/instruct", dtype="float32")
    policy.model.save_pretrained(folder / "model")
    policy.processor.save_pretrained(folder / "model")
    return folder


def command(*words, seconds: int = 1200) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, RUN, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
        timeout=seconds,
    )  # fmt: skip


def trained(data, out, *changes, flags=()) -> subprocess.CompletedProcess:
    """Train for two sampling rounds: the second one's weights are renewed ones."""
    words = ["train", "grpo", "--records", data / "records.jsonl", "--images", data / "images"]
    words += ["--out", out, "--profile", "smoke", "--steps", 2, "--set"]
    words += [f"model.policy={data / 'model'}", "grpo.sampler=vllm-colocate"]
    words += ["grpo.max_completion_tokens=24", "grpo.learning_rate=1.0e-4", "grpo.warmup=0.0",
              *changes]  # fmt: skip
    return command(*flags, *words)


def differences(out) -> list[float]:
    rows = list(csv.DictReader((Path(out) / "training_log.csv").open(encoding="utf-8")))
    assert float(rows[0]["grad_norm"]) > 0 and float(rows[0]["learning_rate"]) > 0  # it moved
    return [float(row["sampling/sampling_logp_difference/mean"]) for row in rows]


@pytest.mark.parametrize("folder", POCKET)
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


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_colocated_vllm_samples_from_the_policy(mode, data, tmp_path):
    done = trained(data, tmp_path, f"grpo.mode={mode}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(found := differences(tmp_path)) == 2 and max(found) < SAME, found


def test_prompts_as_trl_makes_them_are_stopped(data, tmp_path):
    done = trained(data, tmp_path, flags=["--repeated"])
    assert done.returncode and "above 0.02 it reads other prompts" in done.stderr


def test_vllm_answers_a_trained_folder_as_hugging_face_does(data, tmp_path):
    """The folder is written by training, not by hand."""
    words = ["train", "grpo", "--records", data / "records.jsonl", "--images", data / "images"]
    words += ["--out", tmp_path / "grpo", "--profile", "smoke", "--steps", 1, "--set"]
    words += [f"model.policy={data / 'model'}", "grpo.max_completion_tokens=8"]
    assert command(*words).returncode == 0
    tsv, texts = tmp_path / "we.tsv", []
    benchmarks.write_tsv("micro-WeMath", tsv, 12)
    for backend in ("hf", "vllm"):
        words = ["evaluate", "--benchmark", "micro-WeMath", "--tsv", tsv, "--model",
                 tmp_path / "grpo", "--backend", backend, "--max-new-tokens", 48,
                 "--out", tmp_path / backend]  # fmt: skip
        done = command(*words)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = (tmp_path / backend / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        rows = sorted(map(json.loads, lines), key=lambda row: row["index"])
        texts.append([(row["prediction"], row["tokens"], row["truncated"]) for row in rows])
    assert texts[0] == texts[1] and len(texts[0]) >= 10


@pytest.fixture(scope="module")
def served(data):
    """`vllm serve` on loopback, float32; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [Path(sys.executable).with_name("vllm"), "serve", data / "model", "--host",
             "127.0.0.1", "--port", port, "--dtype", "float32", "--enforce-eager",
             "--max-model-len", 2048, "--limit-mm-per-prompt", '{"image": 1, "video": 0}',
             "--mm-processor-kwargs", '{"min_pixels": 3136, "max_pixels": 262144}']  # fmt: skip
    log = (data / "serve.log").open("wb")
    server = subprocess.Popen([str(word) for word in words], stdout=log, stderr=log)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200:
                    break
            assert server.poll() is None, (data / "serve.log").read_text(encoding="utf-8")[-3000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def test_a_served_model_judges_as_hugging_face_does(served, data, tmp_path):
    made = records.load(data / "records.jsonl").records[:8]
    endpoint = llm.Endpoint(str(data / "model"), served, settings={"max_tokens": 16})
    judge = reward_models.Judge(endpoint, tmp_path / "judge.sqlite", data / "images")
    asked = [llm.Request("judge", record.question, record.image) for record in made]
    texts = judge.texts(asked)
    assert None not in texts and not judge.unusable
    policy, limits = models.load_policy(data / "model", dtype="float32"), generation.Limits(16)
    asks = [generation.Ask(record.question, "", (record.image,)) for record in made]
    said = generation.complete(policy, asks, data / "images", limits)
    assert texts == [one.text for one in said]
