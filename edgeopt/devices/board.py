"""A whole emulated board as a device: a machine of its own for each use, driven as any board is, over ssh."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgeopt.devices.board_image import BoardImage
from edgeopt.devices.device import DeviceFacts, RunRequest
from edgeopt.devices.machine import running_machine
from edgeopt.devices.qemu import BOARDS, DEFAULT_BOARD
from edgeopt.devices.ssh import SshDevice
from edgeopt.errors import UsageError, did_you_mean


class BoardDevice:
    """A machine that runs, as an emulated device."""

    def __init__(self, name: str, cpu: str, ssh: SshDevice) -> None:
        self.name = name
        self._cpu = cpu
        self._ssh = ssh

    def facts(self) -> DeviceFacts:
        """Look at the machine over ssh."""
        return replace(self._ssh.facts(), device=self.name, cpu=self._cpu, is_emulated=True)

    def run(self, bundle: Path, request: RunRequest) -> str:
        """Send the bundle over ssh, run its test and return the report."""
        return self._ssh.run(bundle, request)


@contextmanager
def booted_board(board: str) -> Iterator[BoardDevice]:
    """Yield a board that has just booted; it is switched off with the block.

    Raises:
        UsageError: there is no such board.
        MissingDependencyError: emulated boards are not set up.
        DeviceError: it does not boot.
    """
    key = board or DEFAULT_BOARD
    if key not in BOARDS:
        raise UsageError(f"there is no emulated board {key!r}", hint=did_you_mean(key, list(BOARDS)))
    image, chosen, name = BoardImage.load(), BOARDS[key], f"board:{key}"
    cpu = f"{chosen.cpu}, {chosen.title}'s, in a machine emulated by qemu {image.qemu} with Linux {image.linux}"
    with (
        tempfile.TemporaryDirectory(prefix="edgeopt.") as folder,
        running_machine(image, chosen, Path(folder)) as machine,
    ):
        yield BoardDevice(name, cpu, SshDevice(machine.url, name))
