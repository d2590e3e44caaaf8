"""A device by the name that a user gives it."""

from __future__ import annotations

from edgeopt.devices.device import Device
from edgeopt.devices.local import LOCAL, LocalDevice
from edgeopt.devices.qemu import BOARDS, DEFAULT_BOARD, QemuDevice
from edgeopt.devices.ssh import SshDevice
from edgeopt.errors import UsageError, did_you_mean

_KINDS = ("local", "qemu", "qemu:pi3", "qemu:pi4", "qemu:pi5", "ssh://")


def device_named(name: str) -> Device:
    """Return a device.

    Raises:
        UsageError: there is no such kind of device.
        MissingDependencyError: what it needs here is not set up.
    """
    kind, _, rest = name.partition(":")
    if name == LOCAL:
        return LocalDevice()
    if kind == "qemu":
        return QemuDevice.named(rest)
    if kind == "ssh":
        return SshDevice(name)
    raise UsageError(f"there is no device {name!r}", hint=did_you_mean(name, _KINDS))


def known_devices() -> dict[str, str]:
    """Return the devices that have a name of their own, and what each is."""
    boards = {
        f"qemu:{name}": f"{board.title}: {board.cpu}, user-mode emulation"
        + (" (also called qemu)" if name == DEFAULT_BOARD else "")
        for name, board in BOARDS.items()
    }
    return {LOCAL: "this machine", **boards}
