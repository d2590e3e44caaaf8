"""Which program runs a bundle's test on a device: its Python with ``run_parity.py``, or the C runner, built here.

The C runner is for devices without Python. Beside the bundle it takes ``libLiteRt.so`` along, out of the package
ai-edge-litert for the device's CPU, and nothing else of LiteRT.
"""

from __future__ import annotations

import base64
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeopt.artifacts import sha256_file
from edgeopt.devices.compiler import PROGRAM, compiler_for
from edgeopt.devices.device import LITERT, PYTHON, C, DeviceFacts, Runner
from edgeopt.devices.elf import floor_of
from edgeopt.devices.qemu import Emulation
from edgeopt.errors import DeviceError, MissingDependencyError, UsageError

_LIBRARY = "libLiteRt.so"


@dataclass(frozen=True)
class Library:
    """``libLiteRt.so`` for one architecture, as its package has it."""

    path: Path
    version: str
    sha256: str

    @classmethod
    def for_cpu(cls, architecture: str) -> Library:
        """Return the library out of the package that is installed here, or of the one that emulation runs.

        Raises:
            MissingDependencyError: there is none for this architecture.
            DeviceError: it is not the file that its package brought.
        """
        if architecture == platform.machine():
            return cls._of(next(iter(metadata.distributions(name=LITERT)), None), architecture)
        if architecture != "aarch64":
            raise MissingDependencyError(f"LiteRT has no library for {architecture}, and the C runner needs one")
        site = str(Emulation.load().folder / "site" / LITERT)
        return cls._of(next(iter(metadata.distributions(name=LITERT, path=[site])), None), architecture)

    @classmethod
    def _of(cls, package: metadata.Distribution | None, architecture: str) -> Library:
        entry = next((file for file in (package and package.files) or () if file.name == _LIBRARY), None)
        if package is None or entry is None or entry.hash is None:
            raise MissingDependencyError(f"no {LITERT} for {architecture} with {_LIBRARY} is installed")
        path = Path(str(entry.locate()))
        digest = sha256_file(path)
        stated = base64.urlsafe_b64decode(entry.hash.value + "=" * (-len(entry.hash.value) % 4)).hex()
        if digest != stated:
            raise DeviceError(f"{path} is not the file that {LITERT} {package.version} brought: its SHA-256 differs")
        return cls(path, package.version, digest)


def chosen_runner(wanted: str | None, facts: DeviceFacts, manifest: Mapping[str, Any]) -> str:
    """Return ``python`` or ``c``: the one asked for, else C for a ``.tflite`` bundle on a device without Python.

    Raises:
        UsageError: the C runner is asked for, and the bundle is for another runtime.
    """
    is_tflite = manifest["model"]["format"] == "tflite"
    if wanted == C and not is_tflite:
        raise UsageError(f"the C runner runs .tflite models, and this is a .{manifest['model']['format']}")
    needs_c = facts.python is None and facts.runner is None and is_tflite
    return wanted or (C if needs_c else PYTHON)


@contextmanager
def ready_runner(name: str, bundle: Path, architecture: str, compiler: str | None) -> Iterator[Runner]:
    """Yield a runner for a device's CPU; what was built for it is there as long as the block runs.

    Args:
        name: ``python`` or ``c``.
        bundle: has the C runner's sources.
        architecture: of the device, as ``uname -m`` says it.
        compiler: a command; left out, one is looked for.

    Raises:
        BundleError: the bundle has no C runner.
        MissingDependencyError: no compiler or no LiteRT for this CPU.
        DeviceError: the C runner cannot be built.
    """
    if name == PYTHON:
        yield Runner()
        return
    library = Library.for_cpu(architecture)
    with tempfile.TemporaryDirectory(prefix="edgeopt.") as folder:
        program = compiler_for(architecture, compiler).build_runner(bundle, Path(folder))
        (Path(folder) / _LIBRARY).symlink_to(library.path)
        files = {PROGRAM: program, _LIBRARY: Path(folder) / _LIBRARY}
        told = f"{_LIBRARY} {library.sha256[:12]}"  # it does not tell its version
        yield Runner(C, files, {told: f"{LITERT} {library.version}, C API"})


def missing_libraries(runner: Runner, facts: DeviceFacts) -> Iterator[str]:
    """Yield every library of a device that is older than what the C runner and LiteRT need; nothing was copied yet."""
    files = runner.files.values()
    for what, prefix, found in (
        ("C library", "GLIBC", facts.libc.removeprefix("glibc ")),
        ("C++ library", "GLIBCXX", (facts.libstdcxx or "").removeprefix("GLIBCXX_")),
    ):
        needed, path = max((floor_of(path, prefix), path) for path in files)
        version = ".".join(map(str, needed))
        if not found or not needed:
            continue
        if not found[0].isdigit():
            yield f"its {what} is {found}, and {path.name} needs {prefix} {version}"
        elif tuple(map(int, found.split("."))) < needed:
            yield f"its {what} is {prefix} {found}, and {path.name} needs {version}"
