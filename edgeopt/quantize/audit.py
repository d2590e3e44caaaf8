"""Counts what of an ONNX graph runs on integers: by the graph that ONNX Runtime really makes of it, or by its Q/DQ."""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from edgeopt.inspection import Border, Inspection, TensorFacts
from edgeopt.session import OnnxSession

_INTEGER_KERNELS = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "QAttention")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
# They move or choose bytes and calculate nothing: on integer data they are integer operators, and lose no time.
_MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Slice", "Split", "Gather", "MaxPool",
          "Pad", "Identity", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "ReduceMax", "ReduceMin",
          "Resize", "Clip")  # fmt: skip
_MULTIPLIERS = ("Conv", "ConvInteger", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger")

# ONNX Runtime renames a node it rewrites: node_Conv_1 becomes node_Conv_1_token_7.
_RENAMED = re.compile(r"(_token_\d+|_nchwc)+$")


def audit_onnxruntime(model: Path, kind: str) -> Inspection:
    """Load a model in ONNX Runtime's CPU provider, read back the graph that it runs, and count."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder, "optimized.onnx")
        OnnxSession(model, threads=1, optimized_path=optimized)
        runs = onnx.load(str(optimized), load_external_data=False)
    names = {_RENAMED.sub("", node.name) for node in runs.graph.node if node.op_type.startswith(_INTEGER_KERNELS)}
    return _inspection(model, kind, runs, lambda node: node.name in names)


def audit_explicit(model: Path, kind: str) -> Inspection:
    """Count by the graph's own Q/DQ: a node whose data and weights come from DequantizeLinear can run on int8."""
    graph = onnx.load(str(model), load_external_data=False)
    dequantized = {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    return _inspection(model, kind, graph, lambda node: all(name in dequantized for name in node.input[:2]))


def graph_macs(model: onnx.ModelProto) -> Mapping[str, int]:
    """Return the multiply-accumulates of each node for one sample, by node name; a dynamic batch counts as 1."""
    shapes = _shapes(model)
    return {
        node.name: _macs(node, shapes)
        for node in model.graph.node
        if node.op_type in _MULTIPLIERS and node.output[0] in shapes and node.input[1] in shapes
    }


def _inspection(
    model: Path, kind: str, runs: onnx.ModelProto, is_integer: Callable[[onnx.NodeProto], bool]
) -> Inspection:
    written = onnx.load(str(model), load_external_data=False)
    macs = graph_macs(written)
    total = sum(macs.values())
    integer = sum(macs[node.name] for node in written.graph.node if node.name in macs and is_integer(node))
    computing = [node for node in runs.graph.node if node.op_type not in _CONVERSIONS]
    integer_tensors = _integer_tensors(runs)
    floats = [
        node
        for node in computing
        if not node.op_type.startswith(_INTEGER_KERNELS)
        and not (node.op_type in _MOVES and node.input and node.input[0] in integer_tensors)
        and not (kind.endswith("explicit QDQ") and is_integer(node))
    ]
    return Inspection(
        kind=kind,
        size_bytes=model.stat().st_size,
        operators=dict(sorted(Counter(node.op_type for node in runs.graph.node).items())),
        num_operators=len(runs.graph.node),
        integer_operators=len(computing) - len(floats),
        num_macs=total,
        integer_coverage=integer / total if total else 0.0,
        float_operators=tuple(f"{node.op_type} {_RENAMED.sub('', node.name)}" for node in floats),
        border=_border(written),
    )


def _integer_tensors(model: onnx.ModelProto) -> set[str]:
    """Return the tensors that hold integers, followed from quantizing nodes through nodes that only move bytes."""
    integers: set[str] = set()
    for node in model.graph.node:
        quantizes = node.op_type == "QuantizeLinear" or node.op_type.startswith(("QLinear", "QGemm"))
        if quantizes or (node.op_type in _MOVES and node.input and node.input[0] in integers):
            integers.update(node.output)
    return integers


def _macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    weight, output = shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type in ("Conv", "ConvInteger"):
        return math.prod(output) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(shapes.get(node.input[0], output)) * math.prod(weight[1:])
    transposed = any(item.name == "transB" and item.i for item in node.attribute)
    return math.prod(output) * (weight[-1] if transposed else weight[-2] if len(weight) > 1 else weight[0])


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
    return shapes


def _border(model: onnx.ModelProto) -> Border:
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
                 if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.ByteSize() < 4096}  # fmt: skip
    params: dict[str, tuple[float, int]] = {}
    for node in model.graph.node:
        if node.op_type in _CONVERSIONS and node.input[1] in constants and constants[node.input[1]].ndim == 0:
            zero_point = int(constants[node.input[2]]) if len(node.input) > 2 and node.input[2] in constants else 0
            side = node.input[0] if node.op_type == "QuantizeLinear" else node.output[0]
            params[side] = (float(constants[node.input[1]]), zero_point)

    def facts(value: onnx.ValueInfoProto) -> TensorFacts:
        kind = value.type.tensor_type
        shape = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
        scale, zero_point = params.get(value.name, (None, None))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        return TensorFacts(value.name, dtype, shape, "any", scale, zero_point)

    return Border(tuple(map(facts, model.graph.input)), tuple(map(facts, model.graph.output)))
