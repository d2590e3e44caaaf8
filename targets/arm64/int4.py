"""Weights that need no more than 4 bits are stored in 4 bits where the kernel reads them so."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnxscript.version_converter import convert_version

from edgeopt.affine import INT4_MAX

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_OPSET = 21  # from which on DequantizeLinear reads int4


def pack_weights(model: ir.Model) -> None:
    """Turn int8 weights from -7 to 7 into int4, in place; the same numbers under the same scales."""
    if not any(_small_weights(model.graph)):
        return
    if model.graph.opset_imports[""] < _OPSET:
        convert_version(model, _OPSET)
    for dequantize in _small_weights(model.graph):
        for value in (dequantize.inputs[0], dequantize.inputs[2]):
            assert value is not None
            assert value.const_value is not None
            value.const_value = ir.tensor(value.const_value.numpy().astype(ir.DataType.INT4.numpy()), name=value.name)
            value.dtype = ir.DataType.INT4


def _small_weights(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield what dequantizes weights that fit into 4 bits."""
    for node in graph:
        weight = node.inputs[1] if node.op_type in _WEIGHTED else None
        dequantize = None if weight is None else weight.producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        stored = dequantize.inputs[0]
        if stored is None or stored.const_value is None or stored.dtype != ir.DataType.INT8 or len(stored.uses()) > 1:
            continue
        if np.abs(stored.const_value.numpy().astype(np.int16)).max() <= INT4_MAX:
            yield dequantize
