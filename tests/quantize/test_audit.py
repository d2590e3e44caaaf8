"""What of a graph runs on integers, counted by the graph that ONNX Runtime makes of it."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from float_graphs import node, quantized, write_graph

from edgeopt.quantize.audit import audit_explicit, audit_onnxruntime, graph_macs
from edgeopt.quantize.scheme import SYMMETRIC
from edgeopt.quantize.unsigned import with_unsigned_activations

NODES = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Conv", "r v", "d"), node("Relu", "d", "y")]
WEIGHTS = {
    "w": np.random.default_rng(0).standard_normal((8, 3, 3, 3), np.float32),  # on 4 x 4: 2 x 2 x 8 x 27 = 864
    "v": np.random.default_rng(1).standard_normal((4, 8, 1, 1), np.float32),  # 2 x 2 x 4 x 8 = 128
}
RANGES = {"x": (-3.0, 3.0), "r": (0.0, 6.0), "y": (0.0, 9.0)}


def unsigned(folder: Path, float_nodes: tuple[str, ...] = ()) -> Path:
    model = quantized(write_graph(folder, NODES, WEIGHTS), RANGES, float_nodes=float_nodes)
    path = folder / "u8.onnx"
    onnx.save(ir.to_proto(with_unsigned_activations(ir.from_proto(model))), str(path))
    return path


def test_audit_onnxruntime_counts_everything_when_all_is_integer(tmp_path: Path) -> None:
    found = audit_onnxruntime(unsigned(tmp_path), "ONNX Runtime")
    assert (found.num_macs, found.integer_coverage, found.float_operators) == (992, 1.0, ())
    assert found.operators["QLinearConv"] == 2


def test_audit_onnxruntime_names_the_operator_when_one_stays_float(tmp_path: Path) -> None:
    found = audit_onnxruntime(unsigned(tmp_path, ("Conv_c",)), "ONNX Runtime")
    assert found.integer_coverage == pytest.approx(128 / 992)
    assert "Conv c" in found.float_operators  # ONNX Runtime's name for it: its output's


def test_audit_onnxruntime_counts_by_kernel_when_a_product_stays_float(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "h"), node("Neg", "h", "n"), node("MatMul", "n v", "y")]
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((4, 8), np.float32), "v": random.standard_normal((8, 2), np.float32)}
    source = write_graph(tmp_path, nodes, weights, shape=(1, 4))
    model = quantized(source, {"x": (-3.0, 3.0)}, float_nodes=("MatMul_h",))
    path = tmp_path / "u8.onnx"
    onnx.save(ir.to_proto(with_unsigned_activations(ir.from_proto(model))), str(path))
    found = audit_onnxruntime(path, "ONNX Runtime")
    assert found.integer_coverage == pytest.approx(16 / 48)  # 4 x 8 stay float, 8 x 2 do not
    assert "MatMul MatMul_h" in found.float_operators


def test_audit_onnxruntime_counts_what_runs_when_onnxruntime_quantizes_on_its_own(tmp_path: Path) -> None:
    """A float convolution between Q/DQ pairs is given int8 weights by ONNX Runtime itself (WeightBiasQuantization)."""
    path = unsigned(tmp_path, ("Conv_d",))
    assert [tensor.dims for tensor in onnx.load(str(path)).graph.initializer if tensor.name == "v"] == [[4, 8, 1, 1]]
    assert audit_onnxruntime(path, "ONNX Runtime").integer_coverage == 1.0


def test_audit_onnxruntime_counts_nothing_when_the_graph_is_float(tmp_path: Path) -> None:
    found = audit_onnxruntime(write_graph(tmp_path, NODES, WEIGHTS).path, "ONNX Runtime")
    assert (found.num_macs, found.integer_coverage, found.integer_operators) == (992, 0.0, 0)


def test_audit_explicit_counts_by_dequantize_when_some_nodes_are_float(tmp_path: Path) -> None:
    source = write_graph(tmp_path, NODES, WEIGHTS)
    for float_nodes, share in (((), 1.0), (("Conv_d",), 864 / 992)):
        quantized(source, RANGES, SYMMETRIC, float_nodes)
        found = audit_explicit(tmp_path / "model.onnx", "ONNX, explicit QDQ")
        assert found.integer_coverage == pytest.approx(share)
        assert any("Conv_d" in text for text in found.float_operators) is bool(float_nodes)


@pytest.mark.parametrize(
    ("item", "shape", "weight", "macs"),
    [
        (node("Conv", "x w", "y", group=3), (1, 3, 4, 4), (6, 1, 3, 3), 2 * 2 * 6 * 9),
        (node("ConvTranspose", "x w", "y", strides=[2, 2]), (1, 3, 4, 4), (3, 5, 2, 2), 4 * 4 * 3 * 5 * 4),
        (node("ConvTranspose", "x w", "y", group=3), (1, 3, 4, 4), (3, 1, 2, 2), 4 * 4 * 3 * 4),
        (node("MatMul", "x w", "y"), (2, 3), (3, 7), 2 * 3 * 7),
        (node("MatMul", "x w", "y"), (2, 5, 3), (3, 7), 2 * 5 * 3 * 7),
        (node("Gemm", "x w", "y", transB=1), (2, 3), (7, 3), 2 * 3 * 7),
        (node("Gemm", "x w", "y", transA=1), (3, 2), (3, 7), 2 * 3 * 7),
    ],
)
def test_graph_macs_are_those_counted_by_hand_when_the_operator_is(
    tmp_path: Path, item: onnx.NodeProto, shape: tuple[int, ...], weight: tuple[int, ...], macs: int
) -> None:
    source = write_graph(tmp_path, [item], {"w": np.zeros(weight, np.float32)}, shape=shape)
    assert list(graph_macs(onnx.load(str(source.path))).values()) == [macs]
