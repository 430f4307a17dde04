"""The pocket VLM's cards: what a checkpoint answers on held-out records, measured again at will."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from vlaa_lib import folders, prompts

from . import microworld
from .microworld import SOURCES

CLOSED = ("digit", "mcq", "math", "iou")  # rewards whose answers a rule checks


def measure(folder: Path, stage: str, per_source: int = 56) -> tuple[list[dict], dict[str, Any]]:
    """Answer held-out records greedily, the same blank, and once at temperature 0.8.

    Returns:
        one row a source; what the card's targets speak of: `closed` accuracy over the sources
        whose answers are checked by rule, and the share of sampled replies in the format.
    """
    from vlaa_lib import evaluate
    from vlaa_lib.evaluate import benchmarks, prompting
    from vlaa_lib.models import load_policy

    policy = load_policy(folder)
    with tempfile.TemporaryDirectory() as work:
        # `dev` is what recipes are chosen on; a run's own `test` records are drawn with seed 0
        made = microworld.write_split(work, list(SOURCES), "test", per_source, seed=1)
        images = Path(work) / "images"
        chosen = prompting.settings(max_new_tokens=prompts.MAX_NEW_TOKENS)
        asked = [benchmarks.held_out(made, images)]
        rows = evaluate.run(policy, asked, chosen, work, stage, batch=64)
        torch.manual_seed(0)
        sampled = evaluate.generate(policy, made, images, temperature=0.8)
    closed = [row["correct"] for row in rows if row["part"] in CLOSED and not row["blank"]]
    kept = [prompts.split_think_answer(text).problem is None for text in sampled]
    facts = {"closed": sum(closed) / len(closed), "format_at_08": sum(kept) / len(kept)}
    return evaluate.summary(rows), facts


def write_card(stage: str, folder: Path, per_source: int = 56) -> None:
    """Measure a checkpoint on held-out records and write its card."""
    from vlaa_lib.tables import markdown_table

    rows, found = measure(folder, stage, per_source)
    table = [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()
              if k != "model"} for row in rows]  # fmt: skip
    last = {row["stage"]: row for row in folders.whole_lines(folder / "training_log.jsonl")}
    stages = ", ".join(
        f"{name} {row['step']} in {row['seconds'] / 60:.0f}" for name, row in last.items()
    )
    nature = {
        "base": "Describes pictures and answers bare questions; knows no chat.",
        "instruct": "Chats; replies in plain words or, less often, in the think/answer format.",
    }[stage]
    recipe = folders.read_json(folder / "recipe.json")
    folders.write_text(
        folder / "README.md",
        f"""# Pocket VLM, {stage}

{nature}

A Qwen2.5-VL by architecture (`Qwen2_5_VLForConditionalGeneration`), trained from nothing on
the micro-world's `pretrain` split. Stages, with their steps of {recipe['batch']} documents and
minutes: {stages}.
Rebuild: `python -m vlaa_lib models build-pocket --stage {stage}`. Measure again:
`python -m vlaa_lib models card --stage {stage}`. Settings: `recipe.json`; losses:
`training_log.jsonl`; checksum: `SHA256`.

Greedy on {per_source} held-out records a source (`test` split, seed 1), beside the same prompts
with a blank picture:

{markdown_table(table)}

Over the sources whose answers a rule checks (solids, figure, plot, panel, locate, relation):
{found["closed"]:.1%} right. Sampled at temperature 0.8, {found["format_at_08"]:.1%} of the replies
keep the think/answer format.

`accuracy` reads the answer from the tags or, without any tag, from the reply; boxes count from an
intersection over union of 0.5, open answers when they state at least the facts of their gold.
`reward` is strict: without the format it is 0. The model knows nothing beyond the micro-world.
""",
    )
