"""Quantized transposed convolutions in ONNX Runtime as convolutions, against LiteRT's TRANSPOSE_CONV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from float_graphs import answers, node, quantized, write_graph
from onnx import NodeProto

from edgeopt.quantize.audit import audit_onnxruntime
from edgeopt.quantize.unsigned import with_unsigned_activations

CASES = {
    "kernel as long as the stride": ((2, 2), {"strides": [2, 2]}),
    "kernel twice as long": ((4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "odd kernel": ((3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    "odd kernel, lopsided": ((3, 5), {"strides": [2, 2], "pads": [0, 2, 1, 1], "output_padding": [1, 0]}),
    "longer than the kernel reaches": ((2, 2), {"strides": [3, 3], "output_padding": [2, 1]}),
    "longer than a multiple of the stride": ((2, 4), {"strides": [2, 2], "output_padding": [1, 1]}),
    "not strided": ((3, 2), {"pads": [1, 0, 1, 0]}),
}


def model_of(folder: Path, kernel: tuple[int, int], attributes: dict, *more: NodeProto) -> onnx.ModelProto:
    random = np.random.default_rng(5)
    weight, bias = random.normal(0, 0.3, (3, 5, *kernel)).astype(np.float32), random.normal(size=5).astype(np.float32)
    nodes = [node("ConvTranspose", "x w b", "t" if more else "y", **attributes), *more]
    constants = {"w": weight, "b": bias, "v": random.normal(size=(4, 5, 3, 3)).astype(np.float32)}
    source = write_graph(folder, nodes, constants, shape=(1, 3, 6, 7))
    return quantized(source, {"x": (-2, 3), "y": (-3, 4), "t": (-3, 4)})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("relu", [False, True])
def test_unsigned_graph_answers_the_same_in_integers_when_a_convolution_is_transposed(tmp_path, case, relu):
    model = model_of(tmp_path, *CASES[case], *([node("Relu", "t", "y")] if relu else []))
    x = np.random.default_rng(1).uniform(-2, 3, (1, 3, 6, 7)).astype(np.float32)
    unsigned = ir.to_proto(with_unsigned_activations(ir.from_proto(model)))
    assert "ConvTranspose" not in [item.op_type for item in unsigned.graph.node]
    onnx.checker.check_model(unsigned, full_check=True)
    (expected,), (simulated,), (integers,) = (
        answers(model, x), answers(unsigned, x), answers(unsigned, x, optimize=True)
    )  # fmt: skip
    step = 7 / 255 if not relu else 4 / 255
    assert expected.shape == integers.shape
    assert len(np.unique(expected)) > 50
    assert np.abs(simulated - expected).max() < 1.5 * step  # sums of floats in another order
    assert np.abs(integers - expected).max() < 1.5 * step
    assert (np.abs(integers - expected) < step / 2).mean() > 0.99


def test_audit_counts_a_transposed_convolution_as_integer_when_the_graph_is_unsigned(tmp_path):
    path = tmp_path / "unsigned.onnx"
    model = model_of(tmp_path, (2, 2), {"strides": [2, 2]}, node("Conv", "t v", "y"))
    onnx.save(ir.to_proto(with_unsigned_activations(ir.from_proto(model))), str(path))
    assert audit_onnxruntime(path, "onnx").integer_coverage == 1.0


@pytest.mark.parametrize("attributes", [{"group": 3}, {"dilations": [2, 2]}, {"strides": [2, 1]}])
def test_unsigned_graph_keeps_a_transposed_convolution_when_pixels_are_not_spread_evenly(tmp_path, attributes):
    model = model_of(tmp_path, (2, 2), attributes)
    unsigned = ir.to_proto(with_unsigned_activations(ir.from_proto(model)))
    assert "ConvTranspose" in [item.op_type for item in unsigned.graph.node]
