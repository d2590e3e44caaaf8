"""Runs a bundle in its real runtime and answers the two questions, by the code that travels in the bundle."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeopt import parity
from edgeopt.bundle.golden import Golden, load_golden
from edgeopt.devices.cost import NO_COUNT, NO_LATENCY, Cost
from edgeopt.devices.device import DEFAULT_TIMEOUT_S, C, Device, DeviceFacts, RunRequest, read_report
from edgeopt.devices.local import LOCAL
from edgeopt.devices.named import open_device
from edgeopt.devices.qemu import QemuDevice
from edgeopt.devices.runner import chosen_runner, ready_runner
from edgeopt.errors import BundleError, DeviceError, MissingDependencyError
from edgeopt.native_stderr import held_back_stderr
from edgeopt.preflight import reasons_against
from edgeopt.stage import report_progress, stage
from edgeopt.target import discover_targets, load_backend

# Integer kernels give the same answers on any number of threads; two is what the smallest build machines have.
_THREADS = 2


@dataclass(frozen=True)
class OutputParity:
    """How one output compares; every figure but ``equal_fraction`` and the shares is that of the worst sample.

    ``max_steps`` and ``equal_fraction`` are against the quantized reference, the rest against the float network; NaN
    stands for an answer that was NaN, and fails. Accuracies are there if the samples have labels. ``built_in_steps``
    is against TFLite's built-in kernels, for a runtime that computes as these do.
    """

    name: str
    max_steps: float
    worst_steps_sample: str
    equal_fraction: float
    sqnr_db: float
    worst_sample: str
    cosine: float
    worst_cosine_sample: str
    top1_agreement: float | None
    float_accuracy: float | None = None
    accuracy: float | None = None
    built_in_steps: float | None = None


@dataclass(frozen=True)
class ParityReport:
    """The verdict on a bundle: ``failures`` says why it is no, ``device`` and ``runtime`` where it was run.

    ``kernels`` says whose kernels computed, ``cpu`` on what, and ``cost`` what was measured there; a build knows the
    first and leaves the others out, because its bundle is the same on every machine.
    """

    passed: bool
    runtime: str
    failures: tuple[str, ...]
    num_samples: int
    steps_judged: bool
    integer_coverage: float
    outputs: tuple[OutputParity, ...]
    device: str = LOCAL
    kernels: str = "not said"
    cpu: str | None = None
    cost: Cost = field(default_factory=Cost)

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types; NaN becomes ``None``, and what was not measured is left out."""
        content = asdict(self)
        content |= {key: value for key, value in content.pop("cost").items() if value}
        if self.cpu is None:
            del content["cpu"]
        for output in content["outputs"]:
            for key, value in output.items():
                output[key] = None if isinstance(value, float) and math.isnan(value) else value
        return content


def verify(
    bundle: str | Path,
    *,
    runtime: str | None = None,
    device: str = LOCAL,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    threads: int = _THREADS,
    latency_s: float | None = None,
    sustained_s: float | None = None,
    instructions: bool = False,
    max_instructions: int | None = None,
    runner: str | None = None,
    compiler: str | None = None,
) -> ParityReport:
    """Check a bundle's files, count its integer kernels anew, run its golden samples and return the verdict.

    Args:
        bundle: the folder.
        runtime: ``ai-edge-litert``, ``tflite-runtime``, ``tensorflow``, ``tflite-micro`` or ``onnxruntime``; left out,
            the first that is installed and can load the model, and for a microcontroller ``tflite-micro``.
        device: ``local``, ``qemu[:pi3|pi4|pi5]``, ``board[:pi3|pi4|pi5]``, ``ssh://user@host[:port][/folder]`` or
            ``adb[:serial]``.
        timeout_s: seconds that another device may take, beside those of the next two.
        threads: of the runtime.
        latency_s: measure inferences for so many seconds, and memory. Not on an emulator: ``cost`` says so then.
        sustained_s: go on for so many seconds, and look at temperature, frequency and throttling.
        instructions: count an inference's instructions, of each operator too. On ``qemu:`` devices only.
        max_instructions: a limit for them; left out, the one in the bundle.
        runner: ``python`` or ``c``; left out, C on a device without Python.
        compiler: the command that builds the C runner; left out, one is looked for.

    Raises:
        BundleError: a file is missing or was changed, or the bundle has another schema version.
        MissingDependencyError: no installed runtime can load the model, or no compiler can build the C runner.
        UsageError: there is no such kind of device, or the C runner cannot do what is asked of it.
        DeviceError: the device cannot be reached, cannot run this bundle, is too slow or answers garbage.
    """
    with stage("verify"):
        folder = Path(bundle)
        manifest = checked_manifest(folder)
        manifest["integer_coverage"] = _coverage_now(folder, manifest)
        limit_s = timeout_s + (latency_s or 0) + (sustained_s or 0)
        request = RunRequest(runtime, threads, limit_s, latency_s, sustained_s, instructions, max_instructions)
        if device != LOCAL or request.measures or runner == C:  # what is measured must be a process of its own
            return _verify_on(device, folder, manifest, request, runner, compiler)
        golden = load_golden(folder / "golden.npz")
        report = judge_model(folder / manifest["model"]["file"], manifest, golden, runtime, threads)
        return replace(report, cpu=parity.cpu_name())


