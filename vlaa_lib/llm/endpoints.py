"""Who answers each step: endpoint, model, settings and price, from defaults or a YAML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# ours: the paper states none; greedy but for the reasoner, whose values are DeepSeek-R1's advice
SETTINGS: dict[str, dict[str, Any]] = {
    "caption": {"temperature": 0.0, "max_tokens": 2048},
    "distil": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 16384},
    "rewrite": {"temperature": 0.0, "max_tokens": 16384},
    "verify": {"temperature": 0.0, "max_tokens": 16},
}


class EndpointError(ValueError):
    """An endpoint that cannot be used as described; the message says what to write instead."""


@dataclass(frozen=True)
class Endpoint:
    """One step's teacher.

    Attributes:
        base_url: an OpenAI-compatible address; empty for the one given to the run.
        api_key_env: the environment variable that holds the key. Empty: `OPENAI_API_KEY`, but no
            key at all for an address on this machine.
        price: US dollars a million tokens, prompt and completion; without one, cost counts as 0.
        settings: arguments of `chat.completions.create`; part of the ledger's key.
    """

    model: str
    base_url: str = ""
    api_key_env: str = ""
    price: tuple[float, float] = (0.0, 0.0)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return US dollars."""
        return (prompt_tokens * self.price[0] + completion_tokens * self.price[1]) / 1e6

    def key(self, base_url: str) -> str:
        """Return the API key for an address, from the environment only.

        Raises:
            EndpointError: the variable is not set.
        """
        if not self.api_key_env and urlsplit(base_url).hostname in ("127.0.0.1", "localhost"):
            return "none"
        name = self.api_key_env or "OPENAI_API_KEY"
        if not os.environ.get(name):
            raise EndpointError(f"no key for {base_url}: set the environment variable {name}")
        return os.environ[name]


# the local teacher's; real ones: paper §2 names GPT-4o, DeepSeek-R1 and GPT-3.5-turbo
ENDPOINTS = {name: Endpoint(f"teacher-{name}", settings=given) for name, given in SETTINGS.items()}


def read_endpoints(
    path: str | Path, known: Mapping[str, Endpoint] = ENDPOINTS
) -> dict[str, Endpoint]:
    """Read endpoints by step from a YAML file; what a step leaves out keeps its default.

    `settings` replace a step's defaults as a whole.

    Args:
        known: the sections that there may be, with their defaults.

    Raises:
        EndpointError: no such file, not YAML, an unknown step or key, or a value of a wrong type.
    """
    import yaml

    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EndpointError(f"{path}: cannot be read as YAML ({error})") from None
    if not isinstance(given, dict):
        raise EndpointError(f"{path}: expected a section for each of {', '.join(known)}")
    found = {name: _endpoint(name, values, path, known) for name, values in given.items()}
    return dict(known) | found


_TYPES = {"model": str, "base_url": str, "api_key_env": str, "price": list, "settings": dict}


def _endpoint(
    name: str, values: Any, path: str | Path, known: Mapping[str, Endpoint]
) -> Endpoint:
    if name not in known:
        raise EndpointError(f"{path}: {name!r} is no step; use {', '.join(known)}")
    if not isinstance(values, dict) or "model" not in values:
        raise EndpointError(f"{path}: {name}: expected a section with at least 'model'")
    for key, value in values.items():
        if key not in _TYPES:
            known = ", ".join(f.name for f in fields(Endpoint))
            raise EndpointError(f"{path}: {name}.{key}: unknown key; known are {known}")
        if not isinstance(value, _TYPES[key]):
            said = f"is {type(value).__name__}, expected {_TYPES[key].__name__}"
            raise EndpointError(f"{path}: {name}.{key} {said}")
    price = values.get("price", [0.0, 0.0])
    if len(price) != 2 or not all(isinstance(p, (int, float)) and p >= 0 for p in price):
        raise EndpointError(f"{path}: {name}.price: expected [prompt, completion], in dollars")
    _check_settings(values.get("settings", {}), f"{path}: {name}.settings")
    return Endpoint(**{"settings": known[name].settings} | values | {"price": tuple(price)})


# arguments of the client's `create` that are not a model's settings, or that we set ourselves
_NOT_SETTINGS = {
    *("self", "messages", "model", "stream", "stream_options", "n", "timeout"),
    *("extra_headers", "extra_query", "functions", "tools"),
}


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    import inspect

    from openai.resources.chat.completions import AsyncCompletions

    known = inspect.signature(AsyncCompletions.create).parameters.keys() - _NOT_SETTINGS
    for key in settings:
        if key in _NOT_SETTINGS:
            raise EndpointError(f"{where}.{key}: not to be set here")
        if key not in known:
            raise EndpointError(
                f"{where}.{key}: the client knows no such setting; put what only "
                "your server knows under extra_body"
            )
