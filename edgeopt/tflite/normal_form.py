"""Rewrite an ONNX graph into the few operators that the rest of the lowering knows.

ONNX says one thing in many ways: Relu, Clip-6 with attributes and Clip-11 with inputs; Flatten, Squeeze, Unsqueeze and
Reshape; Gemm, and MatMul with an Add behind it. Here each becomes one operator of the domain ``edgeopt``, in which
*every parameter is an attribute and every input is data*:

    Clamp(x) {low, high}                  Relu, Clip
    FullyConnected(x, w, b?)              Gemm, MatMul (+ Add); w is (out, in), b is (out,)
    Mean(x) {axes, keepdims}              ReduceMean, GlobalAveragePool
    Sum, Max, Min, Prod(x)                {axes, keepdims}: the other reductions, which are spelled out with these
    ArgMax, ArgMin(x)                     {axes, keepdims, select_last_index}
    Reshape(x) {shape}                    Reshape, Flatten, Squeeze, Unsqueeze; -1 is a dynamic axis
    Pad(x) {pads, value}                  Pad with a constant; MirrorPad(x) {pads} reflects
    Slice(x) {starts, ends, steps}        Slice and Split, one entry an axis
    Tile(x) {repeats}                     Tile, Expand
    Take(x) {indices, axis}               Gather, Pad and Resize that repeat what is there
    TakePoints(x) {points}                GatherND, GatherElements, by whole coordinates
    PutPoints(x, u) {points, reduction}   ScatterND, ScatterElements
    CumSum, TopK, OneHot                  as in ONNX, with parameters as attributes
    Dynamic(x)                            x, to be quantized by the kernel that reads it

Functions of ONNX that have no lowering of their own are replaced by the bodies that ONNX gives them
(:mod:`edgeopt.tflite.expansion`); normalizations, Einsum and the like by the operators that they are made of.

Conv, the pools and Resize keep their ONNX names until the layout pass turns them into the channels-last operators of
this domain. Attributes of Conv and the pools are completed here, so that ``auto_pad`` is explicit pads from now on.
The tests turn each of these operators back into plain ONNX (``tests/tflite/tflite_meanings.py``), so that every pass is
proven by execution.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgeopt.errors import LoweringError
from edgeopt.gelu import name_gelus
from edgeopt.tflite import rewrites
from edgeopt.tflite.expansion import expand_functions
from edgeopt.tflite.folding import fold_constants
from edgeopt.tflite.program import MISFITS, RefusedError
from edgeopt.tflite.quantize_first import quantize_first
from edgeopt.tflite.refusals import refuse, without_shape
from edgeopt.tflite.reshape_last import reshape_last
from edgeopt.tflite.rewriting import is_read
from edgeopt.tflite.signed import to_signed
from edgeopt.tflite.wellformed import check_shapes, malformed

DOMAIN = "edgeopt"
OLDEST_OPSET = 13
WHY_NOT = "edgeopt.refused"  # the key under which a node that cannot be rewritten keeps the reason


def to_normal_form(model: ir.Model) -> ir.Model:
    """Return a copy of ``model`` in normal form; the argument stays as it is.

    Raises:
        ModelError: if the graph contradicts itself.
        LoweringError: if the opset is older than 13, where quantization by axis began, or shapes are not known.
    """
    check_shapes(model)
    model = model.clone()
    opset = model.graph.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise LoweringError(
            f"the graph has ONNX opset {opset}, expected {OLDEST_OPSET} or later",
            hint="export it again with a newer opset, or use onnx.version_converter",
        )
    _mark_dynamic(model.graph)
    name_gelus(model.graph)
    expand_functions(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _infer_missing_shapes(model)
    _name_nodes(model.graph)
    while fold_constants(model.graph, opset) and _infer_missing_shapes(model):
        pass  # a folded shape makes more shapes known
    refuse([*without_shape(model.graph), *malformed(model.graph)], opset)
    to_signed(model.graph)
    for node in list(model.graph):
        rewrite = rewrites.REWRITES.get(node.op_type)
        if rewrite is not None and not node.domain and node.graph is not None:
            try:
                rewrite(node)
            except (RefusedError, *MISFITS) as error:
                node.metadata_props[WHY_NOT] = str(error)
    reshape_last(model.graph)
    quantize_first(model.graph)
    model.graph.opset_imports[DOMAIN] = 1
    common.RemoveUnusedNodesPass()(model)
    return model


def _mark_dynamic(graph: ir.Graph) -> None:
    """Put a mark in the place of each pair of :mod:`edgeopt.quantize.dynamic`: what it computes, a kernel does."""
    for node in list(graph):
        quantize = node.inputs[0].producer() if node.op_type == "Dequantize" and node.inputs[0] is not None else None
        if quantize is not None:
            node.domain, node.op_type = DOMAIN, "Dynamic"
            node.resize_inputs(1)
            node.replace_input_with(0, quantize.inputs[0])
            graph.remove(quantize, safe=True)


def _infer_missing_shapes(model: ir.Model) -> bool:
    """Infer shapes if some are not known, or belong to no input's dynamic axis; say whether that was so."""
    given = {str(size) for value in model.graph.inputs for size in value.shape or () if not isinstance(size, int)}
    values = [value for node in model.graph for value in node.outputs if is_read(value)]
    if any(value.dtype is None or not _is_inferred(value, given) for value in values):
        common.ShapeInferencePass()(model)
        return True
    return False


def _is_inferred(value: ir.Value, given: set[str]) -> bool:
    return value.shape is not None and all(isinstance(size, int) or str(size) in given for size in value.shape)


def _name_nodes(graph: ir.Graph) -> None:
    """Give every node a name, for refusals and for the tensors that we add beside it."""
    for index, node in enumerate(graph):
        node.name = node.name or f"{node.op_type}_{index}"
