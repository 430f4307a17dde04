"""Evaluation from question to scores: killed and resumed, in shards, by the command line."""

import csv
import json
import re
import signal
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

from benchmark_files import rows, write
from fault_server import endpoint
from vlaa_lib import ROOT, VlaaError, evaluate, models
from vlaa_lib.__main__ import main
from vlaa_lib.evaluate import benchmarks, kit, prompting, runner
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld import benchmarks as micro
from vlaa_lib.prompts import join_think_answer

generation = import_module("vlaa_lib.evaluate.generate")
Completion = generation.Completion

# --- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "path"),
    [
        (join_think_answer("2 + 1", " 3 "), "3", "tags"), ("3", "3", "plain"), ("", "", "empty"),
        ("  the answer is B ", "the answer is B", "plain"),
        ("<answer>3</answer>", "3", "answer-tag"),
        ("<think>2 + 1</think>", "", "after-think"), ("<think>2 + 1", "", "unclosed"),
        ("<THINK>a</THINK><ANSWER>3</ANSWER>", "3", "answer-tag"), ("3</answer>", "", "malformed"),
        (join_think_answer("x", "3") + "<|im_end|>\n", "3", "tags"), ("3 </s>", "3", "plain"),
        ("B<|endoftext|><|im_end|>", "B", "plain"), ("<|im_end|>", "", "empty"),
        ("<Thought process>: 1 < 2 <Answer>: <<C>>", "<<C>>", "answer-tag"),
        ("<Thought process>: x\n<Answer>: C\n", "C", "answer-tag"),
        ("<answer>：C", "C", "answer-tag"),
        ("<Answer>: <<C>>\n<Answer>: C.", "C.", "answer-tag"), ("<Answer>:", "", "answer-tag"),
        ("<Answer>: <<C>> no, <Answer>: <<D>>", "", "repeated"),
        ("<Thought process>: it may be C, as", "", "unclosed"), ("<Answer> C", "", "unclosed"),
    ],
)  # fmt: skip
def test_extract_answer(text, answer, path):
    assert evaluate.extract_answer(text) == (answer, path)


def test_correct_counts_direct_answers_that_the_strict_reward_refuses():
    made = (microworld.record("solids", "test", i) for i in range(50))
    record = next(r for r in made if r.solution not in ("7", "0"))
    right = record.solution
    texts = [right, join_think_answer("x", right), f"<answer>{right}</answer>",
             f"<think>x</think> The answer is {right}.", f"So \\boxed{{{right}}}<|im_end|>",
             f"**Answer: {right}**", "7", "", f"<think>It is {right}"]  # fmt: skip
    scored = evaluate.score_rows([record] * len(texts), texts, model="m", blank=False)
    assert [row["correct"] for row in scored] == [True] * 6 + [False] * 3
    assert [row["reward"] for row in scored] == [0.0, 1.0] + [0.0] * 7
    assert all(row["reason"] and row["model"] == "m" for row in scored)
    box = microworld.record("locate", "test", 0)  # right from one half on
    scored = evaluate.score_rows([box] * 2, [box.solution, "[0.00, 0.00, 0.01, 0.01]"])
    assert [row["correct"] for row in scored] == [True, False]


def test_bootstrap_covers_the_mean_and_shrinks_with_rows():
    (low, high), tight = (evaluate.bootstrap([0.0, 1.0] * n) for n in (10, 1000))
    assert low < 0.5 < high and tight[1] - tight[0] < (high - low) / 3


def test_summary_sets_each_score_beside_its_blank_twin():
    told = [("a", True, False), ("a", False, False), ("b", True, False), ("a", False, True),
            ("b", True, True)]  # fmt: skip
    scored = [{"model": "m", "source": source, "correct": correct, "blank": blank,
               "reward": float(correct), "path": "tags"} for source, correct, blank in told]
    by_source = {r["source"]: r for r in evaluate.summary(scored, resamples=50)}
    assert by_source["a"]["accuracy"] == 0.5 and by_source["a"]["blank_accuracy"] == 0.0
    assert by_source["all"]["n"] == 3 and by_source["all"]["accuracy"] == pytest.approx(2 / 3)
    assert by_source["all"]["blank_accuracy"] == 0.5


