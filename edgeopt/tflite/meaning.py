"""What each operator of the normal form means, in plain ONNX: the other direction of normal form and layout.

The lowering does not need it; its tests do. A graph at any point between the passes, put through
:func:`as_plain_onnx`, can be run by ONNX Runtime and has to answer like the graph that came in. That is how the passes
are proven.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgeopt.tflite.constants import new_initializer
from edgeopt.tflite.normal_form import DOMAIN

_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def as_plain_onnx(model: ir.Model) -> ir.Model:
    """Return a copy of ``model`` without the domain ``edgeopt``."""
    model = model.clone()
    for node in list(model.graph):
        if node.domain == DOMAIN:
            inputs, attributes = list(node.inputs), {name: a.value for name, a in node.attributes.items()}
            result = MEANINGS[node.op_type](_Writer(node), inputs, attributes)
            _put_in_place(node, result)
    del model.graph.opset_imports[DOMAIN]
    common.RemoveUnusedNodesPass()(model)
    return model


Attributes = Mapping[str, Any]
Meaning = Callable[["_Writer", list[ir.Value | None], Attributes], ir.Value]


class _Writer:
    """Adds plain ONNX nodes in front of the node that they stand for."""

    def __init__(self, node: ir.Node) -> None:
        self._node = node
        assert isinstance(node.graph, ir.Graph)
        self._graph = node.graph
        self.opset = node.graph.opset_imports[""]

    def add(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        self._node.prepend(node)
        return node.outputs[0]

    def integers(self, values: list[int]) -> ir.Value:
        return new_initializer(self._graph, f"{self._node.name}_parameter", np.array(values, np.int64))

    def floats(self, values: list[float] | float) -> ir.Value:
        return new_initializer(self._graph, f"{self._node.name}_parameter", np.array(values, np.float32))


def _put_in_place(node: ir.Node, result: ir.Value) -> None:
    old = node.outputs[0]
    result.shape, result.type = old.shape, old.type
    assert isinstance(node.graph, ir.Graph)
    for index, value in enumerate(node.graph.outputs):
        if value is old:
            node.graph.outputs[index] = result
            old.name, result.name = f"{old.name}_before", old.name
    old.replace_all_uses_with(result)
    node.graph.remove(node, safe=True)


def _clamp(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    bounds = [write.floats(attributes[name]) if math.isfinite(attributes[name]) else None for name in ("low", "high")]
    return write.add("Clip", inputs[0], *bounds)


def _mean(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    axes, keepdims = list(attributes["axes"]), attributes["keepdims"]
    if write.opset < 18:
        return write.add("ReduceMean", inputs[0], axes=axes, keepdims=keepdims)
    return write.add("ReduceMean", inputs[0], write.integers(axes), keepdims=keepdims)


def _reshape(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    return write.add("Reshape", inputs[0], write.integers(list(attributes["shape"])))


def _pad(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    return write.add("Pad", inputs[0], write.integers(list(attributes["pads"])), write.floats(attributes["value"]))


def _slice(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    starts, ends, steps = (list(attributes[name]) for name in ("starts", "ends", "steps"))
    axes = write.integers(list(range(len(starts))))
    return write.add("Slice", inputs[0], write.integers(starts), write.integers(ends), axes, write.integers(steps))


def _fully_connected(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    product = write.add("MatMul", inputs[0], write.add("Transpose", inputs[1], perm=[1, 0]))
    return product if len(inputs) < 3 else write.add("Add", product, inputs[2])


def _channels_last(op_type: str) -> Meaning:
    def meaning(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
        first = write.add("Transpose", inputs[0], perm=_TO_CHANNELS_FIRST)
        return write.add("Transpose", write.add(op_type, first, *inputs[1:], **attributes), perm=_TO_CHANNELS_LAST)

    return meaning


def _resize(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    plain = {name: value for name, value in attributes.items() if name != "scales"}
    first = write.add("Transpose", inputs[0], perm=_TO_CHANNELS_FIRST)
    resized = write.add("Resize", first, None, write.floats([1.0, 1.0, *attributes["scales"]]), **plain)
    return write.add("Transpose", resized, perm=_TO_CHANNELS_LAST)


MEANINGS: Mapping[str, Meaning] = {
    "AveragePool": _channels_last("AveragePool"),
    "Clamp": _clamp,
    "Conv": _channels_last("Conv"),
    "FullyConnected": _fully_connected,
    "MaxPool": _channels_last("MaxPool"),
    "Mean": _mean,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
}
