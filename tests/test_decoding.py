"""The decoding loop says what Hugging Face's own loop says, and computes fewer rows."""

import pytest
import torch

from vlaa_lib import models
from vlaa_lib.train.decoding import decode

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
    ],
    ids=["sampled", "filtered", "greedy"],
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
    from vlaa_lib.evaluate.generate import Limits, ask, complete

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
