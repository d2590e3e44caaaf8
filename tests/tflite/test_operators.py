"""Every operator of the table, in float and in int8, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tflite_graphs import OPSET, GraphWriter, channel_scales, one_operator, quantized_convolution
from tflite_runtimes import file_of, lowered, random_feeds, run_onnx, run_tflite, steps_apart

from edgeopt.affine import dequantize
from edgeopt.errors import LoweringError
from edgeopt.tflite.operators import OPERATORS
from edgeopt.tflite.rewrites import REWRITES

Build = Callable[[GraphWriter, list[str]], str]


def assert_floats_equal(model: onnx.ModelProto, tolerance: float = 2e-6) -> None:
    feeds = random_feeds(model)
    (reference,), (actual,) = run_onnx(model, feeds).values(), run_tflite(lowered(model), feeds).values()
    assert reference.size > 0
    assert actual.shape == reference.shape
    np.testing.assert_allclose(actual, reference, rtol=0, atol=tolerance * max(1.0, float(np.abs(reference).max())))


def quantized_model(
    build: Build,
    *shapes: tuple[int, ...],
    output: tuple[float, int],
    source: tuple[float, int] = (0.0213, -5),
    opset: int = OPSET,
) -> onnx.ModelProto:
    """inputs -> Q -> DQ -> build -> Q -> DQ -> output"""
    write = GraphWriter()
    values = [write.quantized(write.input(f"x{i}", shape), *source) for i, shape in enumerate(shapes)]
    write.output(write.quantized(build(write, values), *output, name="y"))
    return write.model(opset)


def assert_equal_in_integers(model: onnx.ModelProto, scale: float, builtins: list[str] | None = None) -> None:
    content = lowered(model)
    for seed in range(3):
        assert steps_apart(model, content, random_feeds(model, seed), scale).max() == 0
    file = file_of(model)
    assert [operator.builtin for operator in file.operators if not operator.is_integer] == []
    if builtins is not None:
        assert [operator.builtin for operator in file.operators if operator.builtin != "TRANSPOSE"] == builtins


def op(op_type: str, *constants: Any, **attributes: Any) -> Build:
    def build(write: GraphWriter, values: list[str]) -> str:
        return write.node(op_type, *values, *(write.constant(array) for array in constants), **attributes)

    return build


def conv(shape: tuple[int, ...], **attributes: Any) -> Build:
    def build(write: GraphWriter, values: list[str]) -> str:
        return quantized_convolution(write, values[0], 0.0213, shape, **attributes)

    return build


# --- convolutions ---------------------------------------------------------------------------------------------------

CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], list[str]]] = {
    "valid": ((1, 3, 9, 8), (4, 3, 3, 3), {}, ["CONV_2D"]),
    "same": ((1, 3, 9, 8), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}, ["CONV_2D"]),
    "strided, odd size: SAME is exact": ((1, 3, 9, 9), (4, 3, 3, 3), {"pads": [1] * 4, "strides": [2, 2]}, ["CONV_2D"]),
    "strided, even size": ((1, 3, 8, 8), (4, 3, 3, 3), {"pads": [1] * 4, "strides": [2, 2]}, ["PAD", "CONV_2D"]),
    "SAME_UPPER": ((1, 3, 8, 8), (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, ["CONV_2D"]),
    "SAME_LOWER": ((1, 3, 8, 8), (4, 3, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, ["PAD", "CONV_2D"]),
    "auto_pad VALID": ((1, 3, 8, 8), (4, 3, 3, 3), {"auto_pad": "VALID"}, ["CONV_2D"]),
    "lopsided pads": ((1, 3, 8, 8), (4, 3, 3, 3), {"pads": [2, 0, 1, 3]}, ["PAD", "CONV_2D"]),
    "pads without end": ((1, 3, 8, 8), (4, 3, 3, 3), {"pads": [1, 1, 0, 0], "strides": [2, 2]}, ["PAD", "CONV_2D"]),
    "fewer pads than SAME": ((1, 3, 9, 9), (4, 3, 5, 5), {"pads": [1] * 4}, ["PAD", "CONV_2D"]),
    "dilated": ((1, 3, 12, 12), (4, 3, 3, 3), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}, ["CONV_2D"]),
    "unequal kernel": ((1, 3, 8, 9), (4, 3, 1, 5), {"pads": [0, 2, 0, 2], "strides": [1, 2]}, ["CONV_2D"]),
    "pointwise": ((1, 6, 5, 5), (7, 6, 1, 1), {}, ["CONV_2D"]),
    "depthwise": ((1, 6, 9, 9), (6, 1, 3, 3), {"group": 6, "pads": [1] * 4}, ["DEPTHWISE_CONV_2D"]),
    "depthwise, 5x5": (
        (1, 6, 9, 9),
        (6, 1, 5, 5),
        {"group": 6, "strides": [2, 2], "pads": [2] * 4},
        ["DEPTHWISE_CONV_2D"],
    ),
    "depth multiplier": ((1, 3, 9, 9), (6, 1, 3, 3), {"group": 3}, ["DEPTHWISE_CONV_2D"]),
    "depthwise, dilated": ((1, 4, 9, 9), (4, 1, 3, 3), {"group": 4, "dilations": [2, 2]}, ["DEPTHWISE_CONV_2D"]),
    "one channel": ((1, 1, 9, 9), (4, 1, 3, 3), {"group": 1}, ["RESHAPE", "CONV_2D"]),
    "batch of three": ((3, 3, 8, 8), (4, 3, 3, 3), {}, ["CONV_2D"]),
    "grouped": ((1, 6, 8, 8), (4, 3, 3, 3), {"group": 2}, ["CONV_2D"]),
    "one axis": ((1, 3, 20), (4, 3, 5), {"strides": [2], "pads": [2, 2]}, []),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv_equals_onnxruntime_when_int8(case):
    source, weight, attributes, builtins = CONVOLUTIONS[case]
    model = quantized_model(conv(weight, **attributes), source, output=(0.2, 9))
    assert_equal_in_integers(model, 0.2, builtins or None)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv_equals_onnxruntime_when_float(case):
    source, weight, attributes, _ = CONVOLUTIONS[case]
    write = GraphWriter()
    weights = write.constant(write.random.normal(size=weight).astype(np.float32))
    bias = write.constant(write.random.normal(size=weight[0]).astype(np.float32))
    write.output(write.node("Conv", write.input("x", source), weights, bias, **attributes))
    assert_floats_equal(write.model(), 1e-5)


@pytest.mark.parametrize(
    ("bounds", "output", "builtins"),
    [
        ((0.0, 6.0), (6 / 255, -128), ["CONV_2D"]),  # the scale implies it
        ((0.0, 6.0), (0.05, -128), ["CONV_2D"]),  # fused RELU6
        ((0.0, None), (0.05, -20), ["CONV_2D"]),  # fused RELU
        ((-1.0, 1.0), (0.02, 3), ["CONV_2D"]),  # fused RELU_N1_TO_1
        ((-0.5, 2.25), (0.03, 3), ["CONV_2D", "MAXIMUM", "MINIMUM"]),
        ((-9.0, 0.7), (0.03, 100), ["CONV_2D", "MINIMUM"]),
    ],
)
def test_clip_clamps_exactly_when_it_follows_a_conv(bounds, output, builtins):
    def build(write: GraphWriter, values: list[str]) -> str:
        limits = ["" if bound is None else write.constant(np.float32(bound)) for bound in bounds]
        product = quantized_convolution(write, values[0], 0.0213, (4, 3, 3, 3))
        return write.node("Clip", product, *limits)

    model = quantized_model(build, (1, 3, 8, 8), output=output)
    content, feeds = lowered(model), random_feeds(model)
    # ONNX Runtime does not fuse every Clip; unfused it adds up floats, so a tie may go the other way.
    difference = steps_apart(model, content, feeds, output[0])
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99
    (actual,) = run_tflite(content, feeds).values()
    grid = [np.rint(np.float32(b) / np.float32(output[0])) * np.float32(output[0]) for b in bounds if b is not None]
    assert np.isclose(actual.min(), grid[0], atol=1e-6) or actual.min() > grid[0]
    assert len(grid) < 2 or actual.max() <= grid[1] + 1e-6
    assert [operator.builtin for operator in file_of(model).operators if operator.builtin != "TRANSPOSE"] == builtins


def test_conv_rounds_a_float_bias_when_it_is_not_quantized():
    def build(write: GraphWriter, values: list[str]) -> str:
        bias = write.constant(np.array([0.5, -0.25, 0.125, 3.0], np.float32))
        return write.node("Conv", values[0], write.weight((4, 3, 1, 1), channel_scales(4)), bias)

    model = quantized_model(build, (1, 3, 8, 8), output=(0.05, 9))
    assert steps_apart(model, lowered(model), random_feeds(model), 0.05).max() <= 1
    assert file_of(model).integer_coverage == 1.0


def split_in_two(write: GraphWriter, values: list[str]) -> str:
    outputs = ["first", "second"]
    write.nodes.append(helper.make_node("Split", values, outputs, name="split", axis=1, num_outputs=2))
    return outputs[1]


# --- everything else, int8 ------------------------------------------------------------------------------------------

INTEGER_CASES: dict[str, tuple[Build, list[tuple[int, ...]], tuple[float, int], list[str]]] = {
    "Sub": (op("Sub"), [(1, 4, 5, 5)] * 2, (0.0417, 2), ["SUB"]),
    "Mul": (op("Mul"), [(1, 4, 5, 5)] * 2, (0.0311, 2), ["MUL"]),
    "Mul, broadcast over pixels": (op("Mul"), [(1, 4, 5, 5), (1, 4, 1, 1)], (0.0311, 2), ["MUL"]),
    "MaxPool": (op("MaxPool", kernel_shape=[2, 2], strides=[2, 2]), [(1, 4, 8, 8)], (0.0213, -5), ["MAX_POOL_2D"]),
    "MaxPool, padded": (
        op("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        [(1, 4, 8, 8)],
        (0.0213, -5),
        ["PADV2", "MAX_POOL_2D"],
    ),
    "MaxPool, ceil": (
        op("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        [(1, 4, 8, 8)],
        (0.0213, -5),
        ["MAX_POOL_2D"],
    ),
    "AveragePool, 3x3": (
        op("AveragePool", kernel_shape=[3, 3], strides=[2, 2]),
        [(1, 4, 9, 9)],
        (0.0213, -5),
        ["DEPTHWISE_CONV_2D"],
    ),
    "GlobalAveragePool": (op("GlobalAveragePool"), [(1, 16, 7, 7)], (0.0091, 3), ["MEAN"]),
    "ReduceMean": (op("ReduceMean", np.array([2, 3]), keepdims=0), [(1, 16, 5, 7)], (0.0091, 3), ["MEAN"]),
    "Reshape": (op("Reshape", np.array([1, 2, 40])), [(1, 4, 20)], (0.0213, -5), ["RESHAPE"]),
    "Flatten": (op("Flatten"), [(1, 4, 5, 2)], (0.0213, -5), ["RESHAPE"]),
    "Squeeze": (op("Squeeze", np.array([1])), [(4, 1, 5)], (0.0213, -5), ["RESHAPE"]),
    "Unsqueeze": (op("Unsqueeze", np.array([0, 3])), [(4, 5)], (0.0213, -5), ["RESHAPE"]),
    "Transpose": (op("Transpose", perm=[0, 2, 1]), [(2, 4, 5)], (0.0213, -5), []),
    "Concat": (op("Concat", axis=1), [(1, 2, 5, 5), (1, 3, 5, 5)], (0.0213, -5), ["CONCATENATION"]),
    "Pad": (op("Pad", np.array([0, 1, 2, 0, 0, 3])), [(1, 4, 5)], (0.0213, -5), ["PAD"]),
    "Pad with a value": (
        op("Pad", np.array([0, 1, 0, 2]), np.float32(1.5)),
        [(3, 4)],
        (0.0213, -5),
        ["PADV2"],
    ),
    "Slice": (
        op("Slice", np.array([1, -3]), np.array([3, 99]), np.array([1, 2])),
        [(1, 4, 5)],
        (0.0213, -5),
        ["SLICE"],
    ),
    "Slice with steps": (
        op("Slice", np.array([0]), np.array([9]), np.array([2]), np.array([2])),
        [(1, 4, 9)],
        (0.0213, -5),
        ["STRIDED_SLICE"],
    ),
    "Resize nearest": (
        op(
            "Resize",
            np.zeros(0, np.float32),
            np.array([1, 1, 2, 3], np.float32),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        [(1, 3, 4, 5)],
        (0.0213, -5),
        ["RESIZE_NEAREST_NEIGHBOR"],
    ),
    "Slice backwards": (
        op("Slice", np.array([-1]), np.array([-99]), np.array([1]), np.array([-2])),
        [(2, 9)],
        (0.0213, -5),
        ["STRIDED_SLICE"],
    ),
    "Split": (lambda write, values: split_in_two(write, values), [(2, 6)], (0.0213, -5), ["SLICE"]),
    "Tile": (op("Tile", np.array([2, 3])), [(2, 5)], (0.0213, -5), ["TILE"]),
    "Gather": (op("Gather", np.array([3, -1, 0]), axis=1), [(2, 5)], (0.0213, -5), ["GATHER"]),
    "GatherND": (op("GatherND", np.array([[1, -1], [0, 2]])), [(2, 5)], (0.0213, -5), []),
    "ReduceMax": (op("ReduceMax", np.array([1])), [(2, 5, 4)], (0.0213, -5), ["REDUCE_MAX"]),
    "ReduceMin": (op("ReduceMin", np.array([1]), keepdims=0), [(2, 5, 4)], (0.0213, -5), ["REDUCE_MIN"]),
    "GlobalMaxPool": (op("GlobalMaxPool"), [(2, 5, 4, 4)], (0.0213, -5), ["REDUCE_MAX"]),
    "Pad that reflects": (op("Pad", np.array([0, 1, 0, 2]), mode="reflect"), [(3, 4)], (0.0213, -5), ["MIRROR_PAD"]),
    "Pad with the edge": (op("Pad", np.array([0, 1, 0, 2]), mode="edge"), [(3, 4)], (0.0213, -5), ["GATHER"]),
    "DepthToSpace": (op("DepthToSpace", blocksize=2), [(1, 8, 3, 4)], (0.0213, -5), ["DEPTH_TO_SPACE"]),
    "DepthToSpace, CRD": (op("DepthToSpace", blocksize=2, mode="CRD"), [(1, 8, 3, 4)], (0.0213, -5), []),
    "SpaceToDepth": (op("SpaceToDepth", blocksize=2), [(1, 3, 4, 6)], (0.0213, -5), ["SPACE_TO_DEPTH"]),
    "Resize nearest to any size": (
        op("Resize", np.zeros(0, np.float32), np.array([1, 1, 1.5, 0.75], np.float32)),
        [(1, 3, 4, 7)],
        (0.0213, -5),
        ["GATHER", "GATHER"],
    ),
    "Sigmoid": (op("Sigmoid"), [(1, 300)], (1 / 256, -128), ["LOGISTIC"]),
    "Tanh": (op("Tanh"), [(1, 300)], (1 / 128, 0), ["TANH"]),
    "Relu": (op("Relu"), [(1, 300)], (0.0091, -128), ["MUL"]),
    "Elu": (op("Elu"), [(1, 300)], (0.0191, -70), ["ELU"]),
    "ReduceSum": (op("ReduceSum", np.array([2, 3]), keepdims=0), [(1, 16, 5, 7)], (0.41, 3), ["SUM"]),
    "Max": (op("Max"), [(1, 4, 5, 5), (4, 1, 1), (1, 4, 5, 5)], (0.0213, -5), ["MAXIMUM", "MAXIMUM"]),
    "Min": (op("Min"), [(1, 4, 5, 5)] * 2, (0.0213, -5), ["MINIMUM"]),
    "Identity": (op("Identity"), [(1, 300)], (0.0213, -5), ["RESHAPE"]),
    "Reshape to another scale": (op("Reshape", np.array([1, 80])), [(1, 4, 20)], (0.0319, 7), ["MUL", "RESHAPE"]),
}


@pytest.mark.parametrize("case", INTEGER_CASES)
def test_operator_equals_onnxruntime_when_int8(case):
    build, shapes, output, builtins = INTEGER_CASES[case]
    model = quantized_model(build, *shapes, output=output)
    assert_equal_in_integers(model, output[0], builtins or None)


# What computes in float between integers, because the int8 kernel is slower or not exact; on all int8 values.
TABLES: dict[str, tuple[Build, list[str]]] = {
    "HardSwish": (op("HardSwish"), ["HARD_SWISH"]),
    "LeakyRelu": (op("LeakyRelu", alpha=0.1), ["LEAKY_RELU"]),
    "Gelu": (op("Gelu", approximate="tanh"), ["GELU"]),
    "Elu with alpha": (op("Elu", alpha=0.5), ["MINIMUM", "ELU", "MUL", "RELU", "ADD"]),
    "PRelu": (op("PRelu", np.linspace(-1, 2, 4, dtype=np.float32).reshape(4, 1, 1)), ["PRELU"]),
    "Max of two scales": (lambda write, values: write.node("Max", *values, pair(write, values)), ["MAXIMUM"]),
}


def pair(write: GraphWriter, values: list[str]) -> str:
    return write.quantized(write.node("Transpose", *values, perm=[0, 1, 3, 2]), 0.0311, 4)


@pytest.mark.parametrize("case", TABLES)
def test_operator_equals_onnxruntime_when_it_is_float_between_integers(case):
    build, builtins = TABLES[case]
    model = quantized_model(build, (1, 4, 8, 8), output=(0.0191, -70), opset=20)
    grid = dequantize(np.arange(-128, 128, dtype=np.int8).reshape(1, 4, 8, 8), 0.0213, -5)
    assert steps_apart(model, lowered(model), {"x0": grid}, 0.0191).max() == 0
    operators = [operator for operator in file_of(model).operators if operator.builtin != "TRANSPOSE"]
    assert [operator.builtin for operator in operators if operator.builtin in builtins] == builtins
    assert operators[-1].builtin == "QUANTIZE"


@pytest.mark.parametrize("shape", [(1, 4, 6, 6), (1, 4, 1, 1), (4, 1, 1), (1, 1, 6, 6)])
def test_add_is_within_one_step_of_onnxruntime_when_int8_and_broadcast(shape):
    model = quantized_model(op("Add"), (1, 4, 6, 6), shape, output=(0.0411, 2))
    difference = steps_apart(model, lowered(model), random_feeds(model), 0.0411)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99
    assert "ADD" in [operator.builtin for operator in file_of(model).operators]


def test_add_takes_a_constant_when_it_is_quantized():
    def build(write: GraphWriter, values: list[str]) -> str:
        constant = write.constant(write.random.normal(size=(4, 1, 1)).astype(np.float32))
        return write.node("Mul", values[0], write.quantized(constant, 0.031, 2))

    assert_equal_in_integers(quantized_model(build, (1, 4, 5, 5), output=(0.0311, 2)), 0.0311, ["MUL"])


def test_average_pool_differs_only_in_ties_when_2x2():
    # A quarter of the sums end in .5, where ONNX Runtime looks at the parity of the result; see edgeopt.tflite.pooling.
    model = quantized_model(
        op("AveragePool", kernel_shape=[2, 2]), (1, 4, 9, 9), output=(0.0213, -6), source=(0.0213, -6)
    )
    difference = steps_apart(model, lowered(model), random_feeds(model), 0.0213)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.97


def test_softmax_is_within_one_step_of_onnxruntime_when_int8():
    model = quantized_model(op("Softmax", axis=-1), (4, 10), output=(1 / 256, -128))
    assert steps_apart(model, lowered(model), random_feeds(model), 1 / 256).max() <= 1
    assert [operator.builtin for operator in file_of(model).operators] == ["SOFTMAX"]


@pytest.mark.parametrize("op_type", ["Softmax", "Sigmoid", "Tanh"])
def test_activation_computes_in_float_when_the_scale_is_not_the_kernels_own(op_type):
    model = quantized_model(op(op_type), (4, 10), output=(0.0111, -3))
    assert file_of(model).operators[0].builtin == "DEQUANTIZE"
    assert steps_apart(model, lowered(model), random_feeds(model), 0.0111).max() <= 1


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gemm_equals_onnxruntime_when_int8(per_channel, bias):
    def build(write: GraphWriter, values: list[str]) -> str:
        scales = channel_scales(7) if per_channel else np.float32(0.005)
        inputs = [values[0], write.weight((7, 32), scales)]
        if bias:
            inputs.append(write.bias(np.float32(0.0213) * np.broadcast_to(scales, 7)))
        return write.node("Gemm", *inputs, transB=1)

    model = quantized_model(build, (3, 32), output=(0.2, 9))
    assert_equal_in_integers(model, 0.2)
    (operator,) = file_of(model).operators
    assert (operator.builtin, operator.version) == ("FULLY_CONNECTED", 10 if per_channel else 4)


@pytest.mark.parametrize("shape", [(3, 32), (2, 5, 32)])
def test_matmul_takes_the_add_behind_it_as_bias_when_int8(shape):
    def build(write: GraphWriter, values: list[str]) -> str:
        scales = channel_scales(7)
        product = write.node("MatMul", values[0], write.weight((32, 7), scales, axis=1))
        return write.node("Add", product, write.bias(np.float32(0.0213) * scales))

    model = quantized_model(build, shape, output=(0.2, 9))
    assert "ADD" not in [operator.builtin for operator in file_of(model).operators]
    difference = steps_apart(model, lowered(model), random_feeds(model), 0.2)
    assert difference.max() <= 1  # ONNX Runtime adds this bias up in float
    assert (difference == 0).mean() > 0.97


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("shape", [(32, 5), (3, 32, 5)])
def test_matmul_equals_onnxruntime_when_int8_weights_are_on_the_left(shape, per_channel):
    def build(write: GraphWriter, values: list[str]) -> str:
        return write.node("MatMul", write.weight((7, 32), channel_scales(7) if per_channel else 0.004), values[0])

    assert_equal_in_integers(quantized_model(build, shape, output=(0.2, 9)), 0.2, ["FULLY_CONNECTED"])


# --- everything else, float -----------------------------------------------------------------------------------------

FLOAT_CASES: dict[str, tuple[Build, list[tuple[int, ...]]]] = {
    **{name: (build, shapes) for name, (build, shapes, _, _) in INTEGER_CASES.items()},
    "Add": (op("Add"), [(1, 4, 5, 5), (4, 1, 1)]),
    "Div": (op("Div"), [(1, 4, 5, 5), (4, 1, 1)]),
    "Reciprocal": (op("Reciprocal"), [(1, 4, 5, 5)]),
    "Softmax over channels": (op("Softmax", axis=1), [(1, 4, 5, 5)]),
    "HardSwish": (op("HardSwish"), [(1, 50)]),
    "Clip to any bounds": (op("Clip", np.float32(-0.3), np.float32(1.7)), [(1, 50)]),
    "Clip from below": (op("Clip", np.float32(-0.3)), [(1, 50)]),
    "Dropout": (op("Dropout"), [(1, 50)]),
    "BatchNormalization": (
        op("BatchNormalization", *(np.array(v, np.float32) for v in ([1, 2, 3], [4, 5, 6], [0, 1, 2], [1, 2, 0.5]))),
        [(2, 3, 4, 5)],
    ),
    "Mean over all axes": (op("ReduceMean", keepdims=1), [(1, 4, 5, 5)]),
    "Mean over channels": (op("ReduceMean", np.array([1])), [(1, 4, 5, 5)]),
    "AveragePool, padded": (op("AveragePool", kernel_shape=[3, 3], pads=[1] * 4), [(1, 4, 8, 8)]),
    "AveragePool, counting pads": (
        op("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1),
        [(1, 4, 8, 8)],
    ),
    "AveragePool, padded and strided": (
        op("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        [(1, 4, 8, 8)],
    ),
    "AveragePool, ceil": (op("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), [(1, 4, 8, 8)]),
    "AveragePool, SAME with pads": (
        op("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        [(1, 4, 8, 8)],
    ),
    "MaxPool, dilated": (
        op("MaxPool", kernel_shape=[3, 3], dilations=[2, 2], pads=[1] * 4, ceil_mode=1, strides=[2, 1]),
        [(1, 4, 8, 9)],
    ),
    "AveragePool over three axes": (
        op("AveragePool", kernel_shape=[3, 2, 2], pads=[1, 0, 1, 0, 1, 0], strides=[2, 1, 2], ceil_mode=1),
        [(2, 3, 6, 5, 7)],
    ),
    "LRN": (op("LRN", size=5, alpha=0.5, bias=2.0), [(1, 6, 3, 3)]),
    "ConvTranspose": (
        op("ConvTranspose", np.linspace(-1, 1, 108, dtype=np.float32).reshape(4, 3, 3, 3), np.ones(6, np.float32),
           strides=[2, 2], pads=[1, 0, 1, 2], output_padding=[1, 0], dilations=[1, 2], group=2),
        [(1, 4, 5, 6)],
    ),
    "Resize linear": (
        op("Resize", np.zeros(0, np.float32), np.array([1, 1, 2, 3], np.float32), mode="linear"),
        [(1, 3, 4, 5)],
    ),
    "Sinh of large values": (
        lambda write, x: write.node("Sinh", write.node("Mul", *x, write.constant(np.float32(25)))),
        [(1, 200)],
    ),
    "Asinh of large values": (
        lambda write, x: write.node("Asinh", write.node("Mul", *x, write.constant(np.float32(1e30)))),
        [(1, 50)],
    ),
    "Resize of a crop": (
        op(
            "Resize",
            np.array([0, 0, 0.2, -0.1, 1, 1, 0.7, 1.3], np.float32),
            np.array([1, 1, 1.5, 2], np.float32),
            mode="linear",
            coordinate_transformation_mode="tf_crop_and_resize",
            extrapolation_value=3.0,
        ),
        [(1, 2, 6, 5)],
    ),
    "Resize cubic": (
        op("Resize", np.zeros(0, np.float32), np.array([1, 1, 2, 3], np.float32), mode="cubic"),
        [(1, 3, 4, 5)],
    ),
    "Erf": (op("Erf"), [(1, 50)]),
    "Gemm with factors": (op("Gemm", np.ones((4, 3), np.float32), alpha=2.0), [(2, 4)]),
    "Gemm, not transposed": (
        op("Gemm", np.arange(12, dtype=np.float32).reshape(4, 3), np.ones(3, np.float32)), [(2, 4)],
    ),
    "MatMul": (op("MatMul", np.arange(12, dtype=np.float32).reshape(4, 3)), [(2, 5, 4)]),
}  # fmt: skip


@pytest.mark.parametrize("case", FLOAT_CASES)
def test_operator_equals_onnxruntime_when_float(case):
    build, shapes = FLOAT_CASES[case]
    write = GraphWriter()
    write.output(build(write, [write.input(f"x{i}", shape) for i, shape in enumerate(shapes)]))
    assert_floats_equal(write.model())


def test_batch_normalization_disappears_when_a_conv_is_in_front():
    write = GraphWriter()
    weight = write.constant(write.random.normal(size=(3, 3, 3, 3)).astype(np.float32))
    product = write.node("Conv", write.input("x", (1, 3, 8, 8)), weight)
    statistics = [np.array(values, np.float32) for values in ([1, 2, 3], [4, 5, 6], [0, 1, 2], [1, 2, 3])]
    write.output(op("BatchNormalization", *statistics)(write, [product]))
    model = write.model()
    assert_floats_equal(model, 1e-5)
    assert [o.builtin for o in file_of(model).operators if o.builtin != "TRANSPOSE"] == ["CONV_2D"]


@pytest.mark.parametrize(
    ("op_type", "shape", "indices", "attributes"),
    [
        ("GatherElements", (3, 4, 5), (2, 3, 5), {"axis": 1}),
        ("GatherElements", (3, 4, 5), (3, 4, 2), {"axis": -1}),
        ("GatherND", (3, 4, 5), (7, 2), {}),
        ("GatherND", (3, 4, 5), (3, 7, 2), {"batch_dims": 1}),
    ],
)
def test_gather_picks_by_computed_indices_when_some_count_from_behind(op_type, shape, indices, attributes):
    write = GraphWriter()
    names = [write.input("x", shape), write.input("i", indices, TensorProto.INT64)]
    write.output(write.node(op_type, *names, **attributes))
    feeds = random_feeds(write.model()) | {"i": write.random.integers(-3, 3, indices)}
    (reference,) = run_onnx(write.model(), feeds).values()
    (actual,) = run_tflite(lowered(write.model()), feeds).values()
    np.testing.assert_array_equal(actual, reference)


# Operators whose float form is judged by ONNX's own cases, in tests/conformance, and that have no int8 form.
NODE_CASES_ALONE = """
    Abs Acos Acosh And ArgMax ArgMin Asin Asinh Atan Atanh BitCast BitwiseNot BitwiseXor Cast Ceil Cos Cosh
    CumSum Einsum Equal Exp Expand Floor GRU Gather GatherElements GatherND Gelu Greater GreaterOrEqual
    GroupNormalization HardSigmoid Hardmax InstanceNormalization IsInf IsNaN LSTM LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax LpNormalization LpPool Mish Mod Neg NonMaxSuppression Not OneHot Or PRelu Pow
    RMSNormalization RNN ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd ReduceSumSquare ReverseSequence
    Round ScatterElements ScatterND Selu Sign Sin Sinh Softplus Softsign Sqrt Sum Swish Tan ThresholdedRelu TopK
    Trilu Where Xor
