"""Fixtures, and the network block: a test may talk to this machine and to nobody else."""

import ipaddress
import os
import socket
from dataclasses import replace

# before torch is imported anywhere: two cores are shared with the workers
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

# an example's time depends on what else the machine does; the limits on time are tests of their own
settings.register_profile("house", deadline=None)
settings.load_profile("house")


def _refuse_the_network(connect):
    """Wrap a connecting method of sockets so that it reaches loopback and Unix sockets only."""

    def guarded(self, address, *args):
        host = address[0] if isinstance(address, tuple) else ""
        if self.family != getattr(socket, "AF_UNIX", None) and not _is_loopback(host):
            raise RuntimeError(f"a test reaches for the network: {address!r}; use loopback")
        return connect(self, address, *args)

    return guarded


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


for _method in ("connect", "connect_ex"):
    setattr(socket.socket, _method, _refuse_the_network(getattr(socket.socket, _method)))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """An untrained pocket VLM, small enough that two training steps take a second."""
    from vlaa_lib.pocket import recipe as pocket

    recipe = pocket.Recipe(
        hidden=64, layers=2, vision_hidden=64, vision_layers=1, vocabulary=512
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    processor = pocket.build_processor(recipe)
    model = pocket.build_model(recipe, processor.tokenizer)
    pocket.save("instruct", model, processor, folder, recipe, log=[])
    return folder


@pytest.fixture(scope="session")
def micro_data(tmp_path_factory):
    """A folder with two records of each micro source (below `images`), and the records."""
    from vlaa_lib.pocket import microworld

    folder = tmp_path_factory.mktemp("micro")
    return folder, microworld.write_split(folder, list(microworld.SOURCES), "dev", 2)


@pytest.fixture(scope="module")
def world(request, tmp_path_factory):
    """Micro-world records of five sources, `PER_SOURCE` of the file or 4, and their image root."""
    from vlaa_lib.pocket import microworld

    path = tmp_path_factory.mktemp("world")
    sources = ["solids", "panel", "plot", "locate", "describe"]
    count = getattr(request.module, "PER_SOURCE", 4)
    return microworld.write_split(path, sources, "train", count, seed=3), path / "images"


@pytest.fixture
def one(world):
    """A counting record without a caption, in a list, and the image root."""
    items, images = world
    return [replace(items[0], solution="3", gt="3")], images


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """Run all notebooks at the smoke profile, once for all tests; return the run's folder."""
    from filelock import FileLock

    from vlaa_lib.study import run

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers: the first one runs them, the others wait
    home = root / "smoke" / "run"
    home.parent.mkdir(exist_ok=True)
    with FileLock(home.parent / "lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # the kernels are beyond this process's block
        if not (home / "report.html").is_file():
            assert run.run("smoke", run_dir=home) == 0
    return home
