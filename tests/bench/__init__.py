"""Benchmarks: ours beside a named peer, in one run, as medians and ratios."""

from collections.abc import Callable
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

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

_FROM_ZERO = ("seed", "latency_s")

__all__ = ["BENCHMARKS", "arguments", *BENCHMARKS]


def arguments(name: str, pairs: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE as arguments of a benchmark, lists as in YAML, numbers above zero.

    Raises:
        ValueError: it has no such argument, or the argument no such value.

    >>> arguments("grpo", ["prompts=4", "generations=8", "sides=[112, 224]"])
    {'prompts': 4, 'generations': [8], 'sides': [112, 224]}
    """
    known = get_type_hints(BENCHMARKS[name])
    known.pop("return", None)
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            raise ValueError(f"{pair!r}: bench {name} reads {', '.join(known)}, as KEY=VALUE")
        try:
            found[key] = _read(known[key], value)
        except (TypeError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"bench {name}: {pair!r}: {error}") from error
        values = found[key] if isinstance(found[key], list) else [found[key]]
        numbers = [one for one in values if isinstance(one, (int, float))]
        if not all(one > 0 or (one == 0 and key in _FROM_ZERO) for one in numbers):
            raise ValueError(f"bench {name}: {pair!r}: give a number above zero")
    return found


def _read(hint: Any, text: str) -> Any:
    kind, *rest = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if rest and text == "null":
        return None
    given = yaml.load(text, yaml.BaseLoader)  # keeps all as text: 01 is a notebook's name
    if get_origin(kind) is not list:
        return kind(given)
    if given in ("", []) and not rest:
        raise ValueError("give at least one")
    return [get_args(kind)[0](one) for one in (given if isinstance(given, list) else [given])]
