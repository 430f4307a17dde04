"""Measure speed beside a named peer; print its tables, and write all that was found to a file.

    python -m tests.bench NAME [--set KEY=VALUE ...] [--out FILE.json]

NAME is construct, evaluate, grpo or rewards; a value is written as in YAML: `generations=[4, 8]`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import yaml

from vlaa_lib import VlaaError, folders
from vlaa_lib.tables import text_table

NAMES = ("construct", "evaluate", "grpo", "rewards")


def benchmark(name: str) -> Callable[..., dict[str, Any]]:
    """Return a benchmark, the function that its module is named after."""
    return getattr(import_module(f"tests.bench.{name}"), name)


def arguments(name: str, pairs: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE as arguments of a benchmark; a list may be given as its one value.

    >>> arguments("grpo", ["prompts=4", "generations=8", "sides=[112, 224]"])
    {'prompts': 4, 'generations': [8], 'sides': [112, 224]}
    """
    known, found = inspect.signature(benchmark(name)).parameters, {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in known:
            raise VlaaError(f"{pair!r}: {name} reads {', '.join(known)}, as KEY=VALUE")
        value = yaml.safe_load(text)
        is_list = str(known[key].annotation).startswith("list")
        found[key] = [value] if is_list and not isinstance(value, list | None) else value
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.bench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. repeats=5")
    parser.add_argument("--out", metavar="FILE.json", help="file for all that was found")
    args = parser.parse_args(argv)
    try:
        found = benchmark(args.name)(**arguments(args.name, args.set))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for rows in [v for v in found.values() if v and isinstance(v, list)] or [[found]]:
        print(text_table(rows))
    if args.out:
        folders.write_text(args.out, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
