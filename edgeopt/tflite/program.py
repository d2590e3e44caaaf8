"""A TFLite program while it is built: tensors and operators as plain records, in the order in which they run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

_INT8 = np.dtype(np.int8)
DYNAMIC = -1  # an axis whose size the application chooses

_DTYPES = "float32 float16 int4 int8 uint8 int16 int32 int64 bool"
TENSOR_TYPES = {name: getattr(schema.TensorType, name.upper()) for name in _DTYPES.split()}


class RefusedError(Exception):
    """Why a node cannot be lowered exactly; collected by the lowering, never seen outside this package."""


# A node whose operands contradict each other, where ONNX's own checks let it through: refused as well, by its name.
MISFITS = (ArithmeticError, IndexError, TypeError, ValueError)


@dataclass(frozen=True)
class Quantization:
    """``real = scales * (stored - zero_points)``: one scale for the tensor, or one for each slice along ``axis``.

    ``dtype`` is what values are stored as: activations as int8, or as int16 with zero-point 0.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int = 0
    dtype: np.dtype[Any] = _INT8

    @property
    def scale(self) -> float:
        """The one scale of a per-tensor quantization."""
        (scale,) = self.scales
        return scale

    @property
    def zero_point(self) -> int:
        """The one zero-point of a per-tensor quantization."""
        (zero_point,) = self.zero_points
        return zero_point

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the largest integer that can be stored."""
        limits = np.iinfo(self.dtype)
        return int(limits.min), int(limits.max)

    @property
    def is_per_tensor(self) -> bool:
        """Whether one scale serves the whole tensor."""
        return len(self.scales) == 1


@dataclass(eq=False)
class Tensor:
    """One tensor; ``data`` makes it a constant. Two tensors are equal only if they are the same object."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    quantization: Quantization | None = None
    data: NDArray[Any] | None = None

    @property
    def is_integer(self) -> bool:
        """Whether the tensor holds quantized values."""
        return self.quantization is not None

    @property
    def per_tensor(self) -> Quantization:
        """The quantization of a tensor that is known to have one."""
        assert self.quantization is not None, self.name
        return self.quantization


@dataclass(eq=False)
class Operator:
    """One built-in operator by its name in the schema; ``options`` is the schema's ``...OptionsT`` or ``None``."""

    builtin: str
    version: int
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Any = None


@dataclass
class Program:
    """Operators in execution order, and the graph's inputs and outputs under the names that the application uses.

    ``names`` is the record of which tensor each value of the ONNX graph became.
    """

    inputs: list[tuple[str, Tensor]] = field(default_factory=list)
    outputs: list[tuple[str, Tensor]] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    names: dict[str, Tensor] = field(default_factory=dict)
