"""What each operator asks of the order of its operands' axes; the method is told in :mod:`edgeopt.tflite.layout`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeopt.tflite.constants import Constant, read_constant, write_constant
from edgeopt.tflite.pictures import resize_attributes
from edgeopt.tflite.reshaping import order_that_allows_reshape, permutation_after_reshape
from edgeopt.tflite.shapes import Permutation, identity, inverse, permuted
from edgeopt.tflite.unary import UNARY

if TYPE_CHECKING:
    from edgeopt.tflite.layout import LayoutWalk

Rule = Callable[[ir.Node, "LayoutWalk"], None]

_CHANNELS_LAST: Permutation = (0, 2, 3, 1)
_ELEMENTWISE = (
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod"),
    *("Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)


def rule_for(node: ir.Node) -> Rule:
    """Return the rule of a node; operators that nobody listed see everything in ONNX's own order."""
    return RULES.get((node.domain, node.op_type), as_in_onnx)


def as_in_onnx(node: ir.Node, walk: LayoutWalk) -> None:
    """Need every input in ONNX's own order, and keep every output so."""
    for index, value in enumerate(node.inputs):
        if value is not None:
            walk.use(node, index, identity(len(walk.shape(value))))


def channels_last(node: ir.Node, walk: LayoutWalk) -> None:
    """Become the channels-last operator of the same name; weights and bias stay as they are."""
    source = _data(node)
    if len(walk.shape(source)) != 4:
        as_in_onnx(node, walk)
        return
    walk.use(node, 0, _CHANNELS_LAST)
    node.domain = "edgeopt"
    walk.keep(node, _CHANNELS_LAST)


def dynamic(node: ir.Node, walk: LayoutWalk) -> None:
    """Stand right before the operator that quantizes."""
    readers = {reader.op_type for reader in node.outputs[0].consumers()}
    (channels_last if "Conv" in readers else as_in_onnx)(node, walk)


def resize(node: ir.Node, walk: LayoutWalk) -> None:
    """Become the channels-last Resize, whose sizes are attributes, if only height and width change."""
    source, target = walk.shape(_data(node)), walk.shape(node.outputs[0])
    attributes = resize_attributes(node, source, target)
    if attributes is None:
        as_in_onnx(node, walk)
        return
    node.resize_inputs(1)
    for name, value in attributes.items():
        node.attributes.add(ir.convenience.convert_attribute(name, value))
    if attributes["mode"] == "linear":
        node.op_type = "ResizeLinear"
    channels_last(node, walk)


def any_order(node: ir.Node, walk: LayoutWalk) -> None:
    """Work on one operand element by element: take it as it is stored."""
    _follow(node, walk)


def quantization(node: ir.Node, walk: LayoutWalk) -> None:
    """Quantize or dequantize: elementwise with one scale; with several only on constants, which stay as they are."""
    if read_constant(node.outputs[0]) is None:
        _follow(node, walk)


def elementwise(node: ir.Node, walk: LayoutWalk) -> None:
    """Work on several operands with broadcasting: bring them all to the order of the one that is not in ONNX's own."""
    rank = len(walk.shape(node.outputs[0]))
    operands = [value for value in node.inputs if value is not None]
    permutation = _common_order([v for v in operands if read_constant(v) is None], rank, walk)
    for index, value in enumerate(node.inputs):
        if value is not None and len(walk.shape(value)) < rank and permutation != identity(rank):
            node.replace_input_with(index, _with_rank(value, rank, node, walk))
        operand = node.inputs[index]
        if operand is not None and len(walk.shape(operand)) == rank:
            walk.use(node, index, permutation)
        elif operand is not None:
            walk.use(node, index, identity(len(walk.shape(operand))))
    walk.keep(node, permutation)


def concat(node: ir.Node, walk: LayoutWalk) -> None:
    """Bring all operands to one order and rename the axis."""
    elementwise(node, walk)
    _rename_axis(node, walk.permutation(node.outputs[0]))


def softmax(node: ir.Node, walk: LayoutWalk) -> None:
    """Need the axis last, where TFLite's kernel works; the other axes may be anywhere."""
    source = _data(node)
    permutation = walk.permutation(source)
    axis = node.attributes.get_int("axis", -1) % len(permutation)
    if permutation[-1] != axis:
        permutation = (*(other for other in permutation if other != axis), axis)
    walk.use(node, 0, permutation)
    node.attributes.add(ir.AttrInt64("axis", len(permutation) - 1))
    walk.keep(node, permutation)