def test_held_out_records_are_a_benchmark_like_the_others(tmp_path, tiny_model, micro_data):
    folder, made = micro_data
    policy, chosen = models.load_policy(tiny_model), prompting.settings(max_new_tokens=4)
    asked = benchmarks.held_out(made[:3], folder / "images")
    scored = evaluate.run(policy, [asked], chosen, tmp_path, "m", batch=2)
    assert [(row["record_id"], row["blank"]) for row in scored] == [
        (record.id, blank) for blank in (False, True) for record in made[:3]
    ]
    texts = evaluate.generate(policy, made[:3], folder / "images", 2, 4)
    assert [row["completion"] for row in scored[:3]] == texts
    with pytest.MonkeyPatch.context() as patch:  # nothing is answered again
        patch.setattr(generation, "show", lambda *_: pytest.fail("answered again"))
        assert evaluate.run(policy, [asked], chosen, tmp_path, "m", batch=2) == scored


# --- the runner -----------------------------------------------------------------------------------


def said(asks):
    """Answer so that the text depends on the whole batch, as padding in bfloat16 can."""
    together = sum(len(ask.user) for ask in asks)
    return [Completion(f"é {ask.user} {len(asks)} {together}", 7, False) for ask in asks]


@pytest.fixture
def bench(tmp_path):
    write(tmp_path / "b.tsv", rows("MathVision"))
    return benchmarks.read("MathVision", tmp_path / "b.tsv", tmp_path / "cache")


def answer(bench, out, complete, chosen=None, model="m", **options):
    given = chosen or prompting.settings()
    return runner.answer([bench], given, out, model, complete, **options)[bench.name]


def final(out, bench):
    runner.finish(out, bench, runner.answers(out)[bench.name])
    return (out / "rows-ours.jsonl").read_bytes()


# A process that is killed while it writes: one whole line of the batch and half of the next.
KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_evaluate import answer, said
from vlaa_lib import folders
from vlaa_lib.evaluate import benchmarks
folder, out, left = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
bench = benchmarks.read("MathVision", folder / "b.tsv", folder / "cache")
whole, lines = folders.append_line, []
def append(path, row):
    lines.append(row)
    if len(lines) == 3 * left + 2:
        whole(path, row)
        os.truncate(path, path.stat().st_size - 9)
        os.kill(os.getpid(), signal.SIGKILL)
    whole(path, row)
