"""A small bundle and a real ssh server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adb_board import AdbBoard, running_adb_board
from ssh_server import Server, running_server
from tiny_project import ROOT, edgeopt_run, write_project

from edgeopt.atomic import locked
from edgeopt.devices.board_image import BoardImage
from edgeopt.devices.debian import PrivateApt
from edgeopt.devices.qemu import Emulation


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An arm64 bundle of the tiny network."""
    folder = write_project(tmp_path_factory.mktemp("device") / "project")
    done = edgeopt_run(folder, "build", "--target", "arm64")
    assert done.returncode == 0, done.stderr
    return folder / "build" / "edgeopt" / "arm64"


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be changed."""
    return Path(shutil.copytree(bundle, tmp_path / "changed"))


@pytest.fixture
def server(unpacked: Callable[[str], Path], tmp_path: Path) -> Iterator[Server]:
    """A running server of this test's own."""
    with running_server(unpacked("openssh-server"), tmp_path / "ssh") as running:
        yield running


@pytest.fixture(scope="session")
def runner_in_c(
    emulation: Emulation, unpacked: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`run_parity` for aarch64, made from the sources in bundles by Debian's cross compiler, and LiteRT's library."""
    root = unpacked("g++-aarch64-linux-gnu")
    folder = tmp_path_factory.mktemp("runner")
    compiler = f"CC={root}/usr/bin/aarch64-linux-gnu-gcc"
    where = [f"CPPFLAGS=-isystem{root}/usr/aarch64-linux-gnu/include", f"LDFLAGS=-Wl,--sysroot={root}"]
    libraries = {str(path.parent) for path in root.glob("**/lib*.so*") if "x86_64" in str(path.parent)}
    subprocess.run(
        ["make", "-s", "-f", str(ROOT / "edgeopt/bundle/runner/Makefile"), compiler, *where],
        cwd=folder, env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(sorted(libraries))}, check=True,
    )  # fmt: skip
    shutil.copy(emulation.folder / "site/ai-edge-litert/ai_edge_litert/libLiteRt.so", folder)
    return folder


@pytest.fixture(scope="session")
def adbd(device_cache: Path, unpacked: Callable[[str], Path]) -> Path:
    """Debian's adbd for arm64; the machine's own sources may be of a release before 13, which has none."""
    root, done = device_cache / "adbd", device_cache / "adbd.done"
    with locked(device_cache / ".adbd.lock"):
        if not done.exists():
            apt = PrivateApt(device_cache / "apt-adbd", ["arm64"])
            use_release(device_cache / "apt-adbd", "trixie")
            apt.update()
            apt.install(["adbd:arm64"], root)
            done.touch()
    return root


def use_release(apt: Path, release: str) -> None:
    """Let a private apt read one release alone, from where the machine's own sources have theirs."""
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    command = ["apt-get", "update", "--print-uris"]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    source = re.search(r"^'(\S+?)/dists/", listed, re.MULTILINE)
    assert source, listed
    (apt / "sources.list").write_text(f"deb [arch=arm64] {source[1]} {release} main\n")
    with (apt / "apt.conf").open("a") as stream:
        stream.write(f'Dir::Etc::sourcelist "{apt}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n')


@pytest.fixture(scope="session")
def adb_board(
    boards: BoardImage, adbd: Path, unpacked: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AdbBoard]:
    """An emulated board that adb reaches; commands find client and server by ADB and ADB_SERVER_SOCKET."""
    folder = tmp_path_factory.mktemp("adb") / "board"
    with running_adb_board(boards, adbd, unpacked("adb"), folder) as board, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADB", str(board.client))
        patch.setenv("ADB_SERVER_SOCKET", board.server)
        yield board
