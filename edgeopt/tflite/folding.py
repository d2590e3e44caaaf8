"""Evaluate what does not depend on the inputs, so that shape arithmetic is gone before anything is lowered."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.tflite.constants import new_initializer, read_array

# DequantizeLinear stays: an integer weight must remain an integer weight. The others are not functions of their inputs.
_NEVER = frozenset(
    {
        "DequantizeLinear",
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


def fold_constants(graph: ir.Graph, opset: int) -> None:
    """Replace every node whose inputs are all constant, and Shape of a known shape, by an initializer."""
    for node in list(graph):
        if node.domain or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
            continue
        result = _known_shape(node) if node.op_type == "Shape" else _evaluate(node, opset)
        if result is not None:
            output = node.outputs[0]
            constant = new_initializer(graph, f"{output.name}_folded", result)
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
    arrays = [read_array(value) for value in node.inputs if value is not None]
    if node.op_type in _NEVER or not arrays or any(array is None for array in arrays):
        return None
    from onnx.reference import ReferenceEvaluator  # slow to import, and most graphs have nothing to fold

    proto = ir.to_proto(node)
    assert isinstance(proto, onnx.NodeProto)
    evaluator = ReferenceEvaluator(proto, opsets={"": opset})
    feeds = {value.name: read_array(value) for value in node.inputs if value is not None and value.name}
    (result,) = evaluator.run(None, feeds)
    return np.asarray(result)
