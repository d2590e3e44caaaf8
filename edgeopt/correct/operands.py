"""Constant operands of a float graph's nodes: how they are read, scaled and replaced."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True)
class Operand:
    """A constant operand of a node; ``axis`` counts the channels."""

    node: ir.Node
    index: int
    axis: int

    def array(self) -> NDArray[np.float32]:
        """Return the constant."""
        return np.asarray(constant(self.node, self.index), np.float32)

    def multiply(self, factors: NDArray[np.floating]) -> None:
        """Multiply each channel by its factor; a constant that others read too gets a copy of its own."""
        array = self.array()
        shape = [1] * array.ndim
        shape[self.axis] = array.shape[self.axis]
        repeated = np.repeat(factors, shape[self.axis] // factors.size)  # a depthwise multiplier
        scaled = (array * repeated.reshape(shape)).astype(np.float32)
        replace_constant(self.node, self.index, scaled)


def is_constant(node: ir.Node, index: int) -> bool:
    """Whether a node has an operand at an index, and it never changes."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return value is not None and value.const_value is not None and not value.is_graph_input()


def constant(node: ir.Node, index: int) -> NDArray[np.generic]:
    """Return a constant operand."""
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def shape_of(value: ir.Value | None) -> tuple[object, ...]:
    """Return a value's sizes; nothing for one that is left out or whose shape is not known."""
    return () if value is None or value.shape is None else tuple(value.shape)


def replace_constant(node: ir.Node, index: int, array: NDArray[np.floating]) -> None:
    """Give a node another float32 constant under the same name; one that others read too stays theirs."""
    value = node.inputs[index]
    assert value is not None
    if len(value.uses()) == 1:
        value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
    else:
        add_constant(node, index, f"{node.name}.{value.name}", array)


def add_constant(node: ir.Node, index: int, name: str, array: NDArray[np.floating]) -> None:
    """Let a node read a new float32 constant."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    tensor = ir.tensor(array.astype(np.float32), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    node.replace_input_with(index, value)
