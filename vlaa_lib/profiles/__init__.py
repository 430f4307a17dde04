"""Profiles: one dial for size. YAML files beside this one, read into typed, frozen settings.

A new setting is typed in two places: its kind here, its value and source in `paper.yaml`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from vlaa_lib import VlaaError, folders
from vlaa_lib.records import REWARDS

FOLDER = Path(__file__).parent
ACCELERATE = FOLDER / "accelerate"  # its files: ways to launch a training on several processes
LAUNCHERS = sorted(path.stem for path in ACCELERATE.glob("*.yaml"))
HERE = "none"  # `launch`: train in the process that asks
MODES = ("full", "lora", "4bit")
# of train/fast.py
FAST = ("images", "vision", "prefill", "ended", "padding", "lengths")
RUNS = {"grpo": None, "sft_grpo": "sft"}  # GRPO run -> trained model it starts from (None: policy)
MODELS = ("base", "instruct", "sft", *RUNS)

FROZEN: Any = {"frozen": True, "config": ConfigDict(strict=True, extra="forbid")}
Mode = Literal[MODES]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Rate = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[list[str], Field(min_length=1)]


@dataclass(**FROZEN)
class Model:
    policy: str
    base: str
    max_pixels: PositiveInt
    min_pixels: PositiveInt
    dtype: Dtype


@dataclass(**FROZEN)
class Data:
    folder: str
    sources: Names
    construct_per_source: PositiveInt
    scored_per_source: PositiveInt
    rl_per_source: PositiveInt
    eval_per_source: PositiveInt
    bench_rows: PositiveInt


@dataclass(**FROZEN)
class Teacher:
    omit: Rate
    confuse: Rate
    miscount: Rate
    hesitate: Rate
    waver: Rate
    concurrency: PositiveInt


@dataclass(**FROZEN)
class Sft:
    mode: Mode
    epochs: PositiveFloat
    max_steps: int
    global_batch: PositiveInt
    per_device_batch: PositiveInt
    learning_rate: PositiveFloat
    warmup: Rate
    max_tokens: PositiveInt
    logging_steps: PositiveInt
    save_steps: NonNegativeInt


@dataclass(**FROZEN)
class Grpo:
    mode: Mode
    epochs: PositiveFloat
    max_steps: int
    rollout_prompts: PositiveInt
    num_generations: Annotated[int, Field(ge=2)]  # a group of one has no advantage
    train_batch: PositiveInt
    num_iterations: PositiveInt
    per_device_batch: PositiveInt
    temperature: PositiveFloat
    max_prompt_tokens: PositiveInt
    max_completion_tokens: PositiveInt
    learning_rate: PositiveFloat
    min_learning_rate: NonNegativeFloat
    warmup: Rate
    # YAML reads a bare `off` as false
    kl: Annotated[
        Literal["adaptive", "fixed", "off"], BeforeValidator(lambda v: "off" if v is False else v)
    ]
    beta: NonNegativeFloat
    kl_target: PositiveFloat
    kl_horizon: PositiveInt
    epsilon: PositiveFloat
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"]  # TRL's names
    extra: dict[str, Any]
    scale_rewards: Literal["group", "batch", "none"]
    parts: list[Literal[REWARDS]]
    process_weight: NonNegativeFloat
    process_model: str
    reward_model: Literal["scene-facts", "xcomposer", "judge"]  # who scores open answers
    trust_remote_code: bool
    endpoints: str
    dead_rounds: PositiveInt
    held_out_rounds: NonNegativeInt
    held_out_records: PositiveInt
    redraws: NonNegativeInt
    sampler: Literal["transformers", "vllm-colocate", "vllm-server"]
    sampler_sleep: bool
    sampler_url: Annotated[str, Field(pattern="^https?://")]
    save_rounds: NonNegativeInt
    fast: list[Literal[FAST]]

    @property
    def rollouts(self) -> int:
        """Completions of one sampling round."""
        return self.rollout_prompts * self.num_generations

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps that one sampling round feeds."""
        return self.rollouts // self.train_batch * self.num_iterations


@dataclass(**FROZEN)
class Evaluate:
    batch: PositiveInt
    max_new_tokens: PositiveInt
    bootstrap: PositiveInt


@dataclass(**FROZEN)
class Search:
    iterations: PositiveInt
    width: PositiveInt
    rollouts: PositiveInt
    exploration: NonNegativeFloat
    max_depth: PositiveInt
    temperature: PositiveFloat
    max_new_tokens: PositiveInt
    batch: PositiveInt


@dataclass(**FROZEN)
class Prm(Sft):
    loss: Literal["mse", "bce"]
    held_out: Rate


@dataclass(**FROZEN)
class Process:
    questions: PositiveInt
    pool_questions: PositiveInt
    candidates: PositiveInt
    generators: Names
    judged: NonNegativeInt
    seeds: PositiveInt
    reward_rounds: NonNegativeInt
    reward_weight: PositiveFloat


@dataclass(**FROZEN)
class Settings:
    """Everything a profile decides; each value's source stands beside it in the YAML file."""

    profile: str
    seed: int
    report_to: str
    launch: Literal[(HERE, *LAUNCHERS)]
    gpus: PositiveInt
    model: Model
    data: Data
    teacher: Teacher
    sft: Sft
    grpo: Grpo
    evaluate: Evaluate
    search: Search
    prm: Prm
    process: Process