folders.append_line = append
answer(bench, out, said, batch=3)
"""


@pytest.mark.parametrize("batches", [0, 2])
def test_killed_and_started_again_is_the_same_file(tmp_path, bench, batches):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    answer(bench, whole, said, batch=3)
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, broken, str(batches)], cwd=ROOT, timeout=600
    )
    assert ended.returncode == -signal.SIGKILL
    left = (broken / "answers.jsonl").read_text(encoding="utf-8")
    assert not left.endswith("\n") and left.count("\n") == 3 * batches + 1
    asked_again = []

    def listen(asks):
        asked_again.extend(len(ask.user) for ask in asks)
        return said(asks)

    answer(bench, broken, listen, batch=3)
    assert len(asked_again) == 10 - 3 * batches  # nothing whole is answered twice
    assert asked_again == sorted(asked_again)  # prompts of similar length together
    assert final(broken, bench) == final(whole, bench)


def test_rows_are_in_the_files_order_with_what_was_measured(tmp_path, bench):
    text = "Wait. <think>wait, check</think> The answer is 3"
    answers = [Completion(text, 5, True)] * 3
    found = answer(bench, tmp_path, lambda asks: answers[: len(asks)], batch=3)
    made, table = runner.finish(tmp_path, bench, found, "kit-2026-08")
    lines = (tmp_path / "rows-kit-2026-08.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == made
    assert [row["index"] for row in made] == [row["index"] for row in bench.rows]
    assert made[0]["prediction"] == text and {row["path"] for row in made} == {"kit-judge"}
    made, table = runner.finish(tmp_path, bench, found)
    assert [row["index"] for row in made if row["hit"]] == ["3"]  # the free row whose gold is 3
    assert (made[3]["path"], made[3]["extracted"], made[3]["gold"]) == ("after-think", "3", "3")
    assert (made[0]["tokens"], made[0]["truncated"]) == (5, True)
    assert made[0]["aha"] == {"wait": 2, "check": 1} and made[0]["category"] == "algebra"
    assert made[0]["question"] == rows("MathVision")[0]["question"]
    assert (table[0]["extraction"], table[0]["n"], table[0]["points"]) == ("ours", 10, 1)
    header, first, *_ = (tmp_path / "scores-ours.csv").read_text(encoding="utf-8").splitlines()
    assert header.startswith("extraction,benchmark,metric") and first.startswith("ours,MathVision")


def test_shards_together_are_the_whole_and_no_two_processes_write_one_file(tmp_path, bench):
    def meanwhile(asks):
        with pytest.raises(VlaaError, match="in use by another process"):
            answer(bench, tmp_path, said, batch=4, shard=(2, 3))
        return said(asks)

    first = answer(bench, tmp_path, meanwhile, batch=4, shard=(2, 3))
    counts = [len(answer(bench, tmp_path, said, batch=4, shard=(i, 3))) for i in (1, 3)]
    assert [len(first), *counts] == [3, 7, 10]
    found = answer(bench, tmp_path, lambda _: pytest.fail("nothing is left to answer"))
    assert found.keys() == {row["index"] for row in bench.rows}


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"benchmark": "b", "index": 1, "prediction": "x"}', "\x00"]
)
def test_a_broken_answer_is_named(tmp_path, bench, line):
    good = '{"benchmark": "b", "index": "1", "prediction": ""}'
    (tmp_path / "answers.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(VlaaError, match="answers.jsonl:2: .*delete"):
        answer(bench, tmp_path, said)


def test_another_model_or_prompt_is_refused_in_the_same_folder(tmp_path, bench):
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"\0" * 100_000 + b"1")

    def start(batch=16, at=model, **changes):
        answer(bench, out, said, prompting.settings(**changes), str(at), batch=batch)

    start()
    start(batch=4)  # the size of a batch may change
    with pytest.raises(VlaaError, match=r"instead of 'Be brief.'\); give another"):
        start(system_prompt="Be brief.")
    with pytest.raises(VlaaError, match="max_new_tokens 800 instead of 900"):
        start(max_new_tokens=900)
    model.rename(tmp_path / "moved")
    start(at=tmp_path / "moved")  # the same weights elsewhere
    (tmp_path / "moved" / "model.safetensors").write_bytes(b"\0" * 100_000 + b"2")
    with pytest.raises(VlaaError, match=r"weights '\w+' instead of"):
        start(at=tmp_path / "moved")
    card = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert card["rows"] == ["MathVision: 10 rows (the paper's split has 3040)"]
    assert {"weights", "prompts_sha256", "max_pixels", "machine", "versions"} <= card.keys()


# --- models ---------------------------------------------------------------------------------------


def test_a_completion_without_its_end_is_truncated():
    made = [generation._completion("x", ids, {1, 2}) for ids in ([5, 5, 5], [5, 2, 0], [1, 0, 0])]
    assert [(m.num_tokens, m.is_truncated) for m in made] == [(3, True), (2, False), (1, False)]


def test_vllm_gets_prompts_pictures_and_limits(tiny_model, bench, monkeypatch, tmp_path):
    """Against a stand-in with vLLM's names: what it is given, and how its reply is read."""
    seen = SimpleNamespace()

    class LLM:
        def __init__(self, **more):
            seen.model = more

        def generate(self, inputs, sampling):
            seen.inputs, seen.sampling = inputs, sampling
            outputs = [SimpleNamespace(text="x", token_ids=(1, 2), finish_reason=reason)
                       for reason in ("length", "stop")]  # fmt: skip
            return [SimpleNamespace(outputs=[output]) for output in outputs]

    import trl.data_utils  # noqa: F401  before the stand-in, which it would look into

    fake = SimpleNamespace(LLM=LLM, SamplingParams=lambda **more: more)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    chosen = prompting.settings(max_new_tokens=9, dtype="bfloat16")
    asks = prompting.asks(bench, chosen)[:2]
    made = generation.loaded(str(tiny_model), bench.images, chosen, backend="vllm")(asks)
    assert [(m.num_tokens, m.is_truncated) for m in made] == [(2, True), (2, False)]
    image = models.load_processor(tiny_model).image_token_id
    assert seen.sampling == {"temperature": 0.0, "max_tokens": 9, "repetition_penalty": 1.0,
                             "logit_bias": {image: -100.0},
                             "include_stop_str_in_output": True}  # fmt: skip
    assert seen.model["limit_mm_per_prompt"] == {"video": 0} and seen.model["max_model_len"] == -1
    assert seen.model["dtype"] == "bfloat16"
    assert seen.model["mm_processor_kwargs"] == {"min_pixels": 3136, "max_pixels": 262_144}
    first = seen.inputs[0]
    assert asks[0].user in first["prompt"] and "<|image_pad|>" in first["prompt"]
    (shown,) = first["multi_modal_data"]["image"]
    assert shown.size == (56, 56)  # 40 x 30 px, fitted to 65 x 49, in whole patches
    with pytest.raises(VlaaError, match="--mode 4bit is for --backend hf"):
        generation.loaded(str(tiny_model), "", chosen, "4bit", "vllm")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(VlaaError, match="vLLM is not installed.*--backend hf"):
        generation.loaded(tmp_path, tmp_path, chosen, backend="vllm")
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(VlaaError, match="is an adapter"):
        generation.loaded(tmp_path, tmp_path, chosen, backend="vllm")


