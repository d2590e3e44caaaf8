"""The table of operators: one entry each. Adding an operator is an entry here, a function in its family and a test.

Keys are ``(domain, operator)`` after normal form and layout; the domain ``edgeopt`` is described in
:mod:`edgeopt.tflite.normal_form`.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgeopt.tflite import (
    clamping,
    convolution,
    elementwise,
    indexing,
    matmul,
    pooling,
    reduction,
    shape,
    suppression,
    transposed,
)
from edgeopt.tflite.step import Entry, never, one_scale
from edgeopt.tflite.unary import UNARY
from edgeopt.tflite.weights import weights_by_output

OPERATORS: Mapping[tuple[str, str], Entry] = {
    **{("", name): entry for name, entry in UNARY.items()},
    **{("", name): Entry(elementwise.comparison(kernel), never) for name, kernel in elementwise.COMPARISONS.items()},
    ("", "Add"): Entry(elementwise.add, fuses=True),
    ("", "BitwiseXor"): Entry(elementwise.folded("BITWISE_XOR"), never),
    ("", "Cast"): Entry(elementwise.cast, never),
    ("", "Concat"): Entry(shape.concat, fuses=True),
    ("", "Div"): Entry(elementwise.divide, never, fuses=True),
    ("", "Gather"): Entry(indexing.gather, never),
    ("", "GatherND"): Entry(indexing.gather_points, never),
    ("", "Hardmax"): Entry(reduction.hard_max, never),
    ("", "MatMul"): Entry(matmul.batched, never),
    ("", "Max"): Entry(elementwise.folded("MAXIMUM"), one_scale),
    ("", "Mean"): Entry(elementwise.mean_of_operands, never),
    ("", "Min"): Entry(elementwise.folded("MINIMUM"), one_scale),
    ("", "Mod"): Entry(elementwise.modulo, never),
    ("", "Mul"): Entry(elementwise.multiply, fuses=True),
    ("", "NonMaxSuppression"): Entry(suppression.non_max_suppression, never),
    ("", "PRelu"): Entry(elementwise.prelu, never),
    ("", "Pow"): Entry(elementwise.power, never),
    ("", "ReverseSequence"): Entry(indexing.reverse_sequence, never),
    ("", "Sub"): Entry(elementwise.subtract, fuses=True),
    ("", "Sum"): Entry(elementwise.folded("ADD"), never),
    ("", "Transpose"): Entry(shape.transpose, keeps_scale=True),
    ("", "Where"): Entry(elementwise.where, never),
    ("edgeopt", "ArgMax"): Entry(reduction.arg_extreme("ARG_MAX"), never),
    ("edgeopt", "ArgMin"): Entry(reduction.arg_extreme("ARG_MIN"), never),
    ("edgeopt", "AveragePool"): Entry(pooling.average_pool, fuses=True),
    ("edgeopt", "Clamp"): Entry(clamping.clamp_step),
    ("edgeopt", "Conv"): Entry(convolution.convolution, weights_by_output(0), fuses=True, bias=2),
    ("edgeopt", "ConvTranspose"): Entry(transposed.transposed_convolution, weights_by_output(1), bias=2),
    ("edgeopt", "CumSum"): Entry(reduction.running_sum, never),
    ("edgeopt", "DepthToSpace"): Entry(shape.depth_to_space, keeps_scale=True),
    ("edgeopt", "FullyConnected"): Entry(matmul.fully_connected, weights_by_output(0), fuses=True, bias=2),
    ("edgeopt", "Max"): Entry(reduction.over_axes("REDUCE_MAX"), keeps_scale=True),
    ("edgeopt", "MaxPool"): Entry(pooling.max_pool, fuses=True, keeps_scale=True),
    ("edgeopt", "Mean"): Entry(reduction.over_axes("MEAN")),
    ("edgeopt", "Min"): Entry(reduction.over_axes("REDUCE_MIN"), keeps_scale=True),
    ("edgeopt", "MirrorPad"): Entry(shape.mirror_pad, keeps_scale=True),
    ("edgeopt", "OneHot"): Entry(indexing.one_hot, never),
    ("edgeopt", "Pad"): Entry(shape.pad, keeps_scale=True),
    ("edgeopt", "Prod"): Entry(reduction.over_axes("REDUCE_PROD"), never),
    ("edgeopt", "PutPoints"): Entry(indexing.put_points, never),
    ("edgeopt", "Reshape"): Entry(shape.reshape, keeps_scale=True),
    ("edgeopt", "Resize"): Entry(shape.resize, keeps_scale=True),
    ("edgeopt", "ResizeLinear"): Entry(shape.resize_linear, never),
    ("edgeopt", "Slice"): Entry(shape.slices, keeps_scale=True),
    ("edgeopt", "SpaceToDepth"): Entry(shape.space_to_depth, keeps_scale=True),
    ("edgeopt", "Sum"): Entry(reduction.over_axes("SUM")),
    ("edgeopt", "Take"): Entry(indexing.take, keeps_scale=True),
    ("edgeopt", "TakePoints"): Entry(indexing.take_points, keeps_scale=True),
    ("edgeopt", "Tile"): Entry(indexing.tile, keeps_scale=True),
    ("edgeopt", "TopK"): Entry(reduction.top_k, never),
}
