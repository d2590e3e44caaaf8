"""A whole arm64 machine in emulation: it boots, says on its console that its ssh server is there, and always ends.

Everything of it is made for one boot: the keys, the list of known hosts, the port on loopback. Its network reaches
nothing but that port. Its disk is read-only, so that it is ended by pulling the plug. Should this process die first,
the kernel ends the machine.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from edgeopt.devices.board_image import BoardImage
from edgeopt.devices.initrd import initrd
from edgeopt.devices.qemu import Board
from edgeopt.errors import DeviceError, MissingDependencyError

_INIT = Path(__file__).with_name("board_init.sh")
_BOOT_S = 120.0
_TRIES = 3  # somebody else may take the port before qemu does
_LOOK_EVERY_S = 0.05
# Whole lines only: the console may be read while one is being written.
_READY = re.compile(r"^board: ready (?P<key>ssh-\S+ \S+).*\n", re.MULTILINE)
_HOPELESS = re.compile(r"(?:Kernel panic - .*|^board: (?!ready).*)\n", re.MULTILINE)
_PORT_TAKEN = "Could not set up host forwarding rule"


@dataclass(frozen=True)
class Machine:
    """A machine that has booted: the folder of its keys, its port on loopback, its process and its console's text."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def ssh_config(self) -> Path:
        """Return a configuration for ssh with which it takes this machine for what it is, and no key but its own."""
        return self.folder / "ssh_config"

    @property
    def url(self) -> str:
        """Return the machine as an ``ssh://`` device."""
        return f"ssh://root@127.0.0.1:{self.port}/?{urlencode({'config': self.ssh_config})}"


@contextmanager
def running_machine(image: BoardImage, board: Board, folder: Path) -> Iterator[Machine]:
    """Boot a machine with a board's CPU and yield it when its ssh server is there; end it with the block.

    Args:
        image: what it is started from.
        board: its CPU.
        folder: an empty folder that nobody else can look into.

    Raises:
        DeviceError: it does not boot; what its console says is in the message.
        MissingDependencyError: there is no ``ssh-keygen``.
    """
    if shutil.which("ssh-keygen") is None:
        raise MissingDependencyError("ssh-keygen is not on PATH", hint="install OpenSSH's client")
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "edgeopt", "-f", str(key)], check=True)
    files = {"init": _INIT.read_bytes(), "authorized_keys": key.with_suffix(".pub").read_bytes()}
    (folder / "initrd").write_bytes(initrd(("bin", "dev", "image", "modules"), {**image.first_files(), **files}))
    for remaining in reversed(range(_TRIES)):
        port = _free_port()
        process = _start(image, board, folder, port)
        try:
            host_key = _wait_for_boot(process, folder / "console")
            if host_key is None and remaining:
                continue
            _write_ssh_config(folder, port, str(host_key))
            yield Machine(folder, port, process)
            return
        finally:
            process.kill()
            process.wait()


def _start(image: BoardImage, board: Board, folder: Path, port: int) -> subprocess.Popen[bytes]:
    # The signal comes too when the thread ends that has started the machine, so a thread must keep what it starts.
    command = ["setpriv", "--pdeathsig", "KILL", *image.qemu_command(), "-nodefaults", "-display", "none"]
    command += ["-machine", "virt", "-cpu", board.cpu, "-smp", str(board.num_cpus), "-m", "1G", "-serial", "stdio"]
    command += ["-kernel", str(image.kernel), "-initrd", str(folder / "initrd"), "-append", "console=ttyAMA0 quiet"]
    command += ["-drive", f"file={image.disk},format=raw,if=none,id=disk,readonly=on"]
    command += ["-device", "virtio-blk-device,drive=disk", "-device", "virtio-net-device,netdev=net"]
    command += ["-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"]
    with (folder / "console").open("wb") as console:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT)


def _wait_for_boot(process: subprocess.Popen[bytes], console: Path) -> str | None:
    """Return the public key of the machine's ssh server, or ``None`` if somebody else has the port."""
    deadline = time.monotonic() + _BOOT_S
    while True:
        has_ended = process.poll() is not None
        text = console.read_text(encoding="utf-8", errors="replace")
        if ready := _READY.search(text):
            return ready["key"]
        if _PORT_TAKEN in text:
            return None
        if hopeless := _HOPELESS.search(text):
            raise DeviceError(f"the emulated machine does not boot: {hopeless[0].strip()}")
        if has_ended or time.monotonic() > deadline:
            why = "it ended" if has_ended else f"nothing within {_BOOT_S:g} s"
            raise DeviceError(f"the emulated machine does not boot, {why}: {' '.join(text.split())[-300:]!r}")
        time.sleep(_LOOK_EVERY_S)


def _write_ssh_config(folder: Path, port: int, host_key: str) -> None:
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n", encoding="ascii")
    (folder / "ssh_config").write_text(
        f'UserKnownHostsFile "{folder}/known_hosts"\nGlobalKnownHostsFile /dev/null\n'
        f'IdentityFile "{folder}/key"\nIdentitiesOnly yes\nIdentityAgent none\n',
        encoding="utf-8",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
