"""What each operator of the normal form means, in plain ONNX: the other direction of normal form and layout.

A graph at any point between the passes, put through :func:`as_plain_onnx`, can be run by ONNX Runtime and has to answer
like the graph that came in. That is how the passes are proven.
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

    def add(self, op_type: str, *inputs: ir.Value | None, num_outputs: int = 1, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, num_outputs=num_outputs)
        self._node.prepend(node)
        return node.outputs[0]

    def integers(self, values: list[int]) -> ir.Value:
        return new_initializer(self._graph, f"{self._node.name}_parameter", np.array(values, np.int64))

    def table(self, values: list[int], shape: list[int]) -> ir.Value:
        return new_initializer(
            self._graph, f"{self._node.name}_parameter", np.array(values, np.int64).reshape(list(shape))
        )

    def floats(self, values: list[float] | float) -> ir.Value:
        return new_initializer(self._graph, f"{self._node.name}_parameter", np.array(values, np.float32))


def _put_in_place(node: ir.Node, result: ir.Value) -> None:
    producer = result.producer()
    assert isinstance(node.graph, ir.Graph)
    assert producer is not None
    for old, new in zip(node.outputs, producer.outputs, strict=True):
        new.shape, new.type = old.shape, old.type
        for index, value in enumerate(node.graph.outputs):
            if value is old:
                node.graph.outputs[index] = new
                old.name, new.name = f"{old.name}_before", old.name
        old.replace_all_uses_with(new)
    node.graph.remove(node, safe=True)


def _clamp(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    bounds = [write.floats(attributes[name]) if math.isfinite(attributes[name]) else None for name in ("low", "high")]
    return write.add("Clip", inputs[0], *bounds)


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


def _reduction(op_type: str) -> Meaning:
    def meaning(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
        axes, keepdims = list(attributes["axes"]), attributes["keepdims"]
        if write.opset < 18 and op_type != "ReduceSum":
            return write.add(op_type, inputs[0], axes=axes, keepdims=keepdims)
        return write.add(op_type, inputs[0], write.integers(axes), keepdims=keepdims)

    return meaning


def _extreme(op_type: str) -> Meaning:
    def meaning(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
        others = {name: value for name, value in attributes.items() if name != "axes"}
        return write.add(op_type, inputs[0], axis=attributes["axes"][0], **others)

    return meaning


def _running_sum(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    others = {name: attributes[name] for name in ("exclusive", "reverse")}
    return write.add("CumSum", inputs[0], write.table([attributes["axis"]], []), **others)


def _mirror_pad(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    return write.add("Pad", inputs[0], write.integers(list(attributes["pads"])), mode="reflect")


def _one_hot(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    zero = write.integers([0])
    values = [write.add("Unsqueeze", value, zero) for value in (inputs[2], inputs[1])]
    depth = write.integers([attributes["depth"]])
    return write.add("OneHot", inputs[0], depth, write.add("Concat", *values, axis=0), axis=attributes["axis"])


def _take(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    indices = write.table(attributes["indices"], attributes["indices_shape"])
    return write.add("Gather", inputs[0], indices, axis=attributes["axis"])


def _take_points(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    return write.add("GatherND", inputs[0], write.table(attributes["points"], attributes["points_shape"]))


def _put_points(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    points = write.table(attributes["points"], attributes["points_shape"])
    return write.add("ScatterND", inputs[0], points, inputs[1], reduction=attributes["reduction"])


def _tile(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    return write.add("Tile", inputs[0], write.integers(list(attributes["repeats"])))


def _top_k(write: _Writer, inputs: list[ir.Value | None], attributes: Attributes) -> ir.Value:
    """Give the values; the indices are for the caller to put in place, from the same node."""
    others = {name: attributes[name] for name in ("axis", "largest")}
    return write.add("TopK", inputs[0], write.integers([attributes["k"]]), num_outputs=2, **others)


MEANINGS: Mapping[str, Meaning] = {
    "ArgMax": _extreme("ArgMax"),
    "ArgMin": _extreme("ArgMin"),
    "AveragePool": _channels_last("AveragePool"),
    "Clamp": _clamp,
    "Conv": _channels_last("Conv"),
    "ConvTranspose": _channels_last("ConvTranspose"),
    "CumSum": _running_sum,
    "DepthToSpace": _channels_last("DepthToSpace"),
    "FullyConnected": _fully_connected,
    "Max": _reduction("ReduceMax"),
    "MaxPool": _channels_last("MaxPool"),
    "Mean": _reduction("ReduceMean"),
    "Min": _reduction("ReduceMin"),
    "MirrorPad": _mirror_pad,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Prod": _reduction("ReduceProd"),
    "PutPoints": _put_points,
    "Reshape": _reshape,
    "Resize": _resize,
    "ResizeLinear": _resize,
    "Slice": _slice,
    "SpaceToDepth": _channels_last("SpaceToDepth"),
    "Sum": _reduction("ReduceSum"),
    "Take": _take,
    "TakePoints": _take_points,
    "Tile": _tile,
    "TopK": _top_k,
}
