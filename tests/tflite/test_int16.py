"""int16 activations with int8 weights: LiteRT's 16x8 kernels against ONNX Runtime, which simulates them in float."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from tflite_graphs import GraphWriter, channel_scales
from tflite_runtimes import file_of, lowered, random_feeds, run_onnx

from edgeopt.errors import LoweringError
from edgeopt.tflite.versions import minimum_runtime_version

SCALE = 1e-4  # of the inputs: +-3.2767
Build = Callable[[GraphWriter, list[str]], str]


def pair(write: GraphWriter, value: str, scale: float, name: str = "", zero_point: int = 0) -> str:
    params = [write.constant(np.float32(scale)), write.constant(np.int16(zero_point))]
    return write.node("DequantizeLinear", write.node("QuantizeLinear", value, *params), *params, name=name)


def weighted(op_type: str, shape: tuple[int, ...], axis: int = 0, **attributes: object) -> Build:
    def build(write: GraphWriter, values: list[str]) -> str:
        scales = channel_scales(shape[axis])
        bias = write.bias(np.float32(SCALE) * np.resize(scales, 6))
        return write.node(op_type, values[0], write.weight(shape, scales, axis), bias, **attributes)

    return build


def op(op_type: str, *constants: np.ndarray, **attributes: object) -> Build:
    def build(write: GraphWriter, values: list[str]) -> str:
        return write.node(op_type, *values, *map(write.constant, constants), **attributes)

    return build


def model_of(build: Build, *shapes: tuple[int, ...], scale: float) -> onnx.ModelProto:
    write = GraphWriter()
    values = [pair(write, write.input(f"x{i}", shape), SCALE) for i, shape in enumerate(shapes)]
    write.output(pair(write, build(write, values), scale, name="y"))
    return write.model(21)


def steps_apart(model: onnx.ModelProto, scale: float) -> np.ndarray:
    feeds = random_feeds(model)
    (reference,) = run_onnx(model, feeds).values()
    runner = Interpreter(model_content=lowered(model), num_threads=1).get_signature_runner()
    stored = {name: np.rint(array / np.float32(SCALE)).astype(np.int16) for name, array in feeds.items()}
    (actual,) = runner(**stored).values()
    assert actual.dtype == np.int16
    assert len(np.unique(actual)) > 5
    return np.abs(np.rint(reference / np.float32(scale)) - actual)


PICTURE = (1, 6, 8, 8)
EXACT: dict[str, tuple[Build, int]] = {
    "MaxPool": (op("MaxPool", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]), 1),
    "Concat": (op("Concat", axis=1), 2),
    "Pad": (op("Pad", np.array([0, 0, 1, 2, 0, 0, 1, 0]), np.float32(1.5)), 1),
    "Slice": (op("Slice", np.array([1]), np.array([5]), np.array([2])), 1),
    "Slice with steps": (op("Slice", np.array([1]), np.array([7]), np.array([2]), np.array([3])), 1),
    "Transpose": (op("Transpose", perm=[0, 2, 1, 3]), 1),
    "Reshape": (op("Reshape", np.array([1, 2, 192])), 1),
    "Gather": (op("Gather", np.array([3, 1]), axis=2), 1),
    "Max": (op("Max"), 2),
    "Min": (op("Min"), 2),
    "ReduceMax": (op("ReduceMax", np.array([2, 3])), 1),
    "Clip": (op("Clip", np.float32(-1.25), np.float32(2.5)), 1),
    "Pad that reflects": (op("Pad", np.array([0, 0, 1, 2, 0, 0, 1, 0]), mode="reflect"), 1),
    "Resize nearest": (
        op("Resize", np.zeros(0, np.float32), np.array([1, 1, 2, 3], np.float32), mode="nearest",
           coordinate_transformation_mode="asymmetric", nearest_mode="floor"), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT)
def test_operator_equals_onnxruntime_when_it_moves_int16(case):
    build, num_inputs = EXACT[case]
    model = model_of(build, *[PICTURE] * num_inputs, scale=SCALE)
    assert steps_apart(model, SCALE).max() == 0
    assert [operator.builtin for operator in file_of(model).operators if not operator.is_integer] == []


CLOSE: dict[str, tuple[Build, int, float]] = {
    "Conv": (weighted("Conv", (6, 6, 3, 3), pads=[1] * 4), 1, 8e-4),
    "Conv, depthwise": (weighted("Conv", (6, 1, 3, 3), group=6), 1, 4e-4),
    "Conv, grouped": (weighted("Conv", (6, 3, 3, 3), group=2), 1, 4e-4),
    "ConvTranspose": (weighted("ConvTranspose", (6, 6, 2, 2), axis=1, strides=[2, 2]), 1, 4e-4),
    "Add": (op("Add"), 2, 1.7e-4),
    "Sub": (op("Sub"), 2, 1.7e-4),
    "Mul": (op("Mul"), 2, 3e-4),
    "GlobalAveragePool": (op("GlobalAveragePool"), 1, 0.4e-4),
    "AveragePool": (op("AveragePool", kernel_shape=[2, 2]), 1, SCALE),
    "to another scale": (op("Reshape", np.array([1, 384])), 1, 1.3e-4),
}


@pytest.mark.parametrize("case", CLOSE)
def test_operator_is_within_one_step_of_onnxruntime_when_int16(case):
    build, num_inputs, scale = CLOSE[case]
    model = model_of(build, *[PICTURE] * num_inputs, scale=scale)
    difference = steps_apart(model, scale)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.8
    assert [operator.builtin for operator in file_of(model).operators if not operator.is_integer] == []


@pytest.mark.parametrize("per_channel", [True, False])
def test_gemm_is_within_one_step_of_onnxruntime_when_int16(per_channel):
    def build(write: GraphWriter, values: list[str]) -> str:
        scales = channel_scales(6) if per_channel else np.float32(0.004)
        bias = write.bias(np.float32(SCALE) * np.broadcast_to(scales, 6))
        return write.node("Gemm", values[0], write.weight((6, 64), scales), bias, transB=1)

    model = model_of(build, (5, 64), scale=8e-4)
    assert steps_apart(model, 8e-4).max() <= 1
    assert file_of(model).integer_coverage == 1.0


@pytest.mark.parametrize("op_type", ["Sigmoid", "Tanh", "Softmax", "HardSwish"])
def test_function_computes_in_float_when_its_int16_kernel_is_steps_away(op_type):
    model = model_of(op(op_type), (4, 30), scale=1.1e-4)
    assert steps_apart(model, 1.1e-4).max() <= 1
    assert file_of(model).operators[0].builtin == "DEQUANTIZE"


def test_int8_and_int16_meet_in_float_when_a_graph_mixes_them():
    def build(write: GraphWriter, values: list[str]) -> str:
        return write.node("Add", values[0], write.quantized(values[1], 0.03, 5))

    model = model_of(build, PICTURE, PICTURE, scale=1.7e-4)
    assert steps_apart(model, 1.7e-4).max() <= 1
    assert [o.builtin for o in file_of(model).operators if o.builtin in ("ADD", "QUANTIZE")][-2:] == ["ADD", "QUANTIZE"]


def test_int16_is_refused_when_its_zero_point_is_not_zero():
    write = GraphWriter()
    write.output(write.node("Relu", pair(write, write.input("x", (1, 8)), SCALE, zero_point=3)))
    with pytest.raises(LoweringError, match="not a constant for int8 or int16"):
        lowered(write.model(21))


@pytest.mark.parametrize(
    ("operators", "release"),
    [
        ([("CONV_2D", 3)], "1.14.0"),
        ([("CONV_2D", 4), ("RELU", 2)], "2.3.0"),
        ([("CONV_2D", 4), ("FULLY_CONNECTED", 10)], "2.14.0"),  # later than 2.3, not earlier
        ([], "1.14.0"),
    ],
)
def test_minimum_runtime_version_is_the_latest_that_an_operator_needs(operators, release):
    assert minimum_runtime_version(operators) == release
