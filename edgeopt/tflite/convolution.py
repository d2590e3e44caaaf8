"""Conv as CONV_2D or DEPTHWISE_CONV_2D, and the paddings of everything that slides a window.

XNNPACK and ONNX Runtime both compute ``round_half_even(float32(sum) * (s_in * s_w / s_out)) + zero_point`` with the
bias inside the 32-bit sum, so the two agree bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgeopt.tflite.matmul import fully_connected
from edgeopt.tflite.program import DYNAMIC, RefusedError, Tensor
from edgeopt.tflite.step import Step
from edgeopt.tflite.weights import bias_tensor, constant_of, has_packed_weights, weights_tensor

_VERSION_DYNAMIC = 5
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
        return fully_connected(step)
    if groups == 1:
        return _regular(step, weight)
    if groups == channels and weight.shape[1] == 1:
        return _depthwise(step, weight)
    return _regular(step, weight, version=6)


def _is_pointwise(step: Step) -> bool:
    kernel, strides, pads = (step.node.attributes.get_ints(name) for name in ("kernel_shape", "strides", "pads"))
    return max(*kernel, *strides) == 1 and not any(pads)


def _regular(step: Step, weight: NDArray[Any], version: int | None = None) -> Tensor:
    options = schema.Conv2DOptionsT()
    filters = weights_tensor(step, weight.transpose(0, 2, 3, 1), axis=0)
    return _emit(step, "CONV_2D", options, filters, version=_VERSION_DYNAMIC if step.is_dynamic else version)


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
