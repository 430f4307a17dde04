"""A runnable reproduction of VLAA-Thinking: SFT, GRPO with a mixed reward, traces.

Importing this package is cheap: torch and transformers load with the modules that need them.
"""

import importlib
import logging
import os
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# notebooks run with their own folder as the current one: data/ and runs/ are found from here
ROOT = Path(__file__).resolve().parents[1]

# threads of torch that wait for each other soon sleep: beside one busy process two that spin, as is
# libgomp's default, take 8 times their idle time (data/results/LOG.md). Read once, when torch loads
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# 4-bit on a CPU: said in every process that imports bitsandbytes, and the package that it names
# makes it only faster. Here, since transformers may import it before any other module of ours.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda message: "gemm_4bit_forward" not in message.msg
)


class VlaaError(ValueError):
    """Input that cannot be used: the message says where, why, and what to do."""


class Halted(RuntimeError):
    """Work that cannot go on: the message says why, and what to do; the command line prints it."""


def __getattr__(name: str) -> Any:
    """Return the micro-world by the name that it had before it moved, which other code uses."""
    if name == "microworld":
        return importlib.import_module("vlaa_lib.pocket.microworld")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
