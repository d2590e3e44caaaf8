"""A read-only view of an ONNX graph for rules: who makes a tensor, who reads it, what is constant.

Only the main graph is looked at; bodies of ``If``, ``Loop`` and ``Scan`` hold no Q/DQ that edgeopt writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Use:
    """One reader of a tensor and the position at which it reads."""

    node: NodeProto
    index: int


class GraphView:
    """Look-ups over one model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = tuple(model.graph.node)
        self.output_names = frozenset(output.name for output in model.graph.output)
        self._constants = dict(_constants(model.graph))
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._uses: dict[str, list[Use]] = defaultdict(list)
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name:
                    self._uses[name].append(Use(node, index))

    def of_type(self, *op_types: str) -> Iterator[NodeProto]:
        """Yield the nodes of these operator types in graph order."""
        return (node for node in self.nodes if node.op_type in op_types)

    def producer(self, tensor: str) -> NodeProto | None:
        """Return the node that makes a tensor; ``None`` for a graph input or an initializer."""
        return self._producers.get(tensor)

    def uses(self, tensor: str) -> tuple[Use, ...]:
        """Return who reads a tensor."""
        return tuple(self._uses.get(tensor, ()))

    def constant(self, tensor: str) -> TensorProto | None:
        """Return an initializer or the value of a Constant node."""
        return self._constants.get(tensor)

    def values(self, tensor: str) -> NDArray[Any] | None:
        """Return a constant's values."""
        proto = self.constant(tensor)
        return None if proto is None else np.asarray(numpy_helper.to_array(proto))

    def is_from(self, tensor: str, *op_types: str) -> bool:
        """Say whether a node of one of these types makes the tensor."""
        producer = self.producer(tensor)
        return producer is not None and producer.op_type in op_types

    def is_only_read_by(self, tensor: str, node: NodeProto) -> bool:
        """Say whether a tensor has one reader, ``node``, and is no graph output."""
        uses = self.uses(tensor)
        return tensor not in self.output_names and len(uses) == 1 and uses[0].node is node


def input_at(node: NodeProto, index: int) -> str:
    """Return the name of an input, empty if it is left out."""
    return str(node.input[index]) if index < len(node.input) else ""


def attribute(node: NodeProto, name: str, default: int) -> int:
    """Return an integer attribute."""
    for given in node.attribute:
        if given.name == name:
            return int(helper.get_attribute_value(given))
    return default


def label(node: NodeProto) -> str:
    """Return how a message names a node."""
    return f"{node.op_type} {node.name or node.output[0]!r}" if node.name else f"{node.op_type} -> {node.output[0]!r}"


def dtype_name(data_type: int) -> str:
    """Return ``"int8"`` for ``TensorProto.INT8``."""
    return str(TensorProto.DataType.Name(data_type)).lower()


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
    for initializer in graph.initializer:
        yield initializer.name, initializer
    for node in graph.node:
        if node.op_type == "Constant":
            for given in node.attribute:
                if given.name == "value":
                    yield node.output[0], given.t
