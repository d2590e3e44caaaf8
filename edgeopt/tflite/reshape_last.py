"""Move reshapes behind operators that work element by element, so that they meet and cancel, and part nothing.

A convolution over one axis is ``Reshape -> Conv -> Reshape`` in normal form. An activation, a sum or a QuantizeLinear
behind it gives the same numbers in front of the last Reshape, where the convolution's kernel takes it in; and two
reshapes in a row are one, or none.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgeopt.tflite.constants import read_array, read_constant
from edgeopt.tflite.rewriting import DOMAIN, Rewriting
from edgeopt.tflite.shapes import shape_of
from edgeopt.tflite.unary import UNARY

_ONE_OPERAND = frozenset({*UNARY, "Cast", "Clamp", "HardSwish", "QuantizeLinear", "Sigmoid", "Tanh"})
_OPERANDS = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Sum"})


def reshape_last(graph: ir.Graph) -> None:
    """Put every Reshape whose result is only worked on element by element behind that work, in one walk."""
    for node in list(graph):
        if node.op_type in _ONE_OPERAND or node.op_type in _OPERANDS:
            _swap(node)


def _swap(node: ir.Node) -> None:
    source = _shape_before(node)
    if source is None:
        return
    write, dtype = Rewriting(node), node.outputs[0].dtype
    operands = [_before(write, value) for value in node.inputs]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    result = write.add(node.op_type, *operands, shape=source, dtype=dtype, domain=node.domain, **attributes)
    producer = result.producer()
    assert producer is not None
    producer.name = node.name
    write.finish(write.reshape(result, shape_of(node.outputs[0])))


def _shape_before(node: ir.Node) -> tuple[int, ...] | None:
    """Return the shape that all operands have before their Reshape, single numbers aside; ``None`` if they differ."""
    is_quantize = node.op_type == "QuantizeLinear"
    if is_quantize and not _has_one_scale(node):
        return None
    shapes, ranks, target = set(), [0], shape_of(node.outputs[0])
    for value in node.inputs[:1] if is_quantize else node.inputs:
        reshape = _reshape_of(value) if value is not None else None
        if value is not None and reshape is not None and shape_of(value) == target:
            shapes.add(shape_of(reshape.inputs[0]))
        elif read_constant(value) is not None and math.prod(shape_of(value)) == 1:
            ranks.append(len(shape_of(value)))
        else:
            return None
    found = shapes.pop() if len(shapes) == 1 else ()
    return found if len(found) >= max(1, *ranks) else None


def _has_one_scale(node: ir.Node) -> bool:
    scale = read_array(node.inputs[1])
    return scale is not None and scale.size == 1


def _reshape_of(value: ir.Value) -> ir.Node | None:
    """Return the Reshape that made a value, in front of its DequantizeLinear if it has one."""
    node = value.producer()
    if node is not None and node.op_type == "DequantizeLinear" and node.inputs[0] is not None and _has_one_scale(node):
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type == "Reshape" and node.domain == DOMAIN else None


def _before(write: Rewriting, value: ir.Value | None) -> ir.Value | None:
    """Return what an operand was before its Reshape; constants stay as they are."""
    reshape = _reshape_of(value) if value is not None else None
    if value is None or reshape is None:
        return value
    source, maker = reshape.inputs[0], value.producer()
    assert source is not None
    assert maker is not None
    if maker is reshape:
        return source
    return write.add("DequantizeLinear", source, *maker.inputs[1:], shape=shape_of(source), dtype=value.dtype)
