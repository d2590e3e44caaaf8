"""Where a model file holds its constants: TFLite's buffers, ONNX's initializers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from ai_edge_litert import schema_py_generated as schema

from edgeopt.bundle.coding_forms import ITEM_BYTES
from edgeopt.errors import ModelError

_LEARNED = frozenset({"float", "float16", "bfloat16", "double", "int4", "uint4", "int8", "uint8", "int16", "uint16"})
_SCALED = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class Constant:
    """A constant of a model: its bytes as they lie in the file, and how many weights of the network it stands for.

    Weights are what a network has learned, biases too; scales, zero-points, shapes and axes count 0. ``width`` is how
    many items of ``item_bytes`` lie in a row: the weights of one output, as kernels read them.
    """

    name: str
    dtype: str
    content: bytes
    item_bytes: int
    width: int
    num_weights: int


def read_constants(path: Path, content: bytes) -> list[Constant]:
    """Return the constants of a model file; one that several tensors share is there once.

    Raises:
        ModelError: it is neither TFLite nor ONNX, by its name, or cannot be read.
    """
    readers = {".tflite": _tflite_constants, ".onnx": _onnx_constants}
    if path.suffix not in readers:
        raise ModelError(f"{path.name}: expected a .tflite or .onnx file", hint="give a bundle or its model file")
    try:
        return list(readers[path.suffix](content))
    except Exception as error:  # flatbuffers and protobuf share no root for what a damaged file raises
        raise ModelError(f"{path.name} cannot be read: {error}") from error


def find_places(content: bytes, constants: Iterable[Constant]) -> list[tuple[int, Constant]]:
    """Return where each constant lies in a file, from front to back; one whose bytes are not in it is left out.

    Which of two places with equal bytes is taken does not matter.
    """
    taken: list[tuple[int, Constant]] = []
    for constant in sorted(constants, key=lambda constant: -len(constant.content)):
        size = len(constant.content)
        at = content.find(constant.content)
        while at >= 0 and (ends := [end for start, end in _spans(taken) if at < end and start < at + size]):
            at = content.find(constant.content, max(ends))
        if at >= 0:
            taken.append((at, constant))
    return sorted(taken, key=lambda place: place[0])


def _spans(places: Iterable[tuple[int, Constant]]) -> Iterator[tuple[int, int]]:
    return ((start, start + len(constant.content)) for start, constant in places)


def _tflite_constants(content: bytes) -> Iterator[Constant]:
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    names = {value: name for name, value in vars(schema.TensorType).items()}
    users: dict[int, list[Any]] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            users.setdefault(tensor.buffer, []).append(tensor)
    for index, tensors in users.items():
        data = model.buffers[index].data
        if data is None or not len(data):
            continue
        tensor, dtype = tensors[0], names[tensors[0].type].lower()
        shape = () if tensor.shape is None else tuple(map(int, tensor.shape))
        is_scaled = tensor.quantization is not None and tensor.quantization.scale is not None
        num_weights = math.prod(shape) * len(tensors) if is_scaled or "float" in dtype else 0
        yield _constant(tensor.name.decode(), dtype, bytes(data), shape, num_weights)


def _onnx_constants(content: bytes) -> Iterator[Constant]:
    graph = onnx.load_model_from_string(content).graph
    scales = {name for node in graph.node if node.op_type in _SCALED for name in node.input[1:]}
    scaled = {name for node in graph.node if node.op_type in _SCALED for name in node.input[:1]}
    for tensor in graph.initializer:
        dtype = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        is_learned = tensor.name not in scales and (tensor.name in scaled or dtype in _LEARNED)
        stored = tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()
        if stored:
            yield _constant(tensor.name, dtype, stored, tuple(tensor.dims), math.prod(tensor.dims) * is_learned)


def _constant(name: str, dtype: str, content: bytes, shape: tuple[int, ...], num_weights: int) -> Constant:
    """Return a constant; its rows are those of the first axis with more than one place, but for the last axis."""
    item_bytes = len(content) // max(1, math.prod(shape))
    if item_bytes not in ITEM_BYTES or len(content) % item_bytes:
        item_bytes = 1  # packed int4, or text
    num_items = len(content) // item_bytes
    rows = next((size for size in shape[:-1] if size > 1), 1)
    return Constant(name, dtype, content, item_bytes, max(1, num_items // rows), num_weights)
