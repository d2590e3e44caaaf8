"""Operators that move, cut or repeat data: Reshape, Transpose, Concat, Pad, Slice, Resize, DepthToSpace."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.affine import quantize_to
from edgeopt.tflite.program import DYNAMIC, RefusedError, Tensor
from edgeopt.tflite.step import Step

_MAX_DYNAMIC_AXES = 1


def reshape(step: Step) -> Tensor:
    """Lower Reshape, Flatten, Squeeze and Unsqueeze."""
    if step.output.shape.count(DYNAMIC) > _MAX_DYNAMIC_AXES:
        raise RefusedError(f"a reshape to {list(step.output.shape)}, expected at most one dynamic axis")
    return step.emitter.reshape(step.data, step.output.shape, step.output)


def transpose(step: Step) -> Tensor:
    """Lower Transpose."""
    permutation = step.node.attributes.get_ints("perm")
    if len(permutation) > 6:
        raise RefusedError(f"transposing {len(permutation)} axes, expected at most 6")
    constant = step.emitter.constant(f"{step.output.name}_perm", np.array(permutation, np.int32))
    version = {5: 4, 6: 6}.get(len(permutation))
    return step.emitter.emit(
        "TRANSPOSE", [step.data, constant], step.output, schema.TransposeOptionsT(), version=version
    )


def concat(step: Step) -> Tensor:
    """Lower Concat; int8 operands are brought to the output's scale first."""
    operands = [step.operand(index) for index in range(len(step.inputs))]
    if step.is_integer:
        operands = [step.emitter.requantize(tensor, step.output.per_tensor) for tensor in operands]
    options = schema.ConcatenationOptionsT(step.node.attributes.get_int("axis"), step.activation)
    return step.emitter.emit("CONCATENATION", list(operands), step.output, options)


def pad(step: Step) -> Tensor:
    """Lower Pad with a constant."""
    rank = len(step.data.shape)
    pads = step.node.attributes.get_ints("pads")
    value = step.node.attributes.get_float("value")
    if rank > 5:
        raise RefusedError(f"padding {rank} axes, expected at most 5")
    pairs = list(zip(pads[:rank], pads[rank:], strict=True))
    constant = None if value == 0.0 else _pad_value(step, value)
    return step.emitter.pad(step.data, pairs, constant)


def _pad_value(step: Step, value: float) -> Tensor:
    name, quantization = f"{step.output.name}_value", step.data.quantization
    if quantization is None:
        return step.emitter.constant(name, np.array([value], step.data.dtype))
    # A value off the grid becomes the integer that the QuantizeLinear behind the Pad would have made of it.
    values = np.array([value], np.float32)
    steps = quantize_to(quantization.dtype.name, values, quantization.scale, quantization.zero_point)
    return step.emitter.constant(name, steps, quantization)


def slices(step: Step) -> Tensor:
    """Lower Slice: SLICE, or STRIDED_SLICE if it leaves elements out."""
    starts, ends, steps = (np.array(step.node.attributes.get_ints(n), np.int32) for n in ("starts", "ends", "steps"))
    rank = len(step.data.shape)
    dynamic = [axis for axis, size in enumerate(step.data.shape) if size == DYNAMIC]
    name = step.output.name
    if rank > 5:
        raise RefusedError(f"slicing {rank} axes, expected at most 5")
    if (steps == 1).all():
        sizes = np.maximum(ends - starts, 0)
        sizes[dynamic] = -1
        bounds = [step.emitter.constant(f"{name}_{n}", a) for n, a in (("begin", starts), ("size", sizes))]
        version = 5 if rank > 4 else None
        return step.emitter.emit("SLICE", [step.data, *bounds], step.output, schema.SliceOptionsT(), version=version)
    options = schema.StridedSliceOptionsT(endMask=sum(1 << axis for axis in dynamic))
    arrays = (("begin", starts), ("end", ends), ("strides", steps))
    bounds = [step.emitter.constant(f"{name}_{n}", array) for n, array in arrays]
    version = 4 if rank > 4 else None
    return step.emitter.emit("STRIDED_SLICE", [step.data, *bounds], step.output, options, version=version)


def resize(step: Step) -> Tensor:
    """Lower Resize to nearest neighbours; normal form has made sure that TFLite maps the coordinates the same way."""
    constant = step.emitter.constant(f"{step.output.name}_size", np.array(step.output.shape[1:3], np.int32))
    options = schema.ResizeNearestNeighborOptionsT()
    return step.emitter.emit("RESIZE_NEAREST_NEIGHBOR", [step.data, constant], step.output, options)


def resize_linear(step: Step) -> Tensor:
    """Lower Resize with linear interpolation, in float.

    With one scale on both sides 1 to 15 % of the int8 kernel's results are one step away from ONNX Runtime's, which
    interpolates floats. Of the float kernel's it is 0 to 6 %, all of them ties, and none with a scale that gives no
    ties, which is what our quantizer chooses. It takes a fifth more time.
    """
    coordinates = step.node.attributes.get_string("coordinate_transformation_mode")
    options = schema.ResizeBilinearOptionsT(coordinates == "align_corners", coordinates.endswith("half_pixel"))
    constant = step.emitter.constant(f"{step.output.name}_size", np.array(step.output.shape[1:3], np.int32))
    version = 3 if options.halfPixelCenters else None
    return step.emitter.emit("RESIZE_BILINEAR", [step.data, constant], step.output, options, version=version)


def mirror_pad(step: Step) -> Tensor:
    """Lower Pad that reflects at the edge."""
    pads, rank = step.node.attributes.get_ints("pads"), len(step.data.shape)
    options = schema.MirrorPadOptionsT(schema.MirrorPadMode.REFLECT)
    pairs = np.array([pads[:rank], pads[rank:]], np.int32).T
    constant = step.emitter.constant(f"{step.output.name}_pads", np.ascontiguousarray(pairs))
    return step.emitter.emit("MIRROR_PAD", [step.data, constant], step.output, options)


def depth_to_space(step: Step) -> Tensor:
    """Lower DepthToSpace, channels-last, in the order DCR."""
    options = schema.DepthToSpaceOptionsT(step.node.attributes.get_int("blocksize"))
    return step.emitter.emit("DEPTH_TO_SPACE", [step.data], step.output, options)


def space_to_depth(step: Step) -> Tensor:
    """Lower SpaceToDepth, channels-last."""
    options = schema.SpaceToDepthOptionsT(step.node.attributes.get_int("blocksize"))
    return step.emitter.emit("SPACE_TO_DEPTH", [step.data], step.output, options)
