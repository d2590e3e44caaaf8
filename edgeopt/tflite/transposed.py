"""ConvTranspose as TRANSPOSE_CONV, which writes the full result; what ONNX's pads cut off is sliced away behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgeopt.tflite.convolution import VALID, constant_of
from edgeopt.tflite.program import DYNAMIC, RefusedError, Tensor
from edgeopt.tflite.step import Step


def transposed_convolution(step: Step) -> Tensor:
    """Lower a channels-last ConvTranspose with constant IOHW weights, one TRANSPOSE_CONV a group."""
    if DYNAMIC in step.data.shape:
        raise RefusedError("a transposed convolution of a dynamic shape")
    weight = _dilated(constant_of(step.operand(1), "weights"), step.node.attributes.get_ints("dilations"))
    groups = step.node.attributes.get_int("group", 1)
    channels = step.data.shape[3] // groups
    parts = []
    for group in range(groups):
        source = step.data if groups == 1 else _part(step, step.data, group * channels, channels)
        parts.append(_one_group(step, source, weight[group * channels : (group + 1) * channels]))
    full = parts[0] if groups == 1 else _joined(step, parts)
    cut = _cut(step, full)
    bias = step.optional(2)
    return cut if bias is None else step.emitter.apply("ADD", cut, bias)


def _dilated(weight: NDArray[Any], dilations: Any) -> NDArray[Any]:
    """Write the holes of a dilated kernel as zeros."""
    spans = [d * (size - 1) + 1 for d, size in zip(dilations, weight.shape[2:], strict=True)]
    spread = np.zeros((*weight.shape[:2], *spans), weight.dtype)
    spread[:, :, :: dilations[0], :: dilations[1]] = weight
    return spread


def _one_group(step: Step, source: Tensor, weight: NDArray[Any]) -> Tensor:
    emitter, strides = step.emitter, step.node.attributes.get_ints("strides")
    sizes = [
        (size - 1) * stride + span
        for size, stride, span in zip(source.shape[1:3], strides, weight.shape[2:], strict=True)
    ]
    shape = (source.shape[0], *sizes, weight.shape[1])
    options = schema.TransposeConvOptionsT()
    options.padding, (options.strideH, options.strideW) = VALID, strides
    filters = emitter.constant(step.operand(1).name, np.ascontiguousarray(weight.transpose(1, 2, 3, 0)))
    output_shape = emitter.constant(f"{step.output.name}_shape", np.array(shape, np.int32))
    full = emitter.like(source, "spread", shape)
    return emitter.emit("TRANSPOSE_CONV", [output_shape, filters, source], full, options, data=2)


def _part(step: Step, source: Tensor, start: int, size: int) -> Tensor:
    return step.emitter.slice(source, (0, 0, 0, start), (*source.shape[:3], size))


def _joined(step: Step, parts: list[Tensor]) -> Tensor:
    options = schema.ConcatenationOptionsT()
    options.axis = 3
    shape = (*parts[0].shape[:3], sum(part.shape[3] for part in parts))
    return step.emitter.emit("CONCATENATION", list(parts), step.emitter.like(parts[0], "joined", shape), options)


def _cut(step: Step, full: Tensor) -> Tensor:
    before = step.node.attributes.get_ints("pads")[:2]
    sizes, wanted = full.shape[1:3], step.output.shape[1:3]
    kept = [min(new, size - start) for new, size, start in zip(wanted, sizes, before, strict=True)]
    cut = step.emitter.slice(full, (0, *before, 0), (full.shape[0], *kept, full.shape[3]))
    missing = [(0, new - size) for new, size in zip(wanted, kept, strict=True)]
    return step.emitter.pad(cut, [(0, 0), *missing, (0, 0)])
