"""Profiles: one dial for size. YAML files beside this one, read into typed, frozen settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from vlaa_lib import prompts
from vlaa_lib.records import REWARDS

FOLDER = Path(__file__).parent
ACCELERATE = FOLDER / "accelerate"  # its files: ways to launch a training on several processes
HERE = "none"  # `launch`: train in the process that asks
MODES = ("full", "lora", "4bit")
# of train/fast.py
FAST = ("images", "vision", "prefill", "ended", "padding", "lengths", "flat", "flat-kl")
REWARD_MODELS = ("scene-facts", "xcomposer", "judge")  # who scores open answers


RUNS = {"grpo": None, "sft_grpo": "sft"}  # GRPO run -> trained model it starts from (None: policy)
MODELS = ("base", "instruct", "sft", "grpo", "sft_grpo")


def launchers() -> list[str]:
    """Return the names that a launch may have: those of the files for accelerate."""
    return sorted(path.stem for path in ACCELERATE.glob("*.yaml"))


CHOICES = {
    "launch": (HERE, *launchers()),
    "sft.mode": MODES,
    "grpo.mode": MODES,
    "prm.mode": MODES,
    "prm.loss": ("mse", "bce"),
    "grpo.kl": ("adaptive", "fixed", "off"),
    "grpo.loss_type": ("grpo", "bnpo", "dr_grpo", "dapo"),  # TRL's names
    "grpo.scale_rewards": ("group", "batch", "none"),
    "grpo.format": prompts.FORMATS,
    "grpo.reward_model": REWARD_MODELS,
    "grpo.sampler": ("transformers", "vllm-colocate", "vllm-server"),
}


class ProfileError(ValueError):
    """A setting that cannot be used; the message names its key and what to write instead."""


@dataclass(frozen=True)
class Model:
    policy: str
    base: str
    max_pixels: int
    min_pixels: int


@dataclass(frozen=True)
class Data:
    folder: str
    sources: list[str]
    construct_per_source: int
    scored_per_source: int
    rl_per_source: int
    eval_per_source: int
    bench_rows: int


@dataclass(frozen=True)
class Teacher:
    omit: float
    confuse: float
    miscount: float
    hesitate: float
    waver: float
    concurrency: int


@dataclass(frozen=True)
class Sft:
    mode: str
    epochs: float
    max_steps: int
    global_batch: int
    per_device_batch: int
    learning_rate: float
    warmup: float
    max_tokens: int
    logging_steps: int
    save_steps: int


@dataclass(frozen=True)
class Grpo:
    mode: str
    epochs: float
    max_steps: int
    rollout_prompts: int
    num_generations: int
    train_batch: int
    num_iterations: int
    per_device_batch: int
    temperature: float
    max_prompt_tokens: int
    max_completion_tokens: int
    learning_rate: float
    min_learning_rate: float
    warmup: float
    kl: str
    beta: float
    kl_target: float
    kl_horizon: int
    epsilon: float
    loss_type: str
    scale_rewards: str
    parts: list[str]
    process_weight: float
    process_model: str
    reward_model: str
    trust_remote_code: bool
    endpoints: str
    dead_rounds: int
    sampler: str
    sampler_url: str
    save_rounds: int
    format: str
    fast: list[str]

    @property
    def rollouts(self) -> int:
        """Completions of one sampling round."""
        return self.rollout_prompts * self.num_generations

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps that one sampling round feeds."""
        return self.rollouts // self.train_batch * self.num_iterations


@dataclass(frozen=True)
class Evaluate:
    batch: int
    max_new_tokens: int
    bootstrap: int


@dataclass(frozen=True)
class Search:
    iterations: int
    width: int
    rollouts: int
    exploration: float
    max_depth: int
    temperature: float
    max_new_tokens: int
    batch: int


@dataclass(frozen=True)
class Prm(Sft):
    loss: str
    held_out: float


@dataclass(frozen=True)
class Process:
    questions: int
    pool_questions: int
    candidates: int
    generators: list[str]
    judged: int
    seeds: int
    reward_rounds: int
    reward_weight: float


@dataclass(frozen=True)
class Settings:
    """Everything a profile decides; each value's source stands beside it in the YAML file."""

    profile: str
    seed: int
    report_to: str
    launch: str
    gpus: int
    model: Model
    data: Data
    teacher: Teacher
    sft: Sft
    grpo: Grpo
    evaluate: Evaluate
    search: Search
    prm: Prm
    process: Process


