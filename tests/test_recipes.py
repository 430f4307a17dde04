"""The paper's and the one-card recipe: their real TRL settings, and two steps of each for real."""

import math
from dataclasses import replace

import pytest
from transformers import TrainingArguments

from tests.bench import roofline
from vlaa_lib import models, profiles, prompts, records, traces
from vlaa_lib.__main__ import main
from vlaa_lib.pocket.microworld import narrator
from vlaa_lib.train import common
from vlaa_lib.train.grpo import grpo_config
from vlaa_lib.train.sft import sft_config

WORLDS = (1, 2, 4, 8, 16)
ON_CPU = {"grpo.sampler": "transformers"}  # vLLM needs a GPU


@pytest.fixture(scope="module")
def small_3b(tmp_path_factory):
    """A random model with the shape of Qwen2.5-VL-3B divided by 16, in a folder as on the hub."""
    return roofline.checkpoint("random:Qwen2.5-VL-3B/16", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def source(micro_data, tmp_path_factory):
    """Arguments that name sixteen records with traces."""
    folder, made = micro_data
    path = tmp_path_factory.mktemp("source") / "records.jsonl"
    plain = [narrator.plain_trace(r.meta["scene"], r.question) for r in made[:16]]
    pairs = zip(made, plain, strict=False)
    records.write([replace(r, answer=prompts.join_think_answer(*p)) for r, p in pairs], path)
    return ["--records", str(path), "--images", str(folder / "images")]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_is_a_valid_trl_config_or_names_valid_neighbours(
    name, world, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: world))
    monkeypatch.setattr(common, "num_processes", lambda: world)
    cfg, policy = profiles.load(name, **ON_CPU), models.load_policy(tiny_model)
    for method, make, batch in (
        ("sft", lambda c: sft_config(c, tmp_path), cfg.sft.global_batch),
        ("grpo", lambda c: grpo_config(c, tmp_path, policy), cfg.grpo.train_batch),
    ):
        try:
            args = make(cfg)
        except ValueError as error:
            assert "would be" in str(error)
            fitting = math.gcd(batch, batch // world) if batch % world == 0 else None
            assert fitting, f"{batch} cannot be shared by {world} processes at all"
            args = make(profiles.load(name, **ON_CPU, **{f"{method}.per_device_batch": fitting}))
        seen = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
        assert seen == batch
        if method == "grpo":
            assert args.generation_batch_size == cfg.grpo.rollouts
            per_round = args.generation_batch_size * args.num_iterations // batch
            assert per_round == cfg.grpo.steps_per_round
            assert args.steps_per_generation * world * args.per_device_train_batch_size == (
                cfg.grpo.rollouts
            )


SMALL = {
    "sft": ["sft.max_steps=2", "sft.global_batch=8", "sft.per_device_batch=4"],
    "grpo": [
        *("grpo.max_steps=2", "grpo.rollout_prompts=4", "grpo.train_batch=16"),
        *("grpo.per_device_batch=8", "grpo.max_completion_tokens=8", "grpo.sampler=transformers"),
    ],
}


@pytest.mark.parametrize("method", ["sft", "grpo"])
@pytest.mark.parametrize("name", ["paper", "single"])
def test_two_steps_for_real(name, method, small_3b, source, tmp_path):
    words = ["train", method, *source, "--out", str(tmp_path), "--profile", name]
    assert main([*words, "--set", f"model.policy={small_3b}", *SMALL[method]]) == 0
    weights = "model.safetensors" if name == "paper" else "adapter_model.safetensors"
    assert (tmp_path / weights).is_file()
    if method == "grpo":
        assert len(traces.load(tmp_path / "traces")) == 2 * 16


def test_the_paper_recipe_through_the_launcher(small_3b, source, tmp_path):
    words = ["train", "sft", *source, "--out", str(tmp_path), "--profile", "paper"]
    words += ["--launch", "cpu2", "--main-port", "0"]
    assert main([*words, "--set", f"model.policy={small_3b}", *SMALL["sft"]]) == 0
    assert (tmp_path / "model.safetensors").is_file()
    assert "accelerate.commands.launch" in (tmp_path / "launch.log").read_text()
