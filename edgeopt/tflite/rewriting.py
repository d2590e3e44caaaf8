"""Writing nodes in front of the node that they stand for: what the larger rewrites into normal form are made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.tflite.constants import Constant, new_initializer, write_constant
from edgeopt.tflite.shapes import Shape, broadcast_shape, shape_of

DOMAIN = "edgeopt"


class Rewriting:
    """Adds nodes whose results have shapes and dtypes, and at last takes the node's place."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        assert isinstance(node.graph, ir.Graph)
        self.graph = node.graph
        self._count = 0

    def add(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        shape: Shape | None = None,
        dtype: ir.DataType | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Add a node and return its result; by default it broadcasts its operands and keeps the first one's dtype."""
        given = [value for value in inputs if value is not None]
        self._count += 1
        name = f"{self.node.name}_{op_type.lower()}_{self._count}"
        typed = {key: ir.AttrInt64s(key, []) if value == [] else value for key, value in attributes.items()}
        node = ir.node(op_type, inputs, typed, domain=domain, name=name)
        output = node.outputs[0]
        output.name = name
        sizes = broadcast_shape([shape_of(value) for value in given]) if shape is None else shape
        output.shape = ir.Shape([None if size < 0 else size for size in sizes])
        output.type = ir.TensorType(dtype or given[0].dtype or ir.DataType.FLOAT)
        self.node.prepend(node)
        return output

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Return ``value`` in another shape; a dequantized value is reshaped as int8."""
        sizes = tuple(shape)
        if sizes == shape_of(value):
            return value
        producer = value.producer()
        if producer is None or producer.op_type != "DequantizeLinear" or producer.domain:
            return self._reshape(value, sizes)
        quantized = producer.inputs[0]
        assert quantized is not None
        return self.add(
            "DequantizeLinear", self._reshape(quantized, sizes), *producer.inputs[1:], shape=sizes, dtype=value.dtype
        )

    def copy(self, value: ir.Value) -> ir.Value:
        """Return the same numbers as a value of their own."""
        return self._reshape(value, shape_of(value))

    def _reshape(self, value: ir.Value, shape: Shape) -> ir.Value:
        self._count += 1
        name = f"{self.node.name}_reshape_{self._count}"
        node = ir.node("Reshape", [value], {"shape": ir.AttrInt64s("shape", list(shape))}, domain=DOMAIN, name=name)
        output = node.outputs[0]
        output.name, output.type = name, value.type
        output.shape = ir.Shape([None if size < 0 else size for size in shape])
        self.node.prepend(node)
        return output

    def transpose(self, value: ir.Value, permutation: Sequence[int]) -> ir.Value:
        """Return ``value`` with its axes in another order."""
        shape = tuple(shape_of(value)[axis] for axis in permutation)
        return self.add("Transpose", value, shape=shape, perm=list(permutation))

    def reduce(self, op_type: str, value: ir.Value, axes: Sequence[int], keepdims: int = 1) -> ir.Value:
        """Return a reduction of the normal form: Sum, Mean, Max, Min or Prod."""
        sizes = shape_of(value)
        kept = [1 if axis in axes else size for axis, size in enumerate(sizes)]
        shape = kept if keepdims else [size for axis, size in enumerate(sizes) if axis not in axes]
        return self.add(op_type, value, shape=tuple(shape), domain=DOMAIN, axes=list(axes), keepdims=keepdims)

    def take(self, value: ir.Value, indices: Any, axis: int) -> ir.Value:
        """Return the slices of ``value`` at constant indices, which may be negative."""
        sizes, places = shape_of(value), np.asarray(indices)
        shape = sizes[:axis] + places.shape + sizes[axis + 1 :]
        return self.add("Take", value, shape=shape, domain=DOMAIN, **take_attributes(places, sizes[axis], axis))

    def layer(self, value: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        """Return a fully connected layer of a value; the weight is (out, in)."""
        shape, parameters = (*shape_of(value)[:-1], shape_of(weight)[0]), [weight] if bias is None else [weight, bias]
        return self.add("FullyConnected", value, *parameters, shape=shape, domain=DOMAIN)

    def part(self, value: ir.Value, axis: int, begin: int, size: int, step: int = 1) -> ir.Value:
        """Return ``size`` slices of ``value`` from ``begin`` on, every one or each ``step``-th."""
        sizes = shape_of(value)
        if (begin, size) == (0, sizes[axis]):
            return value
        starts, ends, steps = [0] * len(sizes), [max(known, 0) for known in sizes], [1] * len(sizes)
        starts[axis], ends[axis], steps[axis] = begin, begin + (size - 1) * step + 1, step
        bounds: dict[str, Any] = {"starts": starts, "ends": ends, "steps": steps}
        shape = (*sizes[:axis], size, *sizes[axis + 1 :])
        return self.add("Slice", value, shape=shape, domain=DOMAIN, **bounds)

    def pad(self, value: ir.Value, axis: int, before: int, after: int, fill: float) -> ir.Value:
        """Return ``value`` with ``fill`` around it along one axis."""
        sizes, pads = shape_of(value), [0] * (2 * len(shape_of(value)))
        if before == after == 0:
            return value
        pads[axis], pads[axis + len(sizes)] = before, after
        shape = (*sizes[:axis], sizes[axis] + before + after, *sizes[axis + 1 :])
        return self.add("Pad", value, shape=shape, domain=DOMAIN, pads=pads, value=fill)

    def constant(self, array: Any) -> ir.Value:
        """Return a new constant."""
        return new_initializer(self.graph, f"{self.node.name}_constant", np.asarray(array))

    def number(self, value: float, like: ir.Value) -> ir.Value:
        """Return a constant scalar of the dtype of a value."""
        dtype = like.dtype.numpy() if like.dtype is not None else np.dtype(np.float32)
        return self.constant(np.array(value, dtype))

    def write(self, constant: Constant, suffix: str) -> ir.Value:
        """Return the value of a constant that may be quantized."""
        return write_constant(constant, f"{self.node.name}_{suffix}", self.node)

    def finish(self, *results: ir.Value | None) -> None:
        """Put results in the place of the node's outputs; each must be new, and ``None`` is for one nobody reads."""
        node, graph = self.node, self.graph
        for old, new in zip(node.outputs, results, strict=False):
            if new is None:
                continue
            if new.is_graph_input() or new.is_graph_output() or new.is_initializer():
                new = self.copy(new)
            name, shape, dtype = old.name, old.shape, old.type
            for index, value in enumerate(graph.outputs):
                if value is old:
                    graph.outputs[index] = new
            old.replace_all_uses_with(new)
            old.name = f"{name}_replaced"
            new.name, new.shape, new.type = name, shape, dtype
        graph.remove(node, safe=True)


def start(node: ir.Node) -> tuple[Rewriting, ir.Value, Shape]:
    """Return what writes in front of a node, the node's first operand and its shape."""
    source = node.inputs[0]
    assert source is not None
    return Rewriting(node), source, shape_of(source)


def take_attributes(indices: np.ndarray, size: int, axis: int) -> dict[str, Any]:
    """Return the attributes of a Take; negative indices count from behind."""
    positive = np.where(indices < 0, indices + size, indices).astype(np.int64)
    return {"indices": positive.reshape(-1).tolist(), "indices_shape": list(positive.shape), "axis": axis}


def is_read(value: ir.Value) -> bool:
    """Whether anyone sees a value."""
    return value.is_graph_output() or bool(value.uses())


def only_consumer(value: ir.Value, op_type: str) -> ir.Node | None:
    """Return the one node that reads a value, if it is such an operator."""
    consumers = list(value.consumers())
    if value.is_graph_output() or len(value.uses()) != 1 or consumers[0].op_type != op_type:
        return None
    return consumers[0]
