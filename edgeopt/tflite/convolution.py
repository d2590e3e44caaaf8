"""Conv as CONV_2D or DEPTHWISE_CONV_2D, and the paddings of everything that slides a window.

XNNPACK and ONNX Runtime both compute ``round_half_even(float32(sum) * (s_in * s_w / s_out)) + zero_point`` with the
bias inside the 32-bit sum, so the two agree bit for bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgeopt.tflite.program import DYNAMIC, Quantization, RefusedError, Tensor
from edgeopt.tflite.step import IntegerRule, Operands, Step

_MAX_BIAS_ERROR = 0.25  # steps of the output that rounding a bias to the products' scale may cost

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


class Padding(NamedTuple):
    """The schema's padding code, and the rows and columns to add in front of a VALID one."""

    code: int
    explicit: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))

    @property
    def adds(self) -> bool:
        """Whether a PAD has to stand in front of the operator."""
        return any(before or after for before, after in self.explicit)


def convolution(step: Step) -> Tensor:
    """Lower a channels-last Conv with constant OIHW weights."""
    weight = constant_of(step.operand(1), "weights")
    groups = step.node.attributes.get_int("group", 1)
    channels = step.data.shape[3]
    if groups == 1 and has_packed_weights(step) and _is_pointwise(step):
        return packed_product(step)
    if groups == 1:
        return _regular(step, weight)
    if groups == channels and weight.shape[1] == 1:
        return _depthwise(step, weight)
    return _regular(step, weight, version=6)


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


def packed_product(step: Step) -> Tensor:
    """Lower a product over the last axis with int4 weights, which stay packed.

    XNNPACK's kernel is as fast and as exact with them as with int8. The convolutions' kernels unpack them at each call,
    3 to 7 times slower, and do not round as XNNPACK does: one result of a thousand is one step off. So a convolution
    over single pixels becomes this product, and the weights of all others are unpacked here.
    """
    weight = step.operand(1)
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = step.activation
    options.keepNumDims = len(step.output.shape) > 2
    filters = constant_of(weight, "weights").reshape(step.output.shape[-1], step.data.shape[-1])
    inputs: list[Tensor | None] = [
        step.data,
        step.emitter.constant(weight.name, filters, replace(weight.per_tensor, axis=0)),
        bias_tensor(step, weight, num_outputs=step.output.shape[-1]),
    ]
    # Runtimes before version 12 take one scale alone.
    version = 10 if weight.per_tensor.is_per_tensor else 12
    return step.emitter.emit("FULLY_CONNECTED", inputs, step.output, options, version=version)


def _is_pointwise(step: Step) -> bool:
    kernel, strides, pads = (step.node.attributes.get_ints(name) for name in ("kernel_shape", "strides", "pads"))
    return max(*kernel, *strides) == 1 and not any(pads)


def _regular(step: Step, weight: NDArray[Any], version: int | None = None) -> Tensor:
    options = schema.Conv2DOptionsT()
    filters = weights_tensor(step, weight.transpose(0, 2, 3, 1), axis=0)
    return _emit(step, "CONV_2D", options, filters, version=version)


def _depthwise(step: Step, weight: NDArray[Any]) -> Tensor:
    options = schema.DepthwiseConv2DOptionsT()
    options.depthMultiplier = weight.shape[0] // step.data.shape[3]
    filters = weights_tensor(step, weight.transpose(1, 2, 3, 0), axis=3)
    dilated = max(step.node.attributes.get_ints("dilations")) > 1
    return _emit(step, "DEPTHWISE_CONV_2D", options, filters, version=2 if dilated and not step.is_integer else None)


def _emit(step: Step, builtin: str, options: Any, filters: Tensor, version: int | None) -> Tensor:
    padding = padding_of(step)
    options.padding = padding.code
    options.strideH, options.strideW = step.node.attributes.get_ints("strides")
    options.dilationHFactor, options.dilationWFactor = step.node.attributes.get_ints("dilations")
    options.fusedActivationFunction = step.activation
    source = step.emitter.pad(step.data, [(0, 0), *padding.explicit, (0, 0)])
    bias = bias_tensor(step, step.operand(1), num_outputs=step.output.shape[3])
    return step.emitter.emit(builtin, [source, filters, bias], step.output, options, version=version)


def padding_of(step: Step) -> Padding:
    """Say how a window operator with explicit ONNX pads is padded in TFLite.

    What counts is where the first window starts and how many there are; rows behind the last window do not.

    Raises:
        RefusedError: if the height or width is dynamic and there are pads.
    """
    attributes = step.node.attributes
    kernel, strides, dilations = (attributes.get_ints(name) for name in ("kernel_shape", "strides", "dilations"))
    pads = attributes.get_ints("pads")
    sizes, windows = step.data.shape[1:3], step.output.shape[1:3]
    if DYNAMIC in sizes and not any(pads):
        return Padding(VALID)
    if DYNAMIC in sizes:
        raise RefusedError("padding of a dynamic height or width")
    spans = [dilation * (length - 1) + 1 for length, dilation in zip(kernel, dilations, strict=True)]
    needed = [
        max((n - 1) * stride + span - size, 0)
        for n, stride, span, size in zip(windows, strides, spans, sizes, strict=True)
    ]
    fills = [n == -(-size // stride) for n, size, stride in zip(windows, sizes, strides, strict=True)]
    if not any((*pads[:2], *needed)):
        return Padding(VALID)
    if all(fills) and [total // 2 for total in needed] == list(pads[:2]):
        return Padding(SAME)
    before = (pads[0], pads[1])
    after = [max(total - start, 0) for total, start in zip(needed, before, strict=True)]
    return Padding(VALID, ((before[0], after[0]), (before[1], after[1])))


def constant_of(tensor: Tensor, what: str) -> NDArray[Any]:
    """Return the data of a constant operand.

    Raises:
        RefusedError: if it is computed by the graph.
    """
    if tensor.data is None:
        raise RefusedError(f"{what} that are not constant")
    return tensor.data


def weights_tensor(step: Step, array: NDArray[Any], axis: int) -> Tensor:
    """Return rearranged weights as a constant whose output channels are on ``axis``; int4 ones unpacked to int8."""
    weight = step.operand(1)
    if array.dtype.name == "int4":
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
