"""The plan: counts and memory as measured, batches that work or say which would."""

import json
import re
import weakref
from dataclasses import replace
from functools import cache

import pytest

from vlaa_lib import VlaaError, models, profiles
from vlaa_lib.__main__ import main
from vlaa_lib.train import plan, shapes
from vlaa_lib.train.plan import GB, Setup

THREE, SEVEN = "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"
shape_of = cache(shapes.shape_of)


def setup(profile="paper", method="grpo", model=THREE, gpus=8, sharding="fsdp2", **other):
    settings = {key: other.pop(key) for key in list(other) if "." in key}
    cfg = profiles.load(profile, **settings)
    values = {"card_gb": 80, "records": 25_195} | other
    shape = shape_of(str(model))
    return Setup(cfg, method, shape, gpus=gpus, sharding=sharding, **values)


@pytest.mark.parametrize(
    "model, billions",
    [
        (THREE, (3.755, 0.669, 2.775, 0.311, 0.1197)),
        (SEVEN, (8.292, 0.677, 6.525, 1.090, 0.1615)),
        ("Qwen/Qwen2-VL-2B-Instruct", (2.209, 0.665, 1.310, 0.233, 0.0739)),
    ],
)
def test_parameters_of_the_papers_policies(model, billions):
    s = shape_of(model)
    found = (s.total, s.vision, s.linears, s.embeddings, s.trained("lora", 64))
    assert [n / 1e9 for n in found] == pytest.approx(billions, abs=6e-4)
    assert "published shape" in s.origin


# Figures computed by hand for rows of 1,824 tokens: 3B, 7B, in GB.
HAND = [(THREE, 60.1, 50.7, 0.067, 0.45, 3.39, 10.9, 12.2),
        (SEVEN, 132.7, 123.2, 0.105, 0.68, 6.90, 20.8, 22.9)]  # fmt: skip


def test_the_heads_tile_is_that_of_the_methods_own_rows():
    def head(tokens, completion):
        given = {"sft.max_tokens": tokens, "sft.per_device_batch": 1}
        s = setup("paper", "sft", **given, **{"grpo.max_completion_tokens": completion})
        return plan.memory(s)["training"]["logits"]

    assert head(1000, 100) == head(1000, 700)
    assert head(1000, 100) - head(500, 100) == 500 * plan.HEAD_WORDS * 2  # bf16


@pytest.mark.parametrize("model, everything, frozen, cache, row, nf4, one, four", HAND)
def test_memory_of_3b_and_7b_is_that_computed_by_hand(
    model, everything, frozen, cache, row, nf4, one, four
):
    s = setup(model=model, gpus=1, sharding="ddp")
    held = sum(n for part, n in plan.states(s).items() if part != "reference")
    # by hand the second figure is without the frozen tower, whose weights are fp32 as all others
    assert (held - 4 * s.shape.vision) / GB == pytest.approx(frozen - 2 * 0.67, rel=0.02)
    assert (held + 12 * s.shape.vision) / GB == pytest.approx(everything, rel=0.01)
    sharded = plan.states(setup(model=model))
    assert sharded["reference"] / GB == pytest.approx(4 * s.shape.total / 8 / GB, rel=1e-6)
    local = setup(model=model, **{"grpo.sampler": "transformers"})
    found = plan.memory(local)["sampling"]["KV cache"]
    assert found / 256 / GB == pytest.approx(cache, rel=0.01)
    small = setup("single", model=model, gpus=1, sharding="ddp", **{"grpo.per_device_batch": 1})
    assert plan.activations(small) / GB == pytest.approx(row, rel=0.2)
    for batch, by_hand in ((1, one), (4, four)):
        section = replace(small.cfg.grpo, per_device_batch=batch)
        parts = plan.memory(replace(small, cfg=replace(small.cfg, grpo=section)))["training"]
        assert sum(parts.values()) / GB == pytest.approx(by_hand, rel=0.08)
    quantised = setup("single", model=model, gpus=1, sharding="ddp", **{"grpo.mode": "4bit"})
    adapter = 2 * quantised.trained
    assert (plan.states(quantised)["weights"] - adapter) / GB == pytest.approx(nf4, rel=0.01)


