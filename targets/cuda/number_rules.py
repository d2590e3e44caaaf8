"""Rules 1 to 5: what the numbers in Q/DQ nodes may be.

Every check takes a graph and yields what breaks it as ``(where, fact)``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from .graph import (
    DEQUANTIZE,
    QUANTIZE,
    GraphView,
    Use,
    attribute,
    dtype_name,
    input_at,
    label,
)

Findings = Iterator[tuple[str, str]]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_WEIGHT, _BIAS = 1, 2
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def int8_only(view: GraphView) -> Findings:
    """Rule 1: every Q and DQ is int8.

    An ONNX QuantizeLinear without a zero-point means uint8 unless ``output_dtype`` says otherwise. Quantized biases
    are left to rule 5.

    Source: "Working with Quantized Types", supported data types; ONNX-TensorRT operators.md (uint8 only as network
    input or output); TensorRT#2774.
    """
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        found = _quantized_type(view, node)
        if found != TensorProto.INT8 and not _is_bias_dequantizer(view, node):
            yield label(node), f"quantized type {'unknown' if found is None else dtype_name(found)}, expected int8"


def zero_points_are_zero(view: GraphView) -> Findings:
    """Rule 2: a zero-point is left out or a constant full of zeros.

    Source: ONNX-TensorRT operators.md, DequantizeLinear and QuantizeLinear; TensorRT#2774 and #4698 (the importer
    asserts it).
    """
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        name = input_at(node, 2)
        if not name:
            continue
        values = view.values(name)
        if values is None:
            yield label(node), f"zero-point {name!r} is computed, expected a constant"
        elif np.any(values):
            yield label(node), f"zero-point {values.flat[int(np.flatnonzero(values)[0])]}, expected 0"


def scales_are_positive_constants(view: GraphView) -> Findings:
    """Rule 3: a scale is known when the engine is built, finite and above 0.

    Source: TensorRT operator documentation, Quantize and Dequantize (scale is a build-time constant; strictly
    positive).
    """
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        name = input_at(node, 1)
        values = view.values(name)
        if values is None:
            yield label(node), f"scale {name!r} is computed, expected a constant"
        elif not values.size or not np.all(np.isfinite(values)) or np.any(values <= 0):
            bad = [value for value in values.flat if not value > 0 or not np.isfinite(value)]
            yield label(node), f"scale {bad[0] if bad else 'of no elements'}, expected finite and above 0"


def granularity(view: GraphView) -> Findings:
    """Rule 4: activations per tensor; weights per tensor or per channel along the axis that the kernels expect.

    Conv: axis 0. Gemm: the axis of its output features. MatMul: the last axis. ConvTranspose: axis 0, its *input*
    channels, which is not what other runtimes do: TensorRT runs it as a convolution's gradient, and scales along its
    output channels gave wrong results without an error.

    Source: "Q/DQ Layer-Placement Recommendations" (per tensor for activations, per channel for weights);
    ConvTranspose: TensorRT#1694 and #2380.
    """
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        scale = view.constant(input_at(node, 1))
        if scale is None or int(np.prod(scale.dims)) == 1 or _is_bias_dequantizer(view, node):
            continue
        weight = _quantized_weight(view, node)
        if weight is None:
            yield label(node), f"{int(np.prod(scale.dims))} scales for an activation, expected one per tensor"
            continue
        for use in _weight_uses(view, node):
            yield from _wrong_axis(node, use, tuple(scale.dims), tuple(weight.dims))
        if not _weight_uses(view, node):
            yield label(node), "scales per channel on a constant that is no weight, expected one per tensor"


def bias_is_float(view: GraphView) -> Findings:
    """Rule 5: a bias is a float tensor with no DQ before it.

    The engine adds it to the int32 accumulator itself, at the product of the input's and the weight's scale.

    Source: onnx-tensorrt#850, TensorRT#3360, onnxruntime#14229 (a DQ of an int32 bias fails to parse).
    """
    for node in view.of_type("Conv", "ConvTranspose", "Gemm"):
        name = input_at(node, _BIAS)
        stored = view.constant(name)
        if view.is_from(name, DEQUANTIZE):
            yield label(node), f"bias {name!r} comes from a DequantizeLinear"
        elif stored is not None and stored.data_type not in _FLOATS:
            yield label(node), f"bias {name!r} is {dtype_name(stored.data_type)}"


def _quantized_type(view: GraphView, node: NodeProto) -> int | None:
    zero_point = view.constant(input_at(node, 2))
    if zero_point is not None:
        return int(zero_point.data_type)
    if node.op_type == QUANTIZE:
        return attribute(node, "output_dtype", 0) or int(TensorProto.UINT8)
    stored = view.constant(node.input[0])
    if stored is not None:
        return int(stored.data_type)
    producer = view.producer(node.input[0])
    return _quantized_type(view, producer) if producer is not None and producer.op_type == QUANTIZE else None


def _is_bias_dequantizer(view: GraphView, node: NodeProto) -> bool:
    uses = view.uses(node.output[0])
    return bool(uses) and all(use.index == _BIAS and use.node.op_type in WEIGHTED for use in uses)


def _quantized_weight(view: GraphView, node: NodeProto) -> TensorProto | None:
    """Return the constant that a Q or DQ works on, looking through a Q before a DQ; ``None`` for an activation."""
    name = node.input[0]
    producer = view.producer(name)
    if node.op_type == DEQUANTIZE and producer is not None and producer.op_type == QUANTIZE:
        name = producer.input[0]
    return view.constant(name)


def _weight_uses(view: GraphView, node: NodeProto) -> tuple[Use, ...]:
    """Return who multiplies by what a Q or DQ gives, looking through a DQ after a Q."""
    uses = view.uses(node.output[0])
    if node.op_type == QUANTIZE:
        uses = tuple(use for after in uses for use in view.uses(after.node.output[0]))
    return tuple(use for use in uses if use.node.op_type in WEIGHTED and use.index == _WEIGHT)


def _wrong_axis(node: NodeProto, use: Use, scale: tuple[int, ...], weight: tuple[int, ...]) -> Findings:
    expected = _channel_axis(use.node, len(weight))
    axis = attribute(node, "axis", 1) % len(weight)
    if len(scale) != 1:
        yield label(node), f"scales of shape {list(scale)}, expected one axis"
    elif axis != expected:
        yield label(node), f"axis {axis} for the weight of {label(use.node)}, expected {expected}"
    elif scale[0] != weight[axis]:
        yield label(node), f"{scale[0]} scales for {weight[axis]} channels"


def _channel_axis(node: NodeProto, rank: int) -> int:
    if node.op_type == "MatMul":
        return rank - 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 0
