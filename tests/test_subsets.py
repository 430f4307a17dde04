"""Perplexity scores and the subsets chosen by them: exact, resumable, never of something else."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from vlaa_lib import VlaaError, models, prompts, records, subsets
from vlaa_lib.__main__ import main
from vlaa_lib.evaluate.generate import by_length, fingerprint
from vlaa_lib.images import open_image
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld import narrator
from vlaa_lib.show import figures

INSTRUCT = "data/pocket/instruct"


@pytest.fixture(scope="module")
def policy():
    return models.load_policy(INSTRUCT)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """An image folder and eighteen records of nine sources with true traces of many lengths."""
    folder = tmp_path_factory.mktemp("traced")
    made = microworld.write_split(folder, list(microworld.SOURCES), "dev", 2)
    told = [narrator.plain_trace(r.meta["scene"], r.question) for r in made]
    return folder / "images", [
        replace(record, answer=prompts.join_think_answer(think * (1 + i % 3), answer))
        for i, (record, (think, answer)) in enumerate(zip(made, told, strict=True))
    ]


@pytest.fixture(scope="module")
def scored(policy, traced, tmp_path_factory):
    images, made = traced
    return subsets.score(policy, made, images, tmp_path_factory.mktemp("scored"))


def values(scores):
    return {name: row["perplexity"] for name, row in scores.items()}


def test_scores_equal_a_plain_computation_of_one_record_at_a_time(policy, traced, scored):
    """The whole chat through the processor, all logits, torch's cross entropy: no shared code."""
    images, made = traced
    lengths = set()
    for record in made:
        text = prompts.user_text(record.question, record.reward)
        user = [{"type": "image"}, {"type": "text", "text": text}]
        chat = [{"role": "system", "content": prompts.SYSTEM_PROMPT},
                {"role": "user", "content": user}]  # fmt: skip
        head = policy.processor.apply_chat_template(chat, add_generation_prompt=True)
        picture = open_image(record.image, images)
        ids = policy.processor(images=[picture], text=[head], return_tensors="pt")
        prompt_tokens = ids["input_ids"].shape[1]
        whole = f"{head}{record.answer}<|im_end|>\n"
        inputs = policy.processor(images=[picture], text=[whole], return_tensors="pt")
        with torch.no_grad():
            logits = policy.model(**inputs).logits[0]
        answer = inputs["input_ids"][0, prompt_tokens:]
        loss = cross_entropy(logits[prompt_tokens - 1 : -1], answer)
        row = scored[record.id]
        assert row["num_tokens"] == len(answer)
        assert row["mean_nll"] == pytest.approx(loss.item(), rel=1e-4)
        assert row["perplexity"] == pytest.approx(math.exp(loss.item()), rel=1e-4)
        lengths.add(len(ids["input_ids"][0]) + len(answer))
    assert len(lengths) > 6  # or padding was not put to the test


@pytest.mark.parametrize("size", [1, 700])
def test_scores_do_not_depend_on_the_batch(policy, traced, scored, tmp_path, size, monkeypatch):
    images, made = traced
    monkeypatch.setattr(subsets, "WINDOW", 7)
    monkeypatch.setattr(subsets, "HEAD_TOKENS", 33)
    again = subsets.score(policy, made, images, tmp_path, size)
    assert values(again) == pytest.approx(values(scored), rel=1e-4)
    assert set(again) == {record.id for record in made}


def test_labels_are_those_of_sft(policy, traced, tmp_path):
    """TRL's trainer, set up as in `train.sft`, hides the same tokens from its loss."""
    from trl import SFTConfig, SFTTrainer

    from vlaa_lib.train import data

    images, made = traced
    rows = data.table(data.rows(made[:3], images, tmp_path / "cache", with_trace=True)[0])
    args = SFTConfig(output_dir=str(tmp_path), max_length=None, report_to="none", use_cpu=True)
    trainer = SFTTrainer(policy.model, args, train_dataset=rows, processing_class=policy.processor)
    theirs = trainer.data_collator([rows[i] for i in range(3)])
    encoded = subsets._Encoded(policy, made[:3], images)
    ours = subsets._join([encoded[i][1] for i in range(3)])
    assert theirs.keys() == ours.keys()
    real = theirs["attention_mask"].bool()  # what stands in the padding is never read
    for name in ("input_ids", "labels", "mm_token_type_ids"):
        assert torch.equal(theirs[name][real], ours[name][real]), name
    for name in ("attention_mask", "pixel_values", "image_grid_thw"):
        assert torch.equal(theirs[name], ours[name]), name


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_batches_hold_each_position_once_within_the_bound(lengths, batch_tokens):
    made = by_length(lengths, tokens=batch_tokens, longest_first=True)
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    for batch in made:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= batch_tokens or len(batch) == 1


