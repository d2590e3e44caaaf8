"""Where ONNX Runtime (x86) and LiteRT (XNNPACK) round differently, and which scales make them agree on every input.

Both were compared on all inputs there are, and each formula below reproduces its runtime bit for bit on them (the tests
repeat this). With ``s`` scales, ``z`` zero-points, and float32 throughout:

* **Conv, Gemm, MatMul, Mul** round ``sum * (s_in * s_w / s_out)`` half to even in both: nothing to choose.
* **Add.** ONNX Runtime adds up floats, ``a * (s_a/s_out) + (b * (s_b/s_out) + constant)``, and rounds half to even.
  (A CPU with fused multiply-add rounds less often on the way than one without.) XNNPACK multiplies by integers of 21
  bits, adds, and shifts right, which rounds half up. With random scales, 0 to 4 of the 65,536 pairs of inputs come out
  one step apart: enough to change half the logits of a deep residual net.
* **Sub.** ONNX Runtime has no integer kernel and subtracts floats; XNNPACK does what it does for a sum.
* **Average, sum over axes.** Both round ``sum * scale`` half to even, but compute ``scale`` in a different order, or
  add up floats, which shows in the last bit: 0 to 1 of the 12,496 sums over 7x7 pixels differ.
* **Linear interpolation.** Both interpolate floats, whose last bits differ. With the input's own scale a result is a
  multiple of 1/4, 1/16 or the like, so that 3 to 6 % of them lie on a tie.

So the runtimes disagree only where a result lies within a hair of a tie, and which inputs those are depends on the
scales. A quantizer that widens the output's scale by a few parts in ten thousand until :func:`additions_agree` or
one of its kind says yes gets nets whose answers are equal bit for bit, and loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.affine import INT8_MAX, INT8_MIN, QuantParams, dequantize, quantize_int8

_UINT8_OFFSET = 128  # ONNX Runtime's x86 kernels work on unsigned numbers; so does the formula, for the same roundings
_MULTIPLIER_BITS = 20
_STEP = 2.0**-14  # by how much a scale is widened at a time
_MAX_STEPS = 1024
_EPSILON = float(np.finfo(np.float32).eps)
_LAST_BITS = 4 * _EPSILON  # what another order of two divisions and a product can change
_LARGEST = INT8_MAX - INT8_MIN  # what a float sum that loses its last bits may have begun with, in steps


def nearest_agreeing(params: QuantParams, agrees: Callable[[QuantParams], bool]) -> QuantParams | None:
    """Return ``params`` with the narrowest scale, from its own upwards, that ``agrees`` accepts.

    ``None`` if there is none within 6 %.
    """
    for step in range(_MAX_STEPS):
        candidate = replace(params, scale=float(np.float32(params.scale * (1 + step * _STEP))))
        if agrees(candidate):
            return candidate
    return None


def additions_agree(left: QuantParams, right: QuantParams, output: QuantParams) -> bool:
    """Whether the two runtimes give the same sum for each of the 65,536 pairs of int8 inputs, on every x86 CPU."""
    expected = add_in_xnnpack(left, right, output)
    return all(
        bool((add_in_onnxruntime(left, right, output, fused=fused) == expected).all()) for fused in (True, False)
    )


def subtractions_agree(left: QuantParams, right: QuantParams, output: QuantParams) -> bool:
    """Whether the two runtimes give the same difference for each of the 65,536 pairs of int8 inputs."""
    expected = add_in_xnnpack(left, right, output, sign=-1)
    return bool((subtract_in_onnxruntime(left, right, output) == expected).all())


def averages_agree(source: QuantParams, output: QuantParams, num_elements: int) -> bool:
    """Whether no sum of ``num_elements`` int8 values averages to something within a hair of a tie."""
    return sums_agree(source, output, num_elements, divisor=num_elements)


def sums_agree(
    source: QuantParams, output: QuantParams, num_elements: int, *, divisor: int = 1, in_float: bool = False
) -> bool:
    """Whether no sum of ``num_elements`` int8 values over ``divisor`` comes out within a hair of a tie.

    Sums beyond the output's range are left out: they saturate however they are rounded. ``in_float`` says that a
    runtime adds up floats, which widens the hair.
    """
    sums = np.arange((INT8_MIN - source.zero_point) * num_elements, (INT8_MAX - source.zero_point) * num_elements + 1)
    steps = sums * (float(np.float32(source.scale)) / (float(np.float32(output.scale)) * divisor))
    steps = steps[(steps > INT8_MIN - output.zero_point - 1) & (steps < INT8_MAX - output.zero_point + 1)]
    distance = np.abs(np.abs(steps - np.floor(steps)) - 0.5)
    # XNNPACK adds up the stored integers and takes the zero-points off afterwards, in float32.
    taken_off = abs(source.zero_point) * num_elements * source.scale / (output.scale * divisor)
    hair = np.maximum(np.abs(steps), _LARGEST if in_float else 1) * _LAST_BITS + taken_off * _EPSILON
    return bool((distance > hair).all())


def add_in_onnxruntime(
    left: QuantParams, right: QuantParams, output: QuantParams, *, fused: bool = True
) -> NDArray[np.int64]:
    """Return QLinearAdd's result, as int8, for every pair of int8 inputs: ``(256, 256)``, left by row, from -128.

    ``fused`` says whether the CPU multiplies and adds with one rounding (FMA3, in every x86 CPU since 2013).
    """
    multiply_add = _multiply_add_fused if fused else _multiply_add
    scale = np.float32(output.scale)
    left_ratio, right_ratio = np.float32(left.scale) / scale, np.float32(right.scale) / scale
    left_zero, right_zero, zero = (np.float32(params.zero_point + _UINT8_OFFSET) for params in (left, right, output))
    constant = zero - multiply_add(left_zero, left_ratio, right_zero * right_ratio)
    values = np.arange(256, dtype=np.float32)
    total = multiply_add(values[:, None], left_ratio, multiply_add(values[None, :], right_ratio, constant))
    return np.asarray(np.clip(np.rint(total), 0, 255).astype(np.int64) - _UINT8_OFFSET)


def subtract_in_onnxruntime(left: QuantParams, right: QuantParams, output: QuantParams) -> NDArray[np.int64]:
    """Return what ONNX Runtime's Sub between DequantizeLinear and QuantizeLinear gives: ``(256, 256)``, as for sums."""
    values = np.arange(INT8_MIN, INT8_MAX + 1, dtype=np.int8)
    first, second = (dequantize(values, params.scale, params.zero_point) for params in (left, right))
    difference = first[:, None] - second[None, :]
    return quantize_int8(difference, output.scale, output.zero_point).astype(np.int64)