def checked_manifest(folder: Path) -> dict[str, Any]:
    """Return a bundle's manifest; every file is as the manifest says.

    Raises:
        BundleError: a file is missing or was changed, or the bundle has another schema version.
    """
    if not (folder / "bundle.json").is_file():
        raise BundleError(f"{folder} is not a bundle: it has no bundle.json", hint="edgeopt build writes bundles")
    try:
        return parity.read_bundle(str(folder))
    except parity.BundleDamaged as error:
        raise BundleError(f"{folder}: {error}", hint="build it again, or take it from where it was built") from error


def _verify_on(
    name: str, folder: Path, manifest: Mapping[str, Any], request: RunRequest, runner: str | None, compiler: str | None
) -> ParityReport:
    """Run the test that travels in the bundle on another device, if the device says that it can."""
    with open_device(name) as device:
        facts = device.facts()
        not_measured = NO_LATENCY if facts.is_emulated and request.measures else None
        if not_measured:
            request = replace(request, latency_s=None, sustained_s=None)
        chosen = chosen_runner(runner, facts, manifest)
        with ready_runner(chosen, folder, facts.architecture, compiler) as ready:
            report = _report_of(device, facts, folder, manifest, replace(request, runner=ready))
        counted = _counted(device, folder, manifest, request)
    coverage, limit = manifest["integer_coverage"], manifest["limits"]["min_integer_coverage"]
    if not coverage >= limit:  # counted here; the device has only the manifest's word
        report["passed"] = False
        report["failures"] = [f"{coverage:.1%} of the multiplications run on integers, limit {limit:.1%}"]
    cost = replace(_measured(report, request, name), not_measured=not_measured, **counted)
    verdict = replace(report_from(report, report["runtime"], device.name), cpu=facts.cpu, cost=cost)
    return _within(_max_instructions(device, manifest, request), verdict)


def _measured(report: Mapping[str, Any], request: RunRequest, device: str) -> Cost:
    """Return what was measured as it was asked for; what an emulator says unasked is not believed."""
    if not request.measures:
        return Cost()
    cost = Cost.of_report(report)
    if cost.latency_ms is None or cost.latency_ms.threads != request.threads:
        raise DeviceError(f"{device} did not measure inferences on {request.threads} threads, as it was asked to")
    return cost


def _report_of(
    device: Device, facts: DeviceFacts, folder: Path, manifest: Mapping[str, Any], request: RunRequest
) -> dict[str, Any]:
    if reasons := list(reasons_against(folder, manifest, facts, request)):
        raise DeviceError(f"{device.name} cannot run this bundle: {'; '.join(reasons)}")
    report = read_report(device.run(folder, request), manifest, device.name)
    report["runtime"] = request.runner.runtimes.get(report["runtime"], report["runtime"])
    return report


