"""Takes a TFLite model apart: each operator becomes a model of its own, with its own weights and options."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_FILE_IDENTIFIER = b"TFL3"


@dataclass(frozen=True)
class SingleOperator:
    """One operator as a .tflite file, and what TFLite calls it; the file without any operator is called nothing."""

    builtin: str
    content: bytes


def single_operators(content: bytes) -> Iterator[SingleOperator]:
    """Yield a model without operators, and then one for each operator in the order of the file.

    Args:
        content: a .tflite file with one subgraph.
    """
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    model.signatureDefs = model.metadata = None
    graph, buffers = model.subgraphs[0], model.buffers
    tensors = graph.tensors
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    first = [int(graph.inputs[0])]
    yield SingleOperator("", _packed(model, tensors, buffers, [], first, first))
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        reads = [int(index) for index in operator.inputs if index >= 0 and not _is_constant(tensors[index], buffers)]
        writes = [int(index) for index in operator.outputs]
        packed = _packed(copy.copy(model), tensors, buffers, [operator], reads, writes)
        yield SingleOperator(names[max(code.builtinCode, code.deprecatedBuiltinCode)], packed)


def _packed(
    model: Any,
    tensors: Sequence[Any],
    buffers: Sequence[Any],
    operators: Sequence[Any],
    reads: list[int],
    writes: list[int],
) -> bytes:
    """Return a file with these operators, none of their tensors but their own, and the buffers of those."""
    used = [int(index) for op in operators for index in (*op.inputs, *op.outputs) if index >= 0] or reads
    place = {index: new for new, index in enumerate(dict.fromkeys(used))} | {-1: -1}
    graph = copy.copy(model.subgraphs[0])
    graph.tensors = [copy.copy(tensors[index]) for index in place if index >= 0]
    graph.operators = [_moved(operator, place) for operator in operators]
    graph.inputs, graph.outputs = _places(dict.fromkeys(reads), place), _places(writes, place)
    own = copy.copy(model)
    own.subgraphs = [graph]
    own.buffers = [schema.BufferT(), *(buffers[tensor.buffer] for tensor in graph.tensors)]
    for index, tensor in enumerate(graph.tensors, start=1):
        tensor.buffer = index
    builder = flatbuffers.Builder()
    builder.Finish(own.Pack(builder), _FILE_IDENTIFIER)
    return bytes(builder.Output())


def _moved(operator: Any, place: dict[int, int]) -> Any:
    moved = copy.copy(operator)
    moved.inputs, moved.outputs = _places(operator.inputs, place), _places(operator.outputs, place)
    return moved


def _places(indices: Any, place: dict[int, int]) -> Any:
    return np.array([place[int(index)] for index in indices], np.int32)


def _is_constant(tensor: Any, buffers: Sequence[Any]) -> bool:
    data = buffers[tensor.buffer].data
    return data is not None and len(data) > 0