def test_a_killed_run_goes_on_where_it_stopped(policy, traced, scored, tmp_path, monkeypatch):
    images, made = traced
    plain, seen, most = subsets.mean_nll, [], 6

    def counted(model, inputs):
        if sum(seen) >= most:
            raise KeyboardInterrupt
        seen.append(len(inputs["labels"]))
        return plain(model, inputs)

    monkeypatch.setattr(subsets, "mean_nll", counted)
    with pytest.raises(KeyboardInterrupt):
        subsets.score(policy, made, images, tmp_path, batch_tokens=700)
    path = tmp_path / "scores.jsonl"
    before = path.read_text(encoding="utf-8")
    assert before.count("\n") == sum(seen) < len(made)
    path.write_text(before + '{"id": "solids-dev-',
        encoding="utf-8")  # killed in the middle of a line
    most = math.inf
    resumed = subsets.score(policy, made, images, tmp_path, batch_tokens=700)
    assert sum(seen) == len(made)  # nothing was scored twice
    assert values(resumed) == pytest.approx(values(scored), rel=1e-4)
    assert path.read_text(encoding="utf-8").startswith(before)
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_shards_together_equal_one_run(policy, traced, scored, tmp_path):
    images, made = traced
    first = subsets.score(policy, made, images, tmp_path, shard=(1, 2))
    assert set(first) == {record.id for record in made[::2]}
    both = subsets.score(policy, made, images, tmp_path, shard=(2, 2))
    assert values(both) == pytest.approx(values(scored), rel=1e-4)
    assert subsets.load(tmp_path, made) == both
    # one process more finds nothing left to do
    assert subsets.score(policy, made, images, tmp_path) == both
    assert not (tmp_path / "scores.jsonl").exists()


def test_scores_of_something_else_are_refused(policy, traced, tiny_model, tmp_path):
    images, made = traced
    subsets.score(policy, made[:2], images, tmp_path)
    other = models.load_policy(tiny_model)
    with pytest.raises(VlaaError, match=r"other settings \(weights '\w+' instead of"):
        subsets.score(other, made[:2], images, tmp_path)
    fewer_pixels = models.load_policy(INSTRUCT, max_pixels=100_000)
    with pytest.raises(VlaaError, match="max_pixels 262144 instead of 100000"):
        subsets.score(fewer_pixels, made[:2], images, tmp_path)
    changed = replace(made[1], answer=prompts.join_think_answer("no", "7"))
    with pytest.raises(records.RecordError, match="scored with another question, image or answer"):
        subsets.score(policy, [made[0], changed], images, tmp_path)
    # a set that grew is scored where it is new
    assert len(subsets.score(policy, made[:3], images, tmp_path)) == 3


def test_a_training_step_is_another_policy(policy):
    """The header reads a part of each tensor: a part that training moves."""
    before = fingerprint(policy)
    again = models.load_policy(INSTRUCT)
    assert fingerprint(again) == before
    norm = again.model.get_parameter("model.language_model.norm.weight")
    with torch.no_grad():
        norm += 1e-3
    assert fingerprint(again)["weights"] != before["weights"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"id": "a"}', '{"id": "a", "key": "b"}'])