def load(profile: str, **overrides: Any) -> Settings:
    """Read a profile and apply overrides, dotted or nested.

    `**{"grpo.max_steps": 5}` is `grpo={"max_steps": 5}`.

    An override given as text, as on a command line, is read as YAML.

    Raises:
        ProfileError: unknown profile or key, wrong type, impossible batch arithmetic.
    """
    path = FOLDER / f"{profile}.yaml"
    if profile not in names():
        raise ProfileError(f"unknown profile {profile!r}; use one of {', '.join(names())}")
    values = yaml.safe_load(path.read_text())
    for key, value in _flat(overrides):
        *section, name = key.split(".")
        target = values.get(section[0]) if len(section) == 1 else values if not section else None
        if not isinstance(target, dict) or name not in target:
            raise ProfileError(f"{key}: no such setting in profile {profile}")
        target[name] = yaml.safe_load(value) if isinstance(value, str) else value
    settings = _typed(Settings, values, "")
    _check(settings)
    return settings


def names() -> list[str]:
    """Return the profiles that exist."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _flat(overrides: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of overrides, nested or not."""
    for key, value in overrides.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _typed(kind: type, values: Any, prefix: str) -> Any:
    """Build a dataclass from a mapping, naming the first key that is unknown, missing or wrong."""
    if not isinstance(values, dict):
        raise ProfileError(f"{prefix.rstrip('.')}: expected a section with settings")
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise ProfileError(f"{prefix}{key}: unknown setting; known are {', '.join(hints)}")
    for field in fields(kind):
        if field.name not in values:
            raise ProfileError(f"{prefix}{field.name}: missing")
    return kind(**{k: _value(hints[k], v, f"{prefix}{k}") for k, v in values.items()})


def _value(hint: Any, value: Any, key: str) -> Any:
    if is_dataclass(hint):
        return _typed(hint, value, f"{key}.")
    if hint is float and type(value) is int:
        return float(value)
    if key == "grpo.kl" and value is False:  # YAML reads a bare `off` so
        return "off"
    wanted = list if hint == list[str] else hint
    if wanted is list and type(value) is list and not all(isinstance(v, str) for v in value):
        raise ProfileError(f"{key}: {value!r} must hold texts only")
    if type(value) is not wanted:
        remedy = ""
        if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value, re.IGNORECASE):
            remedy = "; YAML reads 1e-6 as text: write 1.0e-6"
        raise ProfileError(
            f"{key}: {value!r} is {type(value).__name__}, expected {wanted.__name__}{remedy}"
        )
    return value


_POSITIVE = {
    "": "gpus",
    "model": "min_pixels",
    "data": "construct_per_source scored_per_source rl_per_source eval_per_source bench_rows",
    "teacher": "concurrency",
    "sft": "max_tokens epochs global_batch per_device_batch learning_rate logging_steps",
    "grpo": "epochs rollout_prompts train_batch num_iterations per_device_batch temperature "
    "max_prompt_tokens max_completion_tokens learning_rate kl_target kl_horizon dead_rounds",
    "evaluate": "batch max_new_tokens bootstrap",
    "search": "iterations width rollouts max_depth temperature max_new_tokens batch",
    "prm": "max_tokens epochs global_batch per_device_batch learning_rate logging_steps",
    "process": "questions pool_questions candidates seeds reward_weight",
}
_RATES = {"teacher": "omit confuse miscount hesitate waver", "sft": "warmup", "grpo": "warmup"}
_RATES |= {"prm": "warmup held_out"}


