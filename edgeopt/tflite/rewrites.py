"""The rewrites into normal form, one function an ONNX operator; each leaves alone what it cannot express.

What is left alone keeps its ONNX name, and is refused by that name later unless it is an operator we lower as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.tflite.constants import Constant, read_array, read_constant, write_constant
from edgeopt.tflite.program import RefusedError
from edgeopt.tflite.rewrites_indexing import INDEXING, pad_by_index
from edgeopt.tflite.rewrites_matmul import PRODUCTS, batched_matmul, full_gemm
from edgeopt.tflite.rewrites_normalization import NORMALIZATIONS
from edgeopt.tflite.rewrites_recurrent import RECURRENT
from edgeopt.tflite.rewrites_reduction import REDUCTIONS
from edgeopt.tflite.rewrites_windows import WINDOWS
from edgeopt.tflite.rewriting import Rewriting, is_read, only_consumer, start
from edgeopt.tflite.shapes import MAX_ELEMENTS, Shape, is_known, shape_of

_DOMAIN = "edgeopt"


def replace_node(
    node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], domain: str = _DOMAIN, **attributes: Any
) -> ir.Node:
    """Put a new node with the same name and outputs in the place of ``node``."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    kept = {n: ir.AttrInt64s(n, []) if value == [] else value for n, value in attributes.items() if value is not None}
    new = ir.node(op_type, inputs, kept, domain=domain, name=node.name)
    for old_output, new_output in zip(node.outputs, new.outputs, strict=False):
        new_output.shape, new_output.type = old_output.shape, old_output.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], node.outputs[:1], new.outputs)
    return new


def _identity(node: ir.Node) -> None:
    """Identity; Dropout at inference, or of nothing."""
    (write, source, shape), output = start(node), node.outputs[0]
    ratio, training = (read_array(value) for value in (*node.inputs[1:], None, None)[:2])
    may_train = len(node.inputs) > 2 and node.inputs[2] is not None and (training is None or bool(training))
    if may_train and (ratio is None or ratio != 0):
        raise RefusedError("a Dropout that trains")
    if len(node.outputs) > 1 and is_read(node.outputs[1]) and all(is_known(size) for size in shape):
        write.finish(write.copy(source), write.copy(write.constant(np.ones(shape, np.bool_))))
        return
    if output.is_graph_output():
        replace_node(node, "Reshape", [source], shape=list(shape_of(output)))
        return
    output.replace_all_uses_with(source)


def _relu(node: ir.Node) -> None:
    if node.outputs[0].dtype != ir.DataType.FLOAT:
        write, source, _ = start(node)
        write.finish(write.add("Max", source, write.number(0, source)))
        return
    replace_node(node, "Clamp", node.inputs, low=0.0, high=math.inf)


def _clip(node: ir.Node) -> None:
    """A Clamp of floats to constant bounds, or the operators that take integers and computed bounds."""
    (write, source, _), given = start(node), (*node.inputs[1:], None, None)[:2]
    bounds = [read_array(value) for value in given]
    if node.outputs[0].dtype == ir.DataType.FLOAT and [b is None for b in bounds] == [v is None for v in given]:
        low, high = (math.inf if bound is None else float(bound.reshape(())) for bound in bounds)
        low = -math.inf if bounds[0] is None else low
        replace_node(node, "Clamp", node.inputs[:1], low=min(low, high), high=high)
        return
    value = source
    for op_type, operand in zip(("Max", "Min"), given, strict=True):
        value = value if operand is None else write.add(op_type, value, operand)
    write.finish(value if value is not source else write.copy(value))


