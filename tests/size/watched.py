"""The command line, noting the largest memory of each phase of a GRPO training.

    python -m tests.size.watched FILE.jsonl WORDS OF vlaa_lib

A line is written when a phase ends, so that those before a kill stand: `phase`, and what `held`
says of it.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.timing import begin_peak
from vlaa_lib import folders
from vlaa_lib.__main__ import main

from .three_billion import held


class Watch:
    """The phase that this process is in, and the file that is told when it ends."""

    def __init__(self, file: str | Path):
        self.file, self.phase = Path(file), ""
        self.enter("loading")

    def enter(self, phase: str) -> None:
        if self.phase:
            folders.append_line(self.file, {"phase": self.phase, "held": held(self.start)})
        self.phase, self.start = phase, time.monotonic()
        begin_peak()

    def around(self, kind: type, method: str, within: str, after: str) -> None:
        """Let a method be a phase of its own."""
        own = getattr(kind, method)

        @functools.wraps(own)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.enter(within)
            try:
                return own(*args, **kwargs)
            finally:
                self.enter(after)

        setattr(kind, method, call)


def watched(file: str, words: list[str]) -> int:
    """Run a command of the library; return its exit code."""
    from vlaa_lib.train.trainer import TracingGRPOTrainer as Trainer

    watch = Watch(file)
    watch.around(Trainer, "_generate", "sampling", "scoring")
    watch.around(Trainer, "_generate_and_score_completions", "scoring", "training")
    watch.around(Trainer, "_save_checkpoint", "saving", "training")
    code = main(words)
    watch.enter("")
    return code


if __name__ == "__main__":
    sys.exit(watched(sys.argv[1], sys.argv[2:]))
