"""Operators that move or cut data without changing values: Reshape, Transpose, Concat, Pad, Slice, Resize."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.affine import quantize_int8
from edgeopt.tflite.program import DYNAMIC, Tensor
from edgeopt.tflite.step import RefusedError, Step

_MAX_DYNAMIC_AXES = 1


def reshape(step: Step) -> Tensor:
    """Lower Reshape, Flatten, Squeeze and Unsqueeze."""
    if step.output.shape.count(DYNAMIC) > _MAX_DYNAMIC_AXES:
        raise RefusedError(f"a reshape to {list(step.output.shape)}, expected at most one dynamic axis")
    return step.emitter.reshape(step.data, step.output.shape, step.output)


def transpose(step: Step) -> Tensor:
    """Lower Transpose."""
    permutation = step.node.attributes.get_ints("perm")
    if len(permutation) > 5:
        raise RefusedError(f"transposing {len(permutation)} axes, expected at most 5")
    constant = step.emitter.constant(f"{step.output.name}_perm", np.array(permutation, np.int32))
    version = 4 if len(permutation) > 4 else None
    return step.emitter.emit(
        "TRANSPOSE", [step.data, constant], step.output, schema.TransposeOptionsT(), version=version
    )


def concat(step: Step) -> Tensor:
    """Lower Concat; int8 operands are brought to the output's scale first."""
    operands = [step.operand(index) for index in range(len(step.inputs))]
    if step.is_integer:
        operands = [step.emitter.requantize(tensor, step.output.per_tensor) for tensor in operands]
    options = schema.ConcatenationOptionsT()
    options.axis = step.node.attributes.get_int("axis")
    options.fusedActivationFunction = step.activation
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
        return step.emitter.constant(name, np.array([value], np.float32))
    # A value off the grid becomes the integer that the QuantizeLinear behind the Pad would have made of it.
    steps = quantize_int8(np.array([value], np.float32), quantization.scale, quantization.zero_point)
    return step.emitter.constant(name, steps, quantization)


def slices(step: Step) -> Tensor:
    """Lower Slice: SLICE, or STRIDED_SLICE if it leaves elements out."""
    starts, ends, steps = (np.array(step.node.attributes.get_ints(n), np.int32) for n in ("starts", "ends", "steps"))
    rank = len(step.data.shape)
    dynamic = [axis for axis, size in enumerate(step.data.shape) if size == DYNAMIC]
    name = step.output.name
    if rank > 5 or (rank > 4 and (steps > 1).any()):
        raise RefusedError(f"slicing {rank} axes, expected at most 4")
    if (steps == 1).all():
        sizes = np.maximum(ends - starts, 0)
        sizes[dynamic] = -1
        bounds = [step.emitter.constant(f"{name}_{n}", a) for n, a in (("begin", starts), ("size", sizes))]
        version = 5 if rank > 4 else None
        return step.emitter.emit("SLICE", [step.data, *bounds], step.output, schema.SliceOptionsT(), version=version)
    options = schema.StridedSliceOptionsT()
    options.endMask = sum(1 << axis for axis in dynamic)
    arrays = (("begin", starts), ("end", ends), ("strides", steps))
    bounds = [step.emitter.constant(f"{name}_{n}", array) for n, array in arrays]
    return step.emitter.emit("STRIDED_SLICE", [step.data, *bounds], step.output, options)


def resize(step: Step) -> Tensor:
    """Lower Resize: nearest neighbours whose coordinates TFLite maps the same way."""
    mode, coordinates, rounding = (
        step.node.attributes.get_string(name) for name in ("mode", "coordinate_transformation_mode", "nearest_mode")
    )
    sizes, new_sizes = step.data.shape[1:3], step.output.shape[1:3]
    if mode != "nearest" or DYNAMIC in (*sizes, *new_sizes):
        raise RefusedError(f"resizing with mode {mode!r}, expected 'nearest' between known sizes")
    if not _repeats_whole_pixels(step, coordinates, rounding):
        raise RefusedError(
            f"nearest neighbours with {coordinates!r} and {rounding!r} from {list(sizes)} to {list(new_sizes)}, "
            "expected to repeat each pixel a whole number of times"
        )
    constant = step.emitter.constant(f"{step.output.name}_size", np.array(new_sizes, np.int32))
    options = schema.ResizeNearestNeighborOptionsT()
    return step.emitter.emit("RESIZE_NEAREST_NEIGHBOR", [step.data, constant], step.output, options)


def _repeats_whole_pixels(step: Step, coordinates: str, rounding: str) -> bool:
    """Whether ONNX picks pixel ``i // factor``, as TFLite's ``floor(i * old / new)`` does for whole factors."""
    pairs = list(
        zip(step.data.shape[1:3], step.output.shape[1:3], step.node.attributes.get_floats("scales"), strict=True)
    )
    if any(new % old or scale != new // old for old, new, scale in pairs):
        return False
    if coordinates == "asymmetric":
        return rounding == "floor"
    # Half-pixel centres lie inside the pixel that they repeat, so any rounding to the nearest gives it.
    return coordinates in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round_")