@pytest.mark.skipif(sys.platform != "linux", reason="bitsandbytes is installed on Linux")
def test_a_model_answers_in_4_bit(tiny_model, bench):
    chosen = prompting.settings(max_new_tokens=3)
    answering = generation.loaded(str(tiny_model), bench.images, chosen, mode="4bit")
    told = answering(prompting.asks(bench, chosen)[:2])
    assert [1 <= one.num_tokens <= 3 for one in told] == [True, True]


def test_an_adapter_answers_as_when_merged(tiny_model, bench, tmp_path):
    import torch
    from peft import get_peft_model

    adapted = get_peft_model(models.load_policy(tiny_model).model, models.adapter("lora"))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # changes what the model says
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_model)
    adapted.save_pretrained(tmp_path / "lora")
    models.load_processor(tiny_model).save_pretrained(tmp_path / "lora")
    beside = models.load_policy(tmp_path / "lora", merge=False)
    assert any("lora" in name for name, _ in beside.model.named_parameters())
    policies = beside, models.load_policy(tmp_path / "lora"), models.load_policy(tiny_model)
    chosen = prompting.settings(max_new_tokens=6)
    asks = prompting.asks(bench, chosen)[:4]
    texts = [generation.complete(p, asks, bench.images, chosen) for p in policies]
    assert texts[0] == texts[1] != texts[2]


# --- the command line -----------------------------------------------------------------------------


SLOW = [name for name in benchmarks.LAYOUTS if name.startswith("micro-")][1:]  # one is not


def call(name, folder, *words):
    fixed = ["evaluate", "--benchmark", name, "--tsv", folder / "b.tsv", "--out", folder / "out"]
    return main([str(word) for word in (*fixed, *words)])


def read(folder, label="ours"):
    with (folder / "out" / f"scores-{label}.csv").open(encoding="utf-8") as stream:
        scores = list(csv.DictReader(stream))
    lines = (folder / "out" / f"rows-{label}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], scores


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in benchmarks.LAYOUTS
])  # fmt: skip
def test_every_benchmark_runs_from_its_file_to_its_scores(name, tmp_path, tiny_model):
    """The micro ones with the pocket VLM, ten rows of each real schema with a tinier one."""
    is_micro = name.startswith("micro-")
    if is_micro:
        micro.write_tsv(name, tmp_path / "b.tsv", 10)
    else:
        write(tmp_path / "b.tsv", rows(name))
    model = ROOT / "data/pocket/instruct" if is_micro else tiny_model
    limit = 100 if is_micro else 4
    assert call(name, tmp_path, "--model", model, "--max-new-tokens", limit) == 0
    made, scores = read(tmp_path)
    assert 7 <= len(made) <= 10 and not (tmp_path / "out" / "rejects.jsonl").read_text(
        encoding="utf-8")
    for row in made:
        assert row["benchmark"] == name and row["hit"] in (True, False) and row["path"]
        assert 0 < row["tokens"] <= limit and row["gold"] and row["reason"]
    assert {row["extraction"] for row in scores} == {"ours"}
    assert scores[0]["n"] and scores[0]["undecided"] == "0"
    if is_micro:  # it was asked as it was trained: some replies are answers
        assert any(row["extracted"] for row in made)


