"""What every folder of results needs: who made it, on what."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT

PACKAGES = ("accelerate", "datasets", "math-verify", "numpy", "papermill", "peft", "pillow",
            "plotly", "torch", "transformers", "trl")  # what results can depend on


def provenance() -> dict[str, Any]:
    """Return machine, versions, commit and dirty flag, the last two None outside git."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": commit,
        "dirty": bool(changes) if commit else None,
    }


@cache
def machine() -> str:
    """Describe this machine in a line: system, processor, cores we may use, memory, GPUs."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = found[1] if found else model
    usable = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(usable(0)) if usable else os.cpu_count()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    query = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    gpus = _output(*query) if shutil.which(query[0]) else None
    shown = gpus.replace("\n", "; ") if gpus else "no GPU"
    return f"{platform.system()}, {model}, {cores} cores, {memory_gib:.0f} GiB, {shown}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Ask git about this repository; None where it is none, or lies inside another one."""
    return _output("git", "-C", str(ROOT), *arguments) if (ROOT / ".git").exists() else None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
