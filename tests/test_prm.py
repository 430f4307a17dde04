"""ViLPRM: labels at the right tokens, training, saving and loading, scoring, its measures."""

import csv
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import scoring
from vlaa_lib import models, profiles, prompts, train
from vlaa_lib.process import prm, steps
from vlaa_lib.process.search import Process

THREE = "Two cubes. One ball. The answer is 3."


def rows_of(made, count=8):
    """A tree of two paths for each record: a right one and a wrong one that part at the end."""
    rows = []
    for record in made[:count]:
        for text, value in (
            ("Two cubes.", 0.5),
            ("Two cubes. One ball.", 0.75),
            (THREE, 1.0),
            ("Two cubes. One ball. The answer is 9.", 0.0),
        ):
            rows.append(Process(str(len(rows)), record.image, record.question, text, value))
    return rows


@pytest.fixture(scope="module")
def trained(tiny_model, micro_data, tmp_path_factory):
    """A ViLPRM of two steps, its log and its rows."""
    folder, made = micro_data
    out = tmp_path_factory.mktemp("prm") / "full"
    rows = rows_of(made, 18)
    log = prm.train(settings(tiny_model), rows, folder / "images", out)
    return out, log, rows


def settings(tiny_model, **overrides):
    return profiles.load("smoke", **{"model.policy": str(tiny_model), **overrides})


def untrained(tiny_model, **overrides):
    policy = prm.begin(settings(tiny_model, **overrides), None, "unused")
    policy.model.eval()
    return policy


def test_prefixes_become_one_solution_and_every_row_one_label(micro_data):
    rows = rows_of(micro_data[1], 2)
    made = prm.solutions([rows[3], *rows[:3], *rows[4:]])
    assert len(made) == 4
    assert {s.steps[-1]: s.values for s in made[:2]} == {
        "The answer is 9.": (0.5, 0.75, 0.0),
        "The answer is 3.": (None, None, 1.0),
    }
    labels = [value for s in made for value in s.values if value is not None]
    assert sorted(labels) == sorted(row.value for row in rows)
    alike = [Process("0", "a.png", "Q?", "One.", value) for value in (0.0, 1.0, 0.5)]
    assert [s.values for s in prm.solutions(alike)] == [(0.5,)]
    assert prm.solutions([Process("0", "a.png", "Q?", "...", 0.5)]) == []


def test_held_out_questions_are_whole_and_stay_the_same(micro_data):
    rows = rows_of(micro_data[1], 18)
    trained_on, held_out = prm.parted(rows, 0.3)
    names = [{(row.image, row.question) for row in part} for part in (trained_on, held_out)]
    assert all(names) and not names[0] & names[1]
    assert len(trained_on) + len(held_out) == len(rows)
    assert prm.parted(held_out, 0.3) == ([], held_out)


def test_the_head_reads_the_last_token_of_each_step(tiny_model, micro_data):
    folder, made = micro_data
    policy = untrained(tiny_model)
    long = prm.Solution(made[0].image, made[0].question, tuple(steps.split(THREE)), (0.5, None, 1))
    short = prm.Solution(made[3].image, made[3].question, ("Two cubes.",), (0.25,))
    batch = prm.encode(policy, folder / "images", [long, short])
    assert batch["labels"].tolist() == [[0.5, prm.UNKNOWN, 1.0], [0.25, *[prm.UNKNOWN] * 2]]
    tokenizer = policy.processor.tokenizer
    for row, solution in enumerate((long, short)):
        ids = batch["input_ids"][row]
        for i, step in enumerate(solution.steps):
            end = int(batch["ends"][row, i])
            text = tokenizer.decode(ids[: end + 1])
            assert text.endswith("\n".join((*solution.steps[:i], step)) + "\n")
            assert batch["attention_mask"][row, end] == 1
    assert batch["attention_mask"][1, -1] == 0, "padding is not read"


