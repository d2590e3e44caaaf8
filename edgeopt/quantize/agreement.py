"""Widens scales by a hair where the runtimes would round a sum or an average differently, so that they answer the same.

See :mod:`edgeopt.quantize.rounding` for where the runtimes round and how the check covers every input there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from edgeopt.affine import QuantParams
from edgeopt.quantize.rounding import additions_agree, averages_agree, nearest_agreeing
from edgeopt.stage import logger

Params = dict[ir.Value, QuantParams]

# A scale that is widened may reach back to an earlier operator through a group that shares it; a few rounds settle it.
_MAX_ROUNDS = 4


def agreeing_params(
    nodes: Sequence[tuple[ir.Node, ir.Value]], params: Params, group_of: Mapping[ir.Value, Sequence[ir.Value]]
) -> Params:
    """Return parameters with which every sum and global average of quantized tensors rounds alike in all runtimes.

    Args:
        nodes: each quantized node with the tensor that it writes, in graph order.
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


def _check_of(node: ir.Node, params: Params) -> Callable[[QuantParams], bool] | None:
    """Return what tells whether a scale makes this node round alike; ``None`` where every scale does."""
    reads = [value for value in node.inputs if value is not None and value in params]
    if node.op_type == "Add" and len(reads) == 2:
        left, right = params[reads[0]], params[reads[1]]
        return lambda output: additions_agree(left, right, output)
    if node.op_type == "GlobalAveragePool" and len(reads) == 1 and reads[0].shape is not None:
        sizes = [size for size in list(reads[0].shape)[2:] if isinstance(size, int)]
        if len(sizes) == len(reads[0].shape) - 2:
            source, num_elements = params[reads[0]], math.prod(sizes)
            return lambda output: averages_agree(source, output, num_elements)
    return None
