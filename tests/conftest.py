"""Fixtures that every folder of tests may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_project import write_project

from edgeopt.atomic import locked
from edgeopt.devices import compiler
from edgeopt.devices.board_image import BoardImage
from edgeopt.devices.board_image import set_up as set_up_boards
from edgeopt.devices.compiler import Compiler
from edgeopt.devices.debian import PrivateApt
from edgeopt.devices.qemu import Emulation, set_up

# Threads that spin while they wait take the cores from the tests beside them; OpenMP reads it when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what shares expensive fixtures on one worker of pytest-xdist: a file, or the folder of trained networks."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder == "networks" else str(item.path)))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a tiny recipe, its network and its samples; nothing is built."""
    return write_project(tmp_path / "project")


@pytest.fixture(scope="session")
def device_cache(pytestconfig: pytest.Config) -> Path:
    """A folder that outlives the run, so that packages are fetched once on each machine."""
    return Path(pytestconfig.cache.mkdir("edgeopt-devices"))


@pytest.fixture(scope="session")
def emulation(device_cache: Path) -> Iterator[Emulation]:
    """The aarch64 emulation, set up as `edgeopt device setup qemu` does it; commands find it by XDG_CACHE_HOME."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(device_cache))
    with locked(device_cache / ".emulation.lock"):
        emulation = set_up()
    yield emulation
    patch.undo()


@pytest.fixture(scope="session")
def cross_compiler(emulation: Emulation) -> Compiler:
    """A C compiler for aarch64, set up as `edgeopt device setup compiler` does it, beside the emulation."""
    return compiler.set_up()


@pytest.fixture(scope="session")
def unpacked(device_cache: Path) -> Callable[[str], Path]:
    """Unpack a Debian package and all that it needs, without installing it; return the folder."""

    def unpack(package: str) -> Path:
        root = device_cache / package
        done = device_cache / f"{package}.done"
        with locked(device_cache / ".debian.lock"):
            if not done.exists():
                apt = PrivateApt(device_cache / "apt", [])
                apt.update()
                apt.install([package], root)
                done.touch()
        return root

    return unpack


@pytest.fixture(scope="session")
def fashion_mnist(unpacked: Callable[[str], Path]) -> Path:
    """The folder of Fashion-MNIST's four files, as Debian's package has them."""
    return unpacked("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"


@pytest.fixture(scope="session")
def boards(emulation: Emulation) -> BoardImage:
    """What emulated boards are started from, set up as `edgeopt device setup board` does it."""
    return set_up_boards()