def test_a_score_depends_on_nothing_behind_its_step_nor_on_the_batch(tiny_model, micro_data):
    folder, made = micro_data
    policy = untrained(tiny_model)
    scored = prm.scorer(policy, folder / "images")
    solution = steps.split(THREE)
    together = scored(made[:3], [solution, solution[:1], []])
    assert [len(row) for row in together] == [3, 1, 0]
    assert all(0 <= score <= 1 for row in together for score in row)
    alone = scored(made[:1], [solution[:2]])
    assert alone[0] == pytest.approx(together[0][:2], abs=1e-5)
    other = scored(made[:1], [["Nine cones.", *solution[1:]]])
    assert other[0][0] != pytest.approx(together[0][0], abs=1e-7)
    tagged = steps.split(prompts.join_think_answer(" ".join(solution[:-1]), "3"))
    plain = [prompts.ANY_TAG.sub("", step) for step in tagged]
    assert plain != tagged and scored(made[:1], [plain]) == scored(made[:1], [tagged])
    hostile = replace(made[0], question="What <|image_pad|>?")  # asks for no second picture
    assert len(scored([hostile], [["A <|image_pad|>."]])[0]) == 1


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_the_loss_is_the_formula_over_labelled_steps_only(loss, tiny_model, micro_data):
    folder, made = micro_data
    policy = untrained(tiny_model, **{"prm.loss": loss})
    solution = prm.Solution(made[0].image, made[0].question, ("A.", "B.", "C."), (0.25, None, 1.0))
    batch = prm.encode(policy, folder / "images", [solution])
    found = policy.model(**batch)
    told = [(found["scores"][0, i].item(), v) for i, v in ((0, 0.25), (2, 1.0))]
    errors = {
        "mse": [(p - v) ** 2 for p, v in told],
        "bce": [-(v * math.log(p) + (1 - v) * math.log(1 - p)) for p, v in told],
    }[loss]
    assert found["loss"].item() == pytest.approx(sum(errors) / 2, rel=1e-4)
    part = policy.model(**batch, num_items_in_batch=8)["loss"].item()
    assert part == pytest.approx(sum(errors) / 8, rel=1e-4)


def test_training_starts_from_the_policys_own_weights(tiny_model):
    policy, begun = models.load_policy(tiny_model).model, untrained(tiny_model).model
    wanted = policy.state_dict()
    assert begun.state_dict().keys() - wanted.keys() == {"step_head.weight", "step_head.bias"}
    assert all(torch.equal(tensor, begun.state_dict()[name]) for name, tensor in wanted.items())
    with pytest.raises(ValueError, match=r"no ViLPRM .*process train-prm"):
        prm.load(tiny_model)


def test_training_moves_the_language_model_and_not_the_tower(trained, tiny_model):
    out, log, _ = trained
    assert len(log) == 2 and all(row["loss"] > 0 for row in log)
    before = dict(models.load_policy(tiny_model).model.named_parameters())
    after = dict(prm.load(out).model.named_parameters())
    moved = {n for n, p in before.items() if not torch.equal(p, after[n])}
    still = before.keys() - moved
    assert all("visual" in name for name in still) and not any("visual" in name for name in moved)
    assert after["step_head.weight"].dtype == torch.float32


def test_what_was_saved_scores_as_it_was_measured(trained, micro_data):
    out, _, rows = trained
    held_out = prm.parted(rows, settings("x").prm.held_out)[1]
    found, table = prm.report(prm.load(out), micro_data[0] / "images", held_out)
    kept = json.loads((out / prm.CARD).read_text(encoding="utf-8"))
    assert kept["held_out"]["mse"] == pytest.approx(found["mse"], abs=1e-6)
    assert found["steps"] == len(held_out) == kept["held_out"]["steps"]
    assert sum(row["steps"] for row in table) == len(held_out)
    with (out / "calibration.csv").open(encoding="utf-8") as stream:
        assert [int(row["steps"]) for row in csv.DictReader(stream)] == [r["steps"] for r in table]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "4bit"])
