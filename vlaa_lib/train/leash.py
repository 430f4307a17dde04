"""A process that dies with its parent; run as a script it puts a command on the leash.

    python leash.py PARENT_PID COMMAND ...

Neither a notebook's kernel killed with -9 nor one that ran out of memory can clean up, so on Linux
the kernel of the operating system does it: `prctl(PR_SET_PDEATHSIG)`. torch's launcher starts each
worker in a session of its own, out of reach of `killpg`, so workers hold the leash as well.
Only the standard library is imported here: the script starts in a few hundredths of a second.
"""

from __future__ import annotations

import os
import signal
import sys

VARIABLE = "VLAA_LEASH"  # process id of the launcher, for its workers
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def hold(parent: int, signal_number: int) -> None:
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


def hold_to_launcher() -> None:
    """Die with the launcher that `launch.run` started; without one, or being it, do nothing."""
    launcher = int(os.environ.get(VARIABLE, os.getpid()))
    if launcher != os.getpid():
        hold(launcher, signal.SIGKILL)


if __name__ == "__main__":
    # a launcher may still end its workers in order, a worker (above) has nothing to tell anyone
    hold(int(sys.argv[1]), signal.SIGTERM)
    os.environ[VARIABLE] = str(os.getpid())  # exec keeps both the number and the leash
    os.execvp(sys.argv[2], sys.argv[2:])