def _reshape(node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the result's shape is all that matters."""
    shape = shape_of(node.outputs[0])
    if sum(size < 0 for size in shape) <= 1:
        replace_node(node, "Reshape", node.inputs[:1], shape=list(shape))


def _pad(node: ir.Node) -> None:
    pads, value = read_array(node.inputs[1]), 0.0
    rank = len(shape_of(node.inputs[0]))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        array = read_constant(node.inputs[2])
        if array is None:
            return
        value = float(array.real().reshape(()))
    axes = read_array(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else np.arange(rank)
    if pads is None or axes is None:
        raise RefusedError("pads that are not constant")
    mode = node.attributes.get_string("mode", "constant")
    full = np.zeros((2, rank), np.int64)
    full[:, axes % rank] = pads.reshape(2, -1)
    if (full < 0).any():
        raise RefusedError("negative pads")
    if mode == "constant":
        replace_node(node, "Pad", node.inputs[:1], pads=full.reshape(-1).tolist(), value=value)
    # The absolute value of a dynamic axis is 1, which no reflection fits in.
    elif mode == "reflect" and rank <= 4 and (full < np.abs(shape_of(node.inputs[0]))).all():
        replace_node(node, "MirrorPad", node.inputs[:1], pads=full.reshape(-1).tolist())
    else:
        pad_by_index(node, full, mode)


def _slice(node: ir.Node) -> None:
    shape = shape_of(node.inputs[0])
    arrays = [read_array(value) for value in node.inputs[1:]]
    if any(array is None for array in arrays) or len(arrays) < 2:
        return
    starts, ends = arrays[0], arrays[1]
    assert starts is not None
    assert ends is not None
    axes = arrays[2] if len(arrays) > 2 else None
    steps = arrays[3] if len(arrays) > 3 else None
    whole = [size if is_known(size) else MAX_ELEMENTS for size in shape]
    begin, end, stride = [0] * len(shape), whole, [1] * len(shape)
    for i, axis in enumerate(range(len(starts)) if axes is None else axes):
        step = 1 if steps is None else int(steps[i])
        if not is_known(shape[axis]):
            if not _takes_all(shape, int(starts[i]), int(ends[i]), step):
                raise RefusedError("cutting a dynamic axis")
            continue
        begin[axis], end[axis], _ = slice(int(starts[i]), int(ends[i]), step).indices(shape[axis])
        if end[axis] < 0:  # backwards and with the first element, which a second subtraction of the size says
            end[axis] -= shape[axis]
        stride[axis] = step
    replace_node(node, "Slice", node.inputs[:1], starts=begin, ends=end, steps=stride)


def _takes_all(shape: Shape, start: int, end: int, step: int) -> bool:
    """Whether a slice leaves a dynamic axis whole: it ends behind the largest size that such a tensor can have."""
    return start == 0 and step == 1 and end * math.prod(size for size in shape if is_known(size)) >= MAX_ELEMENTS


def _gemm(node: ir.Node) -> None:
    weight = read_constant(node.inputs[1])
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    if (
        weight is None
        or weight.array.ndim != 2
        or weight.array.dtype.name not in ("float32", "int8", "int4")
        or (alpha, beta) != (1.0, 1.0)
        or node.attributes.get_int("transA", 0) != 0
    ):
        full_gemm(node)
        return
    if node.attributes.get_int("transB", 0) == 0:
        weight = weight.transposed((1, 0))
    inputs = [node.inputs[0], write_constant(weight, f"{node.name}_weight", node)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _bias(node.inputs[2], num_outputs=weight.array.shape[0])
        if bias is None:
            full_gemm(node)
            return
        inputs.append(write_constant(bias, f"{node.name}_bias", node))
    replace_node(node, "FullyConnected", inputs)


def _matmul(node: ir.Node) -> None:
    """MatMul with a constant matrix, and the Add of a constant behind it if nothing else sees the product."""
    weight = read_constant(node.inputs[1])
    if weight is None or weight.array.ndim != 2 or len(shape_of(node.inputs[0])) < 2:
        batched_matmul(node)
        return
    inputs = [node.inputs[0], write_constant(weight.transposed((1, 0)), f"{node.name}_weight", node)]
    add = only_consumer(node.outputs[0], "Add")
    bias_value = next((value for value in add.inputs if value is not node.outputs[0]), None) if add else None
    bias = _bias(bias_value, num_outputs=weight.array.shape[1])
    if add is None or bias is None or shape_of(add.outputs[0]) != shape_of(node.outputs[0]):
        replace_node(node, "FullyConnected", inputs)
        return
    inputs.append(write_constant(bias, f"{node.name}_bias", node))
    replace_node(add, "FullyConnected", inputs)


def _bias(value: ir.Value | None, num_outputs: int) -> Constant | None:
    """Return a bias as ``(num_outputs,)``, or ``None`` if it is not constant or differs between rows."""
    bias = read_constant(value)
    if (
        bias is None
        or bias.array.size not in (1, num_outputs)
        or bias.array.shape[-1:] not in ((), (1,), (num_outputs,))
    ):
        return None
    array = np.broadcast_to(bias.array.reshape(-1), (num_outputs,))
    return Constant(array, bias.scales, bias.zero_points)


def _batch_normalization(node: ir.Node) -> None:
    """Fold into the Conv in front if that is its only consumer, otherwise multiply and add."""
    arrays = [read_array(value) for value in node.inputs[1:5]]
    source = node.inputs[0]
    if any(array is None for array in arrays) or source is None or node.attributes.get_int("training_mode", 0) != 0:
        return
    gamma, beta, mean, variance = (array.astype(np.float64) for array in arrays if array is not None)
    factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    offset = beta - mean * factor
    if _fold_into_convolution(node, source, factor, offset):
        return
    spread, write = (-1,) + (1,) * (len(shape_of(source)) - 2), Rewriting(node)
    scaled = write.add("Mul", source, write.constant(factor.astype(np.float32).reshape(spread)))
    write.finish(write.add("Add", scaled, write.constant(offset.astype(np.float32).reshape(spread))))


def _fold_into_convolution(node: ir.Node, source: ir.Value, factor: np.ndarray, offset: np.ndarray) -> bool:
    convolution = source.producer()
    if convolution is None or convolution.op_type != "Conv" or source.is_graph_output() or len(source.uses()) != 1:
        return False
    weight = read_array(convolution.inputs[1])
    has_bias = len(convolution.inputs) > 2 and convolution.inputs[2] is not None
    bias = read_array(convolution.inputs[2]) if has_bias else np.zeros(factor.shape)
    if weight is None or bias is None:
        return False
    scaled = (weight * factor.reshape((-1,) + (1,) * (weight.ndim - 1))).astype(np.float32)
    shifted = (bias * factor + offset).astype(np.float32)
    inputs = [
        convolution.inputs[0],
        write_constant(Constant(scaled), f"{convolution.name}_weight", convolution),
        write_constant(Constant(shifted), f"{convolution.name}_bias", convolution),
    ]
    attributes = {name: attribute.value for name, attribute in convolution.attributes.items()}
    replace_node(node, "Conv", inputs, domain="", **attributes)
    return True


REWRITES: Mapping[str, Callable[[ir.Node], None]] = {
    **INDEXING,
    **NORMALIZATIONS,
    **PRODUCTS,
    **RECURRENT,
    **REDUCTIONS,
    **WINDOWS,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Dropout": _identity,
    "Flatten": _reshape,
    "Gemm": _gemm,
    "Identity": _identity,
    "MatMul": _matmul,
    "Pad": _pad,
    "Relu": _relu,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
}
