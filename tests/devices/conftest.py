"""A small bundle and a real ssh server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ssh_server import Server, running_server
from tiny_project import edgeopt_run, write_project


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An arm64 bundle of the tiny network."""
    folder = write_project(tmp_path_factory.mktemp("device") / "project")
    done = edgeopt_run(folder, "build", "--target", "arm64")
    assert done.returncode == 0, done.stderr
    return folder / "build" / "edgeopt" / "arm64"


@pytest.fixture
def server(unpacked: Callable[[str], Path], tmp_path: Path) -> Iterator[Server]:
    """A running server of this test's own."""
    with running_server(unpacked("openssh-server"), tmp_path / "ssh") as running:
        yield running
