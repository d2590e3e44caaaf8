"""Every rule of the layout pass proven by execution: each operator behind a convolution, which stores channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from tflite_graphs import GraphWriter
from tflite_meanings import as_plain_onnx
from tflite_runtimes import random_feeds

from edgeopt.tflite.layout import CHANNELS_LAST, to_channels_last
from edgeopt.tflite.layout_rules import RULES
from edgeopt.tflite.normal_form import to_normal_form

OPSET = 26
Build = Callable[[GraphWriter, str], str]

EACH_ALIKE = """
    Abs Atan Ceil Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu Mish Neg Round Selu Sigmoid Sign Sin
    Sinh Softplus Softsign Swish Tan Tanh ThresholdedRelu Asinh Reciprocal
"""
OF_UNIT_INTERVAL = "Acos Asin Atanh Log Sqrt"
ARITHMETIC = "Add Sub Mul Div Pow Max Min Mean Sum Mod PRelu"
COMPARISONS = "Equal Greater GreaterOrEqual Less LessOrEqual"
LOGIC = "And Or Xor"
ALONG_CHANNELS = "Hardmax LogSoftmax Softmax"
REDUCTIONS = "ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum"


def alone(op_type: str, **attributes: Any) -> Build:
    return lambda write, x: write.node(op_type, x, **attributes)


def of_unit_interval(op_type: str) -> Build:
    return lambda write, x: write.node(op_type, write.node("Sigmoid", x))


def with_channels(op_type: str) -> Build:
    """The other operand has one number a channel."""
    attributes = {"fmod": 1} if op_type == "Mod" else {}

    def build(write: GraphWriter, x: str) -> str:
        positive = write.node("Add", write.node("Abs", x), write.constant(np.float32(0.5)))
        return write.node(op_type, positive, channels(write), **attributes)

    return build


def channels(write: GraphWriter) -> str:
    return write.constant(np.array([0.5, 2, 1.5, -0.25], np.float32).reshape(4, 1, 1))


def as_float(write: GraphWriter, value: str) -> str:
    return write.node("Cast", value, to=TensorProto.FLOAT)


def rounded(write: GraphWriter, x: str) -> str:
    return write.node("Cast", write.node("Mul", x, write.constant(np.float32(2))), to=TensorProto.INT32)


def compared(op_type: str) -> Build:
    def build(write: GraphWriter, x: str) -> str:
        other = write.constant(np.array([0, 1, -1, 2], np.int32).reshape(4, 1, 1))
        return as_float(write, write.node(op_type, rounded(write, x), other))

    return build


def of_bools(op_type: str) -> Build:
    def build(write: GraphWriter, x: str) -> str:
        above = write.node("Greater", x, channels(write))
        not_negative = write.node("Not", write.node("Less", x, write.constant(np.float32(0))))
        return as_float(write, write.node(op_type, above, not_negative))

    return build


def with_constants(op_type: str, *arrays: Any, **attributes: Any) -> Build:
    return lambda write, x: write.node(op_type, x, *(write.constant(np.asarray(a)) for a in arrays), **attributes)


def chosen(write: GraphWriter, x: str) -> str:
    return write.node("Where", write.node("Greater", x, write.constant(np.float32(0))), x, channels(write))


def not_a_number(write: GraphWriter, x: str) -> str:
    return as_float(write, write.node("IsNaN", write.node("Sqrt", x)))


def infinite(write: GraphWriter, x: str) -> str:
    return as_float(write, write.node("IsInf", write.node("Reciprocal", write.node("Relu", x))))


def hyperbolic(write: GraphWriter, x: str) -> str:
    return write.node("Acosh", write.node("Exp", write.node("Abs", x)))


def quantized(write: GraphWriter, x: str) -> str:
    return write.quantized(x, 0.05, 3)


def transposed_convolution(write: GraphWriter, x: str) -> str:
    weight = write.constant(write.random.normal(size=(4, 2, 3, 3)).astype(np.float32))
    return write.node("ConvTranspose", x, weight, strides=[2, 2])


def product_of_columns(write: GraphWriter, x: str) -> str:
    return write.node("MatMul", x, write.constant(write.random.normal(size=(8, 5)).astype(np.float32)))


def doubled(write: GraphWriter, x: str) -> str:
    return write.node("Resize", x, "", write.constant(np.array([1, 1, 2, 2], np.float32)), mode="linear")


def halves(write: GraphWriter, x: str) -> str:
    return write.node("Concat", x, write.node("Abs", x), axis=1)


def largest(write: GraphWriter, x: str) -> str:
    write.nodes.append(onnx.helper.make_node("TopK", [x, write.constant(np.array([2]))], ["top", "places"], axis=1))
    return "top"


CASES: dict[str, Build] = {
    **{name: alone(name) for name in EACH_ALIKE.split()},
    **{name: of_unit_interval(name) for name in OF_UNIT_INTERVAL.split()},
    **{name: with_channels(name) for name in ARITHMETIC.split()},
    **{name: compared(name) for name in COMPARISONS.split()},
    **{name: of_bools(name) for name in LOGIC.split()},
    **{name: alone(name, axis=1) for name in ALONG_CHANNELS.split()},
    **{name: with_constants(name, [1, 3], keepdims=1) for name in REDUCTIONS.split()},
    **{f"{name}, axes gone": with_constants(name, [2], keepdims=0) for name in REDUCTIONS.split()},
    "Acosh": hyperbolic,
    "ArgMax": lambda write, x: as_float(write, write.node("ArgMax", x, axis=1)),
    "ArgMin": lambda write, x: as_float(write, write.node("ArgMin", x, axis=1, keepdims=0)),
    "AveragePool": alone("AveragePool", kernel_shape=[2, 3]),
    "BitCast": lambda write, x: as_float(write, write.node("BitCast", x, to=TensorProto.INT32)),
    "BitwiseNot": lambda write, x: as_float(write, write.node("BitwiseNot", rounded(write, x))),
    "BitwiseXor": compared("BitwiseXor"),
    "Concat": halves,
    "ConvTranspose": transposed_convolution,
    "CumSum": with_constants("CumSum", 1),
    "DepthToSpace": alone("DepthToSpace", blocksize=2),
    "FullyConnected": product_of_columns,
    "IsInf": infinite,
    "IsNaN": not_a_number,
    "MaxPool": alone("MaxPool", kernel_shape=[3, 2], pads=[1, 1, 1, 0]),
    "Pad": with_constants("Pad", [0, 1, 2, 0, 0, 0, 1, 3]),
    "Pad that reflects": with_constants("Pad", [0, 1, 2, 0, 0, 0, 1, 3], mode="reflect"),
    "Quantized": quantized,
    "Relu": alone("Relu"),
    "Reshape": with_constants("Reshape", [1, 2, 2, 64]),
    "Resize": doubled,
    "Slice": with_constants("Slice", [1, 2], [3, 7], [1, 3], [1, 2]),
    "SpaceToDepth": alone("SpaceToDepth", blocksize=2),
    "Take": with_constants("Gather", [2, 0], axis=1),
    "Take a table": with_constants("Gather", [[2, 0], [1, 1]], axis=1),
    "Tile": with_constants("Tile", [1, 2, 1, 3]),
    "TopK": largest,
    "Transpose": alone("Transpose", perm=[0, 2, 3, 1]),
    "Where": chosen,
}


def model_of(case: str) -> onnx.ModelProto:
    write = GraphWriter()
    weight = write.constant(write.random.normal(size=(4, 3, 1, 1)).astype(np.float32))
    write.output(CASES[case](write, write.node("Conv", write.input("x", (1, 3, 8, 8)), weight)))
    return write.model(OPSET)


def answer(model: ir.Model, x: np.ndarray) -> np.ndarray:
    (result,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    return np.asarray(result)


@pytest.mark.parametrize("case", CASES)
def test_rule_keeps_the_answer_when_its_operand_is_channels_last(case):
    model = ir.from_proto(model_of(case))
    x = random_feeds(model_of(case))["x"]
    stored = to_normal_form(model)
    to_channels_last(stored, {"x": "NHWC"}, {})
    reference, actual = answer(model, x), answer(as_plain_onnx(stored), x.transpose(CHANNELS_LAST))
    assert reference.std() > 0
    assert actual.shape == reference.shape
    np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-5)


def test_cases_cover_the_rules_when_one_is_added():
    graphs = [to_normal_form(ir.from_proto(model_of(case))).graph for case in CASES]
    seen = {(node.domain, node.op_type) for graph in graphs for node in graph}
    assert set(RULES) - seen == {("edgeopt", "Dynamic")}  # tests/quantize/test_dynamic.py runs it