def names() -> list[str]:
    """Return the profiles that exist."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(profile: str, **overrides: Any) -> Settings:
    """Read a profile, apply overrides, and refuse what is unknown, mistyped or cannot work.

    Args:
        profile: a name, or a `.json` file of resolved settings (`asdict` of them).
        overrides: dotted (`**{"grpo.max_steps": 5}`) or nested (`grpo={"max_steps": 5}`); one given
            as text, as on a command line, is read as YAML.
    """
    if profile.endswith(".json"):
        values = folders.read_json(profile)
    else:
        values = {"profile": profile}
        for text in _texts(profile):
            _merge(values, yaml.safe_load(text))
        values.pop("like", None)
    for key, value in _flat(overrides):
        try:
            nested = yaml.safe_load(value) if isinstance(value, str) else value
        except yaml.YAMLError as error:
            raise VlaaError(f"{key}={value}: not a value of YAML ({error.problem})") from None
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(values, nested)
    try:  # from JSON, where strict settings still take a mapping for a section
        settings = TypeAdapter(Settings).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise VlaaError(f"profile {profile}: {_said(error)}") from None
    _check(settings)
    return settings


def _texts(profile: str) -> list[str]:
    """Return the YAML of a profile, after that of the profiles which it is `like`."""
    if profile not in names():
        raise VlaaError(f"unknown profile {profile!r}; use one of {', '.join(names())}")
    text = (FOLDER / f"{profile}.yaml").read_text(encoding="utf-8")
    above = yaml.safe_load(text).get("like")
    return [*(_texts(above) if above else []), text]


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of settings, nested or not."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _said(error: ValidationError) -> str:
    """Say the first thing that is wrong, by its key."""
    first = error.errors()[0]
    key, value = ".".join(map(str, first["loc"])), first["input"]
    if first["type"] == "unexpected_keyword_argument":
        return f"{key}: no such setting"
    if first["type"] == "missing":
        return f"{key}: missing"
    remedy = ""
    if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value, re.IGNORECASE):
        remedy = "; YAML reads 1e-6 as text: write 1.0e-6"
    return f"{key}: {value!r}: {first['msg'][0].lower()}{first['msg'][1:]}{remedy}"


def _check(s: Settings) -> None:
    """Refuse settings that cannot work together."""
    g, is_foreign = s.grpo, s.grpo.reward_model == "xcomposer" and "open" in s.grpo.parts
    accumulation(s.sft.global_batch, s.sft.per_device_batch)
    accumulation(s.prm.global_batch, s.prm.per_device_batch, key="prm.global_batch")
    accumulation(g.train_batch, g.per_device_batch, key="grpo.train_batch", rollouts=g.rollouts)
    wrong = {
        "model.min_pixels: above model.max_pixels": s.model.min_pixels > s.model.max_pixels,
        f"grpo.beta: must be above 0 with grpo.kl {g.kl}; or set grpo.kl: off":
            g.kl != "off" and not g.beta,
        "grpo.min_learning_rate: between 0 and grpo.learning_rate":
            g.min_learning_rate > g.learning_rate,
        f"grpo.sampler: {g.sampler} needs whole weights, and merging an adapter into packed 4-bit "
        "ones rounds it away; set grpo.sampler: transformers or grpo.mode: lora":
            g.sampler != "transformers" and g.mode == "4bit",
        "grpo.process_weight: above 0 only with grpo.process_model":
            g.process_weight and not g.process_model,
        "grpo.endpoints: a judge needs a YAML file with the section `judge`":
            g.reward_model == "judge" and not g.endpoints,
        "grpo.trust_remote_code: xcomposer brings Python code of its own, which would run with all "
        "your rights; read it, then set this to true, or score with a judge":
            is_foreign and not g.trust_remote_code,
    }  # fmt: skip
    for said, is_so in wrong.items():
        if is_so:
            raise VlaaError(said)


def accumulation(
    batch: int,
    per_device_batch: int,
    processes: int = 1,
    key: str = "sft.global_batch",
    rollouts: int = 0,
) -> int:
    """Return how many forward passes on each process make one batch, or say which numbers would.

    Args:
        key: the setting that `batch` is.
        rollouts: completions of a sampling round (GRPO), which holds whole batches.

    >>> accumulation(128, 4, processes=8)
    4
    """
    if rollouts % batch:
        raise VlaaError(
            f"grpo.rollout_prompts x num_generations: {rollouts} is not a multiple of {key} {batch}"
        )
    each = per_device_batch * processes
    if batch % each == 0:
        return batch // each
    section = key.partition(".")[0]
    counts = [n for n in range(1, batch + 1) if batch % (per_device_batch * n) == 0]
    near = [max((n for n in counts if n < processes), default=0),
            min((n for n in counts if n > processes), default=0)]  # fmt: skip
    sizes = [n for n in range(1, per_device_batch) if batch % (n * processes) == 0]
    around = [n for n in (batch // each * each, (batch // each + 1) * each) if n]
    remedies = {"--gpus ": filter(None, near), f"{section}.per_device_batch=": sizes,
                f"{key}=": (n for n in around if rollouts % n == 0)}  # fmt: skip
    said = {name: " or ".join(map(str, values)) for name, values in remedies.items()}
    raise VlaaError(
        f"{key}: {batch} is not per_device_batch {per_device_batch} x accumulation x {processes} "
        f"processes; these work: {'; '.join(n + values for n, values in said.items() if values)}"
    )


def table(settings: Settings) -> list[dict[str, Any]]:
    """List every setting as key, value and source, the source being its comment in the YAML."""
    sources: dict[str, str] = {}
    for text in _texts(settings.profile):
        section = ""
        for indent, name, source in re.findall(r"(?m)^( *)(\w+):[^#\n]*(?:# *(.*))?$", text):
            section = section if indent else f"{name}."
            sources[section + name if indent else name] = source
    return [
        {"key": key, "value": value, "source": sources.get(key, "")}
        for key, value in _flat(asdict(settings))
    ]
