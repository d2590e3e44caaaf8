"""Weights and biases of QDQ graphs, the symmetric scheme, and the unsigned twin."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from float_graphs import activations, answers, axis_of, constants_of, dequantizer, node, quantized, write_graph

from edgeopt.artifacts import FloatModel
from edgeopt.errors import QuantizationError
from edgeopt.quantize.scheme import ASYMMETRIC, SYMMETRIC
from edgeopt.quantize.unsigned import with_unsigned_activations

SPAN = {"x": (-1.0, 1.55)}  # scale 0.01, zero-point -28
BIAS = np.array([1.0, -0.5, 0.0, 0.25], np.float32)


def weighted(folder: Path, op_type: str, trans_b: int = 0, bias: np.ndarray = BIAS) -> FloatModel:
    """One operator with 3 input and 4 output channels; the largest weight of output channel k is 1.27 * 2**k."""
    table = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    table[:, 0] = 1.27
    table *= 2.0 ** np.arange(4, dtype=np.float32)[:, None]
    if op_type in ("Conv", "ConvTranspose"):
        weight = table[:, :, None, None] if op_type == "Conv" else table.T[:, :, None, None].copy()
        return write_graph(folder, [node(op_type, "x w b", "y")], {"w": weight, "b": bias})
    weight = table if trans_b else np.ascontiguousarray(table.T)
    if op_type == "MatMul":
        return write_graph(folder, [node("MatMul", "x w", "y")], {"w": weight}, shape=(2, 3))
    attributes = {"transB": trans_b, "alpha": 2.0, "beta": 0.5}
    return write_graph(folder, [node("Gemm", "x w b", "y", **attributes)], {"w": weight, "b": bias}, shape=(2, 3))


@pytest.mark.parametrize(
    ("op_type", "trans_b", "axis", "factor"),
    [("Conv", 0, 0, 1), ("ConvTranspose", 0, 1, 1), ("MatMul", 0, 1, 1), ("Gemm", 0, 0, 2), ("Gemm", 1, 0, 2)],
)
def test_quantize_scales_weights_per_output_channel_when_the_operator_is(
    tmp_path: Path, op_type: str, trans_b: int, axis: int, factor: int
) -> None:
    """A Gemm's alpha goes into its weights."""
    model = quantized(weighted(tmp_path, op_type, trans_b), SPAN)
    item, (integers, scale, zero_point) = dequantizer(model, op_type, 1)
    assert (integers.dtype, axis_of(item)) == (np.int8, axis)
    np.testing.assert_allclose(scale, factor * 0.01 * 2.0 ** np.arange(4), rtol=1e-6)
    assert not zero_point.any()
    assert np.moveaxis(integers, axis, 0).reshape(4, -1).max(axis=1).tolist() == [127] * 4
    assert integers.min() >= -127


@pytest.mark.parametrize(("op_type", "factor"), [("Conv", 1.0), ("ConvTranspose", 1.0), ("Gemm", 0.5)])
def test_quantize_scales_the_bias_by_input_times_weight_when_it_is_int32(
    tmp_path: Path, op_type: str, factor: float
) -> None:
    """A Gemm's beta goes into its bias."""
    model = quantized(weighted(tmp_path, op_type), SPAN)
    _, (_, weight_scale, _) = dequantizer(model, op_type, 1)
    item, (integers, scale, zero_point) = dequantizer(model, op_type, 2)
    assert (integers.dtype, zero_point.dtype, axis_of(item)) == (np.int32, np.int32, 0)
    assert scale.tolist() == (np.float32(activations(model)["x"][0]) * weight_scale).tolist()
    np.testing.assert_allclose(integers * scale.astype(np.float64), BIAS * factor, atol=float(scale.max()) / 2)


def test_quantize_answers_like_the_float_graph_when_steps_are_fine(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-1, 1.55, (2, 3)).astype(np.float32)
    source = weighted(tmp_path, "Gemm", 1)
    expected = answers(onnx.load(str(source.path)), x)[0]
    found = answers(quantized(source, {**SPAN, "y": (-60, 60)}), x)[0]
    assert np.abs(found - expected).max() < 60 / 127 + 0.3  # half a step of the output, and of inputs and weights


def test_quantize_shares_scales_between_groups_when_a_transposed_convolution_has_groups(tmp_path: Path) -> None:
    weight = np.array([[1.27, 2.54], [0.1, 0.2], [0.5, 5.08], [0.1, 0.2]], np.float32).reshape(4, 2, 1, 1)
    nodes = [node("ConvTranspose", "x w b", "y", group=2)]
    source = write_graph(tmp_path, nodes, {"w": weight, "b": BIAS}, shape=(1, 4, 2, 2))
    model = quantized(source, SPAN)
    item, (integers, scale, _) = dequantizer(model, "ConvTranspose", 1)
    assert axis_of(item) == 1
    np.testing.assert_allclose(scale, [0.01, 0.04], rtol=1e-6)
    assert integers.reshape(4, 2).tolist() == [[127, 64], [10, 5], [50, 127], [10, 5]]
    _, (steps, bias_scale, _) = dequantizer(model, "ConvTranspose", 2)
    np.testing.assert_allclose(steps * bias_scale.astype(np.float64), BIAS, atol=float(bias_scale.max()) / 2)
    assert bias_scale.tolist() == np.tile(np.float32(activations(model)["x"][0]) * scale, 2).tolist()