def _multiply_add(a: Any, b: Any, c: Any) -> Any:
    return a * b + c


def _multiply_add_fused(a: Any, b: Any, c: Any) -> Any:
    """Round once: float64 holds the product of two float32 exactly."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def add_in_xnnpack(left: QuantParams, right: QuantParams, output: QuantParams, *, sign: int = 1) -> NDArray[np.int64]:
    """Return XNNPACK's int8 sum for every pair of int8 inputs: ``(256, 256)``, left by row, from -128.

    With ``sign`` -1 it is the difference.
    """
    scale = np.float32(output.scale)
    left_ratio, right_ratio = np.float32(left.scale) / scale, np.float32(right.scale) / scale
    _, exponent = np.frexp(max(left_ratio, right_ratio))
    shift = _MULTIPLIER_BITS - (int(exponent) - 1)
    left_factor, right_factor = (int(np.rint(np.ldexp(ratio, shift))) for ratio in (left_ratio, right_ratio))
    right_factor *= sign
    half = 1 << (shift - 1)
    constant = half - left_factor * left.zero_point - right_factor * right.zero_point
    values = np.arange(INT8_MIN, INT8_MAX + 1, dtype=np.int64)
    total: NDArray[np.int64] = (values[:, None] * left_factor + values[None, :] * right_factor + constant) >> shift
    return np.clip(total + output.zero_point, INT8_MIN, INT8_MAX)