def reduction(node: ir.Node, walk: LayoutWalk) -> None:
    """Rename the axes; what remains keeps its order."""
    permutation = walk.permutation(_data(node))
    axes = list(node.attributes.get_ints("axes"))
    walk.use(node, 0, permutation)
    node.attributes.add(ir.AttrInt64s("axes", sorted(inverse(permutation)[axis] for axis in axes)))
    if node.attributes.get_int("keepdims"):
        walk.keep(node, permutation)
        return
    walk.keep(node, _without(axes, permutation))


def pad(node: ir.Node, walk: LayoutWalk) -> None:
    """Reorder the pads."""
    permutation = _follow(node, walk)
    pads, rank = node.attributes.get_ints("pads"), len(permutation)
    renamed = permuted(pads[:rank], permutation) + permuted(pads[rank:], permutation)
    node.attributes.add(ir.AttrInt64s("pads", renamed))


def slices(node: ir.Node, walk: LayoutWalk) -> None:
    """Reorder the bounds."""
    _permute(node, _follow(node, walk), "starts", "ends", "steps")


def transpose(node: ir.Node, walk: LayoutWalk) -> None:
    """Move nothing: the same stored tensor, with its axes renamed."""
    source = _data(node)
    stored = walk.permutation(source)
    given = node.attributes.get_ints("perm", None)
    moved = tuple(given) if given else tuple(reversed(range(len(stored))))
    walk.alias(node.outputs[0], source, permuted(inverse(moved), stored))


def reshape(node: ir.Node, walk: LayoutWalk) -> None:
    """Keep the order if the groups of axes allow it, or leave it to the weights behind; else move little."""
    source, target = _data(node), node.outputs[0]
    stored = walk.permutation(source)
    shape, new_shape = walk.shape(source), walk.shape(target)
    after = permutation_after_reshape(shape, new_shape, stored)
    if after is None and _move_into_weights(node, walk):
        walk.use(node, 0, stored)
        return
    if after is None:
        stored = order_that_allows_reshape(shape, new_shape, stored)
        after = permutation_after_reshape(shape, new_shape, stored) or identity(len(new_shape))
    walk.use(node, 0, stored)
    node.attributes.add(ir.AttrInt64s("shape", list(permuted(new_shape, after))))
    walk.keep(node, after)


def fully_connected(node: ir.Node, walk: LayoutWalk) -> None:
    """Need the last axis last."""
    source = _data(node)
    permutation = walk.permutation(source)
    if permutation[-1] != len(permutation) - 1:
        permutation = identity(len(permutation))
    walk.use(node, 0, permutation)
    walk.keep(node, permutation)


