"""Activation functions behind the quantization, where ONNX Runtime keeps the convolution in front in integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from float_graphs import answers, node, quantized, write_graph

from edgeopt.quantize.audit import audit_onnxruntime
from edgeopt.quantize.unsigned import with_unsigned_activations

CONSTANTS = {
    "w": np.random.default_rng(5).normal(0, 0.4, (3, 3, 3, 3)).astype(np.float32),
    "b": np.array([0.1, -0.4, 0.3], np.float32),
    "low": np.float32(-0.5),
    "high": np.float32(0.75),
}
JOINED = [node("Conv", "x w b", "c", pads=[1] * 4), node("Concat", "a x", "y", axis=1)]
ACTIVATIONS = {
    "Relu": node("Relu", "c", "a"),
    "Clip": node("Clip", "c low high", "a"),
    "Clip below": node("Clip", "c low", "a"),
}


def unsigned_model(folder: Path, activation: onnx.NodeProto, ranges: dict) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    nodes = [JOINED[0], activation, JOINED[1]]
    signed = quantized(write_graph(folder, nodes, CONSTANTS, shape=(1, 3, 9, 9)), ranges)
    return signed, ir.to_proto(with_unsigned_activations(ir.from_proto(signed)))


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_unsigned_graph_runs_in_integers_when_a_scale_does_not_imply_an_activation(tmp_path: Path, case: str) -> None:
    ranges = {"x": (-2, 3), "a": (-0.5, 4), "y": (-2, 4)}
    signed, unsigned = unsigned_model(tmp_path, ACTIVATIONS[case], ranges)
    onnx.checker.check_model(unsigned, full_check=True)
    x = np.random.default_rng(1).uniform(-2, 3, (1, 3, 9, 9)).astype(np.float32)
    (expected,), (simulated,), (integers,) = (
        answers(signed, x), answers(unsigned, x), answers(unsigned, x, optimize=True)
    )  # fmt: skip
    np.testing.assert_array_equal(simulated, expected)
    assert len(np.unique(expected)) > 50
    assert np.abs(integers - expected).max() < 1.5 * 6 / 255  # sums of floats in another order
    path = tmp_path / "unsigned.onnx"
    onnx.save(unsigned, str(path))
    inspection = audit_onnxruntime(path, "onnx")
    assert (inspection.integer_coverage, inspection.float_operators) == (1.0, ())


def test_unsigned_graph_keeps_an_activation_when_the_scale_implies_it(tmp_path: Path) -> None:
    nodes = [JOINED[0], node("Relu", "c", "y")]
    signed = quantized(write_graph(tmp_path, nodes, CONSTANTS), {"x": (-2, 3), "y": (0, 4)})
    unsigned = with_unsigned_activations(ir.from_proto(signed))
    assert [item.op_type for item in unsigned.graph if "Linear" not in item.op_type] == ["Conv", "Relu"]
