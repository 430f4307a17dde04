"""Training: SFT and GRPO move the language model, never the tower, and keep what happened."""

import csv
import re
import zlib
from dataclasses import replace
from functools import update_wrapper
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from vlaa_lib import Halted, VlaaError, models, profiles, prompts, records, rewards, traces, train
from vlaa_lib.__main__ import main
from vlaa_lib.evaluate import held_out_asker
from vlaa_lib.evaluate.generate import generate
from vlaa_lib.pocket.microworld import narrator
from vlaa_lib.train import callbacks, data
from vlaa_lib.train.grpo import _check_enough, _scored, grpo_config

SAMPLES = Path(__file__).parents[2] / "shared" / "samples" / "vlaa_thinking"


def settings(tiny_model, **overrides):
    return profiles.load("smoke", **{"model.policy": str(tiny_model), **overrides})


def with_traces(made):
    plain = [narrator.plain_trace(r.meta["scene"], r.question) for r in made]
    return [
        replace(r, answer=prompts.join_think_answer(*p)) for r, p in zip(made, plain, strict=True)
    ]


def moved(before: Path, after: Path) -> dict[str, bool]:
    """Say for each weight whether training changed it."""
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    return {k: not torch.equal(old[k].float(), new[k].float()) for k in old}


def test_sft_moves_language_and_not_vision(tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    log = train.sft(settings(tiny_model), with_traces(made), folder / "images", tmp_path / "sft")
    assert log and all(row["loss"] > 0 for row in log)
    changed = moved(tiny_model, tmp_path / "sft")
    assert not any(flag for name, flag in changed.items() if "visual" in name)
    assert all(flag for name, flag in changed.items() if "proj" in name and "visual" not in name)
    kept = list(csv.DictReader((tmp_path / "sft" / "training_log.csv").open(encoding="utf-8")))
    assert [float(row["loss"]) for row in kept] == [row["loss"] for row in log]


def test_the_loss_does_not_depend_on_the_micro_batch(tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    seen = []
    for size in (16, 4):
        cfg = settings(tiny_model, **{"sft.per_device_batch": size})
        log = train.sft(cfg, with_traces(made)[:16], folder / "images", tmp_path / str(size))
        seen.append([(row["loss"], row["grad_norm"]) for row in log])
    for one, two in zip(*seen, strict=True):
        assert one == pytest.approx(two, rel=1e-5)


def test_sft_refuses_records_without_a_trace(tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    with pytest.raises(records.RecordError, match="can be trained on"):
        train.sft(settings(tiny_model), made, folder / "images", tmp_path)


def test_grpo_keeps_every_rollout_with_its_own_record(tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    cfg = settings(tiny_model, **{"grpo.max_steps": 2, "grpo.max_completion_tokens": 12})
    log = train.grpo(cfg, made, folder / "images", tmp_path / "grpo")
    assert [row["step"] for row in log] == [1, 2] and all("kl" in row for row in log)
    assert not any(f for n, f in moved(tiny_model, tmp_path / "grpo").items() if "visual" in n)
    rows = traces.load(tmp_path / "grpo" / "traces")
    per_round = cfg.grpo.rollouts
    assert len(rows) == 2 * per_round
    by_id = {record.id: record for record in made}
    for row in rows:
        score = rewards.score(by_id[row["record_id"]], row["completion"])
        assert (row["reward"], row["reason"]) == (pytest.approx(score.value), score.reason)
        assert row["clipped"] == (row["completion_tokens"] == 12) or not row["clipped"]
        assert "<|" not in row["completion"] and row["model"] == "grpo"
    # groups of G rollouts share a record and their advantages cancel
    for start in range(0, len(rows), cfg.grpo.num_generations):
        group = rows[start : start + cfg.grpo.num_generations]
        assert len({row["record_id"] for row in group}) == 1
        assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-4)


def test_groups_without_spread_are_drawn_anew(tiny_model, micro_data, tmp_path, monkeypatch):
    """Half the records never have a spread; with and without the fast paths."""
    folder, made = micro_data
    mixed = {record.id for record in made[::2]}

    def coin(prompts, completions, log_extra=None, log_metric=None, **columns):
        told = [rewards.mixed.text_of(completion) for completion in completions]
        earned = [float(name in mixed and zlib.crc32(text.encode()) % 3 == 0)
                  for name, text in zip(columns["id"], told, strict=True)]  # fmt: skip
        if log_extra:
            log_extra("reason", [""] * len(earned))
        return earned

    monkeypatch.setattr(rewards, "mixed_reward", update_wrapper(coin, rewards.mixed_reward))
    kept = {}
    for redraws, fast in ((0, profiles.FAST), (9, profiles.FAST), (9, ())):
        changes = {"grpo.max_steps": 2, "grpo.max_completion_tokens": 12, "grpo.redraws": redraws}
        out = tmp_path / f"{redraws} {len(fast)}"
        cfg = settings(tiny_model, **changes, **{"grpo.fast": list(fast)})
        log = train.grpo(cfg, made, folder / "images", out)
        rows = traces.load(out / "traces")
        assert len(rows) == 2 * cfg.grpo.rollouts
        size, by_id = cfg.grpo.num_generations, {record.id: record for record in made}
        groups = [rows[at : at + size] for at in range(0, len(rows), size)]
        for group in groups:
            assert len({row["record_id"] for row in group}) == 1
            assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-4)
        for row in rows:
            name, text = row["record_id"], row["completion"]
            assert row["reward"] == coin([], [text], id=[name])[0]
            assert row["image"] == by_id[name].image
        silent = sum(len({row["reward"] for row in group}) == 1 for group in groups)
        kept[redraws, len(fast)] = [(row["record_id"], row["completion"]) for row in rows]
        if not redraws:
            assert silent and "redrawn_groups" not in log[0]
            continue
        assert not silent and all(row["frac_reward_zero_std"] == 0 for row in log)
        assert sum(row["redrawn_groups"] for row in log) > 0
        assert all(0 < row["first_draw/frac_reward_zero_std"] < 1 for row in log)
        assert all(row["first_draw/reward"] < row["reward"] for row in log)
    assert kept[9, len(profiles.FAST)] == kept[9, 0]


def test_held_out_records_are_asked_every_so_many_rounds(tiny_model, micro_data, tmp_path):
    """With two optimizer steps a round; what is trained stays the same, to the last bit."""
    folder, made = micro_data
    changes = {"grpo.max_steps": 4, "grpo.max_completion_tokens": 12, "grpo.train_batch": 8,
               "grpo.per_device_batch": 8, "grpo.held_out_rounds": 1,
               "grpo.held_out_records": 9, "evaluate.max_new_tokens": 8}  # fmt: skip
    cfg = settings(tiny_model, **changes)
    ask, seen = held_out_asker(cfg, folder), []

    def asked(policy, *share):
        seen.append(ask(policy, *share))
        return seen[-1]

    log = train.grpo(cfg, made, folder / "images", tmp_path / "asked", held_out=asked)
    plain = train.grpo(cfg, made, folder / "images", tmp_path / "plain")
    assert [row["loss"] for row in log] == [row["loss"] for row in plain]
    files = [tmp_path / name / "model.safetensors" for name in ("asked", "plain")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert ["held_out/accuracy" in row for row in log] == [False, True, False, True]
    assert not any("held_out/accuracy" in row for row in plain)
    assert len(seen) == 2 and all(len(rows) == 18 for rows in seen)
    sources = [row["source"] for row in seen[0] if not row["blank"]]
    assert len(set(sources)) == len(sources) == 9
    for row, rows in zip((log[1], log[3]), seen, strict=True):
        for name, blank in (("accuracy", False), ("blank_accuracy", True)):
            right = [one["correct"] for one in rows if one["blank"] is blank]
            assert row[f"held_out/{name}"] == sum(right) / len(right)


def test_overlapped_scoring_starts_before_rewards_are_asked_for_and_changes_none(
    tiny_model, micro_data, tmp_path, monkeypatch
):
    folder, made = micro_data
    made = [replace(r, reward="math", gt="y = 2x", solution="y = 2x") for r in made]
    cfg = settings(tiny_model, **{"grpo.max_steps": 1, "grpo.max_completion_tokens": 12})
    calls, start, mixed_reward = [], rewards.start, rewards.mixed_reward

    def started(columns, completions):
        calls.append(("start", columns["id"], list(completions)))
        start(columns, completions)

    def scored(*args, completions, **columns):
        calls.append(("score", columns["id"], list(completions)))
        return mixed_reward(*args, completions=completions, **columns)

    monkeypatch.setattr(rewards, "start", started)
    scored.__name__ = "mixed_reward"
    monkeypatch.setattr(rewards, "mixed_reward", scored)
    found = {}
    for overlap in (True, False):
        out = tmp_path / str(overlap)
        if not overlap:
            monkeypatch.setattr(rewards, "start", lambda columns, completions: None)
        train.grpo(cfg, made, folder / "images", out)
        found[overlap] = [{k: row[k] for k in ("record_id", "completion", "reward", "reason")}
                          for row in traces.load(out / "traces")]  # fmt: skip
    assert found[True] == found[False] and found[True]
    assert [name for name, *_ in calls] == ["start", "score", "score"]
    assert calls[0][1:] == calls[1][1:], "workers get what is scored"


def test_grpo_never_samples_an_image_token(tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    policy = models.load_policy(tiny_model)
    with torch.no_grad():  # by its sign the first or the last choice at every position
        policy.model.get_output_embeddings().weight[policy.model.config.image_token_id] *= 1000
    policy.model.save_pretrained(tmp_path / "eager")
    policy.processor.save_pretrained(tmp_path / "eager")
    cfg = settings(tmp_path / "eager", **{"grpo.max_steps": 1, "grpo.max_completion_tokens": 12})
    assert len(train.grpo(cfg, made, folder / "images", tmp_path / "grpo")) == 1


def test_lora_leaves_the_base_and_reloads(tiny_model, micro_data, tmp_path):
    from peft import PeftModel

    folder, made = micro_data
    cfg = settings(tiny_model, **{"sft.mode": "lora"})
    train.sft(cfg, with_traces(made), folder / "images", tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "lora" / "model.safetensors").exists()
    names = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert names and not any("visual" in name for name in names)
    base = dict(models.load_policy(tiny_model).model.named_parameters())
    merged = dict(models.load_policy(tmp_path / "lora").model.named_parameters())
    differs = {name for name in base if not torch.equal(base[name], merged[name])}
    assert differs and all("language_model" in name for name in differs)
    unmerged = PeftModel.from_pretrained(models.load_policy(tiny_model).model, tmp_path / "lora")
    ids = torch.arange(20, 60)[None]
    with torch.inference_mode():
        one = unmerged(input_ids=ids).logits
        two = models.load_policy(tmp_path / "lora").model(input_ids=ids).logits
    assert torch.allclose(one, two, atol=1e-4)
    assert not torch.allclose(one, models.load_policy(tiny_model).model(input_ids=ids).logits)


def test_grpo_says_when_records_are_too_few(tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    cfg = settings(tiny_model, **{"grpo.rollout_prompts": 400})
    with pytest.raises(ValueError, match="lower grpo.rollout_prompts"):
        train.grpo(cfg, made, folder / "images", tmp_path)


def test_grpo_names_batches_that_three_records_fit(tiny_model, micro_data, tmp_path):
    """All settings at once, and they train."""
    folder, made = micro_data
    cfg = settings(tiny_model, **{"grpo.rollout_prompts": 16, "grpo.train_batch": 32})
    with pytest.raises(ValueError, match="3 records are fewer") as caught:
        train.grpo(cfg, made[:3], folder / "images", tmp_path)
    named = dict(re.findall(r"(grpo\.\w+)=(\d+)", str(caught.value)))
    assert len(named) == 3
    short = {"grpo.max_steps": 1, "grpo.max_completion_tokens": 8}
    fitting = settings(tiny_model, **short, **{key: int(n) for key, n in named.items()})
    assert len(train.grpo(fitting, made[:3], folder / "images", tmp_path)) == 1


@pytest.mark.parametrize(("n", "processes"), [(1, 1), (2, 3), (5, 8), (7, 4), (1, 7)])
def test_named_batches_are_valid_for_any_number_of_processes(n, processes, tiny_model, monkeypatch):
    monkeypatch.setitem(_check_enough.__globals__, "num_processes", lambda: processes)
    g = settings(tiny_model, **{"grpo.rollout_prompts": 16, "grpo.train_batch": 32}).grpo
    with pytest.raises(VlaaError) as caught:
        _check_enough(g, n)
    named = {k: int(v) for k, v in re.findall(r"grpo\.(\w+)=(\d+)", str(caught.value))}
    if not named:
        assert "give more records, or fewer processes" in str(caught.value)
        assert (n * g.num_generations) % processes
        return
    made = replace(g, **named)
    assert made.rollout_prompts <= n and profiles.accumulation(
        made.train_batch, made.per_device_batch, processes, "grpo.train_batch", made.rollouts)


def test_three_records_are_enough_for_sft(tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    cfg = settings(tiny_model, **{"sft.max_steps": 1})
    assert train.sft(cfg, with_traces(made[:3]), folder / "images", tmp_path)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|vision_start|>"])
def test_a_text_that_spells_a_special_token_is_left_out(token, tiny_model, micro_data, tmp_path,
                                                        capsys):  # fmt: skip
    folder, made = micro_data
    made = with_traces(made)
    made[0] = replace(made[0], question=f"What is {token}?")
    made[1] = replace(made[1], answer=made[1].answer.replace("<think>", f"<think>{token}"))
    train.sft(settings(tiny_model, **{"sft.max_steps": 1}), made, folder / "images", tmp_path)
    said = capsys.readouterr().out
    for record in made[:2]:
        assert f"{record.id}: its text spells the special token {token}; delete it" in said
    assert f"training on {len(made) - 2} of {len(made)} records" in said
    policy = models.load_policy(tiny_model)  # asked of a model, the token is taken out
    assert len(generate(policy, made[:1], folder / "images", max_new_tokens=4)) == 1


def test_grpo_takes_the_reward_model_that_the_profile_names(tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    named = {"grpo.reward_model": "judge", "grpo.endpoints": str(tmp_path / "none.yaml")}
    cfg = settings(tiny_model, **named)
    with pytest.raises((OSError, ValueError), match=r"none\.yaml"):
        train.grpo(cfg, made, folder / "images", tmp_path)
    closed = [record for record in made if record.reward != "open"]
    with pytest.raises(ValueError, match="fewer than one sampling round"):  # nothing was read
        train.grpo(cfg, closed[:1], folder / "images", tmp_path)


def test_grpo_names_open_questions_that_its_reward_model_cannot_score(micro_data, capsys):
    made = micro_data[1]
    bare = replace(next(r for r in made if r.reward == "open"), id="bare", meta={})
    wanted = [r for r in made if r.reward in ("open", "iou")]
    assert list(_scored([bare, *made], ["open", "iou"], None)) == wanted
    assert "left out: bare: open: no meta.scene" in capsys.readouterr().out

    class Generous:
        def problem(self, record):
            return ""

    assert list(_scored([bare], ["open"], Generous())) == [bare]


def test_a_broken_picture_leaves_one_record_out(micro_data, tmp_path):
    folder, made = micro_data
    (tmp_path / made[0].image).parent.mkdir(parents=True)
    (tmp_path / made[0].image).write_bytes((folder / "images" / made[0].image).read_bytes()[:90])
    rows, rejects = data.rows(made[:1], tmp_path, tmp_path / "cache", with_trace=False)
    assert rows == [] and made[0].id == rejects[0].id and made[0].image in rejects[0].reason


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the two real records are not beside the project")
def test_the_real_records_train(tmp_path):
    """Construct, two SFT steps and two GRPO steps on two records of the released dataset."""
    def call(command, file, out, *words):
        place = "--records", file, "--images", SAMPLES / "images", "--out", tmp_path / out
        assert main([str(word) for word in (*command.split(), *place, *words)]) == 0

    call("construct", SAMPLES / "records.jsonl", "data")
    files = (tmp_path / "data" / f"{split}.jsonl" for split in ("sft", "rl"))
    made = [r for file in files if file.stat().st_size for r in records.load(file).records]
    assert {r.reward for r in made} == {"digit", "mcq"} and all(r.answer for r in made)
    records.write(made, tmp_path / "all.jsonl")
    short = ["--profile", "smoke", "--steps", 2, "--set", "grpo.rollout_prompts=2",
             "grpo.train_batch=8", "grpo.per_device_batch=8"]  # fmt: skip
    call("train sft", tmp_path / "all.jsonl", "sft", *short)
    assert len(list(csv.DictReader((tmp_path / "sft" / "training_log.csv").open(
        encoding="utf-8")))) == 2
    call("train grpo", tmp_path / "all.jsonl", "grpo", *short)
    rows = traces.load(tmp_path / "grpo" / "traces")
    assert len(rows) == 2 * 2 * 4 and {row["part"] for row in rows} == {"digit", "mcq"}


# --- what stops a training that cannot go well ----------------------------------------------------


@pytest.fixture
def policy(tiny_model):
    return models.load_policy(tiny_model)


@pytest.fixture
def rows(micro_data, tmp_path):
    folder, made = micro_data
    return data.rows(made[:6], folder / "images", tmp_path, with_trace=False)[0]


def test_what_is_too_long_is_left_out_whole_and_named(policy, rows):
    lengths = [data.count_tokens(row, policy.processor) for row in rows]
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
        counted = data.count_tokens(row, policy.processor)
        assert made["input_ids"].shape[1] == counted + 2  # the picture's start and end


def test_rows_that_fit_pass(policy, rows):
    data.preflight(rows, policy.processor, policy.model)


def test_a_policy_that_rows_do_not_fit_is_refused(policy, rows, monkeypatch):
    given = rows, policy.processor, policy.model
    monkeypatch.setattr(data, "image_tokens", lambda row, processor: 1)
    with pytest.raises(VlaaError, match=r"record .*: \d+ image tokens for"):
        data.preflight(*given)
    policy.model.config.image_token_id += 1
    with pytest.raises(VlaaError, match="different checkpoints"):
        data.preflight(*given)
    policy.processor.tokenizer.padding_side = "right"
    with pytest.raises(VlaaError, match="pads on the right"):
        data.preflight(*given)


def watched(losses: list[float], out: Path, **logged) -> None:
    """Log losses as step 7 of a training."""
    history = [{"loss": loss, "step": i} | logged for i, loss in enumerate(losses)]
    state = TrainerState(global_step=7, log_history=history, is_world_process_zero=True)
    callbacks.Guard(out).on_log(None, state, TrainerControl())


def test_a_gradient_in_the_tower_ends_the_training(policy):
    tower = policy.model.model.visual
    guard, weight = callbacks.Guard(""), next(tower.parameters())
    given = None, TrainerState(global_step=0), TrainerControl()
    guard.on_pre_optimizer_step(*given, model=policy.model)
    weight.grad = torch.zeros_like(weight)
    with pytest.raises(Halted, match="visual.* has a gradient"):
        guard.on_pre_optimizer_step(*given, model=policy.model)


def test_a_loss_spike_is_said(capsys, tmp_path):
    watched([2.0, 2.1, 1.9, 2.0], tmp_path)
    watched([2.0, 9.0], tmp_path)  # two losses have no usual one yet
    watched([1e-4, 1e-4, 9e-4], tmp_path, reward=0.5)  # GRPO's is near zero by construction
    assert not capsys.readouterr().out
    watched([2.0, 2.1, 1.9, 4.5], tmp_path)
    assert "step 7: loss spike, 4.500 after a usual 2.000" in capsys.readouterr().out


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_training(loss, tmp_path):
    with pytest.raises(Halted, match="step 7: .*lower the learning rate"):
        watched([2.0, 2.0, loss], tmp_path)


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
    (
        {"grpo.extra": {"epsilon_high": 0.28, "mask_truncated_completions": True}},
        {"epsilon_high": 0.28, "mask_truncated_completions": True},
    ),
]
EXTRAS = {
    "learning_rate": (1e-3, "a profile decides it"),
    "epsilon_hi": (0.3, "no such setting"),
}


@pytest.mark.parametrize(("setting", "expected"), SWITCHES)
def test_the_ablations_switches_reach_trl(setting, expected, tiny_model, tmp_path):
    stand_in = SimpleNamespace(processor=models.load_processor(tiny_model))
    args = grpo_config(profiles.load("smoke", **setting), tmp_path, stand_in)
    assert {name: getattr(args, name) for name in expected} == expected
    usual = grpo_config(profiles.load("smoke"), tmp_path, stand_in)
    assert {name: getattr(usual, name) for name in expected} != expected


@pytest.mark.parametrize("name", EXTRAS)
def test_a_setting_of_trl_that_cannot_be_given_is_named(name, tiny_model, tmp_path):
    value, why = EXTRAS[name]
    policy = SimpleNamespace(processor=models.load_processor(tiny_model))
    with pytest.raises(VlaaError, match=why):
        grpo_config(profiles.load("smoke", **{"grpo.extra": {name: value}}), tmp_path, policy)