def test_shards_and_prediction_files(tmp_path, tiny_model, capsys):
    write(tmp_path / "b.tsv", rows("WeMath")[:4])
    with_model = ("--model", tiny_model, "--batch", 3, "--max-new-tokens")
    assert call("WeMath", tmp_path, *with_model, 4, "--shard", "1/2") == 0
    assert "once every shard is done" in capsys.readouterr().out
    more = ("--shard", "2/2", "--export", tmp_path / "p.tsv")
    assert call("WeMath", tmp_path, *with_model, 4, *more) == 0
    assert "4 rows (the paper's split has 1740)" in capsys.readouterr().out
    made, _ = read(tmp_path)
    assert [row["index"] for row in made] == ["0", "1", "2", "3"]
    assert all(0 < row["tokens"] <= 4 for row in made)
    own = ("--predictions", tmp_path / "p.tsv", "--extraction", "kit-2025-04")
    assert call("WeMath", tmp_path, *own) == 0
    again, _ = read(tmp_path, "kit-2025-04")
    assert [row["prediction"] for row in again] == [row["prediction"] for row in made]


def replies(monkeypatch, texts):
    """Let the question with number i be answered by texts[i], the others by A."""

    def complete(asks):
        numbers = [int(re.search(r"Question (\d+):", ask.user)[1]) for ask in asks]
        return [Completion(texts.get(n, "A"), 3, False) for n in numbers]

    monkeypatch.setattr(runner, "loaded", lambda *_, **__: complete)