def _data(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None, node.name
    return value


def _follow(node: ir.Node, walk: LayoutWalk) -> Permutation:
    """Take the first operand as it is stored, store the result so, and return the order."""
    permutation = walk.permutation(_data(node))
    walk.use(node, 0, permutation)
    walk.keep(node, permutation)
    return permutation


def _permute(node: ir.Node, permutation: Permutation, *names: str) -> None:
    """Reorder attributes that have an entry for each axis."""
    for name in names:
        node.attributes.add(ir.AttrInt64s(name, permuted(node.attributes.get_ints(name), permutation)))


def _rename_axis(node: ir.Node, permutation: Permutation) -> None:
    axis = node.attributes.get_int("axis") % len(permutation)
    node.attributes.add(ir.AttrInt64("axis", inverse(permutation)[axis]))


def _common_order(operands: list[ir.Value], rank: int, walk: LayoutWalk) -> Permutation:
    """Return the order of the largest operand that is not in ONNX's own order, so that as little as possible moves."""
    orders = [
        (int(np.prod(np.abs(walk.shape(v)))), walk.permutation(v)) for v in operands if len(walk.shape(v)) == rank
    ]
    moved = [(size, order) for size, order in orders if order != identity(rank)]
    return max(moved, key=lambda entry: entry[0])[1] if moved else identity(rank)


def _with_rank(value: ir.Value, rank: int, node: ir.Node, walk: LayoutWalk) -> ir.Value:
    """Add the axes of size 1 that broadcasting adds in front."""
    constant = read_constant(value)
    if constant is not None:
        return write_constant(constant.with_rank(rank), f"{value.name}_rank{rank}", node)
    shape = (1,) * (rank - len(walk.shape(value))) + walk.shape(value)
    expand = ir.node("Reshape", [value], {"shape": list(shape)}, domain="edgeopt", name=f"{value.name}_rank{rank}")
    output = expand.outputs[0]
    output.name, output.type, output.shape = f"{value.name}_rank{rank}", value.type, ir.Shape(shape)
    node.prepend(expand)
    reshape(expand, walk)
    return output


def _move_into_weights(node: ir.Node, walk: LayoutWalk) -> bool:
    """Rearrange the columns of the weights behind a Flatten instead of moving its input.

    Possible if axis 0 stays in front and all that sees the result, through elementwise operators, is fully connected
    layers: they then add up the same products in another order, which integers and no test of ours can tell.
    """
    source, target = _data(node), node.outputs[0]
    shape, stored = walk.shape(source), walk.permutation(source)
    if len(walk.shape(target)) != 2 or stored[0] != 0 or shape[0] != walk.shape(target)[0] or min(shape[1:]) < 1:
        return False
    layers = _layers_behind(target)
    for layer in layers or []:
        weight = read_constant(layer.inputs[1])
        assert weight is not None
        columns = np.arange(int(np.prod(shape[1:]))).reshape(shape[1:])
        order = columns.transpose([axis - 1 for axis in stored[1:]]).reshape(-1)
        moved = Constant(weight.array[:, order], weight.scales, weight.zero_points, weight.axis)
        layer.replace_input_with(1, write_constant(moved, f"{layer.name}_weight_stored", layer))
    return bool(layers)


def _layers_behind(value: ir.Value) -> list[ir.Node] | None:
    """Return the fully connected layers that alone read ``value``, or ``None`` if anything else does."""
    if value.is_graph_output():
        return None
    layers: list[ir.Node] = []
    for node, index in value.uses():
        if node.op_type == "FullyConnected" and index == 0:
            layers.append(node)
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear", "Clamp", "Dynamic") and index == 0:
            behind = _layers_behind(node.outputs[0])
            if behind is None:
                return None
            layers += behind
        else:
            return None
    return layers


def along_axis(node: ir.Node, walk: LayoutWalk) -> None:
    """Work along one axis, which gets its new name."""
    _rename_axis(node, _follow(node, walk))


def tile(node: ir.Node, walk: LayoutWalk) -> None:
    """Reorder the repeats."""
    _permute(node, _follow(node, walk), "repeats")


def take(node: ir.Node, walk: LayoutWalk) -> None:
    """Rename the axis if the indices are a list, or take it away for a single index; a table changes the rank."""
    num_axes = len(node.attributes.get_ints("indices_shape"))
    if num_axes == 1:
        along_axis(node, walk)
    elif num_axes == 0:
        permutation, axis = walk.permutation(_data(node)), node.attributes.get_int("axis")
        walk.use(node, 0, permutation)
        _rename_axis(node, permutation)
        walk.keep(node, _without([axis % len(permutation)], permutation))
    else:
        as_in_onnx(node, walk)


def _without(axes: list[int], permutation: Permutation) -> Permutation:
    """Return the order of the axes that are left."""
    left = [axis for axis in range(len(permutation)) if axis not in axes]
    return tuple(left.index(axis) for axis in permutation if axis in left)


_EACH_ALIKE = ("Cast", "HardSwish", "Sigmoid", "Tanh", *UNARY)
_WINDOWS = ("AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "MaxPool", "SpaceToDepth")
_REDUCTIONS = ("ArgMax", "ArgMin", "Max", "Mean", "Min", "Prod", "Sum")

RULES: Mapping[tuple[str, str], Rule] = {
    **{("", name): any_order for name in _EACH_ALIKE},
    **{("", name): elementwise for name in _ELEMENTWISE},
    **{("", name): channels_last for name in _WINDOWS},
    **{("", name): softmax for name in ("Hardmax", "LogSoftmax", "Softmax")},
    **{("", name): quantization for name in ("DequantizeLinear", "QuantizeLinear")},
    **{("edgeopt", name): reduction for name in _REDUCTIONS},
    ("", "Concat"): concat,
    ("", "Resize"): resize,
    ("", "Transpose"): transpose,
    ("edgeopt", "Clamp"): any_order,
    ("edgeopt", "CumSum"): along_axis,
    ("edgeopt", "Dynamic"): dynamic,
    ("edgeopt", "FullyConnected"): fully_connected,
    ("edgeopt", "MirrorPad"): pad,
    ("edgeopt", "Pad"): pad,
    ("edgeopt", "Reshape"): reshape,
    ("edgeopt", "Slice"): slices,
    ("edgeopt", "Take"): take,
    ("edgeopt", "Tile"): tile,
    ("edgeopt", "TopK"): softmax,
}
