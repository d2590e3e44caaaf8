"""What every device can do: say what it is, and run a bundle's own test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from edgeopt.devices.cost import Cost
from edgeopt.errors import DeviceError
from edgeopt.parity import TFLITE_RUNTIMES, failures_of, wanted_runtime

DEFAULT_TIMEOUT_S = 600.0
LITERT = "ai-edge-litert"
PYTHON, C = "python", "c"


@dataclass(frozen=True)
class DeviceFacts:
    """What a device says of itself; ``None`` and empty stand for what it does not say.

    ``runtimes`` are the runtimes and NumPy by package name, with their versions. ``free_bytes`` is the room where a
    bundle would be put. ``runner`` is a folder on this machine with ``run_parity`` and ``libLiteRt.so`` for the device,
    which are used in place of its Python. ``libstdcxx`` is the newest version of symbols that its C++ library has, such
    as ``GLIBCXX_3.4.30``; only devices without Python are asked for it.
    """

    device: str
    is_emulated: bool
    architecture: str
    cpu: str
    num_cpus: int
    features: tuple[str, ...]
    memory_bytes: int | None
    libc: str
    python: str | None
    runtimes: Mapping[str, str]
    free_bytes: int | None
    runner: str | None = None
    libstdcxx: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Runner:
    """The program that runs a bundle's test: by default ``run_parity.py`` in the device's Python.

    ``files`` go to the device beside the bundle, by their names there; the first one is the program. ``runtimes`` are
    better names for what the program says of the runtime.
    """

    name: str = PYTHON
    files: Mapping[str, Path] = field(default_factory=dict)
    runtimes: Mapping[str, str] = field(default_factory=dict)

    def command(self, python: str) -> list[str]:
        """Return what starts it in a folder that has the bundle and ``files``."""
        return [python, "run_parity.py"] if self.name == PYTHON else [f"./{next(iter(self.files))}"]

    def command_here(self, bundle: Path) -> list[str]:
        """Return what starts the C runner where it was built, on a bundle where it lies."""
        return [str(next(iter(self.files.values()))), str(bundle.resolve())]


@dataclass(frozen=True)
class RunRequest:
    """How a bundle is run.

    ``runtime`` left out is the first that the device has. ``latency_s`` and ``sustained_s`` are how long inferences are
    measured, on top of ``timeout_s``; ``None`` is not at all. ``instructions`` asks for a count of each operator's, and
    ``max_instructions`` is a limit for the whole inference.
    """

    runtime: str | None = None
    threads: int = 1
    timeout_s: float = DEFAULT_TIMEOUT_S
    latency_s: float | None = None
    sustained_s: float | None = None
    instructions: bool = False
    max_instructions: int | None = None
    runner: Runner = field(default_factory=Runner)

    @property
    def measures(self) -> bool:
        """Whether it is asked how long an inference takes."""
        return self.latency_s is not None or self.sustained_s is not None

    def arguments(self, report: str) -> list[str]:
        """Return the arguments of ``run_parity.py``, which the C runner has too; it has but one runtime."""
        runtime = self.runtime if self.runner.name == PYTHON else None
        asked = {"runtime": runtime, "latency": self.latency_s, "sustained": self.sustained_s}
        chosen = [part for name, value in asked.items() if value is not None for part in (f"--{name}", str(value))]
        return ["--json", report, "--threads", str(self.threads), *chosen]


class Device(Protocol):
    """A place where bundles are run."""

    @property
    def name(self) -> str:
        """Return what the user calls it, such as ``qemu:pi4``."""

    def facts(self) -> DeviceFacts:
        """Look at the device.

        Raises:
            DeviceError: it cannot be reached or does not answer sensibly.
        """

    def run(self, bundle: Path, request: RunRequest) -> str:
        """Run a bundle's test there by the request's runner, and return the JSON that it wrote.

        Raises:
            DeviceError: the device cannot be reached, the time is over, or the test did not come to a verdict.
        """


def unfit(facts: DeviceFacts, manifest: Mapping[str, Any], request: RunRequest) -> Iterator[str]:
    """Yield every reason why a device cannot run a bundle; nothing was copied to it yet."""
    lacks = _runner_lacks if facts.runner or request.runner.name == C else _python_lacks
    request = replace(request, runtime=wanted_runtime(manifest["model"], request.runtime))
    yield from lacks(facts, manifest["model"]["format"], request)
    needed = manifest["model"].get("instruction_sets", ())  # a bundle of edgeopt 0.1 does not say
    if needed and facts.features and not set(needed) & set(facts.features):
        yield (
            f"its CPU has none of {', '.join(needed)}, and products of this bundle may saturate there: build it with "
            "quantize.reduce_range = true"
        )
    size = sum(file["size_bytes"] for file in manifest["files"].values())
    size += sum(path.stat().st_size for path in request.runner.files.values())
    if facts.free_bytes is not None and facts.free_bytes < 2 * size:
        yield f"it has {facts.free_bytes:,} bytes free, and the bundle has {size:,}"


def _runner_lacks(facts: DeviceFacts, model_format: str, request: RunRequest) -> Iterator[str]:
    if model_format != "tflite":
        yield f"run_parity in C runs .tflite models, and this is a .{model_format}"
    if request.runtime not in (None, LITERT):
        yield f"run_parity in C has LiteRT and no {request.runtime}"


def _python_lacks(facts: DeviceFacts, model_format: str, request: RunRequest) -> Iterator[str]:
    candidates = TFLITE_RUNTIMES if model_format == "tflite" else ("onnxruntime",)
    wanted = (request.runtime,) if request.runtime else candidates
    if facts.python is None:
        yield "it has no Python"
        return
    if "numpy" not in facts.runtimes:
        yield f"its Python {facts.python} has no NumPy"
    if not any(name in facts.runtimes for name in wanted):
        # The aarch64 wheels: what their symbols need, not what their names say.
        floor = " (glibc 2.34; tflite-runtime: 2.27)" if model_format == "tflite" else ""
        yield f"its Python {facts.python} has no runtime for a .{model_format} model: install {wanted[0]}{floor}"


def read_report(text: str, manifest: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return a device's report, if it is one, of this bundle, and does not contradict itself.

    Raises:
        DeviceError: if not; what a device answers is never taken for a pass unseen.
    """
    try:
        report = json.loads(text, parse_constant=_refuse_constant)
        problem = _problem_with(report, manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise DeviceError(
            f"{device} answered no report on this bundle ({problem}): {text[:200]!r}",
            hint="run run_parity.py there by hand, and see what it prints",
        )
    return dict(report)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _problem_with(report: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    names = [output["name"] for output in report["outputs"]]
    expected = [output["name"] for output in manifest["outputs"]]
    if report["digest"] != manifest["digest"]:
        return "it is of another bundle"
    if names != expected:
        return f"it is on outputs {names}, expected {expected}"
    asked = manifest["recipe"]["calibration"]
    num_golden = min(asked["num_golden"], asked["num_held_out"])
    if report["num_samples"] != num_golden:
        return f"it is on {report['num_samples']!r} samples, and the bundle has {num_golden}"
    if not isinstance(report["passed"], bool) or report["passed"] != (not list(report["failures"])):
        return "its verdict contradicts its failures"
    figures = [output[key] for output in report["outputs"] for key in ("max_steps", "sqnr_db", "cosine")]
    if report["passed"] and not all(isinstance(figure, int | float) for figure in figures):
        return "it passed without figures"
    Cost.of_report(report)
    return _broken_limit(report, manifest["limits"]) if report["passed"] else ""


def _broken_limit(report: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    """Judge the figures here again: a device that says yes must have the figures of a yes."""
    broken = (
        failure
        for output in report["outputs"]
        for failure in failures_of(output, dict(limits), report["steps_judged"], report["num_samples"])
    )
    return next((f"it passed with {failure}" for failure in broken), "")
