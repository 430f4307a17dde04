"""What a benchmark's row is asked as, and with which limits: the settings of an evaluation."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from vlaa_lib import VlaaError, folders, images, prompts

from .benchmarks import HELD_OUT, Benchmark, Row, family, is_missing
from .generate import Ask, Limits, ask

# VLMEvalKit: the question alone, as custom prompts are off (appendix B.2), but for two benchmarks,
# whose prompts are written here in our own words
_DYNAMATH = """\
## Question
{question}

## How to reply
Reply with one JSON object that has two keys: 'solution', your reasoning step by step, and \
'short answer', the result and nothing else. {instruction}

For example:
{
    "solution": "[your reasoning, step by step]",
    "short answer": "[the result]"
}"""
INSTRUCTIONS = {  # DynaMath: answer type -> the sentence about its short answer
    "multiple choice": "Let 'short answer' be the letter of the right option, such as 'A' or 'C'.",
    "float": "Let 'short answer' be a number with three digits after the point.",
    "other": "Write numbers that are not whole with three digits after the point.",
}
TEMPLATES = {
    "WeMath": "{hint}Question: {question}\nOptions:\n{options}{requirement}",
    "DynaMath": _DYNAMATH,
}
_SLOT = re.compile(r"\{(question|options|hint|requirement|instruction)\}")


@dataclass(frozen=True)
class Settings(Limits):
    """How rows are asked; recorded with every run."""

    preset: str = "paper"
    system_prompt: str = prompts.SYSTEM_PROMPT  # empty: the chat template sets its own
    template: str = ""  # a text with slots, empty for the benchmark's own
    # what the slot {instruction} becomes, by answer type
    instructions: dict[str, str] = field(default_factory=lambda: dict(INSTRUCTIONS))

    def __post_init__(self) -> None:
        if self.min_pixels > self.max_pixels:
            raise VlaaError(
                f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}; pictures "
                "cannot be both, and the kit would enlarge some and shrink others"
            )
        if self.min_pixels < 1 or self.max_new_tokens < 1:
            raise VlaaError("min_pixels and max_new_tokens start at 1")


PRESETS = {
    # appendix B.2; it is silent on the lower bound, so that of Qwen2-VL's image processor
    "paper": Settings(800, min_pixels=images.MIN_PIXELS, max_pixels=images.MAX_PIXELS),
    # what the kit registers for VLAA-Thinker and Qwen2.5-VL (vlmeval/config.py)
    "vlmevalkit": Settings(
        2048, min_pixels=1280 * 28 * 28, max_pixels=16384 * 28 * 28, preset="vlmevalkit"
    ),
}


def settings(
    preset: str = "paper",
    system_prompt: str | None = None,
    template_file: str | Path | None = None,
    **changes: int | str | None,
) -> Settings:
    """Return a preset with changes, None keeping the preset's; `template_file` is YAML.

    It holds a `template` and, optionally, `instructions` by answer type.
    """
    if preset not in PRESETS:
        raise VlaaError(f"unknown preset {preset!r}; use one of {', '.join(PRESETS)}")
    chosen: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    if system_prompt is not None:
        chosen["system_prompt"] = system_prompt
    if template_file:
        chosen |= _read_template(Path(template_file))
    return replace(PRESETS[preset], **chosen)


def read_text(path: str | Path) -> str:
    """Read a prompt's file, less the line break that editors put at its end."""
    return folders.read_text(path).removesuffix("\n")


def _read_template(path: Path) -> dict[str, Any]:
    found = folders.read_yaml(path)
    template = found.get("template")
    if not isinstance(template, str) or "{question}" not in template:
        raise VlaaError(f"{path}: no text under 'template' with the slot {{question}}; add it")
    given = found.get("instructions") or {}
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
        raise VlaaError(f"{path}: 'instructions' is not answer type: sentence; write it so")
    return {"template": template, "instructions": INSTRUCTIONS | given}


def asks(benchmark: Benchmark, chosen: Settings) -> list[Ask]:
    """Return what each row of a benchmark is asked; held-out records as training asks them."""
    if benchmark.name == HELD_OUT:
        return [ask(row["record"]) for row in benchmark.rows]
    return [
        Ask(_user_text(benchmark.name, row, chosen), chosen.system_prompt, tuple(row["images"]))
        for row in benchmark.rows
    ]


def _user_text(name: str, row: Row, chosen: Settings) -> str:
    """Fill a template in one pass: braces inside a value stay text."""
    hint, options = row.get("hint"), [c for c in ascii_uppercase if not is_missing(row.get(c))]
    if "micro_reward" in row and not chosen.template:
        # micro rows are asked as training asks: the pocket VLM knows no other way
        choices = prompts.lettered([row[c] for c in options])
        return prompts.user_text(row["question"] + choices, row["micro_reward"])
    sentences = chosen.instructions
    values = {
        "question": row["query_cot" if name.endswith("_cot") else "question"],
        "hint": "" if is_missing(hint) else f"Hint: {hint}\n",
        "options": "".join(f"{letter}. {row[letter]}\n" for letter in options),
        "requirement": row["requirement"] if name.endswith("_COT") else "",
        "instruction": sentences.get(row.get("answer_type", ""), sentences["other"]),
    }
    template = chosen.template or TEMPLATES.get(family(name), "{question}")
    return _SLOT.sub(lambda slot: values[slot[1]], template)


def digest(asked: list[Ask]) -> str:
    """Return a hash of all prompts and pictures, whose names are hashes of what they show."""
    said = json.dumps([[ask.system, ask.user, ask.images] for ask in asked])
    return hashlib.sha256(said.encode()).hexdigest()[:16]