def test_a_broken_line_is_named(policy, traced, tmp_path, line):
    images, made = traced
    subsets.score(policy, made[:1], images, tmp_path)
    with (tmp_path / "scores.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(VlaaError, match=r"scores.jsonl:2: (not a score|not a JSON object); delete"):
        subsets.load(tmp_path, made)


def test_what_cannot_be_scored_says_why_and_stops_nothing(policy, traced, tmp_path):
    images, made = traced
    bad = {
        "no trace in 'answer'": replace(made[0], answer="3"),
        "special token <|image_pad|>": replace(
            made[1], answer=made[1].answer.replace("<think>", "<think><|image_pad|>")
        ),
        "is not below": replace(made[2], image="none.png"),
    }
    mixed = [*bad.values(), *made[3:5]]
    scores = subsets.score(policy, mixed, images, tmp_path)
    for reason, record in bad.items():
        assert reason in scores[record.id]["problem"] and "perplexity" not in scores[record.id]
    found = subsets.select(mixed, {"pocket": scores}, 2)
    assert found.records == made[3:5]
    assert [r.id for r in found.rejects] == [r.id for r in bad.values()]
    assert all(r.reason.startswith("pocket: ") for r in found.rejects)


def test_a_model_that_says_nan_is_a_problem_not_a_number(traced, tiny_model, tmp_path):
    images, made = traced
    broken = models.load_policy(tiny_model)
    with torch.no_grad():
        broken.model.get_parameter("model.language_model.norm.weight").fill_(math.nan)
    scores = subsets.score(broken, made[:2], images, tmp_path)
    assert all("likelihood is nan" in row["problem"] for row in scores.values())
    assert "NaN" not in (tmp_path / "scores.jsonl").read_text(encoding="utf-8")
    with pytest.raises(records.RecordError, match="0 records have a perplexity"):
        subsets.select(made[:2], {"broken": scores}, 1)


def test_a_template_without_replies_is_refused(traced, tmp_path):
    images, made = traced
    base = models.load_policy("data/pocket/base")
    with pytest.raises(ValueError, match=r"template of .*base leaves out .* instruct"):
        subsets.score(base, made[:1], images, tmp_path)


def test_a_lora_policy_is_scored_with_its_adapter(traced, tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    images, made = traced
    base = models.load_policy(tiny_model)
    before = subsets.score(base, made[:2], images, tmp_path / "base")
    lora = LoraConfig(r=4, target_modules=models.LANGUAGE_LINEARS, init_lora_weights=False)
    get_peft_model(base.model, lora).save_pretrained(tmp_path / "lora")
    base.processor.save_pretrained(tmp_path / "lora")
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text(
            encoding="utf-8")) | {"base_model_name_or_path": str(tiny_model)})
    , encoding="utf-8")
    adapted = models.load_policy(tmp_path / "lora")
    after = subsets.score(adapted, made[:2], images, tmp_path / "lora-scores")
    assert values(after) != pytest.approx(values(before), rel=1e-3)
    with pytest.raises(VlaaError, match="weights"):
        subsets.score(adapted, made[:2], images, tmp_path / "base")


