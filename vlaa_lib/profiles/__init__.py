"""Profiles: one dial for size. YAML files beside this one, read into typed, frozen settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

FOLDER = Path(__file__).parent
MODES = ("full", "lora", "4bit")


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
    logging_steps: int


@dataclass(frozen=True)
class Grpo:
    mode: str
    steps: int
    prompts_per_step: int
    num_generations: int
    temperature: float
    max_completion_tokens: int
    per_device_batch: int
    steps_per_generation: int
    learning_rate: float
    min_learning_rate: float
    warmup: float
    beta: float
    epsilon: float
    loss_type: str


@dataclass(frozen=True)
class Evaluate:
    batch: int
    max_new_tokens: int
    bootstrap: int


@dataclass(frozen=True)
class Settings:
    """Everything a profile decides; each value's source stands beside it in the YAML file."""

    profile: str
    seed: int
    model: Model
    data: Data
    teacher: Teacher
    sft: Sft
    grpo: Grpo
    evaluate: Evaluate


def load(profile: str, **overrides: Any) -> Settings:
    """Read a profile and apply overrides: `**{"grpo.steps": 5}`, or nested, `grpo={"steps": 5}`.

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


def _check(s: Settings) -> None:
    """Refuse settings that cannot work together."""
    completions = s.grpo.prompts_per_step * s.grpo.num_generations
    positive = {
        "model": ("min_pixels",),
        "data": (
            "construct_per_source",
            "scored_per_source",
            "rl_per_source",
            "eval_per_source",
            "bench_rows",
        ),
        "teacher": ("concurrency",),
        "sft": ("epochs", "global_batch", "per_device_batch", "learning_rate", "logging_steps"),
        "grpo": ("steps", "prompts_per_step", "temperature", "max_completion_tokens",
                 "per_device_batch", "steps_per_generation", "learning_rate"),
        "evaluate": ("batch", "max_new_tokens", "bootstrap"),
    }  # fmt: skip
    for section, keys in positive.items():
        for key in keys:
            value = getattr(getattr(s, section), key)
            if not value > 0:  # also true of NaN
                raise ProfileError(f"{section}.{key}: {value} must be above 0")
    if not s.data.sources:
        raise ProfileError("data.sources: name at least one source")
    for key in ("omit", "confuse", "miscount", "hesitate", "waver"):
        if not 0 <= getattr(s.teacher, key) <= 1:
            raise ProfileError(f"teacher.{key}: a rate between 0 and 1")
    if s.grpo.num_generations < 2:
        raise ProfileError("grpo.num_generations: a group needs at least 2 completions")
    if s.sft.global_batch % s.sft.per_device_batch:
        raise ProfileError("sft.global_batch: must be a multiple of sft.per_device_batch")
    if completions % s.grpo.per_device_batch:
        raise ProfileError(
            f"grpo.per_device_batch: {completions} completions an optimizer step "
            f"(prompts_per_step x num_generations) must be a multiple of it"
        )
    if s.model.min_pixels > s.model.max_pixels:
        raise ProfileError("model.min_pixels: above model.max_pixels")
    for key, mode in (("sft.mode", s.sft.mode), ("grpo.mode", s.grpo.mode)):
        if mode not in MODES:
            raise ProfileError(f"{key}: {mode!r}; use one of {', '.join(MODES)}")


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
