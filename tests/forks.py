"""Runs command lines, one a line of standard input, each in a fork: what is slow is loaded once.

It says when it is ready. A line is JSON: `words`, the `log` for what is printed, and, for a disk of
its own, `disk`: an empty folder that becomes a tmpfs of `kib` for that process alone, read-only
with `ro`. What `held` holds is put on the disk first, and `held` has what is on the disk at the
end. The child's process id is printed when it starts, its wait status when it has ended; its exit
code is 77 where disks may not be mounted.
"""

import ctypes
import json
import os
import shutil
import sys

RDONLY, REMOUNT, REC, PRIVATE, NEWNS = 1, 32, 1 << 14, 1 << 18, 0x20000
NO_MOUNT = 77


def mounted(place: str, options: str = "", flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # a new disk, seen by this process alone
    if not flags and (libc.unshare(NEWNS) or libc.mount(b"none", b"/", None, REC | PRIVATE, None)):
        os._exit(NO_MOUNT)
    if libc.mount(b"none", place.encode(), b"tmpfs", flags, options.encode()):
        os._exit(NO_MOUNT)


def run(given: dict) -> int:
    from vlaa_lib.__main__ import main
    from vlaa_lib.llm import client

    if "disk" in given:
        mounted(given["disk"], f"size={given['kib']}k")
        shutil.copytree(given["held"], given["disk"], dirs_exist_ok=True)
        client.FREE_BYTES = 0  # else it stops in time, which has a test of its own
        if given.get("ro"):
            mounted(given["disk"], f"size={given['kib']}k", REMOUNT | RDONLY)
    with open(given["log"], "w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            code = main(given["words"])
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
    if "disk" in given and not given.get("ro"):
        shutil.rmtree(given["held"])
        shutil.copytree(given["disk"], given["held"])
    return code


if __name__ == "__main__":
    import datasets, peft, torch, transformers, trl  # noqa: E401, F401, I001 - loaded for the forks
    from trl import GRPOTrainer, SFTTrainer  # noqa: F401

    from vlaa_lib import construct, evaluate, models, pocket, process, train  # noqa: F401
    from vlaa_lib.study import curation, run as driver  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        if not (child := os.fork()):
            os._exit(run(json.loads(line)))
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
