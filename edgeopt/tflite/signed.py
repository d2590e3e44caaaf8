"""Unsigned quantized tensors as signed ones, which are what TFLite's kernels take.

``zero_point - 128`` on int8 stands for the same real numbers as ``zero_point`` on uint8, so nothing is lost; the same
holds for 4 and 16 bits. A zero-point that is left out is written out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.tflite.constants import new_initializer, read_array

_SIGNED = {
    ir.DataType.UINT4: ir.DataType.INT4,
    ir.DataType.UINT8: ir.DataType.INT8,
    ir.DataType.UINT16: ir.DataType.INT16,
}


def to_signed(graph: ir.Graph) -> None:
    """Shift constants behind a DequantizeLinear, and what a QuantizeLinear makes for DequantizeLinear alone."""
    for value in graph.inputs:
        if value.dtype in _SIGNED.values():
            _quantize_input(graph, value)
    for node in list(graph):
        if node.op_type == "QuantizeLinear" and not node.outputs[0].is_graph_output():
            readers = [use.node for use in node.outputs[0].uses()]
            if all(reader.op_type == "DequantizeLinear" for reader in readers):
                _shift(graph, node.outputs[0], [node, *readers])
        elif node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
            stored, source = read_array(node.inputs[0]), node.inputs[0]
            if stored is not None and source.dtype in _SIGNED:
                dtype = _SIGNED[source.dtype]
                node.replace_input_with(0, new_initializer(graph, f"{source.name}_signed", _minus_half(stored, dtype)))
                _shift(graph, source, [node])


def _quantize_input(graph: ir.Graph, value: ir.Value) -> None:
    """Say of integers that the application gives and one DequantizeLinear reads that they are quantized numbers."""
    uses = list(value.uses())
    if len(uses) != 1 or uses[0].node.op_type != "DequantizeLinear" or value.is_graph_output():
        return
    reader = uses[0].node
    quantize = ir.node("QuantizeLinear", [value, *reader.inputs[1:]], name=f"{value.name}_quantize")
    stored = quantize.outputs[0]
    stored.name, stored.type, stored.shape = f"{value.name}_stored", value.type, value.shape
    value.type = reader.outputs[0].type
    reader.prepend(quantize)
    reader.replace_input_with(0, stored)


def _shift(graph: ir.Graph, stored: ir.Value, nodes: list[ir.Node]) -> None:
    """Give the nodes on both sides of a quantized tensor its signed zero-point, and the tensor its signed dtype."""
    if stored.dtype is None:
        return
    dtype = _SIGNED.get(stored.dtype, stored.dtype)
    for node in nodes:
        given = node.inputs[2] if len(node.inputs) > 2 else None
        scale = read_array(node.inputs[1])
        points = read_array(given) if given is not None else None if scale is None else np.zeros(scale.shape, np.int8)
        if points is None or (given is not None and stored.dtype == dtype):
            continue
        shifted = _minus_half(points, dtype) if stored.dtype in _SIGNED else points.astype(dtype.numpy())
        node.resize_inputs(3)
        node.replace_input_with(2, new_initializer(graph, f"{node.name}_zero_point", shifted))
        node.attributes.pop("output_dtype", None)
    if not stored.is_initializer():
        stored.type = ir.TensorType(dtype)


def _minus_half(array: NDArray[Any], dtype: ir.DataType) -> NDArray[Any]:
    half = int(2 ** (8 * dtype.itemsize - 1))
    shifted: NDArray[Any] = (array.astype(np.int32) - half).astype(dtype.numpy())
    return shifted
