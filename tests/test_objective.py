"""The objective as we show it is the one that TRL trains."""

import pytest
import torch

from test_train import settings
from vlaa_lib import models, rewards
from vlaa_lib.train import data, objective
from vlaa_lib.train.grpo import grpo_config
from vlaa_lib.train.trainer import TracingGRPOTrainer

SHAPE = (8, 5)  # two prompts, four completions each, five tokens


@pytest.fixture(scope="module")
def trainer(tiny_model, micro_data, tmp_path_factory):

    folder, made = micro_data
    out = tmp_path_factory.mktemp("objective")
    cfg = settings(tiny_model)
    policy = models.load_policy(tiny_model)
    rows, _ = data.rows(made, folder / "images", out, with_trace=False)
    return TracingGRPOTrainer(
        model=policy.model,
        args=grpo_config(cfg, out, policy),
        train_dataset=data.table(rows),
        reward_funcs=rewards.mixed_reward,
        processing_class=policy.processor,
    )


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logps, old, ref = (-torch.rand(SHAPE) * 3 for _ in range(3))
    lengths = torch.tensor([5, 1, 3, 2, 4, 5, 1, 2])
    mask = (torch.arange(SHAPE[1]) < lengths[:, None]).int()
    return logps, old, ref, torch.randn(SHAPE[0]), mask


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_the_loss_is_trls(loss_type, beta, trainer, batch, monkeypatch):
    logps, old, ref, advantages, mask = batch
    trained = logps.clone().requires_grad_()
    monkeypatch.setattr(
        trainer,
        "_get_per_token_logps_and_entropies",
        lambda *args, **kwargs: (trained, torch.zeros(SHAPE), None),
    )
    trainer.loss_type, trainer.beta = loss_type, beta
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = {
        "prompt_ids": torch.ones(SHAPE[0], 2, dtype=torch.long),
        "prompt_mask": torch.ones(SHAPE[0], 2, dtype=torch.long),
        "completion_ids": torch.ones(SHAPE, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    gradient, mine = trained.grad, logps.clone().requires_grad_()
    size = trainer.max_completion_length
    ours = objective.loss(mine, old, ref, advantages, mask, beta, 0.2, loss_type, size)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert torch.allclose(mine.grad, gradient, atol=1e-7)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_advantages_are_trls(scale, trainer, monkeypatch):
    earned = torch.rand(4, 4)
    rows = trainer.train_dataset
    inputs = [rows[i] for i in range(4) for _ in range(4)]
    monkeypatch.setattr(trainer, "scale_rewards", scale)
    monkeypatch.setattr(
        trainer, "_calculate_rewards", lambda *args: earned.flatten()[:, None]
    )
    monkeypatch.setattr(trainer, "_trace_rows", lambda *args: [])
    monkeypatch.setattr(trainer, "watch", None)
    monkeypatch.setattr(trainer, "store", None)
    trainer.model.train()
    theirs = trainer._generate_and_score_completions(inputs)["advantages"].view(4, 4)
    assert torch.allclose(objective.advantages(earned, scale), theirs, atol=1e-6)


def test_a_group_without_spread_teaches_nothing():
    assert objective.advantages(torch.full((2, 4), 0.3)).abs().max() < 1e-3


def test_k3_is_never_negative_and_zero_where_both_agree():
    logps, ref = -torch.rand(50), -torch.rand(50)
    assert (objective.k3(logps, ref) >= 0).all()
    assert objective.k3(logps, logps).abs().max() == 0
