"""Batch-norm folding: what scales and shifts each channel goes into the weights beside it.

The export (:mod:`edgeopt.cleaning`) has folded each batch normalization behind a convolution, and made a depthwise
convolution of one pixel of every other. What is left is found here, also where it was spelt out as a product and a
sum:

1. behind a Conv, ConvTranspose or Gemm that nothing else reads, into its weights and bias;
2. in front of a Conv without padding or a Gemm that alone reads it, into theirs. With padding it cannot be: the border
   would be padded with what the shift makes of zero.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv 1712.05877, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.correct.operands import add_constant, constant, is_constant, replace_constant, shape_of

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class _Affine:
    """A node that computes ``factor * x + offset`` for each channel ``(C,)``, and its one computed operand."""

    node: ir.Node
    source: ir.Value
    factor: Vector
    offset: Vector


def fold(graph: ir.Graph) -> int:
    """Fold what scales and shifts channels, in place; return how many nodes went."""
    done = 0
    while found := sum(_fold_node(graph, node) for node in list(graph)):  # one that is gone may have hidden another
        done += found
    return done


def _fold_node(graph: ir.Graph, node: ir.Node) -> bool:
    found = _affine(node)
    if found is None:
        return False
    writer = found.source.producer()
    if writer is not None and _is_read_once(found.source) and _into_writer(writer, found):
        _leave_out(graph, found)
        return True
    readers = list(node.outputs[0].consumers())
    if _is_read_once(node.outputs[0]) and _into_reader(readers[0], found):
        node.outputs[0].replace_all_uses_with(found.source)
        graph.remove(node, safe=True)
        return True
    return False


def _affine(node: ir.Node) -> _Affine | None:
    """Return what a node does to each channel, if that is all it does."""
    if node.op_type == "Conv":
        return _depthwise_pixel(node)
    if node.op_type not in ("Mul", "Add") or len(node.inputs) != 2:
        return None
    index = 1 if is_constant(node, 1) else 0
    source, shape = node.inputs[1 - index], shape_of(node.outputs[0])
    if not is_constant(node, index) or source is None or len(shape) < 2 or shape_of(source) != shape:
        return None
    given = constant(node, index).astype(np.float64)
    wanted = (shape[1], *[1] * (len(shape) - 2))
    if given.size != 1 and (given.shape[-len(wanted) :] != wanted or given.size != shape[1]):
        return None
    if not isinstance(shape[1], int):
        return None
    vector = np.broadcast_to(given.reshape(-1), (shape[1],))
    neutral = np.ones_like(vector) if node.op_type == "Add" else np.zeros_like(vector)
    return _Affine(node, source, *((vector, neutral) if node.op_type == "Mul" else (neutral, vector)))


def _depthwise_pixel(node: ir.Node) -> _Affine | None:
    source = node.inputs[0]
    if not all(is_constant(node, index) for index in range(1, len(node.inputs))) or source is None:
        return None
    weight = constant(node, 1).astype(np.float64)
    one_pixel = weight.size == weight.shape[0] == node.attributes.get_int("group", 1)
    moved = any(node.attributes.get_ints("pads", ())) or any(s != 1 for s in node.attributes.get_ints("strides", ()))
    if not one_pixel or moved or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    factor = weight.reshape(-1)
    offset = constant(node, 2).astype(np.float64) if len(node.inputs) > 2 else np.zeros_like(factor)
    return _Affine(node, source, factor, offset)


def _is_read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _is_weighted(node: ir.Node) -> bool:
    constants = all(is_constant(node, index) for index in range(1, len(node.inputs)))
    plain_gemm = all(node.attributes.get_float(name, 1.0) == 1 for name in ("alpha", "beta"))
    plain_gemm &= not node.attributes.get_int("transA", 0) and (len(node.inputs) < 3 or constant(node, 2).ndim == 1)
    grouped = node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1
    known = node.op_type in ("Conv", "ConvTranspose") or (node.op_type == "Gemm" and plain_gemm)
    return constants and known and not grouped and len(node.inputs) > 1


def _into_writer(node: ir.Node, found: _Affine) -> bool:
    """Case 1: multiply the weights of each output, scale and shift the bias."""
    if not _is_weighted(node):
        return False
    weight = constant(node, 1).astype(np.float64)
    axis = {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, 1 - node.attributes.get_int("transB", 0))
    if weight.shape[axis] != found.factor.size:
        return False
    bias = constant(node, 2).astype(np.float64) if len(node.inputs) > 2 else 0.0
    replace_constant(node, 1, weight * _along(found.factor, axis, weight.ndim))
    _set_bias(node, bias * found.factor + found.offset)
    return True


def _into_reader(node: ir.Node, found: _Affine) -> bool:
    """Case 2: multiply the weights of each input, and let the bias have what the shift comes to."""
    padded = any(node.attributes.get_ints("pads", ())) or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    if not _is_weighted(node) or padded or node.op_type == "ConvTranspose" or node.attributes.get_int("group", 1) != 1:
        return False
    weight = constant(node, 1).astype(np.float64)
    axis = 1 if node.op_type == "Conv" else node.attributes.get_int("transB", 0)
    if weight.shape[axis] != found.factor.size:
        return False
    others = tuple(
        index for index in range(weight.ndim) if index not in (axis, 0 if node.op_type == "Conv" else 1 - axis)
    )
    bias = constant(node, 2).astype(np.float64) if len(node.inputs) > 2 else 0.0
    shift = (weight * _along(found.offset, axis, weight.ndim)).sum(axis=(axis, *others))
    replace_constant(node, 1, weight * _along(found.factor, axis, weight.ndim))
    _set_bias(node, bias + shift)
    return True


def _set_bias(node: ir.Node, bias: Vector) -> None:
    if len(node.inputs) > 2:
        replace_constant(node, 2, bias)
    elif bias.any():
        node.resize_inputs(3)
        add_constant(node, 2, f"{node.name}.bias", bias)


def _leave_out(graph: ir.Graph, found: _Affine) -> None:
    """Take a folded node out; the tensor that it wrote keeps its name."""
    result = found.node.outputs[0]
    result.replace_all_uses_with(found.source, replace_graph_outputs=True)
    result.name, found.source.name = f"{result.name}.folded", result.name
    graph.remove(found.node, safe=True)


def _along(vector: Vector, axis: int, rank: int) -> Vector:
    shape = [1] * rank
    shape[axis] = vector.size
    return vector.reshape(shape)
