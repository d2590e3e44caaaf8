"""Evaluate what does not depend on the inputs, so that shape arithmetic is gone before anything is lowered."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.tflite.constants import new_initializer, read_array

# DequantizeLinear stays: an integer weight must remain one. The others are no functions.
_NEVER = (
    "DequantizeLinear If Loop Scan RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial"
)
_OF_SHAPE = frozenset({"EyeLike", "Size"})


def fold_constants(graph: ir.Graph, opset: int) -> bool:
    """Replace every node whose inputs are all constant, or of which only the shape counts, by an initializer.

    Returns whether there were any.
    """
    found = False
    for node in list(graph):
        is_end = node.op_type == "Identity" and node.outputs[0].is_graph_output()  # a constant under that name
        if node.domain or len(node.outputs) != 1 or is_end or node.op_type in _NEVER.split():
            continue
        result = _known_shape(node) if node.op_type == "Shape" else _evaluate(node, opset)
        if result is not None:
            _replace(graph, node, result)
            found = True
    return found


def _replace(graph: ir.Graph, node: ir.Node, result: NDArray[np.generic]) -> None:
    output = node.outputs[0]
    constant = new_initializer(graph, f"{output.name}_folded", result)
    constant.shape, constant.type = ir.Shape(result.shape), output.type
    if output.is_graph_output():
        name, output.name = output.name, f"{output.name}_before"
        copy = ir.node("Identity", [constant], name=node.name)
        copy.outputs[0].name, copy.outputs[0].shape, copy.outputs[0].type = name, constant.shape, constant.type
        node.append(copy)
        for index, value in enumerate(graph.outputs):
            if value is output:
                graph.outputs[index] = copy.outputs[0]
    output.replace_all_uses_with(constant)
    graph.remove(node, safe=True)


def _known_shape(node: ir.Node) -> NDArray[np.int64] | None:
    (value,) = node.inputs
    if value is None or value.shape is None:
        return None
    dims = list(value.shape)[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)]
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return np.array(sizes, np.int64) if len(sizes) == len(dims) else None


def _evaluate(node: ir.Node, opset: int) -> NDArray[np.generic] | None:
    content = _any_content if node.op_type in _OF_SHAPE else _content
    arrays = [content(value) for value in node.inputs if value is not None]
    if (not arrays and node.op_type != "Constant") or any(array is None for array in arrays):
        return None
    from onnx.reference import ReferenceEvaluator  # slow to import, and most graphs have nothing to fold

    proto = ir.to_proto(node)
    assert isinstance(proto, onnx.NodeProto)
    feeds = {value.name: content(value) for value in node.inputs if value is not None and value.name}
    try:
        (result,) = ReferenceEvaluator(proto, opsets={"": opset}).run(None, feeds)
    except Exception:  # onnx's evaluator has no root for its errors; the node stays, and is lowered or refused by name
        return None
    return np.asarray(result) if isinstance(result, np.ndarray | np.generic) else None


def _content(value: ir.Value) -> NDArray[Any] | None:
    """Return what a value is known to hold; if it has no elements, that is nothing."""
    array = read_array(value)
    return _any_content(value) if array is None and value.shape is not None and 0 in value.shape else array


def _any_content(value: ir.Value) -> NDArray[Any] | None:
    """Return an array of a value's shape and dtype, for operators that look at no more."""
    sizes = [size for size in value.shape or () if isinstance(size, int)]
    if value.shape is None or value.dtype is None or len(sizes) != len(value.shape):
        return None
    return np.broadcast_to(np.zeros((), value.dtype.numpy()), sizes)