def _counted(device: Device, folder: Path, manifest: Mapping[str, Any], request: RunRequest) -> dict[str, Any]:
    """Count instructions if they are asked for or limited; elsewhere than in user-mode emulation say why not."""
    limit = _max_instructions(device, manifest, request)
    if not request.instructions and limit is None:
        return {}
    if not isinstance(device, QemuDevice):
        return {"not_counted": NO_COUNT}
    from edgeopt.devices.instructions import count_instructions

    model, runtime = folder / manifest["model"]["file"], device.runtime(request)
    return {
        "instructions": count_instructions(device, model, runtime, request.timeout_s, by_operator=request.instructions)
    }


def _max_instructions(device: Device, manifest: Mapping[str, Any], request: RunRequest) -> int | None:
    """Return the limit that was asked for, else the bundle's own for this board."""
    if request.max_instructions is not None or not isinstance(device, QemuDevice):
        return request.max_instructions
    limit: int | None = manifest["limits"].get("max_instructions", {}).get(device.board)
    return limit


def _within(limit: int | None, verdict: ParityReport) -> ParityReport:
    """Turn a verdict to no where an inference takes more instructions than the limit."""
    counted = verdict.cost.instructions
    if counted is None or limit is None or counted.total <= limit:
        return verdict
    failure = f"{counted.total:,} instructions an inference, limit {limit:,}"
    return replace(verdict, passed=False, failures=(*verdict.failures, failure))


def judge_model(
    model: Path, manifest: Mapping[str, Any], golden: Golden, runtime: str | None = None, threads: int = _THREADS
) -> ParityReport:
    """Run a model file on golden vectors and judge the answers by the manifest's limits.

    Raises:
        MissingDependencyError: no installed runtime can load the model.
    """
    run, chosen = open_quietly(
        model, manifest["model"]["format"], parity.wanted_runtime(manifest["model"], runtime), threads
    )
    total = len(golden["names"])
    report = parity.judge(run, golden, dict(manifest), chosen, lambda done: report_progress("verify", done, total))
    return report_from({**report, "kernels": run.kernels}, f"{chosen} {parity.runtime_version(chosen)}")


def open_quietly(
    model: Path, model_format: str, runtime: str | None = None, threads: int = _THREADS
) -> tuple[parity.Model, str]:
    """Load a model and return what runs it, and the name of the runtime: the one asked for, else the first installed.

    Raises:
        MissingDependencyError: no installed runtime can load the model.
    """
    try:
        chosen = parity.find_runtime(model_format, runtime)
        with _without_chatter():
            return parity.open_model(str(model), chosen, threads), chosen
    except (parity.RuntimeMissing, ModuleNotFoundError) as error:
        raise MissingDependencyError(str(error)) from error


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Hold back what a runtime's C++ writes to stderr while it loads, and pass on all but its ``INFO:`` lines."""
    lines: list[bytes] = []
    try:
        with held_back_stderr() as lines:
            yield
    finally:
        for line in lines:
            if not line.startswith(b"INFO:"):
                os.write(2, line)


def report_from(report: Mapping[str, Any], runtime: str, device: str = LOCAL) -> ParityReport:
    """Return the typed form of what :func:`edgeopt.parity.judge` reports."""
    outputs = tuple(
        OutputParity(**{key: _nan_for_none(key, value) for key, value in output.items()})
        for output in report["outputs"]
    )
    return ParityReport(
        passed=report["passed"],
        runtime=runtime,
        failures=tuple(report["failures"]),
        num_samples=report["num_samples"],
        steps_judged=report["steps_judged"],
        integer_coverage=report["integer_coverage"],
        outputs=outputs,
        device=device,
        kernels=report.get("kernels", "not said"),  # a bundle of edgeopt 0.1 does not say
    )


def _nan_for_none(key: str, value: Any) -> Any:
    return math.nan if value is None and key in ("max_steps", "sqnr_db", "cosine") else value


def _coverage_now(folder: Path, manifest: Mapping[str, Any]) -> float:
    """Count in the model file itself; a target that is not installed here leaves what the manifest says."""
    spec = discover_targets().get(manifest["target"])
    if spec is None:
        return float(manifest["integer_coverage"])
    return load_backend(spec).inspect(folder / manifest["model"]["file"]).integer_coverage
