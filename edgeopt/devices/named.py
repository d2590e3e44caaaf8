"""A device by the name that a user gives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgeopt.devices import board_image, qemu
from edgeopt.devices.adb import AdbDevice
from edgeopt.devices.board import booted_board
from edgeopt.devices.device import Device
from edgeopt.devices.local import LOCAL, LocalDevice
from edgeopt.devices.qemu import BOARDS, DEFAULT_BOARD, QemuDevice
from edgeopt.devices.ssh import SshDevice
from edgeopt.errors import UsageError, did_you_mean

_KINDS = (
    LOCAL,
    *(f"{kind}{board}" for kind in ("qemu", "board") for board in ("", *map(":{}".format, BOARDS))),
    "ssh://",
)


@dataclass(frozen=True)
class KnownDevice:
    """A device that has a name of its own: what it is, and whether it is set up."""

    title: str
    ready: bool


@contextmanager
def open_device(name: str) -> Iterator[Device]:
    """Yield a device; an emulated machine runs as long as the block does.

    Raises:
        UsageError: there is no such kind of device.
        MissingDependencyError: what it needs here is not set up.
        DeviceError: an emulated machine does not boot.
    """
    kind, _, rest = name.partition(":")
    if kind == "board":
        with booted_board(rest) as board:
            yield board
    elif name == LOCAL:
        yield LocalDevice()
    elif kind == "qemu":
        yield QemuDevice.named(rest)
    elif kind == "adb" or name.startswith("adb?"):
        yield AdbDevice(name)
    elif kind == "ssh":
        yield SshDevice(name)
    else:
        raise UsageError(f"there is no device {name!r}", hint=did_you_mean(name, _KINDS))


def known_devices() -> dict[str, KnownDevice]:
    """Return the devices that have a name of their own."""
    known = {LOCAL: KnownDevice("this machine", ready=True)}
    emulated = (
        ("qemu", "user-mode emulation", qemu.is_set_up()),
        ("board", "a whole machine with its own Linux, over ssh", board_image.is_set_up()),
    )
    for kind, how, ready in emulated:
        for board, item in BOARDS.items():
            short = f" (also called {kind})" if board == DEFAULT_BOARD else ""
            known[f"{kind}:{board}"] = KnownDevice(f"{item.title}: {item.cpu}, {how}{short}", ready)
    return known
