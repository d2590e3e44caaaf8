"""MaxPool and AveragePool; what was measured about them and the mean over axes.

Which form an int8 average takes was measured (LiteRT 2.3 with XNNPACK against ONNX Runtime 1.31, x86-64, one thread):

Mean over the pixels of 1,280 channels, 7,680 results for each size, against QLinearGlobalAveragePool:

    form                          3x3            4x4            7x7            14x14
    MEAN                          4 differ 4 us  23 differ 3 us 2 differ 5 us  0 differ    6 us   <- taken
    depthwise conv, weights 1/N   0 differ 2 us  0 differ  2 us 2 differ 165us 0 differ 2,500 us
    float MEAN between DQ and Q   8 differ 3 us  23 differ 2 us 5 differ 6 us  0 differ   24 us
    AVERAGE_POOL_2D + requantize  65 % differ, by up to 3 steps (rounds to the input's scale first, then again)

XNNPACK's MEAN rounds once (LiteRT's built-in kernel twice), so what differs is one step at a tie.

AveragePool, windows inside the picture, against QLinearAveragePool: a depthwise convolution with weights 1/N and
AVERAGE_POOL_2D (which XNNPACK does not have in int8) both gave all values equal for 3x3 and 5x5, and the convolution
takes 9 us where the built-in kernel takes 50-60 us. With 2x2 and one scale a quarter of the averages end in .5: ONNX
Runtime averages floats, whose last bits then decide. So our quantizer gives the average a scale of its own, under which
no sum is near a tie, and the convolution rounds to it once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgeopt.tflite.clamping import NONE
from edgeopt.tflite.convolution import SAME, VALID, Padding, padding_of
from edgeopt.tflite.program import DYNAMIC, Quantization, RefusedError, Tensor
from edgeopt.tflite.step import Step

_MAX_TAPS = 25  # from 7x7 on, XNNPACK's depthwise kernels are slower than the built-in pooling


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
    least, _ = step.data.per_tensor.bounds
    if step.data.per_tensor.zero_point == least:
        return None
    lowest = np.array([least], step.data.dtype)
    return step.emitter.constant(f"{step.output.name}_lowest", lowest, step.data.quantization)


def average_pool(step: Step) -> Tensor:
    """Lower AveragePool where TFLite divides by the same number of elements as ONNX."""
    attributes = step.node.attributes
    if max(attributes.get_ints("dilations")) > 1:
        raise RefusedError("dilated pooling")
    padding = padding_of(step)
    includes_pads = bool(attributes.get_int("count_include_pad", 0))
    is_cut_off = bool(attributes.get_int("ceil_mode", 0)) and not _windows_fit(step)
    if is_cut_off or (padding.code == SAME and includes_pads) or (padding.adds and not includes_pads):
        return _counted_average(step, includes_pads)
    source = step.emitter.pad(step.data, [(0, 0), *padding.explicit, (0, 0)])
    rescales = step.is_integer and step.output.quantization != step.data.quantization
    taps = math.prod(attributes.get_ints("kernel_shape"))
    is_int8 = step.is_integer and step.data.dtype == np.int8
    if is_int8 and padding.code != SAME and (rescales or taps <= _MAX_TAPS):
        return _as_convolution(step, source)
    if rescales:
        raise RefusedError("an average over windows of unequal size to another scale, which no kernel rounds once")
    return step.emitter.emit("AVERAGE_POOL_2D", [source], step.output, _options(step, padding))


def _counted_average(step: Step, includes_pads: bool) -> Tensor:
    """Average over padded zeros, times the number of taps over the number of elements that ONNX counts."""
    attributes, emitter = step.node.attributes, step.emitter
    kernel, strides, pads = (attributes.get_ints(name) for name in ("kernel_shape", "strides", "pads"))
    sizes, windows = step.data.shape[1:3], step.output.shape[1:3]
    if step.is_integer or DYNAMIC in (*sizes, *windows):
        raise RefusedError("an average over windows of unequal size in integers, or of a dynamic height or width")
    ends = [(n - 1) * stride + length for n, stride, length in zip(windows, strides, kernel, strict=True)]
    explicit = [(pads[i], max(ends[i] - sizes[i] - pads[i], 0)) for i in range(2)]
    source = emitter.pad(step.data, [(0, 0), *explicit, (0, 0)])
    mean = emitter.like(step.output, "mean")
    options = _options(step, Padding(VALID))
    options.fusedActivationFunction = NONE
    emitter.emit("AVERAGE_POOL_2D", [source], mean, options)
    rows, columns = (
        _counted(windows[i], strides[i], kernel[i], (pads[i], pads[i + 2]), sizes[i], includes_pads) for i in range(2)
    )
    factor = (math.prod(kernel) / (rows[:, None] * columns[None, :])).astype(np.float32)[None, :, :, None]
    counts = emitter.constant(f"{step.output.name}_counts", factor)
    return emitter.emit("MUL", [mean, counts], step.output, schema.MulOptionsT(step.activation))


def _counted(
    windows: int, stride: int, length: int, pads: tuple[int, int], size: int, includes_pads: bool
) -> NDArray[np.float64]:
    """Return how many elements along one axis each window counts."""
    starts = np.arange(windows) * stride - pads[0]
    low, high = (-pads[0], size + pads[1]) if includes_pads else (0, size)
    return (np.minimum(starts + length, high) - np.maximum(starts, low)).astype(np.float64)


def _as_convolution(step: Step, source: Tensor) -> Tensor:
    """Average by a depthwise convolution whose weights are all 1, with the scale 1/N."""
    kernel, channels = tuple(step.node.attributes.get_ints("kernel_shape")), source.shape[3]
    scale = float(np.float32(1 / math.prod(kernel)))
    options = schema.DepthwiseConv2DOptionsT()
    options.padding, options.depthMultiplier = VALID, 1
    options.strideH, options.strideW = step.node.attributes.get_ints("strides")
    options.fusedActivationFunction = step.activation
    name, points = step.output.name, (0,) * channels
    ones = np.ones((1, *kernel, channels), np.int8)
    weights = step.emitter.constant(f"{name}_weights", ones, Quantization((scale,) * channels, points, 3))
    bias_scale = float(np.float32(source.per_tensor.scale) * np.float32(scale))
    zeros = np.zeros(channels, np.int32)
    bias = step.emitter.constant(f"{name}_bias", zeros, Quantization((bias_scale,) * channels, points))
    return step.emitter.emit("DEPTHWISE_CONV_2D", [source, weights, bias], step.output, options)


def _windows_fit(step: Step) -> bool:
    attributes = step.node.attributes
    kernel, strides, pads = (attributes.get_ints(name) for name in ("kernel_shape", "strides", "pads"))
    sizes = step.data.shape[1:3]
    return all((size + pads[i] + pads[i + 2] - kernel[i]) % strides[i] == 0 for i, size in enumerate(sizes))


def _options(step: Step, padding: Padding) -> Any:
    (rows, columns), (down, across) = (step.node.attributes.get_ints(name) for name in ("kernel_shape", "strides"))
    size = {"filterHeight": rows, "filterWidth": columns, "strideH": down, "strideW": across}
    return schema.Pool2DOptionsT(padding.code, fusedActivationFunction=step.activation, **size)
