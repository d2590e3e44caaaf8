"""Weights and biases: which the integer kernels take, and how they are stored.

int4 weights stay packed in FULLY_CONNECTED, whose kernel in XNNPACK is as fast and as exact with them as with int8. The
convolutions' kernels unpack them at each call, 3 to 7 times slower, and do not round as XNNPACK does: one result of a
thousand is one step off. So a convolution over single pixels becomes a FULLY_CONNECTED, and others get them unpacked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.tflite.program import Quantization, RefusedError, Tensor
from edgeopt.tflite.step import IntegerRule, Operands, Step

_MAX_BIAS_ERROR = 0.25  # steps of the output that rounding a bias to the products' scale may cost


def weights_by_output(axis: int) -> IntegerRule:
    """Return the rule of a kernel whose constant weights have their output channels on ``axis``."""

    def rule(operands: Operands, output: Quantization) -> bool:
        """Take int8 or int4 weights with zero-point 0 and one scale, or one for each output channel."""
        data, weight = operands[0], operands[1]
        return (
            data is not None
            and weight is not None
            and data.per_tensor.is_per_tensor
            and weight.data is not None
            and weight.dtype.name in ("int8", "int4")
            and data.dtype == output.dtype
            and not any(weight.per_tensor.zero_points)
            and (weight.per_tensor.is_per_tensor or weight.per_tensor.axis == axis)
        )

    return rule


def has_packed_weights(step: Step) -> bool:
    """Whether an int8 step has weights of four bits."""
    return step.is_integer and step.data.dtype == np.int8 and step.operand(1).dtype.name == "int4"


def constant_of(tensor: Tensor, what: str) -> NDArray[Any]:
    """Return the data of a constant operand.

    Raises:
        RefusedError: if it is computed by the graph.
    """
    if tensor.data is None:
        raise RefusedError(f"{what} that are not constant")
    return tensor.data


def weights_tensor(step: Step, array: NDArray[Any], axis: int, *, packed: bool = False) -> Tensor:
    """Return rearranged weights as a constant whose output channels are on ``axis``; int4 ones unless ``packed``."""
    weight = step.operand(1)
    if array.dtype.name == "int4" and not packed:
        array = array.astype(np.int8)
    quantization = weight.quantization
    if quantization is not None:
        quantization = replace(quantization, axis=axis)
    return step.emitter.constant(weight.name, np.ascontiguousarray(array), quantization)


def bias_tensor(step: Step, weight: Tensor, num_outputs: int) -> Tensor:
    """Return the bias, zeros if there is none: float32, or integers in units of ``input scale * weight scale``.

    They are int32 for int8 activations, and int64 for int16 ones, as the kernels want them.

    A bias that comes with these scales keeps its integers; any other is rounded to them, the best a kernel can do.
    """
    given = step.optional(2)
    if given is not None and given.shape != (num_outputs,):
        raise RefusedError(f"a bias of shape {list(given.shape)} for {num_outputs} outputs")
    name = given.name if given is not None else f"{step.output.name}_bias"
    if not step.is_integer:
        values = np.zeros(num_outputs, np.float32) if given is None else constant_of(given, "bias")
        return step.emitter.constant(name, values.astype(np.float32))
    dtype = np.dtype(np.int32 if step.data.dtype == np.int8 else np.int64)
    scales = np.float32(step.data.per_tensor.scale) * np.array(weight.per_tensor.scales, np.float32)
    if scales.size > 1:
        scales = np.resize(scales, num_outputs)  # the groups of a ConvTranspose share one list of scales
    quantization = Quantization(tuple(float(scale) for scale in scales), (0,) * scales.size, dtype=dtype)
    integers = _integer_bias(given, scales, num_outputs, step.output.per_tensor.scale)
    return step.emitter.constant(name, integers.astype(dtype), quantization)


def _integer_bias(
    given: Tensor | None, scales: NDArray[np.float32], num_outputs: int, output_scale: float
) -> NDArray[np.int32]:
    if given is None:
        return np.zeros(num_outputs, np.int32)
    array = constant_of(given, "bias")
    if given.quantization is None:
        real = array.astype(np.float64)
    elif np.allclose(given.quantization.scales, scales, rtol=1e-6, atol=0) and not any(given.quantization.zero_points):
        return array.astype(np.int32)
    else:
        points = np.array(given.quantization.zero_points, np.float64)
        real = (array.astype(np.float64) - points) * np.array(given.quantization.scales, np.float64)
    steps = np.rint(real / scales.astype(np.float64))
    if (np.abs(steps * scales - real) > _MAX_BIAS_ERROR * output_scale).any() or np.abs(steps).max() >= 2**31:
        raise RefusedError("a bias that int32 cannot hold at the scale of the products")
    return steps.astype(np.int32)
