#!/usr/bin/env python3
"""Print what this device is as one JSON object. It is sent to devices as it is, and needs Python 3.8 alone."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from importlib import metadata, util
from typing import Any

PACKAGES = ("numpy", "ai-edge-litert", "tflite-runtime", "tensorflow", "tflite-micro", "onnxruntime")

# Linux gives ARM cores by number; sources: Arm's Technical Reference Manuals, MIDR_EL1.
ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd49": "Neoverse-N2",
}


def look(folder: str) -> dict[str, Any]:
    """Return the facts; ``folder`` is where a bundle would be put."""
    told = told_by_linux(_read("/proc/cpuinfo"), _read("/proc/meminfo"))
    return {
        **told,
        "num_cpus": told["num_cpus"] or os.cpu_count() or 1,
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "python": platform.python_version(),
        "runtimes": {name: _version(name) for name in PACKAGES if util.find_spec(name.replace("-", "_")) is not None},
        "free_bytes": _free_bytes(folder),
        # qemu's machine calls itself so; whether it emulates the CPU too, or the host's own runs it, cannot be told
        "is_emulated": "linux,dummy-virt" in _read("/proc/device-tree/compatible"),
    }


def told_by_linux(cpuinfo: str, meminfo: str) -> dict[str, Any]:
    """Return the facts that are in ``/proc/cpuinfo`` and ``/proc/meminfo``; no cores if they are not said."""
    memory = re.search(r"^MemTotal:\s*(\d+) kB", meminfo, re.MULTILINE)
    features = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    processors = len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE))
    return {
        "cpu": _cpu_name(cpuinfo),
        "num_cpus": processors,
        "features": features.group(1).split() if features else [],
        "memory_bytes": int(memory.group(1)) * 1024 if memory else None,
    }


def _cpu_name(cpuinfo: str) -> str:
    named = re.search(r"^(?:model name|Model)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    part = re.search(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE)
    names = [ARM_CORES.get(part.group(1), part.group(1))] if part else []
    return ", ".join(names + ([named.group(1).strip()] if named else [])) or "unknown"


def _version(name: str) -> str:
    for spelling in (name, name.replace("-", "_")):
        try:
            return metadata.version(spelling)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _free_bytes(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1])))
