"""Find the Gelu that exporters spell out where ONNX had none: ``0.5 * x * (1 + erf(x / sqrt(2)))``, in any order.

As one operator it is one kernel, and what lies inside is not quantized by itself.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

OPSET = 20  # the first with Gelu
_TOLERANCE = 1e-6  # of the constants, which float32 has rounded


def name_gelus(graph: ir.Graph) -> int:
    """Put a Gelu in the place of each one that is spelt out, in place; return how many there were.

    The graph's opset stays what it is: below 20 it knows no Gelu.
    """
    found = 0
    for erf in [node for node in graph if node.op_type == "Erf" and not node.domain]:
        source, end = _source_of(erf), None
        if source is not None:
            end = _end_of(erf, source)
        if source is None or end is None:
            continue
        gelu = ir.node("Gelu", [source], name=f"{erf.name}_gelu")
        output, old = gelu.outputs[0], end.outputs[0]
        output.shape, output.type = old.shape, old.type
        ir.convenience.replace_nodes_and_values(graph, end, [end], [gelu], [old], [output])
        found += 1
    return found


def _source_of(erf: ir.Node) -> ir.Value | None:
    """Return ``x`` of ``erf(x / sqrt(2))``."""
    scaled = erf.inputs[0].producer() if erf.inputs[0] is not None else None
    if scaled is None or scaled.domain:
        return None
    if scaled.op_type == "Div" and _is_number(scaled.inputs[1], math.sqrt(2)):
        return scaled.inputs[0]
    return _other_factor(scaled, math.sqrt(0.5))


def _end_of(erf: ir.Node, source: ir.Value) -> ir.Node | None:
    """Return the last of the multiplications of ``1 + erf`` by ``x`` and by a half."""
    plus_one = _only_reader(erf, "Add")
    if plus_one is None or not any(_is_number(value, 1.0) for value in plus_one.inputs):
        return None
    first = _only_reader(plus_one, "Mul")
    if first is None:
        return None
    factor = next(value for value in first.inputs if value is not plus_one.outputs[0])
    second = _only_reader(first, "Mul")
    if factor is source and second is not None and _other_factor(second, 0.5) is first.outputs[0]:
        return second
    if _is_number(factor, 0.5) and second is not None and any(value is source for value in second.inputs):
        return second
    half = factor.producer() if factor is not None else None
    return first if half is not None and _other_factor(half, 0.5) is source else None


def _only_reader(node: ir.Node, op_type: str) -> ir.Node | None:
    output = node.outputs[0]
    readers = list(output.consumers())
    if output.is_graph_output() or len(output.uses()) != 1 or readers[0].op_type != op_type or readers[0].domain:
        return None
    return readers[0]


def _other_factor(node: ir.Node, number: float) -> ir.Value | None:
    """Return what a Mul multiplies by a number."""
    if node.op_type != "Mul" or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    return left if _is_number(right, number) else right if _is_number(left, number) else None


def _is_number(value: ir.Value | None, number: float) -> bool:
    constant = value.const_value if value is not None else None
    if constant is None and value is not None and (producer := value.producer()) is not None:
        held = producer.attributes.get("value") if producer.op_type == "Constant" else None
        constant = held.as_tensor() if held is not None else None
    return constant is not None and constant.size == 1 and bool(np.isclose(constant.numpy(), number, _TOLERANCE, 0))
