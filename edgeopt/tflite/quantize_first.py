"""Move quantization in front of operators that only move data, so that what makes the data can run in integers.

``mean -> Reshape -> QuantizeLinear`` gives the same numbers as ``mean -> QuantizeLinear -> DequantizeLinear -> Reshape
-> QuantizeLinear`` with one scale throughout, and in the second form both operators stand between integers.
"""

from __future__ import annotations

import onnx_ir as ir

_MOVES_DATA = frozenset({"MirrorPad", "Reshape", "Slice", "Take", "TakePoints", "Tile", "Transpose"})


def quantize_first(graph: ir.Graph) -> None:
    """Put a Q/DQ pair in front of every data movement whose result alone is quantized, and so on up a chain of them."""
    pending = [node for node in graph if node.op_type == "QuantizeLinear"]
    while pending:
        quantize = pending.pop()
        moved = quantize.inputs[0]
        move = moved.producer() if moved is not None else None
        if moved is None or move is None or move.op_type not in _MOVES_DATA:
            continue
        if len(moved.uses()) == 1 and not moved.is_graph_output() and _is_float_until_here(move.inputs[0]):
            pending.append(_insert_pair(move, quantize))


def _is_float_until_here(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type != "DequantizeLinear"


def _insert_pair(move: ir.Node, quantize: ir.Node) -> ir.Node:
    source = move.inputs[0]
    assert source is not None
    first = ir.node("QuantizeLinear", [source, *quantize.inputs[1:]], name=f"{quantize.name}_first")
    again = ir.node("DequantizeLinear", [first.outputs[0], *quantize.inputs[1:]], name=f"{move.name}_dequantize")
    for node, like in ((first, quantize), (again, move)):
        node.outputs[0].name = f"{source.name}_{node.op_type}"
        node.outputs[0].shape, node.outputs[0].type = source.shape, like.outputs[0].type
    move.prepend([first, again])
    move.replace_input_with(0, again.outputs[0])
    return first
