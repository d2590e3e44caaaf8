"""Evaluate what does not depend on the inputs, so that shape arithmetic is gone before anything is lowered."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.tflite.constants import new_initializer, read_array

# DequantizeLinear stays: an integer weight must remain one. Identity is rewritten. The others are no functions.
_NEVER = frozenset(
    {
        "DequantizeLinear",
        "Identity",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
        "If",
        "Loop",
        "Scan",
    }
)


def fold_constants(graph: ir.Graph, opset: int) -> bool:
    """Replace every node whose inputs are all constant, and Shape of a known shape, by an initializer.

    Returns whether there were any.
    """
    found = False
    for node in list(graph):
        if node.domain or len(node.outputs) != 1:
            continue
        known = {"Shape": _known_shape, "Size": _known_size}.get(node.op_type)
        result = known(node) if known is not None else _evaluate(node, opset)
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


def _known_size(node: ir.Node) -> NDArray[np.int64] | None:
    (value,) = node.inputs
    sizes = list(value.shape) if value is not None and value.shape is not None else [None]
    known = [size for size in sizes if isinstance(size, int)]
    return np.array(np.prod(known), np.int64) if len(known) == len(sizes) else None


def _known_shape(node: ir.Node) -> NDArray[np.int64] | None:
    (value,) = node.inputs
    if value is None or value.shape is None:
        return None
    dims = list(value.shape)[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)]
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return np.array(sizes, np.int64) if len(sizes) == len(dims) else None


def _evaluate(node: ir.Node, opset: int) -> NDArray[np.generic] | None:
    arrays = [read_array(value) for value in node.inputs if value is not None]
    if node.op_type in _NEVER or (not arrays and node.op_type != "Constant") or any(array is None for array in arrays):
        return None
    from onnx.reference import ReferenceEvaluator  # slow to import, and most graphs have nothing to fold

    proto = ir.to_proto(node)
    assert isinstance(proto, onnx.NodeProto)
    feeds = {value.name: read_array(value) for value in node.inputs if value is not None and value.name}
    try:
        (result,) = ReferenceEvaluator(proto, opsets={"": opset}).run(None, feeds)
    except Exception:  # onnx's evaluator has no root for its errors; the node stays, and is lowered or refused by name
        return None
    return np.asarray(result) if isinstance(result, np.ndarray | np.generic) else None
