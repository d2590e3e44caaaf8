"""Clamp in integers: which bounds a scale implies already, which a kernel can fuse, which take operators of their own.

Quantizing is monotone, so ``quantize(clip(x, low, high)) == clip(quantize(x), quantize(low), quantize(high))``.
"""

from __future__ import annotations

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.tflite.emitter import Emitter
from edgeopt.tflite.program import Quantization, Tensor
from edgeopt.tflite.step import Step

NONE = schema.ActivationFunctionType.NONE
_CODES: dict[tuple[float, float], int] = {
    (0.0, math.inf): schema.ActivationFunctionType.RELU,
    (0.0, 6.0): schema.ActivationFunctionType.RELU6,
    (-1.0, 1.0): schema.ActivationFunctionType.RELU_N1_TO_1,
    (-math.inf, math.inf): NONE,
}
_BUILTINS = {
    schema.ActivationFunctionType.RELU: "RELU",
    schema.ActivationFunctionType.RELU6: "RELU6",
    schema.ActivationFunctionType.RELU_N1_TO_1: "RELU_N1_TO_1",
}


def fused_code(low: float, high: float, quantization: Quantization | None) -> int | None:
    """Return the code of the activation that clamps to ``[low, high]``, NONE if the scale does it, else ``None``."""
    if quantization is None:
        return _CODES.get((low, high))
    bounds = _integer_bounds(low, high, quantization)
    for (code_low, code_high), code in sorted(_CODES.items(), key=lambda item: item[1]):
        if bounds == _integer_bounds(code_low, code_high, quantization) and _rounds_alike(
            code_low, code_high, quantization
        ):
            return code
    return None


def clamp(emitter: Emitter, source: Tensor, low: float, high: float, output: Tensor | None = None) -> Tensor:
    """Emit what keeps ``source`` inside ``[low, high]``; nothing if its scale does."""
    code = fused_code(low, high, source.quantization)
    if code == NONE:
        return source
    target = output or emitter.like(source, "clamped")
    if code is not None and source.quantization is None:
        return emitter.emit(_BUILTINS[code], [source], target)
    if source.quantization is None:
        bounds = np.array([low, high], np.float32)
    else:
        bounds = np.array(_integer_bounds(low, high, source.quantization), source.dtype)
    return _between(emitter, source, bounds, (low, high), target)


def _between(emitter: Emitter, source: Tensor, bounds: np.ndarray, real: tuple[float, float], output: Tensor) -> Tensor:
    """MAXIMUM with the lower bound and MINIMUM with the upper, each only if it can bind."""
    limits = source.quantization.bounds if source.quantization is not None else (-math.inf, math.inf)
    needed = [
        (builtin, bound)
        for builtin, bound, limit in zip(("MAXIMUM", "MINIMUM"), bounds, limits, strict=True)
        if bound != limit
    ]
    result = source
    for index, (builtin, bound) in enumerate(needed):
        target = output if index == len(needed) - 1 else emitter.like(source, "above")
        constant = emitter.constant(f"{output.name}_{builtin.lower()}", np.array([bound]), source.quantization)
        result = emitter.emit(builtin, [result, constant], target, schema.MaximumMinimumOptionsT())
    return result


def clamp_step(step: Step) -> Tensor:
    """Lower Clamp: to the output's scale first, because its grid is where the bounds are exact."""
    low, high = (step.node.attributes.get_float(name) for name in ("low", "high"))
    if not step.is_integer:
        return clamp(step.emitter, step.data, low, high, step.output)
    return clamp(step.emitter, step.emitter.requantize(step.data, step.output.per_tensor), low, high, None)


def _integer_bounds(low: float, high: float, quantization: Quantization) -> tuple[int, int]:
    return _to_steps(low, quantization), _to_steps(high, quantization)


def _to_steps(value: float, quantization: Quantization) -> int:
    if math.isinf(value):
        return quantization.bounds[int(value > 0)]
    steps = np.rint(np.float32(value) / np.float32(quantization.scale)) + quantization.zero_point
    return int(np.clip(steps, *quantization.bounds))


def _rounds_alike(low: float, high: float, quantization: Quantization) -> bool:
    """Whether no bound lies on a tie, which kernels round away from zero and ONNX to even."""
    ratios = [np.float32(bound) / np.float32(quantization.scale) for bound in (low, high) if math.isfinite(bound)]
    return all(abs(ratio) % 1 != 0.5 for ratio in ratios)
