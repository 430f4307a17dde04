"""`vllm serve` on loopback: as a judge's endpoint, and as the sampler of a training."""

import contextlib
import importlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from vlaa_lib import llm, models, records
from vlaa_lib.rewards import reward_models

generation = importlib.import_module("vlaa_lib.evaluate.generate")


@pytest.fixture(scope="module")
def served(data):
    """The server's address. Its flags are those of data/TRAINING.md, less what sends with CUDA."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [Path(sys.executable).with_name("vllm"), "serve", data / "model", "--host",
             "127.0.0.1", "--port", port, "--dtype", "float32", "--enforce-eager",
             "--max-model-len", 2048, "--limit-mm-per-prompt", '{"image": 1, "video": 0}',
             "--mm-processor-kwargs", '{"min_pixels": 3136, "max_pixels": 262144}',
             "--logprobs-mode", "processed_logprobs", "--max-logprobs", -1, "--enable-scale-out",
             "--weight-transfer-config", '{"backend": "nccl"}',
             "--worker-extension-cls", "renewed.Worker"]  # fmt: skip
    log = (data / "serve.log").open("wb")
    server = subprocess.Popen([str(word) for word in words], stdout=log, stderr=log,
                              env=os.environ | {"VLLM_SERVER_DEV_MODE": "1"})  # fmt: skip
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200:
                    break
            assert server.poll() is None, (data / "serve.log").read_text(encoding="utf-8")[-3000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def test_a_served_model_judges_as_hugging_face_does(served, data, tmp_path):
    made = records.load(data / "records.jsonl").records[:8]
    endpoint = llm.Endpoint(str(data / "model"), f"{served}/v1", settings={"max_tokens": 176})
    judge = reward_models.Judge(endpoint, tmp_path / "judge.sqlite", data / "images")
    asked = [llm.Request("judge", record.question, record.image) for record in made]
    texts = [reply.text for reply in judge.replies(asked)]
    policy, limits = models.load_policy(data / "model", dtype="float32"), generation.Limits(176)
    asks = [generation.Ask(record.question, "", (record.image,)) for record in made]
    said = generation.complete(policy, asks, data / "images", limits)
    assert texts == [one.text for one in said] and all(texts)


def test_a_served_vllm_samples_from_the_policy(served, train, check_renewal, tmp_path):
    """The last one: the server has other weights then."""
    done = train(tmp_path, "grpo.sampler=vllm-server", f"grpo.sampler_url={served}")
    assert done.returncode == 0, done.stderr[-3000:]
    check_renewal(tmp_path)
