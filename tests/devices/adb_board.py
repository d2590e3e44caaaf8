"""Debian's arm64 adbd on an emulated board. This is not Android: a C library, a shell and folders in Android's places.

It listens without authentication, so that board and adb server run in a network namespace of their own. The server
is reached from outside through a Unix socket alone. What the board shows has no Python, as Android has none.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeopt.devices.board_image import BoardImage
from edgeopt.devices.debian import program_in
from edgeopt.devices.machine import Machine, running_machine
from edgeopt.devices.qemu import BOARDS

SERIAL = "127.0.0.1:5555"
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

# The board's own disk is read-only, so that adbd gets a tree in memory with parts of it. adbd is a release newer than
# the rest and starts with its own libraries; the commands that it runs start with the board's.
START = """
set -e
mkdir -p /tmp/tree/adbd /tmp/tree/data /tmp/tree/tmp
mount -t tmpfs data /tmp/tree/data
mkdir -p /tmp/tree/data/local/tmp
cd /tmp/tree
for folder in bin dev lib proc sys usr/lib/aarch64-linux-gnu; do mkdir -p $folder; mount --bind /$folder $folder; done
tar -xz -C adbd
lib=/adbd/lib/aarch64-linux-gnu
chroot . $lib/ld-linux-aarch64.so.1 --library-path $lib:$lib/android /adbd/lib/android-sdk/platform-tools/adbd \
    >/dev/null 2>&1 </dev/null &
until netstat -ltn | grep -q :5555; do sleep 0.1; done
"""


@dataclass(frozen=True)
class AdbBoard:
    """An adb client, the socket of the server to which it talks, and the ssh configuration of the board behind it."""

    client: Path
    server: str


@contextmanager
def running_adb_board(image: BoardImage, adbd: Path, adb: Path, folder: Path) -> Iterator[AdbBoard]:
    """Run board and server out of packages that were unpacked in `adbd` and `adb`."""
    folder.mkdir()
    client = write_client(adb, folder / "adb")
    server = f"localfilesystem:{folder}/server"
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, __file__]
    command += [str(image.folder), str(adbd), str(client), server]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, "HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert said == "ready\n", (said, (folder / "log").read_text())
        yield AdbBoard(client, server)
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


def write_client(adb: Path, path: Path) -> Path:
    """Write a program that starts the adb client with the libraries that were unpacked beside it."""
    loader, option, folders, program = program_in(adb, "usr/lib/android-sdk/platform-tools/adb")
    android = next(adb.glob("usr/lib/*/android"))
    path.write_text("#!/bin/sh\n" + shlex.join(["exec", loader, option, f"{folders}:{android}", program]) + ' "$@"\n')
    path.chmod(0o755)
    return path


def main() -> None:
    """Run in the namespace until standard input ends."""
    image, adbd, client, server = sys.argv[1:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as loopback:
        fcntl.ioctl(loopback, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    with (
        tempfile.TemporaryDirectory() as folder,
        running_machine(BoardImage.load(Path(image)), BOARDS["pi4"], Path(folder)) as machine,
    ):
        start_adbd(machine, Path(adbd))
        forward = subprocess.Popen([*ssh(machine), "-N", "-L", f"{SERIAL}:{SERIAL}"])
        listening = subprocess.Popen([client, "-L", server, "nodaemon", "server"], stdout=subprocess.DEVNULL)
        try:
            connect(client, server)
            print("ready", flush=True)
            sys.stdin.read()
        finally:
            for process in (listening, forward):
                process.kill()
                process.wait()


def ssh(machine: Machine) -> list[str]:
    return ["ssh", "-F", str(machine.ssh_config), f"-p{machine.port}", "root@127.0.0.1"]


def start_adbd(machine: Machine, adbd: Path) -> None:
    pack = ["tar", "-cz", "--exclude=gconv", "-C", str(adbd / "usr"), "lib"]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as packing:
        subprocess.run([*ssh(machine), START], stdin=packing.stdout, check=True)


def connect(client: str, server: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done = subprocess.run([client, "-L", server, "connect", SERIAL], capture_output=True, text=True, check=False)
        if "connected to" in done.stdout:
            return
        time.sleep(0.1)
    raise SystemExit(f"adb does not connect: {done.stdout} {done.stderr}")


if __name__ == "__main__":
    main()
