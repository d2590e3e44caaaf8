"""MaxPool, AveragePool and the mean over axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.affine import INT8_MIN
from edgeopt.tflite.convolution import SAME, Padding, padding_of
from edgeopt.tflite.program import Tensor
from edgeopt.tflite.step import RefusedError, Step


def max_pool(step: Step) -> Tensor:
    """Lower MaxPool; padding that SAME does not express is written out with the lowest value there is."""
    if max(step.node.attributes.get_ints("dilations")) > 1:
        raise RefusedError("dilated pooling")
    padding = padding_of(step)
    source = step.emitter.pad(step.data, [(0, 0), *padding.explicit, (0, 0)], _lowest(step, padding))
    return step.emitter.emit("MAX_POOL_2D", [source], step.output, _options(step, padding))


def _lowest(step: Step, padding: Padding) -> Tensor | None:
    """Return the value to pad with, or ``None`` where PAD's own, the zero-point, is the lowest already."""
    if not padding.adds:
        return None
    if not step.is_integer:
        return step.emitter.constant(f"{step.output.name}_lowest", np.array([-math.inf], np.float32))
    if step.data.per_tensor.zero_point == INT8_MIN:
        return None
    lowest = np.array([INT8_MIN], np.int8)
    return step.emitter.constant(f"{step.output.name}_lowest", lowest, step.data.quantization)


def average_pool(step: Step) -> Tensor:
    """Lower AveragePool where TFLite divides by the same number of elements as ONNX."""
    attributes = step.node.attributes
    if max(attributes.get_ints("dilations", None) or [1]) > 1:
        raise RefusedError("dilated pooling")
    padding = padding_of(step)
    includes_pads = bool(attributes.get_int("count_include_pad", 0))
    if attributes.get_int("ceil_mode", 0) and not _windows_fit(step):
        raise RefusedError("ceil_mode with a last window that is cut off")
    if padding.code == SAME and includes_pads:
        raise RefusedError("count_include_pad with SAME padding")
    if padding.adds and not includes_pads:
        raise RefusedError("an average without its padding, which is not TFLite's SAME")
    source = step.emitter.pad(step.data, [(0, 0), *padding.explicit, (0, 0)])
    return step.emitter.emit("AVERAGE_POOL_2D", [source], step.output, _options(step, padding))


def _windows_fit(step: Step) -> bool:
    attributes = step.node.attributes
    kernel, strides, pads = (attributes.get_ints(name) for name in ("kernel_shape", "strides", "pads"))
    sizes = step.data.shape[1:3]
    return all((size + pads[i] + pads[i + 2] - kernel[i]) % strides[i] == 0 for i, size in enumerate(sizes))


def _options(step: Step, padding: Padding) -> Any:
    options = schema.Pool2DOptionsT()
    options.padding = padding.code
    options.filterHeight, options.filterWidth = step.node.attributes.get_ints("kernel_shape")
    options.strideH, options.strideW = step.node.attributes.get_ints("strides")
    options.fusedActivationFunction = step.activation
    return options


def mean(step: Step) -> Tensor:
    """Lower the mean over any axes."""
    options = schema.ReducerOptionsT()
    options.keepDims = bool(step.node.attributes.get_int("keepdims"))
    axes = np.array(step.node.attributes.get_ints("axes"), np.int32)
    constant = step.emitter.constant(f"{step.output.name}_axes", axes)
    return step.emitter.emit("MEAN", [step.data, constant], step.output, options)
