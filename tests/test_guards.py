"""What stops a training that cannot go well: before the first step, and while it runs."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from vlaa_lib import Halted, VlaaError, models, profiles
from vlaa_lib.train import callbacks, data
from vlaa_lib.train.grpo import grpo_config


@pytest.fixture
def policy(tiny_model):
    return models.load_policy(tiny_model)


@pytest.fixture
def rows(micro_data, tmp_path):
    folder, made = micro_data
    return data.rows(made[:6], folder / "images", tmp_path, with_trace=False)[0]


def test_what_is_too_long_is_left_out_whole_and_named(policy, rows):
    lengths = [sum(data.count_tokens(row, policy.processor)) for row in rows]
    limit = sorted(lengths)[2]
    kept, rejects = data.within(rows, policy.processor, limit)
    assert kept == [row for row, n in zip(rows, lengths, strict=True) if n <= limit]
    assert len(kept) + len(rejects) == len(rows) and kept and rejects
    assert all(f"the limit is {limit}" in reject.reason and reject.id for reject in rejects)


def test_the_count_is_that_of_the_processor(policy, rows):
    from PIL import Image

    for row in rows[:2]:
        messages = [dict(message) for message in row["prompt"]]
        messages[-1]["content"] = [
            {"type": "image"}, {"type": "text", "text": messages[-1]["content"]}
        ]  # fmt: skip
        text = policy.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        with Image.open(row["image"]) as image:
            made = policy.processor(images=[image], text=[text], return_tensors="pt")
        counted = sum(data.count_tokens(row, policy.processor))
        assert made["input_ids"].shape[1] == counted + 2  # the picture's start and end


def test_rows_that_fit_pass(policy, rows):
    data.preflight(rows, policy.processor, policy.model)


def test_padding_on_the_right_is_refused(policy, rows):
    policy.processor.tokenizer.padding_side = "right"
    with pytest.raises(VlaaError, match="pads on the right"):
        data.preflight(rows, policy.processor, policy.model)


def test_a_processor_of_another_checkpoint_is_refused(policy, rows):
    policy.model.config.image_token_id += 1
    with pytest.raises(VlaaError, match="different checkpoints"):
        data.preflight(rows, policy.processor, policy.model)


def test_image_tokens_other_than_those_of_the_size_are_refused(policy, rows, monkeypatch):
    monkeypatch.setattr(data, "image_tokens", lambda row, processor: 1)
    with pytest.raises(VlaaError, match=r"record .*: \d+ image tokens for"):
        data.preflight(rows, policy.processor, policy.model)


def state(losses: list[float], step: int = 0) -> TrainerState:
    history = [{"loss": loss, "step": i} for i, loss in enumerate(losses)]
    return TrainerState(global_step=step, log_history=history, is_world_process_zero=True)


def test_a_gradient_in_the_tower_ends_the_training(policy):
    tower = policy.model.model.visual
    watch, weight = callbacks.FrozenVision(), next(tower.parameters())
    watch.on_pre_optimizer_step(None, state([]), TrainerControl(), model=policy.model)
    weight.grad = torch.zeros_like(weight)
    with pytest.raises(Halted, match="visual.* has a gradient"):
        watch.on_pre_optimizer_step(None, state([]), TrainerControl(), model=policy.model)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([2.0, 2.1, 1.9, 2.0], ""),
        ([2.0, 2.1, 1.9, 4.5], "loss spike, 4.500 after a usual 2.000"),
        ([2.0, 9.0], ""),  # two losses have no usual one yet
    ],
)
def test_a_loss_spike_is_said(losses, said, capsys):
    callbacks.SpikeWatch().on_log(None, state(losses, step=7), TrainerControl())
    out = capsys.readouterr().out
    assert (f"step 7: {said}" in out) if said else not out


def test_the_loss_of_grpo_has_no_spikes(capsys):
    trained = state([1e-4, 1e-4, 9e-4])
    for row in trained.log_history:
        row["reward"] = 0.5
    callbacks.SpikeWatch().on_log(None, trained, TrainerControl())
    assert not capsys.readouterr().out


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_training(loss):
    with pytest.raises(Halted, match="step 3: .*lower the learning rate"):
        callbacks.SpikeWatch().on_log(None, state([2.0, 2.0, loss], step=3), TrainerControl())


SWITCHES = [
    ({"grpo.kl": "off"}, {"beta": 0.0}),
    ({"grpo.kl": "fixed", "grpo.beta": 0.04}, {"beta": 0.04}),
    (
        {"grpo.learning_rate": 8e-6, "grpo.min_learning_rate": 2e-6},
        {"learning_rate": 8e-6, "lr_scheduler_kwargs": {"min_lr_rate": 0.25}},
    ),
    ({"grpo.num_iterations": 3}, {"num_iterations": 3}),
    ({"grpo.loss_type": "dr_grpo"}, {"loss_type": "dr_grpo"}),
    ({"grpo.scale_rewards": "none"}, {"scale_rewards": "none"}),
    ({"report_to": "tensorboard"}, {"report_to": ["tensorboard"]}),
]


@pytest.mark.parametrize(("setting", "expected"), SWITCHES)
def test_the_ablations_switches_reach_trl(setting, expected, tiny_model, tmp_path):
    stand_in = SimpleNamespace(processor=models.load_processor(tiny_model))
    args = grpo_config(profiles.load("smoke", **setting), tmp_path, stand_in)
    assert {name: getattr(args, name) for name in expected} == expected
    usual = grpo_config(profiles.load("smoke"), tmp_path, stand_in)
    assert {name: getattr(usual, name) for name in expected} != expected
