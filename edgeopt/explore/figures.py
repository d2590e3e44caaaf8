"""What a trial is judged by: the figures of the one bundle that it built."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from edgeopt.bundle.coding import coded_size
from edgeopt.pipeline import BuildResult
from edgeopt.target_stages import BuiltBundle

COUNTED_ON, COUNTED_IN = "pi4", "ai-edge-litert"
_COUNT_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Figures:
    """What was measured; ``None`` stands for what was not, or does not exist.

    Attributes:
        metric_name: the recipe's ``[accuracy]`` metric, else ``top1``, the share of right answers, else ``agreement``,
            the share of answers that are the float network's own; of several outputs the worst.
        metric_unit: ``%`` for a share from 0 to 1, ``dB``, or none.
        metric: of the bundle on the held-out samples.
        float_metric: of the float network that the bundle was made of: the compressed one, not its teacher.
        parity_passed: the verdict of the parity test.
        bundle_bytes: every file of the bundle, golden vectors and runner among them.
        model_bytes: the model file alone.
        packed_bytes: the model file with its weights coded, as ``edgeopt bundle pack`` keeps it.
        num_parameters: floats in the float network that was quantized, batch norms folded.
        num_macs: multiply-accumulates of an inference.
        instructions: of an inference on an emulated Raspberry Pi 4, if asked for; not cycles.
        latency_ms: the median of an inference in the target's runtime on the machine that ran the trial, on one thread.
            What else ran there slowed it; only ``float_latency_ms``, timed in turns with it, was slowed alike.
    """

    metric_name: str | None = None
    metric_unit: str = ""
    metric: float | None = None
    float_metric: float | None = None
    parity_passed: bool | None = None
    bundle_bytes: int | None = None
    model_bytes: int | None = None
    packed_bytes: int | None = None
    num_parameters: int | None = None
    num_macs: int | None = None
    instructions: int | None = None
    latency_ms: float | None = None
    float_latency_ms: float | None = None


def figures_of(result: BuildResult, *, instructions: bool = False) -> Figures:
    """Return the figures of a build for one target.

    Args:
        result: of the build.
        instructions: count an inference's, if the model is one for LiteRT.

    Raises:
        MissingDependencyError: there is no compiler here for the plugin that counts.
        DeviceError: the emulator is not set up, or does not run the model in time.
    """
    (built,) = result.bundles
    manifest = json.loads((built.path / "bundle.json").read_text(encoding="utf-8"))
    model = built.path / manifest["model"]["file"]
    counted = instructions and manifest["model"]["runtime_package"] == COUNTED_IN
    name, unit, metric, float_metric = _metric(built)
    return Figures(
        metric_name=name,
        metric_unit=unit,
        metric=_finite(metric),
        float_metric=_finite(float_metric),
        parity_passed=None if built.report is None else built.report.passed,
        bundle_bytes=built.size_bytes,
        model_bytes=model.stat().st_size,
        packed_bytes=coded_size(model).size_bytes,
        num_parameters=_num_parameters(result.float_model),
        num_macs=manifest["num_macs"],
        instructions=_instructions(model) if counted else None,
        latency_ms=None if built.speed is None else built.speed.int8_ms,
        float_latency_ms=None if built.speed is None else built.speed.float_ms,
    )


def _metric(built: BuiltBundle) -> tuple[str | None, str, float | None, float | None]:
    """Return the metric's name and unit, and what it is of the bundle and of the float network."""
    if built.accuracy is not None:
        measured = built.accuracy.measured
        return measured.metric, measured.unit, measured.figure, measured.float_figure
    outputs = () if built.report is None else built.report.outputs
    right = [(item.accuracy, item.float_accuracy) for item in outputs if item.accuracy is not None]
    if right:
        return "top1", "%", *min(right)
    agreements = [item.top1_agreement for item in outputs if item.top1_agreement is not None]
    return ("agreement", "%", min(agreements), 1.0) if agreements else (None, "", None, None)


def _finite(figure: float | None) -> float | None:
    return figure if figure is not None and math.isfinite(figure) else None


def _num_parameters(float_model: Path) -> int:
    import onnx

    kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    graph = onnx.load(float_model, load_external_data=False).graph
    return sum(math.prod(weight.dims) for weight in graph.initializer if weight.data_type in kinds)


def _instructions(model: Path) -> int:
    from edgeopt.devices.instructions import count_instructions
    from edgeopt.devices.qemu import QemuDevice

    device = QemuDevice.named(COUNTED_ON)
    return count_instructions(device, model, COUNTED_IN, _COUNT_TIMEOUT_S, by_operator=False).total