def _check(s: Settings) -> None:
    """Refuse settings that cannot work together."""
    for section, keys in _POSITIVE.items():
        for key in keys.split():
            value = _get(s, section, key)
            if not value > 0:  # also true of NaN
                dotted = f"{section}.{key}".lstrip(".")
                raise ProfileError(f"{dotted}: {value} must be above 0")
    for section, keys in _RATES.items():
        for key in keys.split():
            if not 0 <= getattr(getattr(s, section), key) <= 1:
                raise ProfileError(f"{section}.{key}: a rate between 0 and 1")
    for key, known in CHOICES.items():
        section, _, name = key.rpartition(".")
        value = _get(s, section, name)
        if value not in known:
            raise ProfileError(f"{key}: {value!r}; use one of {', '.join(known)}")
    if not s.data.sources:
        raise ProfileError("data.sources: name at least one source")
    if s.model.min_pixels > s.model.max_pixels:
        raise ProfileError("model.min_pixels: above model.max_pixels")
    if not s.process.generators:
        raise ProfileError("process.generators: name at least one model")
    _check_batches(s)
    g = s.grpo
    if unknown := [part for part in g.parts if part not in REWARDS]:
        raise ProfileError(f"grpo.parts: {unknown[0]!r}; use some of {', '.join(REWARDS)}")
    if unknown := [path for path in g.fast if path not in FAST]:
        raise ProfileError(f"grpo.fast: {unknown[0]!r}; use some of {', '.join(FAST)}")
    if g.kl != "off" and not g.beta > 0:
        raise ProfileError(f"grpo.beta: must be above 0 with grpo.kl {g.kl}; or set grpo.kl: off")
    if not g.process_weight >= 0 or (g.process_weight and not g.process_model):
        raise ProfileError("grpo.process_weight: 0 or more, and above 0 with grpo.process_model")
    if g.reward_model == "judge" and not g.endpoints:
        raise ProfileError("grpo.endpoints: a judge needs a YAML file with the section `judge`")
    if g.reward_model == "xcomposer" and "open" in g.parts and not g.trust_remote_code:
        raise ProfileError(
            "grpo.trust_remote_code: xcomposer brings Python code of its own, which would run with "
            "all your rights; read it, then set this to true, or score with a judge"
        )
    if not s.search.exploration >= 0:
        raise ProfileError("search.exploration: 0 or more")
    if not 0 <= g.min_learning_rate <= g.learning_rate:
        raise ProfileError("grpo.min_learning_rate: between 0 and grpo.learning_rate")


def _get(s: Settings, section: str, name: str) -> Any:
    return getattr(getattr(s, section) if section else s, name)


def _check_batches(s: Settings) -> None:
    """Hold the batch sizes to their arithmetic, on one process; `accumulation` knows the others."""
    g = s.grpo
    if g.num_generations < 2:
        raise ProfileError("grpo.num_generations: a group needs at least 2 completions")
    for key, whole, part in (
        ("sft.global_batch", s.sft.global_batch, ("sft.per_device_batch", s.sft.per_device_batch)),
        ("prm.global_batch", s.prm.global_batch, ("prm.per_device_batch", s.prm.per_device_batch)),
        ("grpo.train_batch", g.train_batch, ("grpo.per_device_batch", g.per_device_batch)),
        ("grpo.rollout_prompts x num_generations", g.rollouts, ("grpo.train_batch", g.train_batch)),
    ):
        if whole % part[1]:
            raise ProfileError(f"{key}: {whole} is not a multiple of {part[0]} {part[1]}")


def changes(settings: Settings) -> list[str]:
    """Return KEY=VALUE for each setting that differs from its profile, as `load` reads it back.

    >>> changes(load("smoke", seed=3, **{"sft.learning_rate": 1e-6}))
    ['seed=3', 'sft.learning_rate=1.0e-06']
    """
    usual = dict(_flat(asdict(load(settings.profile))))
    return [
        f"{key}={yaml.safe_dump(value, default_flow_style=True, width=2**20).split(chr(10))[0]}"
        for key, value in _flat(asdict(settings))
        if value != usual[key]
    ]


def table(settings: Settings) -> list[dict[str, Any]]:
    """List every setting as key, value and source, the source being its comment in the YAML."""
    comments: dict[str, str] = {}
    section = ""
    for line in (FOLDER / f"{settings.profile}.yaml").read_text().splitlines():
        if match := re.match(r"( *)(\w+):[^#]*(?:#\s*(.*))?$", line):
            section = "" if not match[1] and match[3] else section
            if not match[1]:
                section = match[2]
            comments[f"{section}.{match[2]}" if match[1] else match[2]] = match[3] or ""
    rows = []
    for name, value in asdict(settings).items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, one in inner.items():
            dotted = f"{name}.{key}" if key else name
            rows.append({"key": dotted, "value": one, "source": comments.get(dotted, "")})
    return rows