def test_bad_input_is_counted_and_named_and_never_right(tmp_path, monkeypatch, capsys, tiny_model):
    made = rows("MathVision")
    made[1]["image"] = "%" * 80
    made[3]["question"] = "nan"
    made[8]["answer"] = "Q"
    write(tmp_path / "b.tsv", made)
    odd = {0: "", 2: "C" * 100_000, 4: "nan", 5: "5 " * 50_000, 6: "<think>C", 8: "Q"}
    replies(monkeypatch, odd)
    assert call("MathVision", tmp_path, "--model", tiny_model) == 0
    shown = capsys.readouterr()
    assert "b.tsv:4: " in shown.err and "column 'image': not base64" in shown.err
    assert "column 'question' is empty or NaN" in shown.err
    assert "1 without verdict: gold 'Q' is none of the choices A, B, C, D (index 8)" in shown.err
    assert "8 rows (the paper's split has 3040); 2 cannot be asked" in shown.out
    scored, scores = read(tmp_path)
    found = {row["index"]: (row["hit"], row["path"]) for row in scored}
    assert found | {
        "0": (False, "empty"), "2": (False, "plain:none"), "4": (False, "plain:none"),
        "5": (False, "plain:none"), "6": (False, "unclosed"), "8": (None, "plain:none"),
    } == found  # fmt: skip
    assert "1 empty" in shown.err and "1 unclosed" in shown.err and "0 truncated" in shown.err
    assert (scores[0]["n"], scores[0]["undecided"], scores[0]["full_rows"]) == ("8", "1", "3040")
    lines = (tmp_path / "out" / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["1", "3"]
    assert [len(row["prediction"]) for row in scored if row["index"] in "25"] == [100_000, 100_000]


def test_a_judge_reads_what_no_rule_can_and_is_paid_once(tmp_path, monkeypatch, tiny_model):
    write(tmp_path / "b.tsv", rows("WeMath"))
    replies(monkeypatch, {0: "as ever", 1: "who knows", 2: "<think>A", 3: "no idea"})

    def reply(body):
        text = str(body["messages"][0]["content"])
        assert "A: 1" in text and "C: " not in text and "### Reply" in text  # C is empty
        said = {"as ever": "A", "who knows": "perhaps A or D", "no idea": "NONE"}
        return 200, next(said[reply] for reply in said if reply in text), {}

    with endpoint(reply) as (url, bodies):
        (tmp_path / "j.yaml").write_text(f"judge: {{model: reader, base_url: '{url}'}}\n",
            encoding="utf-8")
        words = ("--model", tiny_model, "--judge", tmp_path / "j.yaml")
        assert call("WeMath", tmp_path, *words) == 0
        assert len(bodies) == 3  # not what was cut off while thinking
        assert bodies[0]["max_tokens"] == 64
        scored, scores = read(tmp_path, "ours-judge")
        assert (scored[0]["hit"], scored[0]["path"]) == (True, "plain:judge")
        assert [row["hit"] for row in scored[1:4]] == [False] * 3
        assert scores[0]["extraction"].startswith("ours, then extraction by reader ")
        assert call("WeMath", tmp_path, *words) == 0 and len(bodies) == 3  # from the ledger
    assert call("WeMath", tmp_path, "--model", tiny_model) == 0  # without it: files of their own
    assert read(tmp_path)[0][0]["hit"] is False
    assert (tmp_path / "out" / "judge.sqlite").is_file()


def test_records_go_from_their_file_to_the_summary(tmp_path, tiny_model, micro_data, capsys):
    folder, made = micro_data
    words = ["evaluate", "--records", folder / "records.jsonl", "--images", folder / "images",
             "--model", tiny_model, "--out", tmp_path / "out", "--max-new-tokens", 3]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    assert "blank_accuracy" in capsys.readouterr().out
    lines = (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * len(made) and json.loads(lines[0])["record_id"] == made[0].id


def test_weights_are_loaded_in_the_precision_asked_for(
    tiny_model, micro_data, tmp_path, monkeypatch
):
    import torch

    (folder, made), seen = micro_data, []

    def complete(policy, asks, *more, **named):
        seen.append(policy.model.dtype)
        return [Completion("3", 1, False)] * len(asks)

    monkeypatch.setattr(generation, "complete", complete)
    monkeypatch.setattr(runner, "complete", complete)
    tsv, picture = tmp_path / "we.tsv", folder / "images" / made[0].image
    micro.write_tsv("micro-WeMath", tsv, 10)
    for words in (
        ["generate", "--image", picture, "--question", "How many?"],
        ["evaluate", "--benchmark", "micro-WeMath", "--tsv", tsv, "--out", tmp_path / "a"],
        ["evaluate", "--records", folder / "records.jsonl", "--images", folder / "images",
         "--out", tmp_path / "b"],
    ):  # fmt: skip
        seen.clear()
        words += ["--model", tiny_model, "--dtype", "bfloat16"]
        assert main([str(word) for word in words]) == 0
        assert set(seen) == {torch.bfloat16}
    assert main(["evaluate", "--model", "m", "--out", str(tmp_path), "--dtype", "int8"]) == 2


def test_generate_prints_and_asks_for_the_authors_prompt(tmp_path, monkeypatch, capsys):
    asked = []

    def loaded(model, images, chosen, mode, backend):
        return lambda asks: asked.extend(asks) or [Completion("three", 800, True)]

    monkeypatch.setattr(generation, "loaded", loaded)
    words = ["generate", "--model", "UCSC-VLAA/VLAA-Thinker-Qwen2.5VL-3B", "--image",
             str(tmp_path / "a.png"), "--question", "How many?"]  # fmt: skip
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.out == "three\n"
    assert "authors' own system prompt" in shown.err and "cut off after 800" in shown.err
    (tmp_path / "prompt.txt").write_text("Their prompt.\n", encoding="utf-8")
    assert main([*words, "--system-prompt-file", str(tmp_path / "prompt.txt")]) == 0
    assert "authors'" not in capsys.readouterr().err
    assert asked[0].system == prompting.settings().system_prompt
    assert (asked[1].system, asked[1].user, asked[1].images) == (
        "Their prompt.", "How many?", ("a.png",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmark", "WeMath", "--model", "m"], "needs --tsv FILE"),
        (["--benchmark", "WeMath", "--tsv", "b.tsv"], "either --model or --predictions"),
        (["--benchmark", "WeMath", "--tsv", "b", "--model", "m", "--extraction", "kit"],
         "unknown extraction mode 'kit'; use one of ours, strict, kit-2025-04"),
        (["--benchmark", "WeMath", "--tsv", "b", "--model", "m", "--judge", "j.yaml",
          "--extraction", "strict"], "--judge reads what our rules cannot"),
        (["--benchmark", "WeMath", "--tsv", "b", "--model", "m", "--judge", "none.yaml"],
         "none.yaml: cannot be read (No such file"),
        (["--model", "m"], "evaluate needs --benchmark, or --records"),
        (["--benchmark", "MMMU", "--tsv", "b.tsv", "--model", "m"], "unknown benchmark 'MMMU'"),
        (["--benchmark", "WeMath", "--tsv", "none.tsv", "--model", "m"], "no such file"),
        (["--benchmark", "WeMath", "--tsv", "b", "--model", "m", "--min-pixels", "300000"],
         "min_pixels 300000 is above max_pixels 262144"),
    ],
)  # fmt: skip
def test_bad_words_are_one_clear_line(tmp_path, words, message, capsys):
    assert main(["evaluate", "--out", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


# --- prediction files of the kit ------------------------------------------------------------------

HARD = [
    "plain", "two\nlines\tand \"quotes\"", "=1+1", "", "nan", "a\r\nb", "7.0", "https://x " * 300,
    "é 数", "<answer>B</answer>",
]  # fmt: skip


@pytest.fixture
def logic(tmp_path):
    write(tmp_path / "b.tsv", rows("LogicVista"))
    return benchmarks.read("LogicVista", tmp_path / "b.tsv", tmp_path / "cache")


def answered(bench, texts):
    pairs = zip(bench.rows, texts, strict=True)
    return {row["index"]: {"index": row["index"], "prediction": text} for row, text in pairs}


@pytest.mark.parametrize("suffix", [".tsv", ".json"])
def test_what_is_written_is_read_back(tmp_path, logic, suffix):
    import pandas

    long = "x" * 100_000 + "<answer>B</answer>"  # nothing is lost of a long trace
    for texts, empty in ((HARD, ["3"]), ([long] * 10, [])):
        wanted = answered(logic, texts)
        kit.write(tmp_path / f"p{suffix}", logic, wanted)
        logic.rejects = []
        assert kit.read(tmp_path / f"p{suffix}", logic) == wanted
        assert [note.id for note in logic.rejects if "no prediction" in note.reason] == empty
        if suffix == ".tsv":  # as the kit reads it
            table = pandas.read_csv(tmp_path / "p.tsv", sep="\t")
            assert set(table.columns) == {"index", "question", "answer", "skill", "prediction"}
            assert len(table) == 10 and table["prediction"][1] == texts[1]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]  # no drafts


def test_spreadsheets_are_read_with_numbers_and_holes(tmp_path, logic, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    cut = "y" * 32_767  # may have been longer
    for line in (("index", "prediction"), (1.0, 3.5), (2, None), (2, "B"), (99, "A"), ("3",),
                 (4, "=1+1"), (5, "nan"), (9, cut)):  # fmt: skip
        book.active.append(line)
    book.save(tmp_path / "p.xlsx")
    found, notes = kit.read(tmp_path / "p.xlsx", logic), logic.rejects
    texts = {index: row["prediction"] for index, row in found.items()}
    assert texts == {"1": "3.5", "2": "", "3": "", "4": "", "5": "nan", "9": cut}  # none computed
    assert [note.line for note in notes] == [3, 4, 5, 6, 7, 9]
    expected = ["no prediction", "twice", "no row of LogicVista", "no prediction", "no prediction",
                "32,767 characters, where xlsx cuts"]  # fmt: skip
    assert all(text in note.reason for text, note in zip(expected, notes, strict=True))
    with pytest.raises(VlaaError, match="write .tsv or .json"):
        kit.write(tmp_path / "q.xlsx", logic, found)
    (tmp_path / "p.xlsx").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(VlaaError, match="not an xlsx file"):
        kit.read(tmp_path / "p.xlsx", logic)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(VlaaError, match="pip install openpyxl"):
        kit.read(tmp_path / "p.xlsx", logic)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"", "formats of VLMEvalKit"),
        ("p.tsv", b"index\tanswer\n1\tA\n", "p.tsv:1: no column 'prediction'"),
        ("p.tsv", b"index\tprediction\n99\tA\n", "no prediction for a row.*no row of LogicVista"),
        ("p.json", b"[1, 2]", "no prediction for a row.*not a JSON object"),
        ("p.json", b'[{"index": 1', "no prediction for a row.*cut off"),
        ("p.json", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path, logic, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VlaaError, match=message):
        kit.read(tmp_path / name, logic)


@pytest.mark.parametrize("name", [n for n in benchmarks.LAYOUTS if not n.startswith("micro-")])
def test_odd_predictions_are_scored_by_the_real_scorers(tmp_path, name):
    write(tmp_path / "b.tsv", rows(name))
    bench = benchmarks.read(name, tmp_path / "b.tsv", tmp_path / "cache")
    golds = [row["answer"] for row in bench.rows[5:]]
    odd = ["A" * 100_000, "", "nan", "<think>cut", "\x00", *golds]
    kit.write(tmp_path / "p.json", bench, answered(bench, odd))
    found = kit.read(tmp_path / "p.json", bench)
    made, table = runner.finish(tmp_path, bench, found)
    assert [row["prediction"] for row in made] == odd
    assert not any(row["hit"] for row in made[:5]) and table
    assert all(row["hit"] or row["reason"] for row in made)
    assert any(row["hit"] for row in made[5:])
    assert (tmp_path / "scores-ours.csv").stat().st_size
