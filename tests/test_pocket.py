"""The pocket VLM's recipe: what it learns from, that it learns, and that it goes on."""

import dataclasses
import random
import re
import unicodedata
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaa_lib import folders, models, profiles, prompts, rewards
from vlaa_lib.pocket import lessons, microworld, recipe, tower
from vlaa_lib.pocket.microworld import facts, questions, scenes, solve, truth
from vlaa_lib.pocket.muon import Muon, optimizers, orthogonal

SMALL = recipe.Recipe(
    hidden=64, layers=2, vision_hidden=64, vision_layers=1, vocabulary=512, tower_batch=8,
    batch=8, tower_steps=32, describe_steps=8, base_steps=48, instruct_steps=48, drill_steps=8,
    tower_lr=2e-3, base_lr=2e-3,
)  # fmt: skip


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def losses(folder):
    rows = folders.whole_lines(folder / "training_log.jsonl")
    return [(row["stage"], row["step"], row["loss"]) for row in rows]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A thousandth of the recipe, in one go."""
    out = tmp_path_factory.mktemp("pocket")
    recipe.build(out, SMALL, card_records=1)
    return out


@pytest.mark.slow
def test_a_small_build_learns(built):
    for stage in ("tower", "base", "instruct"):
        first, last = (loss for name, _, loss in losses(built / "instruct") if name == stage)
        assert last < first
    card = (built / "instruct" / "README.md").read_text(encoding="utf-8")
    assert "models build-pocket --stage instruct" in card and "temperature 0.8" in card
    policy = models.load_policy(built / "base")
    assert policy.processor.chat_template == recipe.BASE_TEMPLATE


@pytest.mark.parametrize("shape", [(32, 96), (96, 32), (40, 64)])
def test_muon_updates_are_near_orthogonal(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = orthogonal(matrix)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.T @ update @ right.T  # in the matrix's own singular vectors
    assert turned.diagonal().min() > 0.6 and turned.diagonal().max() < 1.3
    assert (turned - turned.diagonal().diag()).abs().max() < 1e-3


def test_muon_gives_the_step_of_torchs_own():
    """Up to the rounding of bfloat16, in which torch does the same."""
    generator = torch.Generator().manual_seed(0)
    start, grads = (torch.randn(n, 24, 40, generator=generator) for n in (1, 3))
    ends = []
    for kind, options in (
        (Muon, {}),
        (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw", "nesterov": True}),
    ):
        matrix = torch.nn.Parameter(start[0].clone())
        optimizer = kind([matrix], lr=0.02, momentum=0.95, weight_decay=0.01, **options)
        for grad in grads:
            matrix.grad = grad.clone()
            optimizer.step()
        ends.append(matrix.detach())
    assert (ends[0] - start[0]).abs().mean() > 0.001
    assert torch.allclose(ends[0], ends[1], atol=2e-3)


def test_optimizers_share_all_that_is_trained(tiny_model):
    model = models.load_policy(tiny_model).model
    trained = [p for p in model.parameters() if p.requires_grad]
    adamw, muon = optimizers(model, SMALL.base_lr, SMALL.base_muon_lr)
    shared = [p for o in (adamw, muon) for group in o.param_groups for p in group["params"]]
    assert {id(p) for p in shared} == {id(p) for p in trained} and len(shared) == len(trained)
    assert all(p.ndim == 2 for group in muon.param_groups for p in group["params"])
    assert model.get_input_embeddings().weight in set(adamw.param_groups[0]["params"])


@pytest.mark.slow
def test_a_stopped_build_goes_on_and_ends_equal(built, tmp_path, monkeypatch, capsys):
    """Stopped in the middle of `base`, after a kept state."""
    monkeypatch.setattr(recipe, "KEEP", 24)
    assert recipe.LOGGED == 24, "every loss is in the log, whenever it is stopped"
    keep, kept = recipe._keep, []

    def stop_after_one(path, state):
        keep(path, state)
        kept.append(path.name)
        if kept.count("base.part") == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "_keep", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        recipe.build(tmp_path, SMALL, card_records=1)
    assert not (tmp_path / "base").exists()
    capsys.readouterr()
    monkeypatch.setattr(recipe, "_keep", keep)
    recipe.build(tmp_path, SMALL, card_records=1)
    printed = capsys.readouterr().out
    assert '"stage": "base", "step": 48' in printed and '"stage": "instruct"' in printed
    assert '"stage": "tower"' not in printed and '"stage": "base", "step": 24' not in printed
    for stage in ("base", "instruct"):
        ours, theirs = weights(tmp_path / stage), weights(built / stage)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    logs = [losses(folder / "instruct") for folder in (tmp_path, built)]
    assert logs[0] == logs[1] and len(logs[0]) == 8


def test_stages_of_another_recipe_are_refused(tmp_path):
    folders.claim(tmp_path / "stages", dataclasses.asdict(SMALL), "recipe.json")
    other = dataclasses.replace(SMALL, base_steps=24)
    with pytest.raises(ValueError, match=r"other settings \(base_steps 48 instead of 24\)"):
        recipe.build(tmp_path, other, last="base", card_records=1)


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_processor("data/pocket/instruct").tokenizer


@given(text=st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_tokenizer_round_trips_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    # Qwen's tokenizer composes characters first (NFC)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_readings_fit_their_classes_and_names():
    names = tower.reading_names()
    for kind in scenes.KINDS:
        for index in range(60):
            scene = scenes.draw(kind, "pretrain", random.Random(index))
            read = tower.readings(scene)
            assert all(kind in names[name][1] for name in read)
            assert all(0 <= value < tower.CLASSES for value in read.values())
            assert int((tower.reading_labels(scene) > 0).sum()) <= len(read)


def test_no_plain_trace_reaches_the_limits(tokenizer):
    """Neither training, evaluation nor search may cut off what the model was taught to say."""
    replies = [lessons.chat_text(index, 5, 1.0, 0.0)[1][-1][0] for index in range(600)]
    longest = max(len(tokenizer(reply)["input_ids"]) for reply in replies)
    cfg = profiles.load("laptop")
    limits = (cfg.grpo.max_completion_tokens, cfg.evaluate.max_new_tokens,
              cfg.search.max_new_tokens)  # fmt: skip
    assert 100 < longest < min(limits)


def test_documents_hold_right_answers():
    """What the model is taught scores full marks, in every form of reply."""
    from vlaa_lib import evaluate
    from vlaa_lib.records import Record

    assert lessons.SHARES.keys() == microworld.SOURCES.keys()
    forms = set()
    for index in range(150):
        source, scene, question, gold, _ = lessons.draw(index, 2)
        reward = microworld.SOURCES[source][0]
        record = Record(
            str(index), "x.png", question, gold, source=source, reward=reward, solution=gold,
            frame="norm01" if reward == "iou" else "", meta={"scene": scene},
        )  # fmt: skip
        _, pieces = lessons.chat_text(index, 2, 0.3, 0.3)
        reply = pieces[-1][0].removesuffix("<|im_end|>")
        (row,) = evaluate.score_rows([record], [reply])
        answer, path = row["answer"], row["path"]
        forms.add(path)
        assert row["correct"], (question, reply, answer)
        if reward != "open":
            assert rewards.score(record, prompts.join_think_answer("x", answer)).value == 1.0
    assert forms == {"tags", "plain:phrase", "plain"}


def test_descriptions_are_true_and_of_scenes_kept_for_pretraining():
    told = Counter()
    for index in range(200):
        scene, pieces = lessons.describe_text(index, 2, 0.0)
        assert scenes.bucket(scene) in scenes.SPLITS["pretrain"]
        said = facts.extract(pieces[0][0])
        if scene["kind"] == "objects" and said[0].kind == "place":
            assert said == truth.places(scene), "every object that is left, in reading order"
            told[len(said), pieces[0][0].startswith("[")] += 1
    assert {(1, True), (1, False), (4, True), (4, False)} <= set(told)


def test_each_token_of_a_pool_counts_alike(tiny_model):
    """Batches are of rows of one length: their own means would favour the short ones."""
    processor = models.load_processor(tiny_model)
    model = models.load_policy(tiny_model, dtype="float32").model
    stream = lessons.Stream(
        lambda index: (None, [("Look.", False), (" yes" * (1 + index % 7) ** 2, True)]),
        lambda samples: lessons.collate_text(samples, processor, 0),
        batch=2,
    )
    pool = [batch for batch, _ in zip(stream, range(lessons.POOL), strict=False)]
    counts = [int((batch["labels"] >= 0).sum()) for batch in pool]
    assert max(counts) > 3 * min(counts)
    with torch.no_grad():
        steps = [float(model(**batch).loss) for batch in pool]
        for batch in pool:
            del batch["num_items_in_batch"]
        means = [float(model(**batch).loss) for batch in pool]
    whole = sum(m * n for m, n in zip(means, counts, strict=True)) / sum(counts)
    assert sum(steps) / len(steps) == pytest.approx(whole, rel=1e-5)
    assert steps[0] == pytest.approx(means[0] * counts[0] * len(pool) / sum(counts), rel=1e-5)


def test_drills_of_extremes_are_right():
    for seed in range(60):
        pieces = lessons._extreme_drill(random.Random(seed))
        values, targets = {}, 0
        for text, is_target in pieces:
            if not is_target:
                read = re.findall(r"(\d) for (\w+)|(\d) at (\d)|of (\w+) points is (\d)", text)
                told = {n or x or c: int(v or y or k) for v, n, y, x, c, k in read}
                values = told or values  # else it is a question
                continue
            targets += 1
            best = re.match(r" Height (\d)", text)
            found = re.search(r"(tallest|shortest|highest|lowest|Most)[^.]* (\w+)\.", text)
            assert len(values) > 1 and found, text
            kind, name = found.groups()
            order = sorted(values, key=values.get)
            if kind != "Most":
                assert int(best[1]) == values[name], text
            assert name == order[0 if kind in ("shortest", "lowest") else -1], (values, text)
        assert targets >= 4, "one at least for each of the four lists"


def test_drills_of_counting_are_right():
    for seed in range(60):
        text = "".join(piece for piece, _ in lessons._count_drill(random.Random(seed)))
        lists = re.findall(r"((?: Here is [\w ]+\.)+)((?: The number [\w ]+\.)+)", text)
        assert len(lists) == 2
        for seen, told in lists:
            count = Counter()
            for name, number in re.findall(r"Here is (\w+ \w+) (\d)\.", seen):
                count[name] += 1
                assert count[name] == int(number)
            said = re.findall(r"The number of (\w+ \w+)s is (\d)\.", told)
            assert len(said) == 2 and all(count[name] == int(n) for name, n in said)


def test_the_teachers_drill_reasons_from_its_caption():
    for seed in range(60):
        (told, _), (said, is_target) = lessons._teacher_drill(random.Random(seed))
        caption, question = told.split("\n", 1)
        known = facts.extract(caption)
        assert ".." not in said
        answer = said.rpartition(prompts.ANSWER_PHRASE)[2].strip(" .\n")
        expected = solve.solve(questions.read(question), known).answer
        assert is_target and answer == expected.strip(".")


@pytest.mark.parametrize("kind", ["height", "angle"])
def test_the_gold_of_a_choice_may_have_any_rank(kind):
    ranks = Counter()
    for seed in range(400):
        wrong = questions.rivals(kind, "50", {}, random.Random(seed))
        values = sorted(map(int, ["50", *wrong]))
        assert len(set(values)) == 4
        ranks[values.index(50)] += 1
    assert min(ranks[rank] for rank in range(4)) > 60
