"""Progress of a training as lines of JSON on standard output, for whoever started the process."""

from __future__ import annotations

import json
import os
import sys
from functools import cache
from typing import Any

VARIABLE = "VLAA_EVENTS"  # set: print events


def emit(event: str, **values: Any) -> None:
    """Print one event as one line, if events are wanted."""
    if os.environ.get(VARIABLE):
        # one write, which the lines of other processes cannot split
        sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
        sys.stdout.flush()


def read(line: str) -> dict[str, Any] | None:
    r"""Return the event at the end of a line, or None; a progress bar may stand before it.

    >>> read('  3%|#  | 1/49\r{"event": "step", "step": 1, "of": 49}')
    {'event': 'step', 'step': 1, 'of': 49}
    >>> read('{"event": "cut short')
    """
    start = line.find('{"event": ')
    try:
        return json.loads(line[start:]) if start >= 0 else None
    except ValueError:
        return None


def callbacks() -> list[Any]:
    """Return what a trainer needs as `callbacks` to print its events."""
    return [_callback()()] if os.environ.get(VARIABLE) else []


@cache
def _callback() -> type:
    """Return the callback's class; made on first use, since transformers takes seconds."""
    from transformers import TrainerCallback

    class Events(TrainerCallback):
        """Prints a line at the start, at each log, each checkpoint and the end; rank 0 only."""

        def _say(self, event: str, state: Any, **values: Any) -> None:
            if state.is_world_process_zero:
                emit(event, step=state.global_step, of=state.max_steps, **values)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._say("start", state)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            self._say("step", state, **(logs or {}))

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._say("save", state, folder=f"{args.output_dir}/checkpoint-{state.global_step}")

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._say("end", state)

    return Events
