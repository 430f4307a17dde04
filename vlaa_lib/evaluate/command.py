"""The commands `evaluate` and `generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from vlaa_lib import folders
from vlaa_lib import options as o
from vlaa_lib.options import show
from vlaa_lib.prompts import MAX_NEW_TOKENS


def evaluate(
    out: o.Out,
    records: o.MaybeRecords = None,
    images: o.MaybeImages = None,
    benchmark: Annotated[str | None, Option(help="MathVista_MINI, micro-WeMath")] = None,
    tsv: Annotated[str | None, Option(help="the benchmark's file, as VLMEvalKit has it")] = None,
    image_root: Annotated[str | None, Option(help="default: the file's folder")] = None,
    cache: Annotated[str | None, Option(help="of its pictures; default: .images")] = None,
    predictions: Annotated[str | None, Option(help="score this file of the kit")] = None,
    extraction: o.Rules = "ours",
    judge: o.Judge = None,
    shard: o.Shard = "1/1",
    blank: Annotated[bool, Option("--blank", help="grey pictures: what is guessed")] = False,
    export: Annotated[str | None, Option(help="file for the kit: .tsv or .json")] = None,
    model: o.MaybeModel = None,
    mode: o.Mode = "full",
    backend: o.Backend = "hf",
    preset: o.Preset = "paper",
    batch: Annotated[int | None, o.answers("rows at a time; default: 64, of benchmarks 16")] = None,
    max_new_tokens: o.Tokens = None,
    min_pixels: o.MinPixels = None,
    max_pixels: o.MaxPixels = None,
    system_prompt_file: o.Prompt = None,
    no_system_prompt: o.NoPrompt = False,
    template: Annotated[str | None, o.answers("YAML: your own prompt for a benchmark")] = None,
) -> None:
    """Answer records, or a benchmark's file, greedily and print the scores. Resumes.

    For several GPUs start one --shard on each.

    Example: python -m vlaa_lib evaluate --records R.jsonl --images images --model runs/grpo
    --out runs/answers
    """
    from vlaa_lib import evaluate as evaluation
    from vlaa_lib import models, rewards
    from vlaa_lib.evaluate import extract, kit, runner
    from vlaa_lib.evaluate.benchmarks import held_out, read

    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels, "max_new_tokens": max_new_tokens}
    prompt = system_prompt_file, no_system_prompt
    if not benchmark:
        if not (records and images and model):
            raise ValueError("evaluate needs --benchmark, or --records, --images and --model")
        asked = held_out(list(rewards.usable(records, images)), images)
        limits["max_new_tokens"] = max_new_tokens or MAX_NEW_TOKENS
        chosen, policy = asking(model, preset, *prompt, **limits), models.load_policy(model)
        rows = evaluation.run(policy, [asked], chosen, out, model, batch or 64)
        folders.write_lines(Path(out) / "rows.jsonl", runner.lines(rows))
        return show(evaluation.summary(rows))
    if not tsv or bool(model) == bool(predictions):
        raise ValueError("--benchmark needs --tsv FILE, and either --model or --predictions")
    extract.check_mode(extraction)  # before a model has answered for hours
    reader = judge_of(judge, extraction, out)
    chosen = asking(model, preset, *prompt, template, **limits)
    pictures = cache or Path(tsv).with_suffix(".images")
    asked = read(benchmark, tsv, pictures, image_root)
    print(asked)
    if predictions:
        found = kit.read(predictions, asked)
    else:
        given = [asked], chosen, out, models.resolve(model), None, batch or 16
        found = runner.answer(*given, blank, shard, mode, backend)[asked.name]
    print(*asked.rejects, sep="\n", end="\n" * bool(asked.rejects), file=sys.stderr)
    if missing := len(asked.rows) - len(found):
        print(f"{missing} of {len(asked.rows)} rows have no answer", file=sys.stderr)
        if not predictions:
            print("once every shard is done, score with the same command without --shard")
            return None
    if export:
        kit.write(export, asked, found)
    rows, table = runner.finish(out, asked, found, extraction, reader)
    print(*runner.report(rows, reader), sep="\n", file=sys.stderr)
    return show(table)


def asking(
    model: str | None, preset: str, prompt_file: str | None, no_prompt: bool,
    template: str | None = None, **limits: int | None,
) -> Any:  # fmt: skip
    """Return the settings; note where the authors' own prompt is missed."""
    from vlaa_lib.evaluate import prompting

    if not prompt_file and not no_prompt and "vlaa-thinker" in str(model).lower():
        print(
            "note: the released VLAA-Thinker checkpoints want the authors' own system prompt; "
            "copy it from inference.py of github.com/UCSC-VLAA/VLAA-Thinking into a file and name "
            "that with --system-prompt-file. Now they get ours.",
            file=sys.stderr,
        )
    prompt = prompting.read_text(prompt_file) if prompt_file else "" if no_prompt else None
    return prompting.settings(preset, prompt, template, **limits)


def judge_of(path: str | None, extraction: str, out: str) -> Any:
    """Return the judge of the endpoint in a YAML file; its replies are kept in the run's folder."""
    if not path:
        return None
    if extraction != "ours":
        raise ValueError(f"--judge reads what our rules cannot; --extraction is {extraction}")
    from vlaa_lib.evaluate.judge import Judge
    from vlaa_lib.llm import Endpoint, read_endpoints

    endpoint = read_endpoints(path, {"judge": Endpoint("judge")})["judge"]
    return Judge(endpoint, Path(out) / "judge.sqlite")


def generate(
    model: o.Model,
    image: Annotated[str, Option(help="a picture")],
    question: Annotated[str, Option(help="what is asked of it")],
    mode: o.Mode = "full",
    backend: o.Backend = "hf",
    preset: o.Preset = "paper",
    max_new_tokens: o.Tokens = None,
    min_pixels: o.MinPixels = None,
    max_pixels: o.MaxPixels = None,
    system_prompt_file: o.Prompt = None,
    no_system_prompt: o.NoPrompt = False,
) -> None:
    """Ask a model about one picture.

    Example: python -m vlaa_lib generate --model data/pocket/instruct --image a.png --question "?"
    """
    from vlaa_lib.evaluate.generate import Ask
    from vlaa_lib.evaluate.generate import loaded as model_of

    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels, "max_new_tokens": max_new_tokens}
    chosen = asking(model, preset, system_prompt_file, no_system_prompt, **limits)
    picture = Path(image)
    answer = model_of(model, picture.parent, chosen, mode, backend)
    (said,) = answer([Ask(question, chosen.system_prompt, (picture.name,))])
    print(said.text)
    if said.is_truncated:
        print(f"cut off after {said.num_tokens} tokens; see --max-new-tokens", file=sys.stderr)
