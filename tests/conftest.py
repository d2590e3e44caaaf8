"""Fixtures that every folder of tests may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_project import write_project

from edgeopt.devices.debian import PrivateApt
from edgeopt.devices.qemu import Emulation, set_up


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
    yield set_up()
    patch.undo()


@pytest.fixture(scope="session")
def unpacked(device_cache: Path) -> Callable[[str], Path]:
    """Unpack a Debian package and all that it needs, without installing it; return the folder."""

    def unpack(package: str) -> Path:
        root = device_cache / package
        done = device_cache / f"{package}.done"
        if not done.exists():
            apt = PrivateApt(device_cache / "apt", [])
            apt.update()
            apt.install([package], root)
            done.touch()
        return root

    return unpack
