"""The machine that edgeopt runs on, as a device: a bundle's test runs in a process of its own."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from edgeopt.devices import probe
from edgeopt.devices.device import PYTHON, DeviceFacts, RunRequest
from edgeopt.devices.process import run_limited
from edgeopt.errors import DeviceError

LOCAL = "local"


class LocalDevice:
    """What runs edgeopt runs the bundle."""

    name = LOCAL

    def facts(self) -> DeviceFacts:
        """Look at this machine."""
        told = probe.look(tempfile.gettempdir())
        return DeviceFacts(**{**told, "features": tuple(told["features"]), "device": LOCAL})

    def run(self, bundle: Path, request: RunRequest) -> str:
        """Run the bundle where it lies, in this Python or by the C runner."""
        with tempfile.TemporaryDirectory(prefix="edgeopt.") as work:
            report = Path(work) / "report.json"
            python = [sys.executable, "-B", str(bundle.resolve() / "run_parity.py")]
            command = python if request.runner.name == PYTHON else request.runner.command_here(bundle)
            finished = run_limited([*command, *request.arguments(str(report))], what=LOCAL, timeout_s=request.timeout_s)
            if not report.is_file():
                raise DeviceError(f"the bundle's test ended without a report: {finished.last_words()}")
            return report.read_text(encoding="utf-8", errors="replace")
