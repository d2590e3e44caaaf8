"""Add operators and tensors to a program: what every operator family writes with."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgeopt.tflite.program import DYNAMIC, TENSOR_TYPES, Operator, Program, Quantization, Tensor
from edgeopt.tflite.shapes import broadcast_shape
from edgeopt.tflite.versions import operator_version


class Emitter:
    """Builds one program; tensor names stay unique."""

    def __init__(self) -> None:
        self.program = Program()
        self._copies: dict[str, int] = {}  # how often each name was taken; counting keeps long graphs linear
        self._before_reshape: dict[Tensor, Tensor] = {}

    def tensor(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], quantization: Quantization | None = None
    ) -> Tensor:
        """Return a new tensor that an operator will write."""
        return Tensor(self._unique(name), shape, dtype, quantization)

    def like(self, model: Tensor, suffix: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return a new tensor of the same dtype and quantization, and of the same shape unless another is given."""
        return self.tensor(
            f"{model.name}_{suffix}", model.shape if shape is None else shape, model.dtype, model.quantization
        )

    def constant(self, name: str, array: NDArray[Any], quantization: Quantization | None = None) -> Tensor:
        """Return a new constant; equal contents share their bytes in the file."""
        return Tensor(self._unique(name), array.shape, array.dtype, quantization, array)

    def emit(
        self,
        builtin: str,
        inputs: list[Tensor | None],
        output: Tensor,
        options: Any = None,
        *,
        version: int | None = None,
        extra: tuple[Tensor, ...] = (),
        data: int = 0,
    ) -> Tensor:
        """Append an operator and return its output.

        Args:
            builtin: the operator's name in the schema.
            inputs: its operands, ``None`` for one that is left out.
            output: what it writes; ``extra`` are further outputs.
            options: the schema's record of options.
            version: left out, the lowest version for the dtype of input number ``data``.
            extra: outputs behind the first.
            data: which input decides about the dtype.

        Raises:
            RefusedError: if no kernel computes on this dtype.
        """
        source = inputs[data]
        assert source is not None
        lowest = operator_version(builtin, source.dtype.name)
        number = lowest if version is None else version
        self.program.operators.append(Operator(builtin, number, tuple(inputs), (output, *extra), options))
        return output

    def apply(self, builtin: str, *operands: Tensor, options: Any = None, dtype: Any = None) -> Tensor:
        """Append an operator that works element by element, with broadcasting, into a new tensor."""
        first = operands[0]
        shape = broadcast_shape([tensor.shape for tensor in operands])
        name = f"{first.name}_{builtin.lower()}"
        output = self.tensor(name, shape, np.dtype(dtype or first.dtype), first.quantization)
        return self.emit(builtin, list(operands), output, options)

    def number(self, value: float, like: Tensor) -> Tensor:
        """Return a constant scalar of the dtype of another tensor."""
        return self.constant("number", np.array(value, like.dtype))

    def cast(self, source: Tensor, dtype: Any, output: Tensor | None = None) -> Tensor:
        """Return ``source`` as another dtype, cut off towards zero; the same tensor if it has that dtype."""
        wanted = np.dtype(dtype)
        if source.dtype == wanted and output is None:
            return source
        operator_version("CAST", wanted.name)
        output = output or self.tensor(f"{source.name}_{wanted.name}", source.shape, wanted)
        version = 3 if np.dtype(np.int8) in (source.dtype, wanted) else None
        options = schema.CastOptionsT(TENSOR_TYPES[source.dtype.name], TENSOR_TYPES[wanted.name])
        return self.emit("CAST", [source], output, options, version=version)

    def reshape(self, source: Tensor, shape: tuple[int, ...], output: Tensor | None = None) -> Tensor:
        """Reshape ``source``; a chain of reshapes becomes one, and none if it ends in the shape it began with."""
        root = self._before_reshape.get(source, source)
        if root.shape == shape and (output is None or root is not source):
            return root
        output = output or self.like(source, "reshaped", shape)
        new_shape = self.constant(f"{output.name}_shape", np.array(shape, np.int32))
        self._before_reshape[output] = root
        return self.emit("RESHAPE", [root, new_shape], output, schema.ReshapeOptionsT(new_shape.data))

    def rows(self, source: Tensor, length: int) -> Tensor:
        """Return a tensor with the rows of ``source`` for an operator that flattens what is in front of them."""
        root = self._before_reshape.get(source, source)
        if root.shape[-1:] == (length,):
            return root
        return source if len(source.shape) > 1 else self.reshape(source, (1, length))

    def requantize(self, source: Tensor, quantization: Quantization, output: Tensor | None = None) -> Tensor:
        """Return ``source`` under another scale; the same tensor if it has that scale already.

        Written as a multiplication by 1, which XNNPACK computes in float32 and rounds once: on all int8 values under 30
        random pairs of scales it was always what ONNX gives. Its QUANTIZE from int8 to int8 multiplies by a number of
        16 bits and was one step off for 4.5 % of them; a float detour is right too, but not integer.
        """
        if output is None:
            if source.quantization == quantization:
                return source
            output = self.tensor(f"{source.name}_requantized", source.shape, source.dtype, quantization)
        if source.dtype != np.int8:
            return self.emit("QUANTIZE", [source], output)
        one = self.constant("one", np.ones(1, np.int8), Quantization((1.0,), (0,)))
        version = 3 if source.per_tensor.scale >= quantization.scale else None
        return self.emit("MUL", [source, one], output, schema.MulOptionsT(), version=version)

    def pad(self, source: Tensor, pads: list[tuple[int, int]], value: Tensor | None = None) -> Tensor:
        """Surround ``source`` with real zeros, or with ``value``; unchanged if there is nothing to add."""
        if not any(before or after for before, after in pads):
            return source
        shape = tuple(
            size if size == DYNAMIC else size + before + after
            for size, (before, after) in zip(source.shape, pads, strict=True)
        )
        output = self.like(source, "padded", shape)
        paddings = self.constant(f"{output.name}_paddings", np.array(pads, np.int32))
        version = 4 if len(pads) > 4 else None
        if value is None:
            return self.emit("PAD", [source, paddings], output, schema.PadOptionsT(), version=version)
        return self.emit("PADV2", [source, paddings, value], output, schema.PadV2OptionsT(), version=version)

    def slice(self, source: Tensor, begin: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """Return a box out of ``source``; the same tensor if the box is all of it."""
        if shape == source.shape:
            return source
        output = self.like(source, "part", shape)
        bounds = [
            self.constant(f"{output.name}_{n}", np.array(v, np.int32)) for n, v in (("begin", begin), ("size", shape))
        ]
        return self.emit("SLICE", [source, *bounds], output, schema.SliceOptionsT())

    def remove_dead(self) -> None:
        """Drop operators whose result nobody reads."""
        alive = {tensor for _, tensor in self.program.outputs}
        kept = []
        for operator in reversed(self.program.operators):
            if alive.intersection(operator.outputs):
                alive.update(tensor for tensor in operator.inputs if tensor is not None)
                kept.append(operator)
        self.program.operators = kept[::-1]

    def _unique(self, name: str) -> str:
        unique = name
        while unique in self._copies:
            self._copies[name] += 1
            unique = f"{name}_{self._copies[name]}"
        self._copies[unique] = 0
        return unique
