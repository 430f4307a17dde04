"""Benchmarks: ours beside a named peer, in one run, as medians and ratios."""

from collections.abc import Callable
from typing import Any

from .construct import construct
from .estimate import estimate
from .evaluate import evaluate
from .grpo import grpo
from .notebooks import notebooks
from .rewards import rewards
from .sft import sft

BENCHMARKS: dict[str, Callable[..., dict[str, Any]]] = {
    "construct": construct,
    "estimate": estimate,
    "evaluate": evaluate,
    "grpo": grpo,
    "notebooks": notebooks,
    "rewards": rewards,
    "sft": sft,
}

__all__ = ["BENCHMARKS", "arguments", *BENCHMARKS]


def arguments(name: str, pairs: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE (YAML) as arguments of a benchmark.

    Raises:
        ValueError: it has no such argument, or the text is no KEY=VALUE.

    >>> arguments("grpo", ["prompts=4", "generations=8", "sides=[112, 224]"])
    {'prompts': 4, 'generations': [8], 'sides': [112, 224]}
    """
    import inspect

    import yaml

    known = inspect.signature(BENCHMARKS[name]).parameters
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            raise ValueError(f"{pair!r}: bench {name} reads {', '.join(known)}, as KEY=VALUE")
        read = yaml.safe_load(value)
        many = str(known[key].annotation).startswith("list")
        found[key] = [read] if many and not isinstance(read, list | None) else read
    return found
