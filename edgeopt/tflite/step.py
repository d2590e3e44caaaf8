"""One operator of the normal form on its way into the program, as the operator families see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from edgeopt.tflite.emitter import Emitter
from edgeopt.tflite.program import Quantization, RefusedError, Tensor


@dataclass(frozen=True)
class Step:
    """What a lowering function gets; it returns the tensor that holds the result, most often ``output``.

    In an integer step every operand has integers and a quantization, constants included, and ``output`` has the
    quantization that the graph asks for; in a float step all of them are float32. ``activation`` is the schema's code
    of the activation to fuse; it is NONE for operators that cannot fuse one. ``extra`` are outputs behind the first.
    """

    node: ir.Node
    inputs: tuple[Tensor | None, ...]
    output: Tensor
    emitter: Emitter
    activation: int = 0
    extra: tuple[Tensor, ...] = ()

    @property
    def is_integer(self) -> bool:
        """Whether this step computes on quantized integers."""
        return self.data.is_integer

    @property
    def is_dynamic(self) -> bool:
        """Whether the kernel quantizes its float operand itself, row by row, to multiply it by int8 weights."""
        return not self.is_integer and self.operand(1).is_integer

    @property
    def data(self) -> Tensor:
        """The first operand."""
        return self.operand(0)

    def operand(self, index: int) -> Tensor:
        """Return an operand that the operator cannot do without."""
        tensor = self.optional(index)
        if tensor is None:
            raise RefusedError(f"input {index} is missing")
        return tensor

    def optional(self, index: int) -> Tensor | None:
        """Return an operand, or ``None`` if the node does not have it."""
        return self.inputs[index] if index < len(self.inputs) else None


Lower = Callable[[Step], Tensor]
Operands = tuple[Tensor | None, ...]
IntegerRule = Callable[[Operands, Quantization], bool]


def always(operands: Operands, output: Quantization) -> bool:
    """Take any scales, each operand one for the whole tensor, all of one dtype."""
    given = [tensor for tensor in operands if tensor is not None]
    return all(tensor.per_tensor.is_per_tensor and tensor.dtype == output.dtype for tensor in given)


def one_scale(operands: Operands, output: Quantization) -> bool:
    """Take operands and output with one scale and zero-point: the kernel looks at nothing but integers."""
    return all(tensor is None or tensor.quantization == output for tensor in operands)


def never(operands: Operands, output: Quantization) -> bool:
    """Have no integer kernel that is exact and fast: compute in float between DEQUANTIZE and QUANTIZE."""
    return False


@dataclass(frozen=True)
class Entry:
    """How one operator is lowered.

    Attributes:
        lower: emits the operator.
        integer: whether its integer kernel takes operands and output of these quantizations.
        fuses: the kernel has a fused activation.
        keeps_scale: the integer kernel's output has its input's scale; another scale takes a requantization behind it.
        bias: the input that may be a constant of any kind in an integer step.
    """

    lower: Lower
    integer: IntegerRule = always
    fuses: bool = False
    keeps_scale: bool = False
    bias: int | None = None
