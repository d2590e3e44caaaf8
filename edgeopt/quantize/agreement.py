"""Widens scales by a hair where the runtimes would round a result differently, so that they answer the same.

See :mod:`edgeopt.quantize.rounding` for where the runtimes round and how the check covers every input there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from edgeopt.affine import QuantParams
from edgeopt.quantize.rounding import (
    additions_agree,
    averages_agree,
    nearest_agreeing,
    subtractions_agree,
    sums_agree,
)
from edgeopt.stage import logger

Params = dict[ir.Value, QuantParams]

# A scale that is widened may reach back to an earlier operator through a group that shares it; a few rounds settle it.
_MAX_ROUNDS = 4

# A linear Resize with more different weights than this hardly ever gives a tie.
_MAX_WEIGHTS = 2**14

Agrees = Callable[[QuantParams], bool]


def agreeing_params(
    nodes: Sequence[tuple[ir.Node, ir.Value]], params: Params, group_of: Mapping[ir.Value, Sequence[ir.Value]]
) -> Params:
    """Return parameters with which sums, averages and interpolations of quantized tensors round alike in all runtimes.

    Args:
        nodes: each node with the tensor that it writes, past an absorbed activation, in graph order.
        params: what the ranges ask for.
        group_of: the tensors that must share a scale with a tensor; tensors left out have a prescribed scale.
    """
    settled = dict(params)
    for _ in range(_MAX_ROUNDS):
        changed = [_settle(node, output, settled, group_of) for node, output in nodes]
        if not any(changed):
            return settled
    logger.warning("some sums may round differently in ONNX Runtime and LiteRT: their scales depend on one another")
    return settled


def _settle(node: ir.Node, output: ir.Value, params: Params, group_of: Mapping[ir.Value, Sequence[ir.Value]]) -> bool:
    """Widen the scale of one node's output if need be; return whether it was changed."""
    if output not in params or output not in group_of:
        return False
    agrees = _check_of(node, params)
    if agrees is None:
        return False
    chosen = nearest_agreeing(params[output], agrees)
    if chosen is None:
        logger.warning("%s %s: no scale near makes ONNX Runtime and LiteRT round alike", node.op_type, node.name)
        return False
    if chosen == params[output]:
        return False
    params.update(dict.fromkeys(group_of[output], chosen))
    return True


def _check_of(node: ir.Node, params: Params) -> Agrees | None:
    """Return what tells whether a scale makes this node round alike; ``None`` where every scale does."""
    reads = [value for value in node.inputs if value is not None and value in params]
    if node.op_type in ("Add", "Sub") and len(reads) == 2:
        agree = additions_agree if node.op_type == "Add" else subtractions_agree
        left, right = params[reads[0]], params[reads[1]]
        return lambda output: agree(left, right, output)
    if len(reads) != 1 or reads[0].shape is None:
        return None
    source = params[reads[0]]
    if node.op_type in ("GlobalAveragePool", "ReduceMean", "ReduceSum"):
        return _reduction_check(node, list(reads[0].shape), source)
    if node.op_type == "AveragePool":
        taps = math.prod(node.attributes.get_ints("kernel_shape"))
        return lambda output: sums_agree(source, output, taps, divisor=taps, in_float=True)
    if node.op_type == "Resize" and node.outputs[0].shape is not None:
        return _resize_check(node, list(reads[0].shape), list(node.outputs[0].shape), source)
    return None


def _reduction_check(node: ir.Node, shape: Sequence[object], source: QuantParams) -> Agrees | None:
    axes: Sequence[int] | None = range(2, len(shape))
    if node.op_type != "GlobalAveragePool":
        given = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
        axes = node.attributes.get_ints("axes", None) if given is None else given.numpy().tolist()
    sizes = [shape[axis] for axis in axes or ()]
    count = math.prod(size for size in sizes if isinstance(size, int))
    if not sizes or not all(isinstance(size, int) for size in sizes):
        return None
    if node.op_type == "GlobalAveragePool":
        return lambda output: averages_agree(source, output, count)
    divisor = count if node.op_type == "ReduceMean" else 1
    return lambda output: sums_agree(source, output, count, divisor=divisor, in_float=True)


def _resize_check(node: ir.Node, old: Sequence[object], new: Sequence[object], source: QuantParams) -> Agrees | None:
    """Check all sums of weights that a linear Resize can give: multiples of one over ``count``."""
    if node.attributes.get_string("mode", "nearest") != "linear":
        return None
    mode, count = node.attributes.get_string("coordinate_transformation_mode", "half_pixel"), 1
    for before, after in zip(old, new, strict=True):
        if not isinstance(before, int) or not isinstance(after, int):
            continue
        if mode == "align_corners":
            count *= max(after - 1, 1) // math.gcd(before - 1, max(after - 1, 1))
        elif before != after:
            count *= after // math.gcd(before, after) * (2 if mode.endswith("half_pixel") else 1)
    if count > _MAX_WEIGHTS:
        return None
    return lambda output: sums_agree(source, output, count, divisor=count, in_float=True)