def test_the_papers_other_architecture_is_scored(policy, traced, tmp_path):
    """Qwen2-VL, here untrained: nothing in the computation is Qwen2.5-VL's alone."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = policy.model.config.text_config
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": text.vocab_size, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3],
                                "rope_theta": 10_000.0},
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
        **{k: getattr(policy.model.config, k)
           for k in ("image_token_id", "vision_start_token_id", "vision_end_token_id")},
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(tmp_path / "older")
    policy.processor.save_pretrained(tmp_path / "older")
    older = models.load_policy(tmp_path / "older")
    assert isinstance(older.model, Qwen2VLForConditionalGeneration)
    assert older.processor.stock == "Qwen2VLProcessor"  # vLLM refuses the newer family's for it
    images, made = traced
    together = subsets.score(older, made[:5], images, tmp_path / "together")
    alone = subsets.score(older, made[:5], images, tmp_path / "alone", batch_tokens=1)
    assert values(together) == pytest.approx(values(alone), rel=1e-4)


# ---- choosing


def plain(count):
    return [records.Record(f"r{i}", "a.png", "q", "1", reward="digit") for i in range(count)]


def scores_of(made, *numbers):
    return {r.id: {"perplexity": n} for r, n in zip(made, numbers, strict=True)}


def test_select_averages_over_policies_and_keeps_the_order():
    made = plain(4)
    two = {"a": scores_of(made, 9, 1, 2, 4), "b": scores_of(made, 1, 3, 8, 4)}  # means 5 2 5 4
    assert [r.id for r in subsets.select(made, two, 3).records] == ["r0", "r2", "r3"]
    assert [r.id for r in subsets.select(made, two, 1).records] == ["r0"]  # of a tie the lower id
    assert [r.id for r in subsets.select(made[::-1], two, 1).records] == ["r0"]
    assert [r.id for r in subsets.select(made[::-1], two, 2).records] == ["r2", "r0"]
    rows, _ = subsets.average(made, two)
    assert rows[0] == {"id": "r0", "source": "", "a": 9, "b": 1, "perplexity": 5}


@given(st.lists(st.integers(1, 4), min_size=3, max_size=12), st.data())
def test_smaller_subsets_lie_inside_larger_ones(numbers, data):
    made = plain(len(numbers))
    scores = {"a": scores_of(made, *numbers)}
    large = data.draw(st.integers(1, len(made)))
    small = data.draw(st.integers(1, large))
    kept = {r.id for r in subsets.select(made, scores, large).records}
    fewer = {r.id for r in subsets.select(made, scores, small).records}
    assert len(kept) == large and len(fewer) == small and fewer <= kept


def test_select_refuses_what_is_missing():
    made = plain(3)
    full, part = scores_of(made, 1, 2, 3), scores_of(made[:1], 1)
    with pytest.raises(records.RecordError, match="of 3 records .*: 2 from b; let every shard"):
        subsets.select(made, {"a": full, "b": part}, 1)
    with pytest.raises(records.RecordError, match="no policy"):
        subsets.select(made, {}, 1)
    for top_k in (0, 4):
        with pytest.raises(records.RecordError, match=f"asked for {top_k}, but 3 records"):
            subsets.select(made, {"a": full}, top_k)


def test_aha_draws_traces_with_an_aha_word():
    said = ["so two", "wait, two", "hmm, three", "two again", "four"]
    made = [replace(r, answer=text) for r, text in zip(plain(5), said, strict=True)]
    drawn = {tuple(r.id for r in subsets.aha(made, 2, seed)) for seed in range(20)}
    assert drawn == {("r1", "r2"), ("r1", "r3"), ("r2", "r3")}
    assert subsets.aha(made, 2, 5) == subsets.aha(made, 2, 5)
    with pytest.raises(records.RecordError, match="asked for 4, but 3 records have an aha word"):
        subsets.aha(made, 4)


# ---- the command and the figure


def test_the_command_scores_in_shards_and_chooses(traced, tiny_model, tmp_path, capsys):
    images, made = traced
    made = [replace(r, answer=r.answer.replace("<think>", "<think>Hmm. ")) for r in made[:6]]
    records.write(made, tmp_path / "sft.jsonl")

    def call(*words):
        place = ["--records", tmp_path / "sft.jsonl", "--images", images, "--out", tmp_path / "o"]
        return main([str(word) for word in ["subset", *place, *words]])

    both = ["--perplexity", tiny_model, INSTRUCT]
    assert call(*both, "--top", 2, "--shard", "1/2") == 0
    assert not (tmp_path / "o" / "top-2.jsonl").exists()
    assert call(*both, "--top", 2, "--shard", "2/2", "--batch-tokens", 300) == 0
    assert call(*both, "--top", 2, "--top", 4, "--aha", 3) == 0
    sizes = {f.name: len(records.load(f).records) for f in (tmp_path / "o").glob("*-?.jsonl")}
    assert sizes == {"top-2.jsonl": 2, "top-4.jsonl": 4, "aha-3.jsonl": 3}
    rows = figures.read(tmp_path / "o" / "perplexity.csv")
    highest = sorted(rows, key=lambda row: -float(row["perplexity"]))[:2]
    kept = {record.id for record in records.load(tmp_path / "o" / "top-2.jsonl").records}
    assert kept == {row["id"] for row in highest}
    assert float(rows[0]["perplexity"]) == pytest.approx(
        (float(rows[0][str(tiny_model)]) + float(rows[0][INSTRUCT])) / 2
    )
    capsys.readouterr()
    assert call("--top", 2) == 2 and "--perplexity" in capsys.readouterr().err
    assert call("--aha", 7) == 2 and "see rl.jsonl" in capsys.readouterr().err


def test_figure_counts_every_record_once_and_splits_at_the_threshold():
    rows = [{"source": "ab"[i % 2], "perplexity": 1.1**i} for i in range(50)]
    figure = figures.perplexity(rows, 10)
    left_out, kept = figure.data
    assert (sum(left_out.y), sum(kept.y)) == (40, 10)
    assert (left_out.name, kept.name, float(kept.x[0])) == ("left out", "kept", 45.26)  # 1.1**40
    places = list(map(float, [*left_out.x, *kept.x]))
    assert places == sorted(places)
    (same,) = figures.perplexity([{"perplexity": 2.0}] * 3, 3).data
    assert (same.name, sum(same.y)) == ("kept", 3)
    with pytest.raises(ValueError, match="top_k 51"):
        figures.perplexity(rows, 51)
