"""The runner: killed and resumed, in shards, held to its settings; one run with a model."""

import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmark_files import rows, write
from vlaa_lib import ROOT
from vlaa_lib.__main__ import main
from vlaa_lib.evaluate import command, files, prompting, runner
from vlaa_lib.evaluate.generate import Completion, _completion, complete, complete_vllm
from vlaa_lib.records import RecordError


def said(asks):
    """Answer so that the text depends on the whole batch, as padding in bfloat16 can."""
    together = sum(len(ask.user) for ask in asks)
    return [Completion(f"é {ask.user} {len(asks)} {together}", 7, False) for ask in asks]


@pytest.fixture
def bench(tmp_path):
    write(tmp_path / "b.tsv", rows("MathVision"))
    benchmark = files.read("MathVision", tmp_path / "b.tsv", tmp_path / "cache")
    return benchmark, prompting.asks(benchmark, prompting.settings())


def answer(bench, *more, **options):
    benchmark, asked = bench
    return runner.answer(benchmark.indices, asked, *more, **options)


def final(out, bench):
    runner.finish(out, bench[0], runner.answers(out))
    return (out / "rows-ours.jsonl").read_bytes()


# A process that is killed while it writes: one whole line of the batch and half of the next.
KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_runner import said
from vlaa_lib.evaluate import files, prompting, runner
folder, out, left = Path(sys.argv[1]), Path(sys.argv[2]), [int(sys.argv[3])]
benchmark = files.read("MathVision", folder / "b.tsv", folder / "cache")
asked = prompting.asks(benchmark, prompting.settings())
def complete(asks):
    made = said(asks)
    if not left[0]:
        mine = {ask.user: index for ask, index in zip(asked, benchmark.indices)}
        lines = [runner._line(mine[a.user], m) for a, m in zip(asks, made)]
        with open(out / "answers.jsonl", "a") as file:
            file.write(lines[0] + lines[1][:-9])
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return made
runner.answer(benchmark.indices, asked, out, lambda: complete, batch=3)
"""


@pytest.mark.parametrize("batches", [0, 2])
def test_killed_and_started_again_is_the_same_file(tmp_path, bench, batches):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    broken.mkdir()
    answer(bench, whole, lambda: said, batch=3)
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, broken, str(batches)], cwd=ROOT, timeout=600
    )
    assert ended.returncode == -signal.SIGKILL
    left = (broken / "answers.jsonl").read_text()
    assert not left.endswith("\n") and left.count("\n") == 3 * batches + 1
    asked_again = []

    def listen(asks):
        asked_again.extend(asks)
        return said(asks)

    answer(bench, broken, lambda: listen, batch=3)
    assert len(asked_again) == 10 - 3 * batches  # nothing whole is answered twice
    assert final(broken, bench) == final(whole, bench)


def test_rows_are_in_the_files_order_with_what_was_measured(tmp_path, bench):
    benchmark, asked = bench
    text = "Wait. <think>wait, check</think> The answer is 3"
    answers = [Completion(text, 5, True)] * 3
    load = lambda: lambda asks: answers[: len(asks)]  # noqa: E731
    runner.answer(benchmark.indices, asked, tmp_path, load, batch=3)
    made, table = runner.finish(tmp_path, benchmark, runner.answers(tmp_path), "kit-2026-08")
    lines = (tmp_path / "rows-kit-2026-08.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == made
    assert [row["index"] for row in made] == benchmark.indices
    assert made[0]["prediction"] == text and {row["path"] for row in made} == {"kit-judge"}
    made, table = runner.finish(tmp_path, benchmark, runner.answers(tmp_path))
    assert [row["index"] for row in made if row["hit"]] == ["3"]  # the free row whose gold is 3
    assert (made[3]["path"], made[3]["extracted"], made[3]["gold"]) == ("after-think", "3", "3")
    assert (made[0]["tokens"], made[0]["truncated"]) == (5, True)
    assert made[0]["aha"] == {"wait": 2, "check": 1}
    assert made[0]["category"] == "algebra" and made[0]["question"] == rows("MathVision")[0][
        "question"
    ]
    assert (table[0]["extraction"], table[0]["n"], table[0]["points"]) == ("ours", 10, 1)
    header, first, *_ = (tmp_path / "scores-ours.csv").read_text().splitlines()
    assert header.startswith("extraction,benchmark,metric") and first.startswith("ours,MathVision")


def test_shards_together_are_the_whole(tmp_path, bench):
    counts = [
        len(answer(bench, tmp_path, lambda: said, batch=4, shard=(i, 3))) for i in (2, 1, 3)
    ]
    assert counts == [3, 7, 10]
    assert len(list(tmp_path.glob("answers-*-of-3.jsonl"))) == 3
    found = answer(bench, tmp_path, lambda: pytest.fail("nothing is left to answer"))
    assert found.keys() == {row["index"] for row in bench[0].rows}


def test_batches_hold_prompts_of_similar_length(tmp_path, bench):
    sizes = []

    def measure(asks):
        sizes.append([len(ask.user) for ask in asks])
        return said(asks)

    answer(bench, tmp_path, lambda: measure, batch=4)
    assert [len(batch) for batch in sizes] == [4, 4, 2]
    assert sizes == sorted(sizes) and [b[-1] for b in sizes] == [max(b) for b in sizes]


def test_two_processes_do_not_write_one_file(tmp_path, bench):
    def meanwhile(asks):
        with pytest.raises(RecordError, match="another process writes it"):
            answer(bench, tmp_path, lambda: said)
        return said(asks)

    assert len(answer(bench, tmp_path, lambda: meanwhile)) == 10


@pytest.mark.parametrize("line", ["{", "[]", '{"index": 1, "prediction": "x"}', "\x00"])
def test_a_broken_answer_is_named(tmp_path, bench, line):
    (tmp_path / "answers.jsonl").write_text(f'{{"index": "1", "prediction": ""}}\n{line}\n')
    with pytest.raises(RecordError, match="answers.jsonl:2: .*delete"):
        answer(bench, tmp_path, lambda: said)


def test_another_model_or_prompt_is_refused_in_the_same_folder(tmp_path, bench):
    benchmark, _ = bench
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"\0" * 100_000 + b"1")

    def start(batch=16, **changes):
        chosen = prompting.settings(**changes)
        card = runner.card(benchmark, prompting.asks(benchmark, chosen), chosen,
                           str(tmp_path / "model"), batch=batch)  # fmt: skip
        runner.start(tmp_path / "out", benchmark, card)
        return card

    card = start()
    assert start(batch=4)  # the size of a batch may change
    found = json.loads((tmp_path / "out" / "run.json").read_text())
    assert found == card and found["settings"]["max_pixels"] == 262_144
    assert found["num_rows"] == 10 and found["num_rows_of_the_split"] == 3040
    assert found["versions"]["transformers"] and "commit" in found and found["prompts_sha256"]
    with pytest.raises(RecordError, match="another settings and prompts_sha256; name another"):
        start(system_prompt="Be brief.")
    weights.write_bytes(b"\0" * 100_000 + b"2")
    with pytest.raises(RecordError, match=r"run\.json: a run with another weights"):
        start()


def test_a_completion_without_its_end_is_truncated():
    made = [_completion("x", ids, {1, 2}) for ids in ([5, 5, 5], [5, 2, 0], [1, 0, 0])]
    assert [(m.num_tokens, m.is_truncated) for m in made] == [(3, True), (2, False), (1, False)]


def test_vllm_is_asked_for_by_name_where_it_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="vLLM is not installed.*--backend hf"):
        complete_vllm(tmp_path, tmp_path, 8)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter"):
        complete_vllm(tmp_path, tmp_path, 8)


def test_vllm_gets_prompts_pictures_and_limits(tiny_model, bench, monkeypatch):
    """Against a stand-in with vLLM's names: what it is given, and how its reply is read."""
    seen = SimpleNamespace()

    class LLM:
        def __init__(self, **more):
            seen.model = more

        def generate(self, inputs, sampling):
            seen.inputs, seen.sampling = inputs, sampling
            reasons = ["length", "stop"]
            return [
                SimpleNamespace(outputs=[SimpleNamespace(text="x", token_ids=(1, 2),
                                                         finish_reason=reason)])
                for reason in reasons
            ]  # fmt: skip

    import trl.data_utils  # noqa: F401  before the stand-in, which it would look into

    fake = SimpleNamespace(LLM=LLM, SamplingParams=lambda **more: more)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    chosen = prompting.settings(max_new_tokens=9)
    complete_some = command.loaded(str(tiny_model), chosen, bench[0].images, backend="vllm")
    made = complete_some(bench[1][:2])
    assert [(m.num_tokens, m.is_truncated) for m in made] == [(2, True), (2, False)]
    assert seen.sampling == {"temperature": 0.0, "max_tokens": 9, "repetition_penalty": 1.0}
    assert seen.model["mm_processor_kwargs"] == {"min_pixels": 3136, "max_pixels": 262_144}
    first = seen.inputs[0]
    assert bench[1][0].user in first["prompt"] and "<|image_pad|>" in first["prompt"]
    (shown,) = first["multi_modal_data"]["image"]
    assert shown.size[0] * shown.size[1] >= 3136  # 40 x 30 px, fitted
    with pytest.raises(ValueError, match="--mode 4bit is for --backend hf"):
        command.loaded(str(tiny_model), chosen, "", "4bit", "vllm")


