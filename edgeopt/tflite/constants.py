"""Constants of an ONNX graph: plain initializers, and integer initializers behind a DequantizeLinear.

Weights reach us in the second form. Whoever moves their axes has to move the axis of the scales too, so both forms are
read into one record, changed there and written back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True)
class Constant:
    """The array as stored; with ``scales``, ``real = scales * (array - zero_points)`` along ``axis``."""

    array: NDArray[Any]
    scales: NDArray[np.float32] | None = None
    zero_points: NDArray[np.int64] | None = None
    axis: int = 0

    def real(self) -> NDArray[Any]:
        """Return the values that the array stands for."""
        if self.scales is None or self.zero_points is None:
            return self.array
        spread = [1] * self.array.ndim
        if self.scales.size > 1:
            spread[self.axis] = self.scales.size
        steps = self.array.astype(np.float32) - self.zero_points.astype(np.float32).reshape(spread)
        with np.errstate(over="ignore"):  # a scale beyond float32's range gives infinity, as in ONNX
            return steps * self.scales.reshape(spread)

    def transposed(self, permutation: tuple[int, ...]) -> Constant:
        """Return the constant with its axes in another order."""
        array = np.ascontiguousarray(self.array.transpose(permutation))
        return replace(self, array=array, axis=permutation.index(self.axis) if self.axis in permutation else 0)

    def with_rank(self, rank: int) -> Constant:
        """Return the constant with axes of size 1 in front, as broadcasting would add them."""
        missing = rank - self.array.ndim
        return replace(self, array=self.array.reshape((1,) * missing + self.array.shape), axis=self.axis + missing)


def read_array(value: ir.Value | None) -> NDArray[Any] | None:
    """Return what a plain initializer holds, or ``None`` for anything else."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def read_constant(value: ir.Value | None) -> Constant | None:
    """Return what a plain or dequantized initializer holds, or ``None`` for anything else."""
    array = read_array(value)
    if array is not None:
        return Constant(array)
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear" or producer.domain:
        return None
    array, scales = read_array(producer.inputs[0]), read_array(producer.inputs[1])
    if array is None or scales is None:
        return None
    zero_points = read_array(producer.inputs[2]) if len(producer.inputs) > 2 else None
    points = np.zeros(scales.size, np.int64) if zero_points is None else zero_points.astype(np.int64).reshape(-1)
    axis = producer.attributes.get_int("axis", 1)
    axis = axis % array.ndim if array.ndim and scales.size > 1 else 0
    return Constant(array, scales.astype(np.float32).reshape(-1), points, axis)


def write_constant(constant: Constant, name: str, before: ir.Node) -> ir.Value:
    """Add the constant to the graph of ``before`` and return the value that holds its real numbers."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    if constant.scales is None or constant.zero_points is None:
        return new_initializer(graph, name, constant.array)
    per_tensor = constant.scales.size == 1
    shape: tuple[int, ...] = () if per_tensor else (-1,)
    inputs = [
        new_initializer(graph, f"{name}_quantized", constant.array),
        new_initializer(graph, f"{name}_scale", constant.scales.reshape(shape)),
        new_initializer(graph, f"{name}_zero_point", constant.zero_points.astype(constant.array.dtype).reshape(shape)),
    ]
    attributes = {} if per_tensor else {"axis": constant.axis}
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}_dequantize")
    _describe(node.outputs[0], name, constant.array.shape, ir.DataType.FLOAT)
    graph.insert_before(before, node)
    return node.outputs[0]


def new_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Register an array under a name that is still free."""
    unique, suffix = name, 0
    while unique in graph.initializers:
        suffix += 1
        unique = f"{name}_{suffix}"
    value = ir.val(unique, const_value=ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=unique))
    graph.register_initializer(value)
    return value


def _describe(value: ir.Value, name: str, shape: tuple[int, ...], dtype: ir.DataType) -> None:
    value.name = name
    value.shape = ir.Shape(shape)
    value.type = ir.TensorType(dtype)
