"""A Gelu that an exporter spelled out, ``x / 2 (1 + erf(x / sqrt 2))``, as the one operator that TFLite has for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgeopt.tflite.constants import read_array
from edgeopt.tflite.rewriting import Rewriting, only_consumer


def _gelu(node: ir.Node) -> None:
    """Follow the product from ``1 + erf`` on, whatever the order of its factors, until it is a Gelu."""
    assert node.inputs[0] is not None
    x, factor = _scaled(node.inputs[0])
    add = only_consumer(node.outputs[0], "Add")
    ones = [_number(value) for value in add.inputs if value is not node.outputs[0]] if add is not None else []
    if add is None or ones != [1.0] or not math.isclose(factor, math.sqrt(0.5), rel_tol=1e-6):
        return
    value, product, uses = add.outputs[0], 1.0, 0
    while (mul := only_consumer(value, "Mul")) is not None:
        (other,) = [operand for operand in mul.inputs if operand is not value] or [value]
        assert other is not None
        base, factor = (x, 1.0) if other is x else _scaled(other)
        uses += base is x
        product *= factor
        if base not in (x, None):
            return
        value = mul.outputs[0]
        if uses == 1 and product == 0.5:
            write = Rewriting(mul)
            write.finish(write.add("Gelu", x, approximate="none"))
            return


def _scaled(value: ir.Value) -> tuple[ir.Value | None, float]:
    """Return what ``value`` is a constant times of, and the constant; for a constant there is nothing else."""
    number, producer = _number(value), value.producer()
    if number is not None or producer is None or producer.op_type not in ("Mul", "Div"):
        return (value, 1.0) if number is None else (None, number)
    left, right = producer.inputs
    divisor = _number(right)
    if divisor is not None:
        return left, divisor if producer.op_type == "Mul" else 1 / divisor
    factor = _number(left) if producer.op_type == "Mul" else None
    return (value, 1.0) if factor is None else (right, factor)


def _number(value: ir.Value | None) -> float | None:
    array = read_array(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


GELU: Mapping[str, Callable[[ir.Node], None]] = {"Erf": _gelu}
