"""Reductions in normal form: their axes are attributes, and what is more than one reduction is spelled out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from edgeopt.tflite.constants import read_array
from edgeopt.tflite.pictures import ints_of
from edgeopt.tflite.program import RefusedError
from edgeopt.tflite.rewriting import DOMAIN, Rewriting, start
from edgeopt.tflite.shapes import shape_of

Form = Callable[[Rewriting, ir.Value, list[int], int], ir.Value]


def reduction_axes(node: ir.Node) -> list[int] | None:
    """Return the axes of a reduction, by attribute or by input; ``None`` if it means to reduce nothing.

    Raises:
        RefusedError: if the axes are computed.
    """
    rank, given = len(shape_of(node.inputs[0])), ints_of(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        array = read_array(node.inputs[1])
        if array is None:
            raise RefusedError("axes that are not constant")
        given = array.tolist()
    if not given and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        return None
    return sorted(axis % rank for axis in given) if given else list(range(rank))


def reduction(form: Form, before: Callable[[Rewriting, ir.Value], ir.Value] | None = None) -> Callable[[ir.Node], None]:
    """Return the rewrite of one kind of reduction; ``before`` is what happens to each element even without axes."""

    def rewrite(node: ir.Node) -> None:
        axes = reduction_axes(node)
        write, source, shape = start(node)
        each = before(write, source) if before is not None else source
        if axes and shape:
            write.finish(form(write, each, axes, node.attributes.get_int("keepdims", 1)))
        else:
            write.finish(write.copy(each))

    return rewrite


def _plain(op_type: str) -> Form:
    def form(write: Rewriting, value: ir.Value, axes: list[int], keepdims: int) -> ir.Value:
        return write.reduce(op_type, value, axes, keepdims)

    return form


def _behind(op_type: str) -> Form:
    def form(write: Rewriting, value: ir.Value, axes: list[int], keepdims: int) -> ir.Value:
        return write.add(op_type, write.reduce("Sum", value, axes, keepdims))

    return form


def _log_sum_exp(write: Rewriting, value: ir.Value, axes: list[int], keepdims: int) -> ir.Value:
    """Take the maximum out first, so that nothing overflows."""
    largest = write.reduce("Max", value, axes)
    grown = write.add("Exp", write.add("Sub", value, largest))
    result = write.add("Add", write.add("Log", write.reduce("Sum", grown, axes)), largest)
    if keepdims:
        return result
    return write.reshape(result, [size for axis, size in enumerate(shape_of(value)) if axis not in axes])


def _extreme(op_type: str) -> Callable[[ir.Node], None]:
    def rewrite(node: ir.Node) -> None:
        write, source, shape = start(node)
        attributes: dict[str, Any] = {
            "axes": [node.attributes.get_int("axis", 0) % len(shape)],
            "keepdims": node.attributes.get_int("keepdims", 1),
            "select_last_index": node.attributes.get_int("select_last_index", 0),
        }
        shape = shape_of(node.outputs[0])
        write.finish(write.add(op_type, source, shape=shape, dtype=ir.DataType.INT64, domain=DOMAIN, **attributes))

    return rewrite


def _running_sum(node: ir.Node) -> None:
    (write, source, shape), axis = start(node), read_array(node.inputs[1])
    if axis is None:
        raise RefusedError("an axis that is not constant")
    settings: dict[str, Any] = {name: node.attributes.get_int(name, 0) for name in ("exclusive", "reverse")}
    place = int(axis.reshape(())) % len(shape)
    write.finish(write.add("CumSum", source, domain=DOMAIN, axis=place, **settings))


def _top_k(node: ir.Node) -> None:
    (write, source, shape), count = start(node), read_array(node.inputs[1])
    if count is None:
        raise RefusedError("a count that is not constant")
    axis = node.attributes.get_int("axis", -1) % len(shape)
    attributes = {"axis": axis, "k": int(count.reshape(())), "largest": node.attributes.get_int("largest", 1)}
    new = ir.node("TopK", [source], attributes, domain=DOMAIN, num_outputs=2, name=node.name)
    node.prepend(new)
    for old, output in zip(node.outputs, new.outputs, strict=True):
        output.name, output.shape, output.type = f"{old.name}_new", old.shape, old.type
    write.finish(*new.outputs)


def _over_pixels(op_type: str) -> Callable[[ir.Node], None]:
    def rewrite(node: ir.Node) -> None:
        write, source, shape = start(node)
        write.finish(write.reduce(op_type, source, range(2, len(shape))))

    return rewrite


REDUCTIONS: Mapping[str, Callable[[ir.Node], None]] = {
    "ArgMax": _extreme("ArgMax"),
    "ArgMin": _extreme("ArgMin"),
    "CumSum": _running_sum,
    "GlobalAveragePool": _over_pixels("Mean"),
    "GlobalMaxPool": _over_pixels("Max"),
    "ReduceL1": reduction(_plain("Sum"), lambda write, x: write.add("Abs", x)),
    "ReduceL2": reduction(_behind("Sqrt"), lambda write, x: write.add("Mul", x, x)),
    "ReduceLogSum": reduction(_behind("Log")),
    "ReduceLogSumExp": reduction(_log_sum_exp),
    "ReduceMax": reduction(_plain("Max")),
    "ReduceMean": reduction(_plain("Mean")),
    "ReduceMin": reduction(_plain("Min")),
    "ReduceProd": reduction(_plain("Prod")),
    "ReduceSum": reduction(_plain("Sum")),
    "ReduceSumSquare": reduction(_plain("Sum"), lambda write, x: write.add("Mul", x, x)),
    "TopK": _top_k,
}
