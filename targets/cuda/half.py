"""The graph in float16, for an engine that computes in half precision; inputs and outputs stay float32."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16


def is_half(model: onnx.ModelProto) -> bool:
    """Return whether the graph stores its weights as float16."""
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)


def in_half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that computes in float16 what ``model`` computes in float32 with weights stored as float16."""
    unpacked = onnx.ModelProto()
    unpacked.CopyFrom(model)
    graph = unpacked.graph
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored]
    for cast in casts:
        array = numpy_helper.to_array(stored[cast.input[0]]).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(array, cast.output[0]))
        graph.initializer.remove(stored[cast.input[0]])
        graph.node.remove(cast)
    with contextlib.redirect_stdout(io.StringIO()):
        half = ir.from_proto(convert_float_to_float16(unpacked, keep_io_types=True))
    half.graph.sort()  # the converter appends its casts
    proto = ir.to_proto(half)
    assert isinstance(proto, onnx.ModelProto)
    return proto
