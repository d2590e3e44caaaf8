"""The same QDQ graph with uint8 activations, as ONNX Runtime's x86 kernels want them.

``zero_point + 128`` on an unsigned type stands for the same real numbers as ``zero_point`` on the signed one, so the
two graphs are equal in every answer. Measured on EfficientNet-Lite0 with ONNX Runtime on x86-64: with uint8 all 49
convolutions fuse to integer kernels, with int8 14 of them stay float.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeopt.inspection import Border, TensorFacts
from edgeopt.quantize.bounds import bounds_as_integers
from edgeopt.quantize.dynamic import dynamic_as_integers
from edgeopt.quantize.scheme import REDUCED_WEIGHT
from edgeopt.quantize.subpixel import transposed_as_subpixels

_OFFSET = 128
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def with_unsigned_activations(model: ir.Model) -> ir.Model:
    """Return a copy in which every int8 tensor but the weights is uint8; ``model`` stays as it is.

    What these kernels would do in float is spelled out in integers: products of activations that are quantized
    dynamically (:mod:`edgeopt.quantize.dynamic`), transposed convolutions (:mod:`edgeopt.quantize.subpixel`) and
    activation functions (:mod:`edgeopt.quantize.bounds`).
    """
    copy = model.clone()
    dynamic_as_integers(copy)
    graph = copy.graph
    transposed_as_subpixels(graph)
    shifted: set[str] = set()
    for node in graph:
        if node.op_type == "QuantizeLinear" and (_is_int8(node.inputs[2]) or _name(node.inputs[2]) in shifted):
            _shift_constant(graph, node.inputs[2], shifted)
            node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        elif node.op_type == "DequantizeLinear" and _is_int8(node.inputs[0]) and not _is_weight(node):
            _shift_constant(graph, node.inputs[0], shifted)
            _shift_constant(graph, node.inputs[2], shifted)
    bounds_as_integers(graph)
    return copy


def may_saturate(graph: ir.Graph) -> bool:
    """Return whether weights are so large that two products with uint8 can leave 16 bits, in which AVX2 adds them."""
    constants = (value.const_value for value in graph.initializers.values() if value.dtype == ir.DataType.INT8)
    arrays = (tensor.numpy().astype(np.int16) for tensor in constants if tensor is not None)
    return any(int(np.abs(array).max(initial=0)) > REDUCED_WEIGHT for array in arrays)


def unsigned_border(border: Border) -> Border:
    """Return the same border with the zero-points that go with uint8."""

    def shifted(facts: TensorFacts) -> TensorFacts:
        if facts.zero_point is None or facts.integer_dtype != "int8":
            return facts
        return replace(facts, zero_point=facts.zero_point + _OFFSET, integer_dtype="uint8")

    return Border(tuple(map(shifted, border.inputs)), tuple(map(shifted, border.outputs)))


def _shift_constant(graph: ir.Graph, value: ir.Value | None, shifted: set[str]) -> None:
    if value is None or value.const_value is None or value.name in shifted:
        return
    data = np.asarray(value.const_value.numpy())
    moved = (data.astype(np.int16) + _OFFSET).astype(np.uint8)
    value.const_value = ir.tensor(moved, name=value.name)
    value.type = ir.TensorType(ir.DataType.UINT8)
    shifted.add(str(value.name))


def _name(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)


def _is_int8(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.INT8


def _is_weight(node: ir.Node) -> bool:
    return all(use.idx == 1 and use.node.op_type in _WEIGHTED for use in node.outputs[0].uses())
