"""A runnable reproduction of VLAA-Thinking: SFT, GRPO with a mixed reward, traces.

Importing this package is cheap: torch and transformers load with the modules that need them.
"""

from pathlib import Path

__version__ = "0.1.0"

# notebooks run with their own folder as the current one: data/ and runs/ are found from here
ROOT = Path(__file__).resolve().parents[1]


class Halted(RuntimeError):
    """Work that cannot go on: the message says why, and what to do; the command line prints it."""
