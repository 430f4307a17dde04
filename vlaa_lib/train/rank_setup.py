"""One of a launch's processes: it dies with its launcher, tells events, and says what ended it.

    python rank_setup.py PARENT_PID COMMAND ...

runs a command that ends when its parent does. Neither a notebook's kernel killed with -9 nor one
that ran out of memory can clean up, so on Linux the kernel of the operating system does it:
`prctl(PR_SET_PDEATHSIG)`. torch's launcher starts each worker in a session of its own, out of reach
of `killpg`, so workers ask for the same. Only the standard library is imported here: the script
starts in a few hundredths of a second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EVENTS = "VLAA_EVENTS"  # set: print events
LAUNCHER = "VLAA_LAUNCHER"  # process id of the launcher, for its workers
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with(parent: int, signal_number: int) -> None:
    """Ask for a signal when the parent is gone (Linux; elsewhere this does nothing).

    Raises:
        SystemExit: it is gone already.
    """
    if sys.platform != "linux":
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal_number):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the call, which then says nothing
        raise SystemExit(f"process {parent}, which started this one, is gone")


def die_with_launcher() -> None:
    """Die with the launcher that `launch.run` started; without one, or being it, do nothing."""
    launcher = int(os.environ.get(LAUNCHER, os.getpid()))
    if launcher != os.getpid():
        die_with(launcher, signal.SIGKILL)


def emit(event: str, **values: Any) -> None:
    """Print one event as one line of JSON, if whoever started this process wants events."""
    if os.environ.get(EVENTS):
        # one write, which the lines of other processes cannot split
        sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
        sys.stdout.flush()


def rank() -> int:
    """Return this process's number in its launch; 0 outside one."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def joined() -> Iterator[None]:
    """Run the body as one of a launch's processes; outside a launch, just run it."""
    die_with_launcher()
    try:
        yield
    except Exception as error:
        said = {"type": type(error).__name__, "message": str(error)}
        emit("error", rank=rank(), **said, traceback=traceback.format_exc())
        raise


if __name__ == "__main__":
    # a launcher may still end its workers in order; a worker (above) has nothing to tell anyone
    die_with(int(sys.argv[1]), signal.SIGTERM)
    os.environ[LAUNCHER] = str(os.getpid())  # exec keeps the number, and the request
    os.execvp(sys.argv[2], sys.argv[2:])
