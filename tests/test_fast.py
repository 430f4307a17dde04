"""The fast paths and the decoding loop give the stock numbers, do less, or step aside."""

from collections import Counter

import pytest
import torch
import trl

from test_train import settings
from vlaa_lib import models, prompts, rewards, train
from vlaa_lib.evaluate.generate import Limits, ask, complete
from vlaa_lib.train import data, fast, rounds
from vlaa_lib.train.decoding import decode
from vlaa_lib.train.grpo import grpo_config
from vlaa_lib.train.rounds import Pictures
from vlaa_lib.train.trainer import TracingGRPOTrainer

# two optimizer steps a round, each of two micro-batches: old, reference and policy passes
BATCHES = {"grpo.num_generations": 4, "grpo.rollout_prompts": 4, "grpo.train_batch": 8,
           "grpo.per_device_batch": 4, "grpo.max_steps": 4, "grpo.kl": "fixed",
           "grpo.beta": 0.04, "grpo.max_completion_tokens": 24}  # fmt: skip
SAID = prompts.join_think_answer("See.", "3")
TIMES = ("runtime", "time", "per_second", "beta", "aha_rate", "watch")  # no numbers of TRL's


def sampler(flat: bool):
    """Return a `_generate_single_turn` whose completions depend on their place only.

    Args:
        flat: all of a group say the same in every second group.
    """

    def fixed(self, prompt_ids, images, multimodal_fields, num_generations, *rest):
        self._fixed = getattr(self, "_fixed", 0) + 1
        tokenizer, found = self.processing_class.tokenizer, []
        for place in range(len(prompt_ids)):
            group, at = divmod(place, num_generations)
            at = 0 if flat and group % 2 else at
            text = "I look " * (1 + 3 * at + group) if at else SAID
            found.append([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        return found, None

    return fixed


def right_first(completions, **columns):
    """Reward the completions that answer."""
    return [float("<answer>" in text[0]["content"]) for text in completions]


right_first.__name__ = "mixed_reward"  # the trace store reads the reward by this name


@pytest.fixture(autouse=True)
def nothing_is_scored(monkeypatch):
    monkeypatch.setattr(rewards, "start", lambda columns, completions: None)


def trainer(kind, model, micro, out, mode="full", paths=fast.PATHS, **overrides):
    folder, made = micro
    cfg = settings(model, **{**BATCHES, "grpo.mode": mode, **overrides})
    policy = models.load_policy(model, mode, dtype="float32")
    rows, _ = data.rows(made, folder / "images", out, with_trace=False)

    def reward(*args, log_extra, **columns):
        log_extra("reason", [""] * len(columns["completions"]))
        return right_first(**columns)

    reward.__name__ = "mixed_reward"
    made = (trl.GRPOTrainer if kind == "stock" else TracingGRPOTrainer)(
        model=policy.model,
        args=grpo_config(cfg, out, policy),
        train_dataset=data.table(rows),
        reward_funcs=reward,
        processing_class=policy.processor,
        peft_config=models.adapter(mode),
    )
    made.fast = paths
    return made


def numbers(trained):
    trained.train()
    return [
        {k: v for k, v in row.items() if not any(word in k for word in TIMES)}
        for row in trained.state.log_history
        if "loss" in row
    ]


def worst(one, two):
    """Return the largest difference between two logs, and refuse logs of other quantities."""
    assert len(one) == len(two) > 1
    shared = [set(a) & set(b) for a, b in zip(one, two, strict=True)]
    assert all({"loss", "grad_norm", "entropy"} <= keys for keys in shared)
    assert any("reward" in keys for keys in shared), "logged once a round"
    return max(abs(a[k] - b[k]) for a, b, keys in zip(one, two, shared, strict=True) for k in keys)


@pytest.mark.parametrize("mode", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_stock_trl(mode, tiny_model, micro_data, tmp_path, monkeypatch):
    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", sampler(flat=True))
    stock = numbers(trainer("stock", tiny_model, micro_data, tmp_path / "stock", mode))
    ours = numbers(trainer("ours", tiny_model, micro_data, tmp_path / "ours", mode))
    assert all(row["grad_norm"] > 0 for row in stock) and any(row["kl"] > 0 for row in stock)
    assert worst(stock, ours) < 1e-5


@pytest.mark.parametrize("changes", [
    {"grpo.loss_type": "cispo"}, {"grpo.loss_type": "sapo"},
    {"grpo.extra": {"epsilon_high": 0.28, "mask_truncated_completions": True}},
    {"grpo.extra": {"delta": 1.01}},
    {"grpo.extra": {"entropy_coef": 0.01}},
    pytest.param({"grpo.extra": {"top_entropy_quantile": 0.5}}, marks=pytest.mark.slow),
], ids=str)  # fmt: skip
def test_the_numbers_are_those_of_stock_trl_with_other_settings(
    changes, tiny_model, micro_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", sampler(flat=True))
    stock, ours, plain = (
        numbers(trainer(kind, tiny_model, micro_data, tmp_path / str(at), **given))
        for at, (kind, given) in enumerate((("stock", changes), ("ours", changes), ("ours", {})))
    )
    assert worst(stock, ours) < 1e-5
    assert worst(ours, plain) > 0  # the setting does something here


def test_paths_are_left_under_a_setting_that_was_not_compared(
    tiny_model, micro_data, tmp_path, capsys
):
    folder, made = micro_data
    changes = {"grpo.extra": {"importance_sampling_level": "sequence"}, "grpo.max_steps": 1}
    train.grpo(settings(tiny_model, **changes), made, folder / "images", tmp_path)
    said = capsys.readouterr().out
    assert all(f"grpo.fast: without {path}: not compared" in said for path in fast.PATHS)


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "bnpo"])
def test_rows_of_a_step_are_sorted_where_the_loss_allows_it(
    loss_type, tiny_model, micro_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", sampler(flat=False))
    # a GPU's passes: as large as a micro-batch, no prompt shared
    monkeypatch.setattr(fast.FastPaths, "_shares", lambda *given: False)
    columns, found = Counter(), {}
    for name, paths in {
        "stock": (), "padding": (fast.PADDING,), "both": (fast.PADDING, fast.LENGTHS)
    }.items():  # fmt: skip
        kind = "ours" if paths else "stock"
        made = trainer(kind, tiny_model, micro_data, tmp_path / name, paths=paths,
                       **{"grpo.loss_type": loss_type})  # fmt: skip

        def count(module, args, kwargs, output, name=name):
            if torch.is_grad_enabled():
                columns[name] += kwargs["inputs_embeds"].shape[:2].numel()

        made.model.model.language_model.register_forward_hook(count, with_kwargs=True)
        found[name] = numbers(made)
    assert any(row["kl"] > 1e-4 for row in found["stock"])
    assert worst(found["stock"], found["both"]) < 1e-5
    if loss_type == "bnpo":
        assert "without lengths: the loss depends on which rows share" in capsys.readouterr().out
        assert columns["both"] == columns["padding"] < columns["stock"]
    else:
        assert columns["both"] < columns["padding"] < columns["stock"]


@pytest.mark.slow
def test_a_loss_by_micro_batch_does_not_bear_sorting(
    tiny_model, micro_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", sampler(flat=False))
    monkeypatch.setattr(fast, "ORDERLESS", ("bnpo",))
    given = {"grpo.loss_type": "bnpo"}
    stock = numbers(trainer("stock", tiny_model, micro_data, tmp_path / "stock", **given))
    ours = numbers(trainer("ours", tiny_model, micro_data, tmp_path / "ours", **given))
    assert worst(stock, ours) > 1e-4


def test_a_window_is_sorted_and_taken_apart_again():
    stock = [
        {"ids": torch.tensor([[0, 1], [2, 3]]), "names": ["a", "b"], "n": torch.tensor(4)},
        {"ids": torch.tensor([[4, 5], [6, 7]]), "names": ["c", "d"], "n": torch.tensor(4)},
    ]
    whole = rounds.joined(stock)
    assert whole["names"] == list("abcd") and whole["n"] == 4 and len(whole["ids"]) == 4
    made = rounds.Window(stock, rounds.alike(torch.tensor([1, 5, 2, 9])))
    for rows in made.order.split(2):
        ids = rounds.of_rows(rows, whole)["ids"].float()
        made.passes.append((ids, -ids))
    for batch, (logps, entropies, _) in zip(stock, made.unsorted(), strict=True):
        assert torch.equal(logps, batch["ids"].float()) and torch.equal(entropies, -logps)
    assert made.order.tolist() == [3, 1, 2, 0] and not made.passes


def test_a_wrong_order_of_pictures_is_seen(tiny_model, micro_data, tmp_path, monkeypatch):
    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", sampler(flat=False))
    right = numbers(trainer("ours", tiny_model, micro_data, tmp_path / "right"))
    features = Pictures.features

    def turned(self, pixel_values, image_grid_thw):
        return features(self, pixel_values, image_grid_thw)[::-1]

    monkeypatch.setattr(Pictures, "features", turned)
    # all pictures of one size, or the model itself would refuse them
    assert worst(right, numbers(trainer("ours", tiny_model, micro_data, tmp_path / "wrong"))) > 1e-5


def test_each_picture_is_opened_and_encoded_once_a_round(
    tiny_model, micro_data, tmp_path, monkeypatch
):
    made = trainer("ours", tiny_model, micro_data, tmp_path, **{"grpo.max_steps": 2})
    processor, seen = made.processing_class.image_processor, Counter()
    tower, lead = made.model.model.visual, made.model.model.language_model
    opened, run = type(processor).fetch_images, tower.forward

    def fetch(self, images):
        seen["opened"] += isinstance(images, str)
        return opened(self, images)

    def encode(pixels, *args, **kwargs):
        seen["patches"] += len(pixels)
        return run(pixels, *args, **kwargs)

    monkeypatch.setattr(type(processor), "fetch_images", fetch)
    monkeypatch.setattr(tower, "forward", encode)
    prefilled = []
    lead.register_forward_hook(
        lambda module, args, kwargs, output: prefilled.append(kwargs["inputs_embeds"].shape[:2]),
        with_kwargs=True,
    )
    made.train()
    assert seen["opened"] == 4, "four prompts of a round"
    unique = {row["image"] for row in made.train_dataset}
    whole = processor([str(path) for path in unique], return_tensors="pt")["image_grid_thw"]
    assert 0 < seen["patches"] <= whole.prod(-1).max() * 4
    assert prefilled[0][0] == 4 and prefilled[1] == (16, 1), "a group's prompt runs once"
    assert not vars(made.model.model).get("get_image_features") and not made._pictures
    processor.save_pretrained(tmp_path)


@pytest.mark.parametrize("mode", ["full", pytest.param("lora", marks=pytest.mark.slow)])
@pytest.mark.parametrize("paths", [(fast.ENDED,), fast.PATHS], ids=["ended", "all"])
def test_sampling_gives_the_completions_of_stock_trl(
    paths, mode, tiny_model, micro_data, tmp_path
):
    """A group's prompt runs once and completions that have ended leave: the draws are the same."""
    found = {}
    for chosen in ((), paths):
        folder = tmp_path / str(len(chosen))
        made = trainer("ours", tiny_model, micro_data, folder, mode, paths=chosen)
        # some end early: a model that has learnt nothing hardly ever does
        end = made.processing_class.tokenizer.eos_token_id
        made.generation_config.sequence_bias = [[[end], 5.0]]
        asked = [made.train_dataset[i // 4] for i in range(16)]
        rows = []
        base = getattr(made.model, "get_base_model", lambda model=made.model: model)()
        base.register_forward_hook(
            lambda module, args, kwargs, output, rows=rows: rows.append(
                len(getattr(output, "logits", ()))  # TRL's fused head has none
            ),
            with_kwargs=True,
        )
        torch.manual_seed(1)
        turn, seen = made._generate_single_turn, []

        def counted(*args, turn=turn, seen=seen, rows=rows, **kwargs):
            rows.clear()
            given = turn(*args, **kwargs)
            seen.extend(rows)
            return given

        made._generate_single_turn = counted
        found[chosen] = made._generate_and_score_completions(asked)["completion_ids"]
        assert (seen[-1] < 16) == bool(chosen), "rows of the last pass"
    assert found[()].unique(dim=0).shape[0] > 8, "they are sampled"
    assert torch.equal(found[()], found[paths])


def test_a_trained_tower_is_left_to_the_stock_trainer_and_said_once(
    tiny_model, micro_data, tmp_path, capsys
):
    made = trainer("ours", tiny_model, micro_data, tmp_path)
    next(made.model.model.visual.parameters()).requires_grad_(True)
    assert fast.VISION not in made._paths and fast.IMAGES in made._paths
    assert capsys.readouterr().out == "grpo.fast: without vision: the vision tower is trained\n"


def test_pictures_are_known_by_content_and_a_round_forgets_them(tiny_model, micro_data):
    from PIL import Image

    processor = models.load_processor(tiny_model).image_processor
    one, other = (Image.new("RGB", (56, 56), colour) for colour in ("red", "blue"))
    pictures = Pictures(processor, tower=None)
    with pictures.served():
        found = processor([[one], [other], [one.copy()]])
    alone = processor([one, other, one], return_tensors="pt")
    assert torch.equal(found["pixel_values"], alone["pixel_values"])
    assert torch.equal(found["image_grid_thw"], alone["image_grid_thw"])
    assert len(pictures._grids) == 2
    pictures.forget()
    assert not pictures._grids


# --- the decoding loop ---------------------------------------------------------------------------

PROMPTS = ["Hello", "How many red cubes are there in the picture?", "No", "Count."] * 4


def generated(policy, custom, **wanted):
    """Return tokens, rows of each forward pass and the random state after generating."""
    tokenizer, rows = policy.processor.tokenizer, []
    inputs = tokenizer(PROMPTS, padding=True, padding_side="left", return_tensors="pt")
    watch = policy.model.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(output.logits)), with_kwargs=True
    )
    torch.manual_seed(3)
    try:
        tokens = policy.model.generate(
            **inputs,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=24,
            custom_generate=custom,
            **wanted,
        )
    finally:
        watch.remove()
    return tokens, rows, torch.rand(1)


# a model that has learnt nothing hardly ever ends a completion by itself
@pytest.mark.parametrize("bias", [0.0, 4.0, 5.0, 60.0])
@pytest.mark.parametrize(
    "wanted",
    [
        {"do_sample": True, "top_k": 0},
        {"do_sample": True, "top_k": 50, "top_p": 0.9, "temperature": 0.7},
        {"do_sample": False, "repetition_penalty": 1.3},
        {"do_sample": True, "top_k": 0, "repetition_penalty": 1.05},  # Qwen2.5-VL's own file
    ],
    ids=["sampled", "filtered", "greedy", "penalised"],
)
def test_the_completions_are_those_of_the_stock_loop(tiny_model, bias, wanted):
    policy = models.load_policy(tiny_model, dtype="float32")
    wanted = wanted | {"sequence_bias": [[[policy.processor.tokenizer.eos_token_id], bias]]}
    stock, whole, state = generated(policy, None, **wanted)
    ours, rows, after = generated(policy, decode, **wanted)
    assert torch.equal(stock, ours)
    assert state == after, "as many draws"
    assert len(rows) == len(whole) and set(whole) == {len(PROMPTS)}
    if wanted.get("top_k") == 0 and bias == 5.0:  # some end early, some late
        assert len(set(rows)) > 2 and sum(rows) < 0.7 * sum(whole), "ended rows left"


def test_ended_rows_leave_with_a_picture_and_several_ends(tiny_model, micro_data):
    folder, made = micro_data
    policy = models.load_policy(tiny_model, dtype="float32")
    policy.model.generation_config.eos_token_id = list(range(40))
    rows = []
    policy.model.register_forward_hook(lambda *passed: rows.append(len(passed[-1].logits)))
    torch.manual_seed(0)
    own = complete(policy, [ask(r) for r in made], folder / "images", Limits(40, temperature=1.0))
    assert rows[0] == len(made) and rows[-1] < len(made)
    assert len({c.num_tokens for c in own}) > 3
    generate = policy.model.generate
    policy.model.generate = lambda **given: generate(**given | {"custom_generate": None})
    torch.manual_seed(0)
    stock = complete(policy, [ask(r) for r in made], folder / "images", Limits(40, temperature=1.0))
    assert own == stock


def test_what_the_loop_cannot_do_is_left_to_the_stock_loop_or_refused(tiny_model):
    policy = models.load_policy(tiny_model, dtype="float32")
    greedy = {"do_sample": False, "use_cache": False}
    stock, *_ = generated(policy, None, **greedy)
    ours, rows, _ = generated(policy, decode, **greedy)
    assert torch.equal(stock, ours) and set(rows) == {len(PROMPTS)}
    with pytest.raises(ValueError, match="beam search"):
        generated(policy, decode, do_sample=False, num_beams=2)
    with torch.no_grad():
        policy.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="not numbers"):
        generated(policy, decode, do_sample=True)
