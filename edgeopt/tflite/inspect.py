"""Read a .tflite file back: its operators in order, what each computes on, and how much of the work is integer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.errors import ModelError
from edgeopt.inspection import Border, Inspection, TensorFacts

_INTEGER_DTYPES = frozenset({"int4", "int8", "int16", "int32", "uint8", "int64", "bool"})
_DYNAMIC = frozenset({"CONV_2D", "FULLY_CONNECTED"})
_FILE_IDENTIFIER = b"TFL3"


@dataclass(frozen=True)
class FileTensor:
    """One tensor of the file; ``scales`` is empty if it is not quantized, and -1 in ``shape`` is a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    is_constant: bool


@dataclass(frozen=True)
class FileOperator:
    """One operator; ``macs`` counts multiply-accumulates, 0 where none are made."""

    name: str
    builtin: str
    version: int
    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]
    macs: int

    @property
    def is_integer(self) -> bool:
        """Whether it multiplies and adds integers: no float goes in or comes out, or its kernel is a dynamic one."""
        return self.is_dynamic or all(tensor.dtype in _INTEGER_DTYPES for tensor in (*self.inputs, *self.outputs))

    @property
    def is_dynamic(self) -> bool:
        """Whether its kernel quantizes float activations itself, and multiplies integers."""
        stored = [tensor.dtype for tensor in self.inputs[:2]]
        return self.builtin in _DYNAMIC and stored == ["float32", "int8"]


@dataclass(frozen=True)
class TfliteFile:
    """What a .tflite file holds; inputs and outputs under the names of its signature."""

    operators: tuple[FileOperator, ...]
    inputs: Mapping[str, FileTensor]
    outputs: Mapping[str, FileTensor]
    size_bytes: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference with batch 1."""
        return sum(operator.macs for operator in self.operators)

    @property
    def integer_coverage(self) -> float:
        """The share of multiply-accumulates in integer kernels; 0 if there are none at all."""
        integer = sum(operator.macs for operator in self.operators if operator.is_integer)
        return integer / self.macs if self.macs else 0.0


def read_tflite(content: bytes) -> TfliteFile:
    """Read the bytes of a .tflite file.

    Raises:
        ModelError: if they are not a TFLite flatbuffer with one subgraph.
    """
    if content[4:8] != _FILE_IDENTIFIER:
        raise ModelError("not a .tflite file: the identifier 'TFL3' is missing")
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    if len(model.subgraphs) != 1:
        raise ModelError(f"a .tflite file with {len(model.subgraphs)} subgraphs, expected 1")
    graph = model.subgraphs[0]
    tensors = [_tensor(record, model.buffers) for record in graph.tensors]
    operators = tuple(_operator(record, model.operatorCodes, tensors) for record in graph.operators)
    signature = model.signatureDefs[0] if model.signatureDefs else None
    return TfliteFile(
        operators,
        _named(graph.inputs, signature.inputs if signature else None, tensors),
        _named(graph.outputs, signature.outputs if signature else None, tensors),
        len(content),
    )


def inspect_tflite(path: Path) -> Inspection:
    """Return the counts by which a bundle is judged.

    Raises:
        ModelError: if the file is not TFLite.
    """
    file = read_tflite(path.read_bytes())
    return Inspection(
        kind="tflite",
        size_bytes=file.size_bytes,
        operators=dict(sorted(Counter(operator.builtin for operator in file.operators).items())),
        num_operators=len(file.operators),
        integer_operators=sum(operator.is_integer for operator in file.operators),
        num_macs=file.macs,
        integer_coverage=file.integer_coverage,
        float_operators=tuple(f"{op.builtin} {op.name}" for op in file.operators if not op.is_integer),
        border=Border(_facts(file.inputs), _facts(file.outputs)),
    )


def _facts(tensors: Mapping[str, FileTensor]) -> tuple[TensorFacts, ...]:
    return tuple(
        TensorFacts(
            name,
            tensor.dtype,
            tuple("batch" if size < 0 else size for size in tensor.shape),
            scale=tensor.scales[0] if tensor.scales else None,
            zero_point=tensor.zero_points[0] if tensor.zero_points else None,
            integer_dtype=tensor.dtype if tensor.scales else None,
        )
        for name, tensor in tensors.items()
    )


def _tensor(record: Any, buffers: list[Any]) -> FileTensor:
    quantization = record.quantization
    scales = () if quantization is None or quantization.scale is None else quantization.scale
    points = () if quantization is None or quantization.zeroPoint is None else quantization.zeroPoint
    shape = record.shape if record.shapeSignature is None else record.shapeSignature
    data = buffers[record.buffer].data
    return FileTensor(
        record.name.decode(),
        _names_of(schema.TensorType)[record.type].lower(),
        tuple(int(size) for size in (() if shape is None else shape)),
        tuple(float(scale) for scale in scales),
        tuple(int(point) for point in points),
        record.quantization.quantizedDimension if quantization is not None else 0,
        data is not None and len(data) > 0,
    )


def _operator(record: Any, codes: list[Any], tensors: list[FileTensor]) -> FileOperator:
    code = codes[record.opcodeIndex]
    builtin = _names_of(schema.BuiltinOperator)[max(code.builtinCode, code.deprecatedBuiltinCode)]
    inputs = tuple(tensors[index] for index in record.inputs if index >= 0)
    outputs = tuple(tensors[index] for index in record.outputs)
    return FileOperator(outputs[0].name, builtin, code.version, inputs, outputs, _macs(builtin, inputs, outputs))


def _macs(builtin: str, inputs: tuple[FileTensor, ...], outputs: tuple[FileTensor, ...]) -> int:
    """Count one multiplication for each weight and each place where it is used."""
    num_results = math.prod(abs(size) for size in outputs[0].shape)
    if builtin in ("CONV_2D", "CONV_3D"):
        return num_results * math.prod(inputs[1].shape[1:])
    if builtin == "DEPTHWISE_CONV_2D":
        return num_results * math.prod(inputs[1].shape[1:3])
    if builtin == "TRANSPOSE_CONV":
        pixels = math.prod(abs(size) for size in inputs[2].shape)
        return pixels * math.prod(inputs[1].shape[:3])
    if builtin in ("FULLY_CONNECTED", "BATCH_MATMUL"):
        return num_results * abs(inputs[0].shape[-1])
    return 0


def _named(indices: Any, entries: list[Any] | None, tensors: list[FileTensor]) -> dict[str, FileTensor]:
    """Return tensors in the graph's order, under the signature's names where there is one."""
    names = {entry.tensorIndex: entry.name.decode() for entry in entries or []}
    order = [int(index) for index in (np.array([], np.int32) if indices is None else indices)]
    return {names.get(index, tensors[index].name): tensors[index] for index in order}


@cache
def _names_of(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}
