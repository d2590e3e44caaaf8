"""Normalizations spelled out: subtract a mean, divide by a deviation, scale and shift."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from edgeopt.tflite.program import DYNAMIC, RefusedError
from edgeopt.tflite.rewriting import Rewriting, is_read, start
from edgeopt.tflite.shapes import shape_of


def _normal(
    write: Rewriting, value: ir.Value, axes: Sequence[int], epsilon: float
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return the value with mean 0 and deviation 1 over the axes, the mean and the deviation."""
    mean = write.reduce("Mean", value, axes)
    centred = write.add("Sub", value, mean)
    variance = write.reduce("Mean", write.add("Mul", centred, centred), axes)
    deviation = write.add("Sqrt", write.add("Add", variance, write.number(epsilon, centred)))
    return write.add("Div", centred, deviation), mean, deviation


def _scaled(write: Rewriting, value: ir.Value, scale: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    result = write.add("Mul", value, scale) if scale is not None else value
    return write.add("Add", result, bias) if bias is not None else result


def _layer(node: ir.Node) -> None:
    write, source, shape = start(node)
    if node.attributes.get_int("stash_type", 1) != 1:
        raise RefusedError("statistics in another dtype than float32")
    axes = range(node.attributes.get_int("axis", -1) % len(shape), len(shape))
    normal, mean, deviation = _normal(write, source, axes, node.attributes.get_float("epsilon", 1e-5))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    result = _scaled(write, normal, node.inputs[1], bias)
    others = [value for value in node.outputs[1:] if is_read(value)]
    inverse = write.add("Reciprocal", deviation) if others else None
    write.finish(result, mean if others else None, inverse)


def _instance(node: ir.Node) -> None:
    write, source, shape = start(node)
    normal, *_ = _normal(write, source, range(2, len(shape)), node.attributes.get_float("epsilon", 1e-5))
    write.finish(_scaled(write, normal, *_per_channel(write, node, len(shape))))


def _per_channel(write: Rewriting, node: ir.Node, rank: int) -> list[ir.Value]:
    values = []
    for value in node.inputs[1:3]:
        assert value is not None
        values.append(write.reshape(value, (*shape_of(value), *(1,) * (rank - 2))))
    return values


def _group(node: ir.Node) -> None:
    """Normalize each group of channels; the scales are one a channel from opset 21 on, one a group before."""
    write, source, shape = start(node)
    groups = node.attributes.get_int("num_groups")
    if DYNAMIC in shape[1:]:
        raise RefusedError("groups of a dynamic shape")
    parts = write.reshape(source, (shape[0], groups, math.prod(shape[1:]) // groups))
    normal, *_ = _normal(write, parts, [2], node.attributes.get_float("epsilon", 1e-5))
    if shape_of(node.inputs[1]) == (groups,) and groups != shape[1]:
        write.finish(write.reshape(_scaled(write, normal, *_per_channel(write, node, 3)), shape))
        return
    write.finish(_scaled(write, write.reshape(normal, shape), *_per_channel(write, node, len(shape))))


def _length(node: ir.Node) -> None:
    """Divide by the L1 or L2 length along one axis."""
    write, source, shape = start(node)
    axis = node.attributes.get_int("axis", -1) % len(shape)
    if node.attributes.get_int("p", 2) == 1:
        length = write.reduce("Sum", write.add("Abs", source), [axis])
    else:
        length = write.add("Sqrt", write.reduce("Sum", write.add("Mul", source, source), [axis]))
    zero = write.number(0, source)
    is_zero = write.add("Equal", length, zero, dtype=ir.DataType.BOOL)
    safe = write.add("Where", is_zero, write.number(1, source), length, shape=shape_of(length), dtype=source.dtype)
    write.finish(write.add("Div", source, safe))


NORMALIZATIONS: Mapping[str, Callable[[ir.Node], None]] = {
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "LayerNormalization": _layer,
    "LpNormalization": _length,
}