"""


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "shape", "reason"),
    [
        (op("Conv", np.ones((4, 3, 3, 3, 3), np.float32)), (1, 3, 8, 8, 8), "no lowering"),
        (
            op(
                "Resize",
                np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
                np.array([1, 1, 2, 2], np.float32),
                mode="nearest",
                coordinate_transformation_mode="tf_crop_and_resize",
            ),
            (1, 3, 4, 4),
            "a crop that is not constant, or of nearest neighbours",
        ),
        (lambda write, x: write.node("Dropout", *x, "", write.constant(np.True_)), (1, 4), "a Dropout that trains"),
        (op("Pad", np.array([0, -1, 0, 1])), (1, 4), "negative pads"),
        (op("ScatterND", np.array([[1], [1]]), np.ones((2, 4), np.float32)), (3, 4), "several updates of one place"),
        (op("Resize", np.zeros(0, np.float32), np.array([1, 1, 1, 0.7], np.float32)), (1, 1, 4, 7), "within a hair"),
        (op("Det"), (4, 4), "no lowering"),
    ],
)
def test_lower_refuses_when_tflite_cannot_say_it(build, shape, reason):
    write = GraphWriter()
    write.output(build(write, [write.input("x", shape)]))
    with pytest.raises(LoweringError, match=reason):
        lowered(write.model())


def test_matmul_multiplies_batches_when_both_sides_are_computed():
    assert_floats_equal(one_operator("MatMul", (2, 3, 4), (2, 4, 5)), 1e-5)


def test_tables_are_covered_when_a_new_operator_is_added():
    """The cases above name every ONNX operator that has an entry of its own or a rewrite."""
    known = {name for domain, name in OPERATORS if not domain} | set(REWRITES)
    named = " ".join([*INTEGER_CASES, *FLOAT_CASES, "Conv Clip Gemm MatMul Softmax", NODE_CASES_ALONE])
    named = named.replace("Mean over", "ReduceMean over")
    assert {name for name in known if name not in named} == set()
