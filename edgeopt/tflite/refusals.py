"""Saying no: all nodes that stand in the way, in one error."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgeopt.errors import LoweringError, Refusal
from edgeopt.tflite.operators import OPERATORS
from edgeopt.tflite.rewrites import REWRITES
from edgeopt.tflite.rewriting import is_read

_ABOUT_OPERATORS = "replace these operators in the network, or cut them off the graph and run them in the application"
_ABOUT_SIZES = "give dynamic axes sizes, with --input-shape or input_shapes; else " + _ABOUT_OPERATORS
_NO_SHAPE = "the shape of its result cannot be inferred"
_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear"})


def refuse(refusals: Sequence[Refusal], opset: int) -> None:
    """Raise one error for all refusals; do nothing if there are none.

    Raises:
        LoweringError: naming each of them.
    """
    if refusals:
        nodes = "1 node" if len(refusals) == 1 else f"{len(refusals)} nodes"
        raise LoweringError(
            f"{nodes} of ONNX opset {opset} cannot be lowered to TFLite exactly",
            refusals=refusals,
            hint=_ABOUT_SIZES if any(_is_about_sizes(refusal) for refusal in refusals) else _ABOUT_OPERATORS,
        )


def _is_about_sizes(refusal: Refusal) -> bool:
    return "dynamic" in refusal.reason or refusal.reason == _NO_SHAPE


def without_shape(graph: ir.Graph) -> list[Refusal]:
    """Return a refusal of each operator that nobody knows and of each where shapes stop being known.

    Empty if every value has a shape: only then can the graph be looked at more closely.
    """
    unknown = {value for node in graph for value in node.outputs if value.shape is None and is_read(value)}
    if not unknown:
        return []
    refusals = []
    for node in graph:
        if not _is_known(node):
            refusals.append(Refusal(node.name or "", node.op_type, "there is no lowering for this operator"))
        elif not unknown.isdisjoint(node.outputs) and unknown.isdisjoint(node.inputs):
            refusals.append(Refusal(node.name or "", node.op_type, _NO_SHAPE))
    return refusals


def _is_known(node: ir.Node) -> bool:
    named = (
        node.op_type in REWRITES or node.op_type in _QUANTIZATION or any(name == node.op_type for _, name in OPERATORS)
    )
    return named and not node.domain
