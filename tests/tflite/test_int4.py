"""int4 weights: packed where LiteRT's kernel is exact and fast with them, else unpacked to int8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from tflite_graphs import GraphWriter, channel_scales
from tflite_runtimes import file_of, lowered, random_feeds, steps_apart

SCALE = 0.0213
Build = Callable[[GraphWriter, str], str]


def int4_weight(
    write: GraphWriter, shape: tuple[int, ...], scales: Any, axis: int = 0, dtype: int = TensorProto.INT4
) -> str:
    """The same numbers from -8 to 7 whatever they are stored as."""
    values = np.random.default_rng(7).integers(-8, 8, shape)
    names = [f"weight_{len(write.initializers)}", f"point_{len(write.initializers)}"]
    for name, array in zip(names, (values, np.zeros(np.shape(scales), np.int64)), strict=True):
        write.initializers.append(helper.make_tensor(name, dtype, array.shape, array.reshape(-1).tolist()))
    inputs = [names[0], write.constant(np.asarray(scales, np.float32)), names[1]]
    return write.node("DequantizeLinear", *inputs, **({"axis": axis} if np.ndim(scales) else {}))


def model_of(
    op_type: str,
    source: tuple[int, ...],
    weight: tuple[int, ...],
    dtype: int = TensorProto.INT4,
    axis: int = 0,
    per_channel: bool = True,
    **attributes: Any,
) -> onnx.ModelProto:
    write = GraphWriter()
    x = write.quantized(write.input("x", source), SCALE, -5)
    count = weight[axis] * attributes.get("group", 1) if op_type == "ConvTranspose" else weight[axis]
    scales = 20 * channel_scales(weight[axis]) if per_channel else np.float32(0.07)
    inputs = [x, int4_weight(write, weight, scales, axis, dtype)]
    if op_type != "MatMul":
        inputs.append(write.bias(np.float32(SCALE) * np.resize(scales, count)))
    write.output(write.quantized(write.node(op_type, *inputs, **attributes), 0.41, 3, name="y"))
    return write.model(21)


CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "Gemm": ({"op_type": "Gemm", "source": (3, 65), "weight": (7, 65), "transB": 1}, "FULLY_CONNECTED", "int4"),
    "Gemm with one scale": (
        {"op_type": "Gemm", "source": (3, 65), "weight": (7, 65), "transB": 1, "per_channel": False},
        "FULLY_CONNECTED", "int4",
    ),
    "MatMul": ({"op_type": "MatMul", "source": (2, 5, 32), "weight": (32, 7), "axis": 1}, "FULLY_CONNECTED", "int4"),
    "Conv over single pixels": (
        {"op_type": "Conv", "source": (1, 16, 5, 6), "weight": (9, 16, 1, 1)}, "FULLY_CONNECTED", "int4",
    ),
    "Conv, strided": (
        {"op_type": "Conv", "source": (1, 16, 6, 6), "weight": (9, 16, 1, 1), "strides": [2, 2]}, "CONV_2D", "int8",
    ),
    "Conv": ({"op_type": "Conv", "source": (1, 4, 6, 6), "weight": (9, 4, 3, 3)}, "CONV_2D", "int8"),
    "Conv, depthwise": (
        {"op_type": "Conv", "source": (1, 8, 6, 6), "weight": (8, 1, 3, 3), "group": 8}, "DEPTHWISE_CONV_2D", "int8",
    ),
    "ConvTranspose": (
        {"op_type": "ConvTranspose", "source": (1, 4, 6, 6), "weight": (4, 9, 2, 2), "axis": 1},
        "TRANSPOSE_CONV", "int8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operator_equals_onnxruntime_when_weights_are_int4(case):
    options, builtin, stored = CASES[case]
    model = model_of(**options)
    assert steps_apart(model, lowered(model), random_feeds(model), 0.41).max() == 0
    (operator,) = [operator for operator in file_of(model).operators if operator.builtin == builtin]
    assert stored in [tensor.dtype for tensor in operator.inputs if tensor.is_constant]
    assert file_of(model).integer_coverage == 1.0


def test_file_holds_half_the_weights_when_they_are_int4():
    options = {"op_type": "Gemm", "source": (1, 512), "weight": (512, 512), "transB": 1}
    four, eight = (lowered(model_of(**options, dtype=dtype)) for dtype in (TensorProto.INT4, TensorProto.INT8))
    assert len(eight) - len(four) > 0.49 * 512 * 512


def test_float_graph_reads_int4_weights_when_nothing_else_is_quantized():
    write = GraphWriter()
    weight = int4_weight(write, (7, 32), channel_scales(7))
    write.output(write.node("Gemm", write.input("x", (3, 32)), weight, transB=1))
    model = write.model(21)
    assert ir.from_proto(model).graph.initializers["weight_0"].dtype == ir.DataType.INT4
    assert steps_apart(model, lowered(model), random_feeds(model), 1e-4).max() <= 1
