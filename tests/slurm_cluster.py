"""A Slurm cluster of two nodes on this machine, seen by nobody else: Debian's packages, as root.

`unshare` gives it a network of its own (loopback only), names of its own for its nodes, and process
numbers of its own: what was started in it ends with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "ip")
PACKAGES = "slurmctld slurmd slurm-client munge iproute2"
NODES = ("n1", "n2")
# an address of its own: with loopback alone getaddrinfo has no IPv4 to give (AI_ADDRCONFIG)
ADDRESS = "10.99.0.1"
CONF = """\
ClusterName=test
SlurmctldHost=n1
SlurmctldPort=6817
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
ReturnToService=2
KillWait=5
MpiDefault=none
NodeName=n1 NodeHostname=n1 NodeAddr={address} Port=17001 CPUs=1
NodeName=n2 NodeHostname=n1 NodeAddr={address} Port=17002 CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
# the first process inside: sets the stage, then sleeps; all else is started beside it
STAGE = """\
set -e
ip link set lo up
ip addr add {address}/32 dev lo
mount --bind {home}/hosts /etc/hosts
hostname n1
munged --force --socket={home}/munge.socket --key-file={home}/munge.key \
  --pid-file={home}/munged.pid --log-file={home}/munged.log --seed-file={home}/munge.seed
slurmctld -f {home}/slurm.conf
slurmd -f {home}/slurm.conf -N n1
slurmd -f {home}/slurm.conf -N n2
touch {home}/started
exec sleep infinity
"""


def missing() -> str:
    """Say what this machine lacks; nothing where it lacks nothing."""
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    if os.geteuid():
        return "Slurm's nodes are started as root"
    return f"no {', '.join(lacking)}: apt-get install {PACKAGES}" if lacking else ""


class Cluster:
    """Runs commands inside."""

    def __init__(self, home: Path, pid: int):
        self.home, self.pid = home, pid

    def run(self, *words: object, check: bool = True) -> str:
        inside = ["nsenter", "--target", str(self.pid), "--mount", "--net", "--pid", "--uts"]
        done = subprocess.run(
            [*inside, *map(str, words)], capture_output=True, text=True, timeout=60,
            env=os.environ | {"SLURM_CONF": str(self.home / "slurm.conf")},
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{words}: {done.stderr} {self.logs()}")
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return a job's state: PENDING, RUNNING, COMPLETED, FAILED..."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return next(w for w in shown.split() if w.startswith("JobState=")).partition("=")[2]

    def processes(self, *wanted: str) -> list[int]:
        """Return processes inside whose environment has all of these NAME=VALUE (outer numbers)."""
        found, here = [], os.readlink(f"/proc/{self.pid}/ns/pid_for_children")
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended
                if os.readlink(folder / "ns/pid") == here:
                    held = (folder / "environ").read_bytes().split(b"\0")
                    if all(pair.encode() in held for pair in wanted):
                        found.append(int(folder.name))
        return sorted(found)

    def logs(self) -> str:
        given = {"encoding": "utf-8", "errors": "replace"}
        found = {path.name: path.read_text(**given) for path in self.home.glob("*.log")}
        return "\n".join(f"{name}: {text[-1500:]}" for name, text in found.items())


@contextmanager
def cluster(home: Path) -> Iterator[Cluster]:
    """Start the two nodes; at the end nothing is left of them."""
    given = {"home": home, "address": ADDRESS}
    (home / "state").mkdir()
    (home / "slurm.conf").write_text(CONF.format(**given), encoding="utf-8")
    (home / "stage.sh").write_text(STAGE.format(**given), encoding="utf-8")
    names = f"127.0.0.1 localhost\n{ADDRESS} {' '.join(NODES)}\n"
    (home / "hosts").write_text(names, encoding="utf-8")
    (home / "munge.key").write_bytes(os.urandom(1024))
    (home / "munge.key").chmod(0o400)
    words = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc",
             "--kill-child", "bash", str(home / "stage.sh")]  # fmt: skip
    with (home / "stage.log").open("wb") as log:
        outer = subprocess.Popen(words, stdout=log, stderr=log, cwd="/")
        try:
            deadline = time.monotonic() + 60
            while not (home / "started").exists():
                if outer.poll() is not None or time.monotonic() > deadline:
                    said = "\n".join(p.read_text(encoding="utf-8") for p in home.glob("*.log"))
                    raise RuntimeError(f"Slurm does not start: {said[-3000:]}")
                time.sleep(0.1)
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            yield Cluster(home, int(children.read_text(encoding="utf-8").split()[0]))
        finally:
            outer.kill()  # the first process inside dies with it, and with that all others
            outer.wait()
