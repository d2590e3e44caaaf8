"""What the float network costs on an emulated CPU, beside the bundle that was made of it.

Without instructions for dot products, as on a Raspberry Pi 4, int8 can take more instructions than float.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeopt.conversion import convert
from edgeopt.devices.instructions import count_instructions
from edgeopt.devices.qemu import QemuDevice
from edgeopt.stage import logger, stage
from edgeopt.verdict import ParityReport, checked_manifest


def with_float(report: ParityReport, bundle: Path, float_model: Path, timeout_s: float) -> ParityReport:
    """Return a report that has the float network's instructions too, if it has the bundle's; warn if these are more.

    Args:
        report: of a bundle on one device.
        bundle: an ``arm64`` bundle.
        float_model: the ONNX graph that it was quantized from.
        timeout_s: how long the count may take.

    Raises:
        LoweringError: the float graph cannot be lowered whole.
        DeviceError: it does not run there.
    """
    counted = report.cost.instructions
    if counted is None:
        return report
    manifest = checked_manifest(bundle)
    with stage("float"), tempfile.TemporaryDirectory(prefix="edgeopt.") as folder:
        model = Path(folder) / "float.tflite"
        inputs, outputs = _layouts(manifest["inputs"]), _layouts(manifest["outputs"])
        convert(float_model, model, input_layouts=inputs, output_layouts=outputs)
        device = QemuDevice.named(report.device.partition(":")[2])
        floating = count_instructions(device, model, report.runtime.split()[0], timeout_s, by_operator=False).total
    if counted.total > floating:
        logger.warning(
            "%s: the bundle takes %s instructions an inference, the float network %s. Instructions are not cycles: "
            "measure both on the board before you ship the bundle for its speed.",
            report.device, f"{counted.total:,}", f"{floating:,}",
        )  # fmt: skip
    return replace(report, cost=replace(report.cost, instructions=replace(counted, float_total=floating)))


def _layouts(tensors: list[dict[str, Any]]) -> dict[str, Any]:
    return {facts["name"]: facts["layout"] for facts in tensors if facts["layout"] != "any"}
