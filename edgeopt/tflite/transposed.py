"""ConvTranspose as TRANSPOSE_CONV, which pads like the convolution that it reverses; the rest is sliced away behind it.

XNNPACK's int8 kernel rounds the exact sum once and took half to two thirds of the float one's time. ONNX Runtime's
ConvTranspose adds up floats, which gives another step for 4 to 20 results of 1,000,000, where a sum is near a tie; our
x86 graph says it with a Conv (``edgeopt/quantize/subpixel.py``), and then all are equal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgeopt.tflite.convolution import SAME, VALID
from edgeopt.tflite.program import DYNAMIC, RefusedError, Tensor
from edgeopt.tflite.step import Step
from edgeopt.tflite.weights import bias_tensor, constant_of, weights_tensor


class _Frame(NamedTuple):
    """How TRANSPOSE_CONV is told what to write: its padding, height and width, and where the wanted part begins."""

    padding: int
    sizes: tuple[int, ...]
    start: tuple[int, ...]


def transposed_convolution(step: Step) -> Tensor:
    """Lower a channels-last ConvTranspose with constant IOHW weights, one TRANSPOSE_CONV a group."""
    if DYNAMIC in step.data.shape:
        raise RefusedError("a transposed convolution of a dynamic shape")
    weight = _dilated(constant_of(step.operand(1), "weights"), step.node.attributes.get_ints("dilations"))
    frame = _frame(step, weight.shape[2:])
    groups = step.node.attributes.get_int("group", 1)
    inputs, outputs = step.data.shape[3] // groups, weight.shape[1]
    bias = bias_tensor(step, step.operand(1), groups * outputs) if step.optional(2) is not None else None
    parts = []
    for group in range(groups):
        source = step.emitter.slice(step.data, (0, 0, 0, group * inputs), (*step.data.shape[:3], inputs))
        part = None if bias is None else _part_of_bias(step, bias, slice(group * outputs, (group + 1) * outputs))
        parts.append(_one_group(step, source, weight[group * inputs : (group + 1) * inputs], part, frame))
    full = parts[0] if groups == 1 else _joined(step, parts)
    return step.emitter.slice(full, (0, *frame.start, 0), step.output.shape)


def _dilated(weight: NDArray[Any], dilations: Any) -> NDArray[Any]:
    """Write the holes of a dilated kernel as zeros."""
    spans = [d * (size - 1) + 1 for d, size in zip(dilations, weight.shape[2:], strict=True)]
    spread = np.zeros((*weight.shape[:2], *spans), weight.dtype)
    spread[:, :, :: dilations[0], :: dilations[1]] = weight
    return spread


def _frame(step: Step, spans: tuple[int, ...]) -> _Frame:
    strides, pads = (step.node.attributes.get_ints(name) for name in ("strides", "pads"))
    before, wanted, sizes = tuple(pads[:2]), step.output.shape[1:3], step.data.shape[1:3]
    reached = [(size - 1) * stride + span for size, stride, span in zip(sizes, strides, spans, strict=True)]
    surplus = [full - new for full, new in zip(reached, wanted, strict=True)]
    reverses = all(-(-new // stride) == size for new, stride, size in zip(wanted, strides, sizes, strict=True))
    if reverses and max(surplus) > 0 and [max(size, 0) // 2 for size in surplus] == list(before):
        return _Frame(SAME, wanted, (0, 0))
    written = [max(full, new + start) for full, new, start in zip(reached, wanted, before, strict=True)]
    if any(new - full >= stride for new, full, stride in zip(written, reached, strides, strict=True)):
        raise RefusedError("an output padding as large as the stride")
    return _Frame(VALID, tuple(written), before)


def _part_of_bias(step: Step, bias: Tensor, channels: slice) -> Tensor:
    if bias.shape == (channels.stop - channels.start,):
        return bias
    quantization = bias.quantization
    if quantization is not None and not quantization.is_per_tensor:
        scales, points = quantization.scales[channels], quantization.zero_points[channels]
        quantization = replace(quantization, scales=scales, zero_points=points)
    return step.emitter.constant(bias.name, constant_of(bias, "bias")[channels], quantization)


def _one_group(step: Step, source: Tensor, weight: NDArray[Any], bias: Tensor | None, frame: _Frame) -> Tensor:
    emitter = step.emitter
    shape = (source.shape[0], *frame.sizes, weight.shape[1])
    options = schema.TransposeConvOptionsT()
    options.padding, (options.strideH, options.strideW) = frame.padding, step.node.attributes.get_ints("strides")
    inputs: list[Tensor | None] = [
        emitter.constant(f"{step.output.name}_shape", np.array(shape, np.int32)),
        weights_tensor(step, weight.transpose(1, 2, 3, 0), axis=0),
        source,
        *([] if bias is None else [bias]),
    ]
    full = emitter.like(step.output, "spread", shape)
    return emitter.emit("TRANSPOSE_CONV", inputs, full, options, data=2, version=None if bias is None else 3)


def _joined(step: Step, parts: list[Tensor]) -> Tensor:
    options = schema.ConcatenationOptionsT(axis=3)
    shape = (*parts[0].shape[:3], sum(part.shape[3] for part in parts))
    return step.emitter.emit("CONCATENATION", list(parts), step.emitter.like(parts[0], "joined", shape), options)
