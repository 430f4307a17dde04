"""GRPO fills the trace store with what TRL knows: log-probs, entropy, KL, rounds."""

import csv

import pytest

from test_train import settings
from vlaa_lib import rewards, traces, train


def uneven(prompts, completions, log_extra, **columns):
    """Reward by place, so that an untrained policy has something to learn."""
    log_extra("reason", ["digit: by place"] * len(completions))
    return [i % 4 / 3 for i in range(len(completions))]


@pytest.mark.parametrize("steps_per_round", [1, 2])
def test_grpo_fills_every_column(
    tiny_model, micro_data, tmp_path, monkeypatch, steps_per_round
):
    folder, made = micro_data
    uneven.__name__ = "mixed_reward"
    monkeypatch.setattr(rewards, "mixed_reward", uneven)
    cfg = settings(tiny_model, **{
        "grpo.max_steps": 2 * steps_per_round, "grpo.max_completion_tokens": 12,
        "grpo.train_batch": 16 // steps_per_round, "grpo.per_device_batch": 4,
        "grpo.warmup": 0.0, "grpo.learning_rate": 0.01,
    })
    train.grpo(cfg, made, folder / "images", tmp_path / "tiny", token_logps=True)
    rows = traces.load(tmp_path / "tiny" / "traces")
    assert len(rows) == 2 * cfg.grpo.rollouts
    assert {(r["model"], r["profile"], r["seed"]) for r in rows} == {("tiny", "smoke", cfg.seed)}
    assert {(r["sampling_round"], r["optimizer_step"]) for r in rows} == {
        (0, 0), (1, steps_per_round)}
    asked = {record.id: record.image for record in made}
    assert all(row["image"] == asked[row["record_id"]] for row in rows), "below the image root"
    shown = traces.examples(made, folder / "images", {"tiny": rows})
    assert shown and all(example["image"] for example in shown)
    for row in rows:
        assert len(row["pieces"]) == len(row["logps"]) == row["completion_tokens"]
        assert row["mean_logp"] == pytest.approx(sum(row["logps"]) / len(row["logps"]), abs=1e-4)
        assert row["mean_logp"] < 0 < row["entropy"] and row["kl"] >= 0
        assert row["steps"] is not None and row["parts"][0]["name"] == "format"
    if steps_per_round == 1:  # then TRL's log averages the same tokens
        with (tmp_path / "tiny" / "training_log.csv").open(encoding="utf-8") as stream:
            logged = [row for row in csv.DictReader(stream) if row["entropy"]]
        assert len(logged) == 2
        for step, log in enumerate(logged):
            mine = [row for row in rows if row["optimizer_step"] == step]
            for name in ("entropy", "kl"):
                assert weighted(mine, name) == pytest.approx(float(log[name]), 0.02, 1e-6)
        assert weighted(mine, "kl") > 0, "the policy has moved"


def weighted(rows, name):
    tokens = sum(row["completion_tokens"] for row in rows)
    return sum(row[name] * row["completion_tokens"] for row in rows) / tokens
