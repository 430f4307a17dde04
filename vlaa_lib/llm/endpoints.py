"""Who answers each step: endpoint, model, settings and price, from defaults or a YAML file."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, ValidationError
from pydantic.dataclasses import dataclass

from vlaa_lib import VlaaError, folders

from .transport import is_loopback, shown_address

# ours: the paper states none; greedy but for the reasoner, whose values are DeepSeek-R1's advice
SETTINGS: dict[str, dict[str, Any]] = {
    "caption": {"temperature": 0.0, "max_tokens": 2048},
    "distil": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 16384},
    "rewrite": {"temperature": 0.0, "max_tokens": 16384},
    "verify": {"temperature": 0.0, "max_tokens": 16},
}
# arguments of a chat completion that are not the user's
OURS = {"self", "messages", "model", "stream", "stream_options", "n", "timeout", "tools",
        "functions", "extra_headers", "extra_query"}  # fmt: skip


@dataclass(frozen=True, config={"extra": "forbid"})
class Endpoint:
    """A model behind an OpenAI-compatible address.

    Attributes:
        base_url: empty for the one given to the run.
        api_key_env: the environment variable that holds the key. Empty: `OPENAI_API_KEY`, but no
            key at all for an address on this machine.
        price: US dollars a million tokens, prompt and completion; without one, cost counts as 0.
        settings: arguments of `chat.completions.create`; part of the ledger's key.
    """

    model: str
    base_url: str = ""
    api_key_env: str = ""
    price: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 0.0)
    settings: dict[str, Any] = field(default_factory=dict)

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """In US dollars."""
        return (prompt_tokens * self.price[0] + completion_tokens * self.price[1]) / 1e6

    def key(self, base_url: str) -> str:
        """Return the API key for an address; it is read from the environment only."""
        if not self.api_key_env and is_loopback(base_url):
            return "none"
        name = self.api_key_env or "OPENAI_API_KEY"
        # whoever put the key itself there must not read it in an error
        shown = name if re.fullmatch("[A-Z][A-Z0-9_]{0,40}", name) else "that api_key_env names"
        key = os.environ.get(name, "").strip()  # what was read from a file ends in a line break
        if not re.fullmatch("[!-~]+", key):
            why = "holds what no header can: copy the key again" if key else "is not set: set it"
            place = shown_address(base_url)
            raise VlaaError(f"no key for {place}: the environment variable {shown} {why}")
        return key


# the local teacher's; real ones: paper §2 names GPT-4o, DeepSeek-R1 and GPT-3.5-turbo
ENDPOINTS = {name: Endpoint(f"teacher-{name}", settings=given) for name, given in SETTINGS.items()}


def read_endpoints(
    path: str | Path, known: Mapping[str, Endpoint] = ENDPOINTS
) -> dict[str, Endpoint]:
    """Read endpoints by step from a YAML file; what a step leaves out keeps its default.

    Args:
        known: the sections that there may be; `settings` replace their defaults as a whole.
    Raises:
        VlaaError: names file, section, key and what to write instead.
    """
    from openai.resources.chat.completions import AsyncCompletions

    given = folders.read_yaml(path)
    settable = inspect.signature(AsyncCompletions.create).parameters.keys() - OURS
    found = dict(known)
    for name, values in given.items():
        if name not in known:
            raise VlaaError(f"{path}: {name!r} is no step; use {', '.join(known)}")
        if not isinstance(values, dict):
            raise VlaaError(f"{path}: {name}: expected a section with at least 'model'")
        try:
            found[name] = Endpoint(**{"settings": known[name].settings} | values)
        except ValidationError as errors:
            wrong = errors.errors()[0]
            where = ".".join(map(str, (name, *wrong["loc"])))
            raise VlaaError(
                f"{path}: {where}: {wrong['msg']}; a section has model, base_url, api_key_env, "
                "price: [prompt, completion] in dollars a million tokens, and settings"
            ) from None
        # the client would stumble over these at each call
        if unknown := sorted(found[name].settings.keys() - settable):
            raise VlaaError(
                f"{path}: {name}.settings.{unknown[0]}: no setting of the client, or not to be set "
                "here; put what only your server knows under extra_body"
            )
    return found
