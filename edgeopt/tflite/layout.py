"""Bring a graph from ONNX's channels-first order to TFLite's channels-last, with as few transposes as possible.

The method: walk the graph once, and for each value keep the *permutation* under which it is stored: axis ``i`` of the
stored tensor is logical axis ``permutation[i]``. An operator states what it needs:

* convolutions and pools need their input channels-last and store their output so;
* elementwise operators take any order, the same for all operands: constants are rearranged here, once and for all;
* operators with axes (Concat, Pad, Slice, Mean, Softmax) get their axes renamed;
* a reshape keeps the order where its groups of axes allow it (:mod:`edgeopt.tflite.reshaping`);
* a Transpose of the model itself moves nothing: it only renames axes.

Data moves only where an operator needs an order that it does not find, and at the graph's borders. So a transpose
cancels with its inverse without anyone looking for the pair, and the walk is linear in the size of the graph. One more
rule removes the transpose that every classifier with a Flatten would keep: the columns of the fully connected weights
behind it are rearranged instead.

A transpose of a dequantized value is put in front of its DequantizeLinear, where it moves int8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes import common

from edgeopt.errors import LoweringError, ModelError
from edgeopt.tflite import layout_rules
from edgeopt.tflite.constants import read_constant, write_constant
from edgeopt.tflite.program import MISFITS
from edgeopt.tflite.reshaping import moves_no_data
from edgeopt.tflite.shapes import Permutation, identity, permuted, shape_of

Layout = Literal["NCHW", "NHWC"]
CHANNELS_LAST: Permutation = (0, 2, 3, 1)


def to_channels_last(
    model: ir.Model, input_layouts: Mapping[str, Layout], output_layouts: Mapping[str, Layout]
) -> dict[str, Permutation]:
    """Rewrite ``model``, which is in normal form, in place; return how values are stored that are not as they were.

    Args:
        model: the graph; afterwards it is stored channels-last, with the domain ``edgeopt``'s Conv and pools.
        input_layouts: how the application hands over inputs with four axes; by default as in the ONNX graph.
        output_layouts: the same for outputs.

    Raises:
        LoweringError: if a layout is given for a name that is not there, or that does not have four axes.
    """
    _check_layouts("input", model.graph.inputs, input_layouts)
    _check_layouts("output", model.graph.outputs, output_layouts)
    walk = LayoutWalk(model.graph)
    for value in model.graph.inputs:
        walk.store_input(value, input_layouts.get(value.name or "", "NCHW"))
    for node in list(model.graph):
        try:
            layout_rules.rule_for(node)(node, walk)
        except MISFITS as error:
            raise ModelError(f"{node.op_type} {node.name!r} has operands that do not fit it: {error}") from error
    for index, value in enumerate(model.graph.outputs):
        walk.store_output(index, output_layouts.get(value.name or "", "NCHW"))
    common.RemoveUnusedNodesPass()(model)
    return walk.orders()


def _check_layouts(what: str, values: Sequence[ir.Value], layouts: Mapping[str, Layout]) -> None:
    ranks = {value.name: len(shape_of(value)) for value in values}
    for name in layouts:
        if ranks.get(name) != 4:
            has = "no such " + what if name not in ranks else f"{ranks[name]} axes"
            raise LoweringError(f"layout of {what} {name!r}: got {has}, expected an {what} with 4 axes")


class LayoutWalk:
    """What is known about the values so far: where each is stored, and under which permutation."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._stored: dict[ir.Value, tuple[ir.Value, Permutation]] = {}
        self._logical_shape: dict[ir.Value, tuple[int, ...]] = {}
        self._moved: dict[tuple[ir.Value, Permutation], ir.Value] = {}

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Return the logical shape of a value, whatever the order in which it is stored."""
        return self._logical_shape.get(value) or shape_of(value)

    def permutation(self, value: ir.Value) -> Permutation:
        """Return the order in which a value is stored."""
        return self._stored[value][1] if value in self._stored else identity(len(shape_of(value)))

    def orders(self) -> dict[str, Permutation]:
        """Return the order of each value that is stored under its own name."""
        return {str(value.name): order for value, (stored, order) in self._stored.items() if stored is value}

    def keep(self, node: ir.Node, permutation: Permutation) -> None:
        """Say that the outputs of ``node`` are stored under ``permutation``."""
        for value in node.outputs:
            shape = shape_of(value)
            if permutation != identity(len(shape)):
                self._logical_shape[value] = shape
                self._stored[value] = (value, permutation)
                value.shape = _permuted_dims(value, permutation)

    def alias(self, value: ir.Value, source: ir.Value, permutation: Permutation) -> None:
        """Say that ``value`` is what is already stored for ``source``, read under ``permutation``."""
        actual = self._stored[source][0] if source in self._stored else source
        self._logical_shape[value] = shape_of(value)
        self._stored[value] = (actual, permutation)

    def use(self, node: ir.Node, index: int, permutation: Permutation) -> None:
        """Make input ``index`` of ``node`` read its value stored under ``permutation``."""
        value = node.inputs[index]
        assert value is not None
        node.replace_input_with(index, self.fetch(value, permutation, node))

    def fetch(self, value: ir.Value, permutation: Permutation, before: ir.Node) -> ir.Value:
        """Return ``value`` stored under ``permutation``, moving data only if it has to."""
        actual, current = self._stored.get(value, (value, self.permutation(value)))
        if current == permutation:
            return actual
        key = (value, permutation)
        if key not in self._moved:
            self._moved[key] = self._move(value, actual, current, permutation, before)
        return self._moved[key]

    def _move(
        self, value: ir.Value, actual: ir.Value, current: Permutation, wanted: Permutation, before: ir.Node
    ) -> ir.Value:
        step = tuple(current.index(axis) for axis in wanted)
        constant = read_constant(actual)
        if constant is not None:
            return write_constant(constant.transposed(step), f"{value.name}_{_letters(step)}", before)
        no_data = moves_no_data(self.shape(value), current, wanted)
        producer = actual.producer()
        if producer is None or producer.op_type != "DequantizeLinear" or producer.domain:
            return insert_transpose(actual, step, before, as_reshape=no_data)
        quantized = producer.inputs[0]
        assert quantized is not None
        moved = insert_transpose(quantized, step, before, as_reshape=no_data)
        again = ir.node("DequantizeLinear", [moved, *producer.inputs[1:]], name=f"{producer.name}_{_letters(step)}")
        output = again.outputs[0]
        output.name, output.type = f"{actual.name}_{_letters(step)}", actual.type
        output.shape = _permuted_dims(actual, step)
        before.prepend(again)
        return output

    def store_input(self, value: ir.Value, layout: Layout) -> None:
        """Take a graph input in the order in which the application hands it over."""
        if layout == "NHWC":
            self._logical_shape[value] = shape_of(value)
            self._stored[value] = (value, CHANNELS_LAST)
            value.shape = _permuted_dims(value, CHANNELS_LAST)

    def store_output(self, index: int, layout: Layout) -> None:
        """Give a graph output in the order in which the application wants it, under its own name."""
        value = self.graph.outputs[index]
        wanted = CHANNELS_LAST if layout == "NHWC" else identity(len(self.shape(value)))
        end = ir.node("Identity", [value])  # a place to insert before; gone again below
        self.graph.append(end)
        fetched = self.fetch(value, wanted, end)
        self.graph.remove(end, safe=True)
        if fetched is value:
            return
        name, value.name = value.name, f"{value.name}_stored"
        if fetched.is_graph_input() or fetched.is_graph_output():
            fetched = self._copy(fetched)
        fetched.name = name
        self.graph.outputs[index] = fetched

    def _copy(self, value: ir.Value) -> ir.Value:
        node = ir.node(
            "Reshape", [value], {"shape": list(shape_of(value))}, domain="edgeopt", name=f"{value.name}_copy"
        )
        node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
        self.graph.append(node)
        return node.outputs[0]


def insert_transpose(value: ir.Value, step: Permutation, before: ir.Node, *, as_reshape: bool) -> ir.Value:
    """Add a Transpose of ``value``, or the Reshape that does the same when only axes of size 1 move."""
    name, shape = f"{value.name}_{_letters(step)}", permuted(shape_of(value), step)
    if as_reshape:
        node = ir.node("Reshape", [value], {"shape": list(shape)}, domain="edgeopt", name=name)
    else:
        node = ir.node("Transpose", [value], {"perm": list(step)}, name=name)
    output = node.outputs[0]
    output.name, output.type, output.shape = name, value.type, _permuted_dims(value, step)
    before.prepend(node)
    return output


def _permuted_dims(value: ir.Value, permutation: Permutation) -> ir.Shape:
    assert value.shape is not None
    return ir.Shape([value.shape[axis] for axis in permutation])


def _letters(permutation: Permutation) -> str:
    return "".join(str(axis) for axis in permutation)
