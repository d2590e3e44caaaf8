"""A small bundle, the emulation and a real ssh server; each is made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_server import Server, running_server
from tiny_project import edgeopt_run, write_project

from edgeopt.devices.debian import PrivateApt
from edgeopt.devices.qemu import Emulation, set_up


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
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An arm64 bundle of the tiny network."""
    folder = write_project(tmp_path_factory.mktemp("device") / "project")
    done = edgeopt_run(folder, "build", "--target", "arm64")
    assert done.returncode == 0, done.stderr
    return folder / "build" / "edgeopt" / "arm64"


@pytest.fixture(scope="session")
def sshd(device_cache: Path) -> Path:
    """The unpacked Debian package of OpenSSH's server."""
    root = device_cache / "sshd" / "root"
    if not (root / "usr/sbin/sshd").is_file():
        apt = PrivateApt(device_cache / "sshd" / "apt", [])
        apt.update()
        apt.install(["openssh-server"], root)
    return root


@pytest.fixture
def server(sshd: Path, tmp_path: Path) -> Iterator[Server]:
    """A running server of this test's own."""
    with running_server(sshd, tmp_path / "ssh") as running:
        yield running