@pytest.mark.skipif(sys.platform != "linux", reason="bitsandbytes is installed on Linux")
def test_a_model_answers_in_4_bit(tiny_model, bench):
    chosen = prompting.settings(max_new_tokens=3)
    answer = command.loaded(str(tiny_model), chosen, bench[0].images, mode="4bit")
    assert [1 <= said.num_tokens <= 3 for said in answer(bench[1][:2])] == [True, True]


def test_rows_without_verdict_are_named_by_reason():
    rows = [{"index": str(i), "hit": None if i % 2 else False, "reason": "r"} for i in range(4)]
    assert command._without_verdict(rows) == {"r": ["1", "3"]}


def test_a_model_from_file_to_scores(tmp_path, tiny_model, capsys):
    """Through the command line; then its adapter, merged and not, says the same."""
    write(tmp_path / "b.tsv", rows("WeMath")[:4])
    call = ["evaluate", "--benchmark", "WeMath", "--tsv", tmp_path / "b.tsv", "--model", tiny_model,
            "--out", tmp_path / "out", "--max-new-tokens", 4, "--batch", 3]  # fmt: skip

    def run(*more):
        return main([str(word) for word in (*call, *more)])

    assert run("--shard", "1/2") == 0
    assert "once every shard is done" in capsys.readouterr().out
    assert run("--shard", "2/2", "--export", tmp_path / "p.tsv") == 0
    shown = capsys.readouterr()
    assert "4 rows (the paper's split has 1740)" in shown.out and "truncated" in shown.out
    made = [json.loads(x) for x in (tmp_path / "out" / "rows-ours.jsonl").read_text().splitlines()]
    assert [row["index"] for row in made] == ["0", "1", "2", "3"]
    assert all(0 < row["tokens"] <= 4 for row in made)
    assert run("--max-new-tokens", "5") == 2  # other settings, same folder
    assert "another settings" in capsys.readouterr().err

    at = call.index("--model")
    call[at : at + 2] = ["--predictions", tmp_path / "p.tsv"]
    assert run("--extraction", "kit-2025-04") == 0
    lines = (tmp_path / "out" / "rows-kit-2025-04.jsonl").read_text().splitlines()
    again = [json.loads(line) for line in lines]
    assert [row["prediction"] for row in again] == [row["prediction"] for row in made]

    adapted = _adapter(tiny_model, tmp_path / "lora")
    benchmark = files.read("WeMath", tmp_path / "b.tsv", tmp_path / "b.images")
    chosen = prompting.settings(max_new_tokens=6)
    asked = prompting.asks(benchmark, chosen)
    from vlaa_lib import models

    beside = models.load_policy(adapted, merge=False)
    assert any("lora" in name for name, _ in beside.model.named_parameters())
    merged = models.load_policy(adapted)
    base = models.load_policy(tiny_model)
    texts = [complete(p, asked, benchmark.images, 6) for p in (beside, merged, base)]
    assert texts[0] == texts[1] != texts[2]


def _adapter(model, folder):
    """Save an adapter that changes what the model says."""
    import torch
    from peft import get_peft_model

    from vlaa_lib import models

    adapted = get_peft_model(models.load_policy(model).model, models.adapter("lora"))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.peft_config["default"].base_model_name_or_path = str(model)
    adapted.save_pretrained(folder)
    models.load_processor(model).save_pretrained(folder)
    return folder


# --- one question ---------------------------------------------------------------------------------


def test_generate_prints_and_asks_for_the_authors_prompt(tmp_path, monkeypatch, capsys):
    asked = []

    def loaded(model, chosen, images, mode, backend):
        return lambda asks: asked.extend(asks) or [Completion("three", 800, True)]

    monkeypatch.setattr(command, "loaded", loaded)
    words = ["generate", "--model", "UCSC-VLAA/VLAA-Thinker-Qwen2.5VL-3B", "--image",
             str(tmp_path / "a.png"), "--question", "How many?"]  # fmt: skip
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.out == "three\n"
    assert "authors' own system prompt" in shown.err and "cut off after 800" in shown.err
    (tmp_path / "prompt.txt").write_text("Their prompt.\n")
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
         "none.yaml: cannot be read as YAML"),
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