def pocket_setup(folder, mode, batch, tokens, **other):
    other |= {"grpo.max_prompt_tokens": tokens - 1, "grpo.max_completion_tokens": 1,
              "grpo.per_device_batch": batch, "grpo.mode": mode, "model.max_pixels": 112 * 112}
    return setup("smoke", model=folder, gpus=1, sharding="ddp", width=4, **other)  # fmt: skip


def policy_of(folder, mode):
    policy = models.load_policy(folder, mode=mode, dtype="float32")
    policy.model.train()
    if mode == "full":
        return policy, policy.model
    from peft import get_peft_model

    return policy, get_peft_model(policy.model, models.adapter(mode))


def inputs_of(policy):
    from PIL import Image

    text = policy.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "why? " * 50}]}],
        tokenize=False,
    )
    pictures = [Image.new("RGB", (112, 112), "red")] * 4
    return policy.processor(text=[text] * 4, images=pictures, return_tensors="pt")


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_weights_gradients_and_optimizer_are_exact(tiny_model, mode):
    import torch

    policy, model = policy_of(tiny_model, mode)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(**inputs_of(policy)).logits.mean().backward()
    optimizer.step()
    moments = [v for own in optimizer.state.values() for k, v in own.items() if k != "step"]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    expected = plan.states(pocket_setup(tiny_model, mode, 4, 128))
    found = {"weights": model.parameters(), "gradients": gradients, "optimizer": moments}
    for part, tensors in found.items():
        assert sum(t.numel() * t.element_size() for t in tensors) == expected[part], part


def test_quantised_weights_are_nearly_exact():
    pytest.importorskip("bitsandbytes")
    model = models.load_policy("data/pocket/instruct", mode="4bit", dtype="float32").model
    found = 0
    for parameter in model.parameters():
        found += parameter.numel() * parameter.element_size()
        if state := getattr(parameter, "quant_state", None):
            found += state.absmax.nbytes + state.state2.absmax.nbytes
    s = pocket_setup(models.resolve("data/pocket/instruct"), "4bit", 4, 128)
    base = plan.states(s)["weights"] - 2 * s.trained
    assert base == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_that_autograd_keeps(mode, checkpointing):
    import torch

    folder = models.resolve("data/pocket/instruct")
    policy, model = policy_of(folder, mode)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    inputs = inputs_of(policy)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    alive = weakref.WeakSet()

    def pack(tensor):
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        output = policy.model.model(**inputs).last_hidden_state
    storages = (kept.tensor.untyped_storage() for kept in alive)
    sizes = {s.data_ptr(): s.nbytes() for s in storages}
    found = sum(size for place, size in sizes.items() if place not in weights)
    batch, tokens, _ = output.shape
    s = pocket_setup(folder, mode, batch, tokens, checkpointing=checkpointing)
    expected = plan.activations(s)
    if checkpointing:  # the layer in recomputation is there only in the backward pass
        expected -= batch * tokens * plan.layer_bytes(s)
    # the rest does not grow with the layers: the tower's merger, positions, masks
    assert found / 1.25 <= expected <= found * 1.15


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("method", ["sft", "grpo"])
@pytest.mark.parametrize("profile", profiles.names())
def test_every_profile_divides_or_names_numbers_that_do(profile, method, gpus):
    s = setup(profile, method, gpus=gpus)
    try:
        found = plan.batches(s)
    except VlaaError as error:
        text = str(error).partition("these work: ")[2]
        remedies = list(_remedies(s, text))
        assert remedies
        for changed in remedies:
            plan.batches(changed)
    else:
        assert found["batch"] == found["per_device"] * found["accumulation"] * gpus


def _remedies(s, text):
    for remedy in text.split("; "):
        key, values = re.fullmatch(r"(\S+?)[ =](.*)", remedy).groups()
        for value in values.split(" or "):
            if key == "--gpus":
                yield replace(s, gpus=int(value))
            else:
                section = replace(s.section, **{key.partition(".")[2]: int(value)})
                yield replace(s, cfg=replace(s.cfg, **{s.method: section}))