def test_an_adapter_is_saved_with_its_head_and_reloads(mode, tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    cfg = settings(tiny_model, **{"prm.mode": mode, "prm.max_steps": 1})
    rows = rows_of(made, 18)
    prm.train(cfg, rows, folder / "images", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    held_out = prm.parted(rows, cfg.prm.held_out)[1]
    found, _ = prm.report(prm.load(tmp_path), folder / "images", held_out)
    kept = json.loads((tmp_path / prm.CARD).read_text(encoding="utf-8"))["held_out"]
    assert kept["mse"] == pytest.approx(found["mse"], abs=1e-5)


@pytest.mark.slow
def test_training_learns_which_step_is_wrong(tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    cfg = settings(tiny_model, **{"prm.max_steps": 80, "prm.learning_rate": 3.0e-3})
    prm.train(cfg, rows_of(made, 18), folder / "images", tmp_path)
    held_out = json.loads((tmp_path / prm.CARD).read_text(encoding="utf-8"))["held_out"]
    assert held_out["mse"] < held_out["mse_constant"] / 2
    assert held_out["spearman_within"] > 0.5


def test_solutions_that_are_too_long_are_named(tiny_model, micro_data, capsys):
    policy, made = untrained(tiny_model), prm.solutions(rows_of(micro_data[1], 1))
    longer = prm.Solution("b.png", "Q?", ("Very long. " * 99,), (1.0,))
    assert prm.within(policy, [*made, longer], 120) == made
    assert "b.png" in (said := capsys.readouterr().out) and "the limit is 120" in said
    with pytest.raises(ValueError, match=r"raise prm\.max_tokens"):
        prm.within(policy, made, 1)


@pytest.mark.slow
def test_a_vilprm_that_was_cut_off_ends_as_if_it_had_not_been(tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    cfg = settings(
        tiny_model, **{"prm.max_steps": 4, "prm.save_steps": 2, "prm.global_batch": 4,
                       "prm.per_device_batch": 2, "prm.epochs": 9.0}
    )  # fmt: skip
    given = cfg, rows_of(made, 18), folder / "images"
    log = prm.train(*given, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    (tmp_path / "cut" / "model.safetensors").unlink()
    again = prm.train(*given, tmp_path / "cut")
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [row["loss"] for row in again] == [row["loss"] for row in log]
    assert len(log) == 4


def test_equal_solutions_are_read_once(tiny_model, micro_data, monkeypatch):
    folder, made = micro_data
    seen, real = [], prm.encode
    monkeypatch.setattr(prm, "encode", lambda *a: seen.append(len(a[2])) or real(*a))
    scored = prm.scorer(untrained(tiny_model), folder / "images")
    found = scored([made[0]] * 3 + [made[1]], [["Two."]] * 4)
    assert seen == [2] and found[0] == found[1] == found[2] and found[0] is not found[1]


def test_measures_by_hand():
    found = prm.measures([[(0.5, 0.0), (0.9, 1.0)], [(0.2, 1.0), (0.2, 0.0)], [(0.4, 1.0)]])
    assert found["mse"] == pytest.approx((0.25 + 0.01 + 0.64 + 0.04 + 0.36) / 5)
    assert found["mse_constant"] == pytest.approx(0.24)
    assert found["spearman_within"] == pytest.approx(1.0), "the tied question has none"
    assert prm.spearman([(1, 1), (2, 3), (3, 2)]) == pytest.approx(0.5)
    assert prm.spearman([(1, 5), (1, 7), (2, 9)]) == pytest.approx(math.sqrt(3) / 2)
    empty = prm.measures([])
    assert empty["steps"] == 0 and empty["mse"] is None and prm.calibration([]) == []
    table = prm.calibration([(0.0, 0.0), (0.19, 1.0), (1.0, 1.0)])  # the ends are in bins
    assert [(row["low"], row["steps"], row["value"]) for row in table] == [(0, 2, 0.5), (0.8, 1, 1)]


def test_the_process_reward_pays_formatted_completions_their_mean_score():
    made = scoring.record("digit", "3")
    asked = []

    def scorer(given, solutions):
        asked.extend(solutions)
        return [[0.2, 0.8, 0.8][: len(s)] for s in solutions]

    texts = [prompts.join_think_answer("Two. One.", "3"), "Two. One. The answer is 3."]
    reward = prm.process_reward(scorer)
    found = reward(prompts=["?"] * 2, completions=texts, **scoring.columns([made] * 2))
    assert found == pytest.approx([0.6, 0.0])
    assert asked[1] == [] and "".join(asked[0]).endswith("<answer>3</answer>")
    assert reward.__name__ == "process"


@pytest.mark.slow
def test_grpo_weighs_the_process_reward(tiny_model, micro_data, tmp_path):
    folder, made = micro_data
    small = {"grpo.max_steps": 1, "grpo.max_completion_tokens": 8}
    on = {"grpo.process_weight": 0.5, "grpo.process_model": "some"}

    def process(prompts, completions, **columns):
        return [float(i % 4) for i in range(len(completions))]

    log = train.grpo(settings(tiny_model, **small, **on), made, folder / "images", tmp_path / "on",
                     process_reward=process)  # fmt: skip
    assert log[0]["rewards/process/mean"] == pytest.approx(1.5)
    mixed = log[0]["rewards/mixed_reward/mean"]
    assert log[0]["reward"] == pytest.approx(mixed + 0.75)
    with pytest.raises(ValueError, match="process_weight above 0 go together"):
        train.grpo(settings(tiny_model, **small, **on), made, folder / "images", tmp_path / "off")
