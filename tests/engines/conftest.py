"""Fixtures of the real engines' tests: a policy and records, and GRPO with vLLM as its sampler.

They run in the virtual environment of `make test-engines`. Everything is float32, where vLLM and
the trainer agree to 1e-6.
"""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from vlaa_lib import ROOT, models
from vlaa_lib.pocket import microworld

RUN = Path(__file__).with_name("run.py")
collect_ignore = ["cures"]  # no tests, and one module imports vLLM
SAME = 1e-5  # nats a token: sampler and trainer, with equal weights


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if RUN.parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="vLLM runs in `make test-engines`"))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with records and images, and instruct in float32 as `model`."""
    folder = tmp_path_factory.mktemp("engines")
    microworld.write_split(folder, list(microworld.SOURCES), "dev", 2)
    policy = models.load_policy("data/pocket/instruct", dtype="float32")
    policy.model.save_pretrained(folder / "model")
    policy.processor.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="session")
def train(data):
    """Train for three sampling rounds; vLLM's weights are renewed before the second."""

    def run(out, *changes, flag="--stale") -> subprocess.CompletedProcess:
        words = [flag, "train", "grpo", "--records", data / "records.jsonl"]
        words += ["--images", data / "images", "--out", out, "--profile", "smoke", "--steps", 3]
        words += ["--set", f"model.policy={data / 'model'}", "grpo.max_completion_tokens=24",
                  "grpo.learning_rate=1.0e-4", "grpo.warmup=0.0", *changes]  # fmt: skip
        words = [sys.executable, RUN, *map(str, words)]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1200)

    return run


@pytest.fixture(scope="session")
def check_renewal():
    """Hold the sampler to the trainer before and after a renewal, and without one that is due."""

    def check(out) -> None:
        rows = list(csv.DictReader((out / "training_log.csv").open(encoding="utf-8")))
        found = [float(row["sampling/sampling_logp_difference/mean"]) for row in rows]
        assert len(found) == 3 and max(found[:2]) < SAME, found
        # an optimizer step moves the policy by far more than the two differ
        assert found[2] > 10 * SAME, found

    return check
