"""The machine that edgeopt runs on, as a device: bundles run in this process, so only its facts are asked for."""

from __future__ import annotations

import tempfile

from edgeopt.devices import probe
from edgeopt.devices.device import DeviceFacts


def local_facts() -> DeviceFacts:
    """Return what this machine is."""
    told = probe.look(tempfile.gettempdir())
    return DeviceFacts(**{**told, "features": tuple(told["features"])}, device="local", is_emulated=False)