@pytest.mark.parametrize("bias", [3e9, -3e9])
def test_quantize_does_not_overflow_when_a_channel_of_zeros_has_a_large_bias(tmp_path: Path, bias: float) -> None:
    weight = np.ones((4, 3, 1, 1), np.float32)
    weight[1] = 0
    constants = {"w": weight, "b": np.array([0, bias, 1, 1], np.float32)}
    source = write_graph(tmp_path, [node("Conv", "x w b", "y")], constants)
    model = quantized(source, {**SPAN, "y": (min(bias, 0), max(bias, 0))})
    _, (integers, scale, _) = dequantizer(model, "Conv", 2)
    assert integers.dtype == np.int32
    assert integers[1] * float(scale[1]) == pytest.approx(bias, rel=1e-6)
    assert not dequantizer(model, "Conv", 1)[1][0][1].any()
    found = answers(model, np.zeros((1, 3, 4, 4), np.float32))[0]
    np.testing.assert_allclose(found[0, 1], bias, rtol=1e-2)


def test_quantize_leaves_a_matrix_vector_product_float_when_it_has_no_channels(tmp_path: Path) -> None:
    constants = {"v": np.ones(3, np.float32), "w": np.ones((3, 3), np.float32)}
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h v", "y")]
    model = quantized(write_graph(tmp_path, nodes, constants, shape=(2, 3)), SPAN)
    assert [item.input[1] for item in model.graph.node if item.name == "MatMul_y"] == ["v"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["w", "b", "k"])
def test_quantize_names_the_constant_when_it_is_not_finite(tmp_path: Path, value: float, which: str) -> None:
    constants = {"w": np.ones((3, 3, 1, 1), np.float32), "b": np.ones(3, np.float32), "k": np.ones(1, np.float32)}
    constants[which].flat[0] = value
    source = write_graph(tmp_path, [node("Conv", "x w b", "c"), node("Mul", "c k", "y")], constants)
    with pytest.raises(QuantizationError, match=f"constant '{which}' has NaN or infinite"):
        quantized(source, SPAN)


# ---------------------------------------------------------------- symmetric


def residual(folder: Path) -> FloatModel:
    nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Conv", "r w b", "d"), node("Add", "d x", "y")]
    weight = np.random.default_rng(0).standard_normal((3, 3, 1, 1), np.float32)
    return write_graph(folder, nodes, {"w": weight, "b": np.ones(3, np.float32)})


def test_quantize_is_symmetric_with_float_bias_and_output_when_the_scheme_is(tmp_path: Path) -> None:
    model = quantized(residual(tmp_path), {"x": (-1.0, 2.54), "r": (0, 1.27)}, SYMMETRIC)
    found = activations(model)
    assert found["x"] == (float(np.float32(0.02)), 0)
    assert found["r"] == (float(np.float32(0.01)), 0)
    assert all(zero_point == 0 for _, zero_point in found.values())
    constants = constants_of(model)
    convolutions = [item for item in model.graph.node if item.op_type == "Conv"]
    assert all(constants[item.input[2]].dtype == np.float32 for item in convolutions)
    (last,) = [item for item in model.graph.node if "y" in item.output]
    assert last.op_type == "Add"
    assert not any(constant.dtype == np.int32 for constant in constants.values())


# ---------------------------------------------------------------- unsigned twin


def test_unsigned_twin_answers_exactly_alike_when_the_graph_runs_as_written(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Concat", "r x", "j", axis=1),
        node("MaxPool", "j", "p", kernel_shape=[2, 2]), node("Mul", "p k", "m"), node("Flatten", "m", "f"),
        node("MatMul", "f v", "h"), node("Sigmoid", "h", "y"),
    ]  # fmt: skip
    random = np.random.default_rng(0)
    constants = {
        "w": random.standard_normal((3, 3, 1, 1), np.float32), "b": random.standard_normal(3, np.float32),
        "k": random.standard_normal((1, 6, 1, 1), np.float32), "v": random.standard_normal((54, 5), np.float32),
    }  # fmt: skip
    ranges = {"x": (-1.0, 1.55), "j": (-1.0, 2.0), "m": (-3.0, 3.0), "h": (-9.0, 9.0)}
    signed = quantized(write_graph(tmp_path, nodes, constants), ranges)
    before = signed.SerializeToString()
    unsigned = ir.to_proto(with_unsigned_activations(ir.from_proto(signed)))
    assert signed.SerializeToString() == before
    kinds = {item.dtype for name, item in constants_of(unsigned).items() if name.endswith("zero_point")}
    assert np.dtype("uint8") in kinds
    for zero_point in activations(unsigned).values():
        assert zero_point[1] >= 0
    for seed in range(10):
        x = np.random.default_rng(seed).uniform(-1.2, 1.8, (1, 3, 4, 4)).astype(np.float32)
        assert answers(unsigned, x)[0].tolist() == answers(signed, x)[0].tolist()


def test_schemes_read_the_same_ranges_when_both_quantize(tmp_path: Path) -> None:
    source = residual(tmp_path)
    for scheme in (ASYMMETRIC, SYMMETRIC):
        assert "x" in activations(quantized(source, SPAN, scheme))
