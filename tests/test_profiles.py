"""Profiles: typed, complete, sourced, and every bad value is refused by its key."""

import json
from dataclasses import FrozenInstanceError, asdict, replace

import pytest
from pydantic import ValidationError

from vlaa_lib import VlaaError, profiles
from vlaa_lib.pocket import microworld


@pytest.mark.parametrize("name", profiles.names())
def test_every_value_has_a_source(name):
    settings = profiles.load(name)
    assert settings.profile == name
    rows = profiles.table(settings)
    unsourced = [r["key"] for r in rows if not r["source"] and r["key"] not in ("profile", "seed")]
    assert not unsourced
    starts = ("paper", "ours", "TRL", "OpenRLHF", "repo", "Qwen2-VL")
    assert not [r for r in rows if r["source"] and not r["source"].startswith(starts)]
    assert set(settings.data.sources) <= set(microworld.SOURCES)


def test_table_shows_the_values_in_use():
    rows = {r["key"]: r for r in profiles.table(profiles.load("laptop", **{"grpo.max_steps": 7}))}
    assert rows["grpo.max_steps"]["value"] == 7
    assert rows["grpo.num_generations"]["source"] == "paper §4"
    assert rows["grpo.mode"]["source"] != rows["sft.mode"]["source"]  # same name, own comment


def test_overrides_dotted_nested_and_as_text_say_the_same():
    dotted = profiles.load("smoke", **{"grpo.max_steps": 5, "seed": 3})
    assert dotted == profiles.load("smoke", grpo={"max_steps": 5}, seed=3)
    assert dotted == profiles.load("smoke", **{"grpo.max_steps": "5", "seed": "3"})
    assert dotted.grpo.max_steps == 5 and dotted.seed == 3
    assert dotted.grpo.beta == profiles.load("smoke").grpo.beta
    epochs = profiles.load("smoke", **{"sft.epochs": 2}).sft.epochs
    assert epochs == 2.0 and isinstance(epochs, float)


def test_yaml_reads_a_bare_off_as_false_and_the_kl_term_may_be_off():
    assert profiles.load("smoke", **{"grpo.kl": "off"}).grpo.kl == "off"
    cfg = profiles.load("smoke", grpo={"kl": False})
    assert cfg.grpo.kl == "off"


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        profiles.load("smoke").grpo.max_steps = 9
    with pytest.raises(ValidationError, match="per_device_batch"):  # nor replaced by a bad value
        replace(profiles.load("smoke").grpo, per_device_batch=0)


BAD = [
    ("sft.speed", 3, "no such setting"),
    ("speed", 3, "no such setting"),
    ("launch", "fsdp3", "'fsdp3': input should be 'none', 'cpu2'"),
    ("gpus", 0, "gpus: 0: input should be greater than 0"),
    ("grpo.learning_rate", "1e-6", r"write 1\.0e-6"),
    ("grpo.max_steps", 2.5, "2.5: input should be a valid integer"),
    ("sft.max_steps", True, "True: input should be a valid integer"),
    ("sft.epochs", None, "None: input should be a valid number"),
    ("model.policy", 3, "3: input should be a valid string"),
    ("data.sources", "solids", "'solids': input should be a valid array"),
    ("data.sources", [], "at least 1 item"),
    ("data.sources", [1], "valid string"),
    ("data.eval_per_source", 0, "greater than 0"),
    ("grpo.rollout_prompts", -4, "greater than 0"),
    ("grpo.temperature", float("nan"), "greater than 0"),
    ("teacher.omit", 1.5, "less than or equal to 1"),
    ("grpo.num_generations", 1, "greater than or equal to 2"),
    ("sft.per_device_batch", 5, r"16 is not .* 5 x .*: sft.per_device_batch=1 or 2 or 4;"),
    ("grpo.per_device_batch", 7, r"grpo.train_batch: 16 is not per_device_batch 7"),
    ("model.min_pixels", 10**9, r"above model\.max_pixels"),
    ("sft.mode", "qlora", "'full', 'lora' or '4bit'"),
    ("grpo.mode", "8bit", "'full', 'lora' or '4bit'"),
    ("grpo.train_batch", 48, "rollout_prompts x num_generations: 16 is not a multiple"),
    ("grpo.kl", "linear", "'adaptive', 'fixed' or 'off'"),
    ("grpo.beta", 0.0, "or set grpo.kl: off"),
    ("grpo.parts", ["digit", "length"], "'length': input should be 'digit'"),
    ("grpo.min_learning_rate", 1.0, "between 0 and grpo.learning_rate"),
    ("grpo.loss_type", "ppo", "'grpo', 'bnpo'"),
    ("grpo.sampler_url", "node7", "should match pattern '.https"),
    ("grpo.fast", ["warp"], "grpo.fast.0: 'warp'"),
    ("grpo.reward_model", "judge", r"grpo\.endpoints: a judge"),
    ("grpo.process_weight", 0.5, "above 0 only with grpo.process_model"),
    ("grpo.process_weight", -1.0, "greater than or equal to 0"),
    ("prm.loss", "l1", "'mse' or 'bce'"),
    ("prm.held_out", 1.5, "less than or equal to 1"),
    ("prm.per_device_batch", 3, "prm.global_batch: 8 is not per_device_batch 3 x"),
    ("search.exploration", -1.0, "greater than or equal to 0"),
    ("search.rollouts", 0, "greater than 0"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_a_bad_value_is_refused_by_its_key(key, value, message):
    with pytest.raises(VlaaError, match=message) as error:
        profiles.load("smoke", **{key: value})
    assert key in str(error.value) or key == "grpo.reward_model"


def test_unknown_profile_lists_those_that_exist():
    known = "'huge'; use one of laptop, paper, single, smoke"
    with pytest.raises(VlaaError, match=known):
        profiles.load("huge")
    with pytest.raises(VlaaError, match="unknown profile"):
        profiles.load("../profiles/smoke")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("like: paper\nextra: 1", "profile mine: extra: no such setting"),
        ("like: paper\nsft: 3", "sft: 3: input should be an object"),
        ("like: paper\ngrpo: {beta: }", "grpo.beta: None: input should be a valid number"),
        ("like: huge", "unknown profile 'huge'"),
        ("seed: 3", "profile mine: report_to: missing"),
    ],
)
def test_a_bad_file_is_refused_by_key(tmp_path, monkeypatch, text, message):
    (tmp_path / "paper.yaml").write_text((profiles.FOLDER / "paper.yaml").read_text(
        encoding="utf-8"),
        encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    with pytest.raises(VlaaError, match=message):
        profiles.load("mine")


def test_resolved_settings_are_read_back_from_json(tmp_path):
    cfg, path = profiles.load("paper", **{"grpo.learning_rate": 1e-6, "sft.epochs": 2}), "cfg.json"
    (tmp_path / path).write_text(json.dumps(asdict(cfg)), encoding="utf-8")
    assert profiles.load(str(tmp_path / path)) == cfg
    assert profiles.load(str(tmp_path / path), seed=3) == replace(cfg, seed=3)


def test_code_from_elsewhere_needs_a_yes_before_anything_runs():
    chosen = {"grpo.reward_model": "xcomposer"}
    with pytest.raises(VlaaError, match=r"grpo\.trust_remote_code: xcomposer"):
        profiles.load("paper", **chosen)
    assert profiles.load("paper", **chosen, **{"grpo.trust_remote_code": True})
    assert profiles.load("paper", **chosen, **{"grpo.parts": ["digit"]})
