"""The arithmetic of affine quantization: ``real = scale * (quantized - zero_point)``.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv 1712.05877, section 2.1; ONNX operator QuantizeLinear (round half to even, then saturate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import QuantizationError

INT4_MAX = 7
MOST_BLOCK_FACTOR = 18  # of a block of int4 weights
BLOCK_INT4_MAX = MOST_BLOCK_FACTOR * INT4_MAX  # fits int8
INT8_MIN, INT8_MAX = -128, 127
INT16_MAX = 32767

# The smallest scale that we write. A range narrower than this is a constant for every purpose, and a subnormal scale
# makes 1 / scale overflow in float32, which runtimes use.
MIN_SCALE = float(np.finfo(np.float32).tiny) * 2**8


@dataclass(frozen=True)
class QuantParams:
    """The scale (float32, > 0), zero-point and integer dtype of one tensor, per tensor."""

    scale: float
    zero_point: int
    dtype: Literal["int8", "int16"] = "int8"


def asymmetric_int8(minimum: float, maximum: float) -> QuantParams:
    """Map ``[minimum, maximum]``, widened to hold 0, onto the whole of int8 so that 0 is exact.

    Raises:
        QuantizationError: if a bound is not finite or they are in the wrong order.
    """
    low, high = _checked_range(minimum, maximum)
    scale = _float32_scale((high - low) / (INT8_MAX - INT8_MIN))
    zero_point = int(np.clip(np.rint(INT8_MIN - low / scale), INT8_MIN, INT8_MAX))
    return QuantParams(scale, zero_point)


def symmetric_int8(minimum: float, maximum: float) -> QuantParams:
    """Map the larger magnitude of the two bounds onto 127, with ``zero_point == 0``.

    Raises:
        QuantizationError: if a bound is not finite or they are in the wrong order.
    """
    low, high = _checked_range(minimum, maximum)
    return QuantParams(_float32_scale(max(-low, high) / INT8_MAX), 0)


def symmetric_int16(minimum: float, maximum: float) -> QuantParams:
    """Map the larger magnitude of the two bounds onto 32767, with ``zero_point == 0``.

    Source: LiteRT 8-bit quantization specification, int16 activations with int8 weights.

    Raises:
        QuantizationError: if a bound is not finite or they are in the wrong order.
    """
    low, high = _checked_range(minimum, maximum)
    return QuantParams(_float32_scale(max(-low, high) / INT16_MAX), 0, "int16")


def per_channel_weight_scales(weight: NDArray[np.float32], axis: int, largest: int = INT8_MAX) -> NDArray[np.float32]:
    """Return one symmetric scale ``(C,)`` for each slice along ``axis``: its largest magnitude on ``largest``.

    A slice of zeros gets the scale 1: any scale expresses it, and 1 keeps its bias exact enough.

    Raises:
        QuantizationError: if a weight is not finite.
    """
    other_axes = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    magnitude = np.abs(weight).max(axis=other_axes)
    if not np.isfinite(magnitude).all():
        raise QuantizationError("a weight is NaN or infinite")
    scales = (magnitude.astype(np.float64) / largest).astype(np.float32)
    return np.where(scales > MIN_SCALE, scales, np.float32(1.0)).astype(np.float32)


def quantize_int8(
    values: NDArray[np.floating], scale: NDArray[np.float32] | float, zero_point: int = 0, *, low: int = INT8_MIN
) -> NDArray[np.int8]:
    """Quantize to int8: divide in float32 as ONNX does, round half to even, add the zero-point, saturate.

    Raises:
        QuantizationError: if a value is NaN, which no integer stands for.
    """
    steps: NDArray[np.int8] = np.maximum(quantize_to("int8", values, scale, zero_point), low).astype(np.int8)
    return steps


def quantize_to(
    dtype: str, values: NDArray[np.floating], scale: NDArray[np.float32] | float, zero_point: int
) -> NDArray[np.integer]:
    """Quantize to an integer dtype, saturating at its bounds.

    Raises:
        QuantizationError: if a value is NaN.
    """
    if np.isnan(values).any():
        raise QuantizationError("a value to quantize is NaN")
    bounds = np.iinfo(dtype)
    with np.errstate(over="ignore"):  # an infinite quotient saturates as any large one
        steps = np.rint(values.astype(np.float32) / np.asarray(scale, np.float32)) + np.float32(zero_point)
    return np.clip(steps, bounds.min, bounds.max).astype(dtype)


def dequantize(
    values: NDArray[np.integer], scale: NDArray[np.float32] | float, zero_point: int = 0
) -> NDArray[np.float32]:
    """Return ``(values - zero_point) * scale`` as float32."""
    return (values.astype(np.float32) - np.float32(zero_point)) * np.asarray(scale, np.float32)


def _checked_range(minimum: float, maximum: float) -> tuple[float, float]:
    if not (np.isfinite(minimum) and np.isfinite(maximum)) or minimum > maximum:
        raise QuantizationError(f"a range must be finite and ordered, got [{minimum}, {maximum}]")
    return min(float(minimum), 0.0), max(float(maximum), 0.0)


def _float32_scale(scale: float) -> float:
    return float(np.float32(scale)) if scale > MIN_SCALE else 1.0