def test_a_refusal_names_all_three_ways_out():
    s = setup("paper", "sft", gpus=3)
    with pytest.raises(VlaaError, match=r"--gpus 2 or 4; sft.global_batch=120 or 132"):
        plan.batches(s)
    with pytest.raises(VlaaError, match=r"--gpus 8; grpo.per_device_batch=1 or 2(;|$)"):
        plan.batches(setup("single", gpus=16))
    with pytest.raises(VlaaError, match="fewer than one sampling round's 512"):
        plan.batches(setup(records=100))
    with pytest.raises(VlaaError, match="4-bit weights are not sharded"):
        plan.batches(setup(**{"grpo.mode": "4bit", "grpo.sampler": "transformers"}))


def test_the_papers_rounds_and_steps():
    work = plan.workload(setup(), prompt_tokens=400)
    assert (work["sampling rounds"], work["optimizer steps"]) == (49, 392)
    assert work["tokens generated"] == 49 * 2048 * 400
    sft = plan.workload(setup(method="sft", records=126_080), prompt_tokens=400)
    assert sft["optimizer steps"] == 985


def test_the_profiles_fit_the_machines_that_they_are_made_for():
    assert not plan.problems(setup(reward_model=True))
    assert not plan.problems(setup(method="sft"))
    for method in ("sft", "grpo"):
        one = {"profile": "single", "method": method, "gpus": 1, "sharding": "ddp"}
        assert not plan.problems(setup(card_gb=24, **one))
        assert not plan.problems(setup(card_gb=16, **{f"{method}.mode": "4bit"}, **one))


def test_what_does_not_fit_is_named():
    s = setup(model=SEVEN, sharding="ddp", reward_model=True)
    assert any(re.match(r"training takes .* of 80 GB", text) for text in plan.problems(s))
    assert not plan.problems(setup(model=SEVEN))
    one = {"method": "sft", "gpus": 1, "sharding": "ddp"}
    both = [setup("single", **one, **{"sft.per_device_batch": n}) for n in (1, 2)]
    # a card that holds the first, not the second
    sizes = [sum(plan.memory(small)["training"].values()) for small in both]
    card = sum(sizes) / 2 / GB / plan.USABLE
    assert [bool(plan.problems(replace(small, card_gb=card))) for small in both] == [False, True]


def test_hours_are_arithmetic_and_none_for_a_small_policy():
    s, work = setup(), {"tokens trained": 10**9, "tokens generated": 10**8}
    # 6 passes of 2 x 3.755e9 operations a token at 0.3 of 8 cards' 989e12; sampling at a tenth
    by_hand = 2 * 3.755e9 * (6e9 + 1e9) / (0.3 * 989e12 * 8) / 3600
    assert plan.hours(s, work) == pytest.approx(by_hand, rel=1e-3)
    assert plan.hours(replace(s, gpus=16), work) == pytest.approx(by_hand / 2, rel=1e-3)
    small = setup("smoke", model=models.resolve("data/pocket/instruct"), gpus=1)
    assert plan.hours(small, work) is None


def test_the_command(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main(["plan", "--profile", "smoke", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "verdict: fits" in printed and "too small for an estimate" in printed
    made = json.loads(out.read_text(encoding="utf-8"))
    assert made["trained_parameters"] == 3_646_720 - 1_172_800
    assert made["peak_bytes"]["training"] == sum(made["memory_bytes"]["training"].values())
    assert main(["plan", "--profile", "smoke", "--card-gb", "0.5"]) == 1
    assert "does not fit: sampling" in capsys.readouterr().out
    (tmp_path / "config.json").write_text('{"a":', encoding="utf-8")
    for option, value, said in (
        ("--gpus", "0", "above 0"), ("--card-gb", "0", "above 0"),
        ("--model", "who/knows", "no config here"),
        ("--model", str(tmp_path / "config.json"), "not a valid JSON"),
    ):  # fmt: skip
        assert main(["plan", "--profile", "smoke", option, value]) == 2
        assert re.search(f"error: .*{said}", capsys.readouterr().err)
