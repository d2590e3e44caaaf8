"""Write a program as a .tflite flatbuffer, the same bytes for the same program.

Two things that the generated schema code does not do are done here: constants are aligned to 16 bytes, because kernels
read them in place with vector instructions, and equal constants share one buffer.
"""

from __future__ import annotations

from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.errors import LoweringError
from edgeopt.tflite.program import DYNAMIC, TENSOR_TYPES, Operator, Program, Quantization, Tensor
from edgeopt.tflite.versions import minimum_runtime_version

_FILE_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
_ALIGNMENT = 16
_MAX_BYTES = 2**31 - 1  # flatbuffers address the file with signed 32-bit offsets
_LAST_BYTE_CODE = 127  # ``deprecatedBuiltinCode`` is a signed byte, which old runtimes still read


def write(program: Program) -> bytes:
    """Return the bytes of a .tflite file.

    Raises:
        LoweringError: if the constants do not fit into a flatbuffer, which ends at 2 GiB.
    """
    _check_size(program)
    model = _ModelWriter(program).model()
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
    return bytes(builder.Output())


def _check_size(program: Program) -> None:
    tensors = {tensor for operator in program.operators for tensor in operator.inputs if tensor is not None}
    num_bytes = sum(tensor.data.nbytes for tensor in tensors if tensor.data is not None)
    if num_bytes >= _MAX_BYTES:
        raise LoweringError(
            f"the constants take {num_bytes:,} bytes, a .tflite file holds less than {_MAX_BYTES:,}",
            hint="quantize or prune the network",
        )


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]  # the generated schema has no types
    """A buffer whose bytes start at a multiple of 16 in the file."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        if self.data is None:
            return int(super().Pack(builder))
        content: bytes = self.data
        builder.StartVector(1, len(content), _ALIGNMENT)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))


class _ModelWriter:
    """Numbers tensors, buffers and operator codes in the order of their first use."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._buffers: list[Any] = [_AlignedBuffer()]  # buffer 0 is the empty one, by the schema's rule
        self._buffer_of: dict[bytes, int] = {}
        self._tensors: list[Any] = []
        self._tensor_of: dict[Tensor, int] = {}
        self._codes: list[Any] = []
        self._code_of: dict[tuple[str, int], int] = {}

    def model(self) -> Any:
        """Return the whole model as the schema's records."""
        program = self._program
        inputs, operators, outputs = (
            [self._tensor(tensor) for _, tensor in program.inputs],
            [self._operator(operator) for operator in program.operators],
            [self._tensor(tensor) for _, tensor in program.outputs],
        )
        subgraph = schema.SubGraphT(self._tensors, _int32(inputs), _int32(outputs), operators, b"main")
        return schema.ModelT(
            version=_SCHEMA_VERSION,
            description=b"edgeopt",
            subgraphs=[subgraph],
            operatorCodes=self._codes,
            signatureDefs=[self._signature()],
            metadata=[self._minimum_runtime()],
            buffers=self._buffers,
        )

    def _signature(self) -> Any:
        inputs, outputs = (
            [schema.TensorMapT(name.encode(), self._tensor(tensor)) for name, tensor in side]
            for side in (self._program.inputs, self._program.outputs)
        )
        return schema.SignatureDefT(inputs, outputs, b"serving_default")

    def _minimum_runtime(self) -> Any:
        version = minimum_runtime_version((op.builtin, op.version) for op in self._program.operators)
        return schema.MetadataT(b"min_runtime_version", self._buffer(version.encode().ljust(16, b"\0")))

    def _operator(self, operator: Operator) -> Any:
        record = schema.OperatorT(
            opcodeIndex=self._code(operator.builtin, operator.version),
            inputs=_int32([-1 if tensor is None else self._tensor(tensor) for tensor in operator.inputs]),
            outputs=_int32([self._tensor(tensor) for tensor in operator.outputs]),
        )
        if operator.options is not None:
            union_member = type(operator.options).__name__.removesuffix("T")
            record.builtinOptionsType = getattr(schema.BuiltinOptions, union_member)
            record.builtinOptions = operator.options
        return record

    def _code(self, builtin: str, version: int) -> int:
        key = (builtin, version)
        if key not in self._code_of:
            number = getattr(schema.BuiltinOperator, builtin)
            self._code_of[key] = len(self._codes)
            self._codes.append(schema.OperatorCodeT(min(number, _LAST_BYTE_CODE), None, version, number))
        return self._code_of[key]

    def _tensor(self, tensor: Tensor) -> int:
        if tensor not in self._tensor_of:
            record = schema.TensorT()
            record.name = tensor.name.encode()
            record.type = TENSOR_TYPES[tensor.dtype.name]
            record.shape = _int32([1 if size == DYNAMIC else size for size in tensor.shape])
            if DYNAMIC in tensor.shape:
                record.shapeSignature = _int32(tensor.shape)
            record.buffer = 0 if tensor.data is None else self._buffer(_little_endian(tensor))
            record.quantization = _quantization(tensor.quantization)
            self._tensor_of[tensor] = len(self._tensors)
            self._tensors.append(record)
        return self._tensor_of[tensor]

    def _buffer(self, content: bytes) -> int:
        if content not in self._buffer_of:
            self._buffer_of[content] = len(self._buffers)
            self._buffers.append(_AlignedBuffer(data=content))
        return self._buffer_of[content]


def _quantization(quantization: Quantization | None) -> Any:
    if quantization is None:
        return None
    scales, points = np.array(quantization.scales, np.float32), np.array(quantization.zero_points, np.int64)
    return schema.QuantizationParametersT(scale=scales, zeroPoint=points, quantizedDimension=quantization.axis)


def _little_endian(tensor: Tensor) -> bytes:
    assert tensor.data is not None
    if tensor.dtype.name == "int4":  # two in a byte, the first one in the lower half
        nibbles = np.resize(tensor.data.astype(np.int8).view(np.uint8) & 15, tensor.data.size + tensor.data.size % 2)
        return bytes(nibbles[0::2] | nibbles[1::2] << 4)
    return np.ascontiguousarray(tensor.data).astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()


def _int32(values: list[int] | tuple[int, ...]) -> Any:
    return np.array(values, np.int32)
