"""A device by the name that a user gives it."""

from __future__ import annotations

from edgeopt.devices.device import Device, DeviceFacts
from edgeopt.devices.qemu import BOARDS, DEFAULT_BOARD, QemuDevice
from edgeopt.devices.ssh import SshDevice
from edgeopt.errors import UsageError, did_you_mean

LOCAL = "local"
_KINDS = ("local", "qemu", "qemu:pi3", "qemu:pi4", "qemu:pi5", "ssh://")


def device_named(name: str) -> Device:
    """Return a device other than this machine.

    Raises:
        UsageError: there is no such kind of device.
        MissingDependencyError: what it needs here is not set up.
    """
    kind, _, rest = name.partition(":")
    if kind == "qemu":
        return QemuDevice.named(rest)
    if kind == "ssh":
        return SshDevice(name)
    raise UsageError(f"there is no device {name!r}", hint=did_you_mean(name, _KINDS))


def facts_of(name: str) -> DeviceFacts:
    """Return what a device is; ``local`` is this machine.

    Raises:
        UsageError: there is no such kind of device.
        MissingDependencyError: what it needs here is not set up.
        DeviceError: it cannot be reached or does not answer sensibly.
    """
    if name == LOCAL:
        from edgeopt.devices.local import local_facts

        return local_facts()
    return device_named(name).facts()


def known_devices() -> dict[str, str]:
    """Return the devices that have a name of their own, and what each is."""
    boards = {
        f"qemu:{name}": f"{board.title}: {board.cpu}, user-mode emulation"
        + (" (also called qemu)" if name == DEFAULT_BOARD else "")
        for name, board in BOARDS.items()
    }
    return {LOCAL: "this machine", **boards}
