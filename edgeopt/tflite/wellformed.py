"""What has to hold before a graph can be judged at all: shapes that agree, sizes that exist, scales that are scales."""

from __future__ import annotations

import math
import re

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt.errors import ModelError, Refusal
from edgeopt.tflite.constants import read_array
from edgeopt.tflite.shapes import MAX_ELEMENTS

_SMALL = 1024  # elements of a constant that may be a shape, which inference has to see
_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear"})


def check_shapes(model: ir.Model) -> None:
    """Let ONNX infer every shape and compare it with what the graph says.

    Raises:
        ModelError: if an operator cannot take its operands, or the graph says another shape or dtype.
    """
    for value in model.graph.inputs:
        sizes = [size for size in value.shape or () if isinstance(size, int)]
        if any(size < 0 for size in sizes) or math.prod(sizes) > MAX_ELEMENTS:
            raise ModelError(f"input {value.name!r} has the shape {sizes}, which no tensor can have")
    try:
        onnx.shape_inference.infer_shapes(_without_weights(model), check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        if not _is_about(str(error), model.graph):
            return
        raise ModelError(f"the graph contradicts itself: {str(error).strip()}") from error


def _is_about(message: str, graph: ir.Graph) -> bool:
    """Whether ONNX complains about the graph, not about the inside of one of its own functions."""
    named = set(re.findall(r"op_type:(\w+)", message))
    return named <= {node.op_type for node in graph}


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """Return the graph with an input of the same shape in the place of each large constant."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is not None and value.const_value.size > _SMALL:
            value.shape, value.dtype = ir.Shape(list(value.const_value.numpy().shape)), value.const_value.dtype
            value.const_value = None
            copy.graph.initializers.pop(name)
            copy.graph.inputs.append(value)
    proto = ir.to_proto(copy)
    assert isinstance(proto, onnx.ModelProto)
    return proto


def malformed(graph: ir.Graph) -> list[Refusal]:
    """Return a refusal of every node whose result is too large, and of every one whose scale is no scale."""
    found = []
    for node in graph:
        reason = _why_too_large(node) or (_why_no_scale(node) if node.op_type in _QUANTIZATION else "")
        if reason:
            found.append(Refusal(node.name or "", node.op_type, reason))
    return found


def _why_too_large(node: ir.Node) -> str:
    for value in node.outputs:
        sizes = [size for size in value.shape or () if isinstance(size, int)]
        if math.prod(sizes) > MAX_ELEMENTS:
            return f"a result of {math.prod(sizes):,} elements, expected at most {MAX_ELEMENTS:,}"
    return ""


def _why_no_scale(node: ir.Node) -> str:
    scale = read_array(node.inputs[1])
    if scale is None:
        return ""  # computed scales are refused by the translation
    if not scale.size or not (np.isfinite(scale) & (scale > 0)).all():
        return f"a scale that is not a positive number: {scale.reshape(-1)[:4].tolist()}"
    point = read_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if point is not None and point.size != scale.size:
        return f"{point.size} zero-points for {scale.size} scales"
    source = node.inputs[0]
    if scale.size > 1 and source is not None and source.shape is not None:
        rank = len(source.shape)
        axis = node.attributes.get_int("axis", 1)
        if not -rank <= axis < rank or source.shape[axis] != scale.size or scale.ndim != 1:
            return f"{scale.size} scales along axis {axis} of a tensor of shape {list(source.shape)}"
    return ""
