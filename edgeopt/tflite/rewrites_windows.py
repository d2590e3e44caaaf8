"""Windows in normal form: one axis becomes two, ConvTranspose gets explicit pads, Resize picks or multiplies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt.tflite.constants import Constant, read_array, read_constant
from edgeopt.tflite.pictures import complete_window, has_resize_kernel, ints_of, resize_attributes
from edgeopt.tflite.program import RefusedError
from edgeopt.tflite.rewriting import Rewriting, start
from edgeopt.tflite.shapes import is_known, shape_of

_WINDOW = ("kernel_shape", "strides", "dilations")
_PLAIN = {"ceil_mode": 0, "count_include_pad": 0, "storage_order": 0, "group": 1, "p": 2}


def window(node: ir.Node) -> None:
    """Conv and the pools with every attribute written out; those of one spatial axis get a second one of size 1.

    Pools that no kernel computes are put together axis by axis.
    """
    complete_window(node)
    source, pads = node.inputs[0], ints_of(node, "pads")
    if source is None or not pads:
        return
    if node.op_type == "LpPool" or (node.op_type != "Conv" and _needs_taps(node)):
        _pool_by_axis(node)
        return
    if len(shape_of(source)) != 3:
        return
    write = Rewriting(node)
    inputs = [write.reshape(source, (*shape_of(source)[:2], 1, shape_of(source)[2]))]
    if node.op_type == "Conv":
        inputs += [_wide(write, node.inputs[1]), *(value for value in node.inputs[2:] if value is not None)]
    attributes: dict[str, Any] = {name: [1, *ints_of(node, name)] for name in _WINDOW}
    attributes |= {"pads": [0, pads[0], 0, pads[1]]}
    flags: dict[str, Any] = {
        name: node.attributes.get_int(name, value) for name, value in _PLAIN.items() if name in node.attributes
    }
    n, channels, length = shape_of(node.outputs[0])
    wide = write.add(node.op_type, *inputs, shape=(n, channels, 1, length), **attributes, **flags)
    write.finish(write.reshape(wide, (n, channels, length)))


def _needs_taps(node: ir.Node) -> bool:
    """Whether TFLite has no pooling kernel for a window."""
    is_float = node.outputs[0].dtype == ir.DataType.FLOAT
    return is_float and (max(ints_of(node, "dilations")) > 1 or len(shape_of(node.inputs[0])) > 4)


def _wide(write: Rewriting, value: ir.Value | None) -> ir.Value:
    weight = read_constant(value)
    if weight is None or weight.array.ndim != 3:
        raise RefusedError("weights that are not constant")
    shape = (*weight.array.shape[:2], 1, weight.array.shape[2])
    axis = weight.axis if weight.axis < 2 else 3
    return write.write(Constant(weight.array.reshape(shape), weight.scales, weight.zero_points, axis), "weight")


def transposed_window(node: ir.Node) -> None:
    """ConvTranspose with explicit pads and output padding; one spatial axis becomes two."""
    source, weight = node.inputs[0], read_constant(node.inputs[1])
    if source is None or weight is None or weight.array.ndim not in (3, 4):
        raise RefusedError("weights that are not constant, or more than two spatial axes")
    spatial = weight.array.ndim - 2
    sizes, new_sizes = shape_of(source)[2:], shape_of(node.outputs[0])[2:]
    if not all(is_known(size) for size in (*sizes, *new_sizes)):
        raise RefusedError("a dynamic height or width")
    strides, dilations = (ints_of(node, name) or [1] * spatial for name in ("strides", "dilations"))
    kernel = weight.array.shape[2:]
    full = [
        (size - 1) * stride + dilation * (length - 1) + 1
        for size, stride, dilation, length in zip(sizes, strides, dilations, kernel, strict=True)
    ]
    before = _pads_before(node, spatial, full, new_sizes)
    write = Rewriting(node)
    inputs = [source, write.write(weight, "weight"), *(value for value in node.inputs[2:] if value is not None)]
    if spatial == 1:
        inputs[0] = write.reshape(source, (*shape_of(source)[:2], 1, *sizes))
        inputs[1] = _wide(write, node.inputs[1])
        strides, dilations, before, new_sizes = [1, *strides], [1, *dilations], [0, *before], (1, *new_sizes)
        full = [1, *full]
    after = [size - start - new for size, start, new in zip(full, before, new_sizes, strict=True)]
    attributes: dict[str, Any] = {
        "strides": strides,
        "dilations": dilations,
        "pads": [*before, *(max(size, 0) for size in after)],
    }
    attributes |= {"output_padding": [max(-size, 0) for size in after], "kernel_shape": [1, *kernel][-2:]}
    shape = (*shape_of(node.outputs[0])[:2], *new_sizes)
    result = write.add("ConvTranspose", *inputs, shape=shape, group=node.attributes.get_int("group", 1), **attributes)
    write.finish(write.reshape(result, shape_of(node.outputs[0])))


def _pads_before(node: ir.Node, spatial: int, full: list[int], new_sizes: tuple[int, ...]) -> list[int]:
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET" and not ints_of(node, "output_shape"):
        return ints_of(node, "pads")[:spatial] or [0] * spatial
    if mode == "VALID":
        return [0] * spatial
    extra = ints_of(node, "output_padding") or [0] * spatial
    totals = [max(size + pad - new, 0) for size, pad, new in zip(full, extra, new_sizes, strict=True)]
    return [total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals]


def resize(node: ir.Node) -> None:
    """Leave a Resize to the kernel that does the same, if there is one; else pick or multiply."""
    attributes = resize_attributes(node, shape_of(node.inputs[0]), shape_of(node.outputs[0]))
    if attributes is None or not has_resize_kernel(shape_of(node.inputs[0]), shape_of(node.outputs[0]), attributes):
        _resize_by_axis(node)


def _resize_by_axis(node: ir.Node) -> None:
    """Do a Resize that no kernel does, as what it is along each axis: picked indices, or a product with a matrix.

    The matrix is what ONNX's own reference makes of the identity, so every mode means what ONNX says.
    """
    (write, source, shape), new_shape = start(node), shape_of(node.outputs[0])
    moved = [axis for axis, (old, new) in enumerate(zip(shape, new_shape, strict=True)) if old != new]
    if any(not is_known(size) for axis in moved for size in (shape[axis], new_shape[axis])):
        raise RefusedError("resizing a dynamic axis")
    value, crops, rank = source, read_array(node.inputs[1]), len(shape)
    axes = [axis % rank for axis in ints_of(node, "axes")] or list(range(rank))
    is_cropped = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    for place, axis in enumerate(axes):
        scale, crop = _scale(node, axes, place), None
        if is_cropped:
            if crops is None or node.attributes.get_string("mode", "nearest") == "nearest":
                raise RefusedError("a crop that is not constant, or of nearest neighbours")
            crop = crops[[place, place + len(axes)]]
        # A scale near 1 moves what lies on an axis even if its size stays.
        if axis in moved or is_cropped or scale not in (None, 1.0):
            value = _resized(write, node, value, axis, new_shape[axis], scale, crop)
    write.finish(value if value is not source else write.copy(value))


def _scale(node: ir.Node, axes: list[int], place: int) -> float | None:
    """Return the scale of an axis, or ``None`` if it follows from the sizes."""
    scales = read_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is not None and scales.size:
        return float(scales[place])
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return None
    sizes, shape = read_array(node.inputs[3]), shape_of(node.inputs[0])
    assert sizes is not None
    ratios = [float(new) / shape[axis] for new, axis in zip(sizes, axes, strict=True)]
    return min(ratios) if policy == "not_larger" else max(ratios)


def _resized(
    write: Rewriting, node: ir.Node, value: ir.Value, axis: int, size: int, scale: float | None, crop: np.ndarray | None
) -> ir.Value:
    old, rank = shape_of(value)[axis], len(shape_of(value))
    matrix, offset = _resize_matrix(node, old, size, scale, crop)
    if node.attributes.get_string("mode", "nearest") == "nearest":
        _check_ties(node, old, size, size / old if scale is None else scale)
        return write.take(value, matrix.argmax(axis=0), axis)
    order = [other for other in range(rank) if other != axis] + [axis]
    last = write.transpose(value, order)
    product = write.layer(last, write.constant(matrix.T), write.constant(offset) if offset.any() else None)
    return write.transpose(product, [order.index(other) for other in range(rank)])


def _check_ties(node: ir.Node, old: int, new: int, scale: float) -> None:
    """Refuse coordinates within a hair of a tie: which neighbour is nearest then depends on the runtime's precision."""
    coordinates = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    places = np.arange(new, dtype=np.float64)
    if coordinates == "align_corners":
        places *= (old - 1) / max(new - 1, 1)
    else:
        half = 0.5 if "half_pixel" in coordinates else 0.0
        places = (places + half) / scale - half
    tie = 0.5 if node.attributes.get_string("nearest_mode", "round_prefer_floor").startswith("round") else 0.0
    distance = np.abs(places - tie - np.rint(places - tie))
    if ((distance > 0) & (distance < 1e-6 * np.maximum(1, np.abs(places)))).any():
        raise RefusedError("nearest neighbours of a place that lies within a hair of the middle")


def _resize_matrix(
    node: ir.Node, old: int, new: int, scale: float | None, crop: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return what Resize makes of each unit vector along one axis, ``(old, new)``, and of zeros, ``(new,)``."""
    from onnx.reference import ReferenceEvaluator  # slow to import

    attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    attributes |= {"axes": [1], "keep_aspect_ratio_policy": "stretch"}
    feeds = {"x": np.concatenate([np.zeros((1, old)), np.eye(old)]).astype(np.float32)}
    if crop is not None:
        feeds["roi"] = crop
    if scale is None:
        feeds["sizes"] = np.array([new], np.int64)
    else:
        feeds["scales"] = np.array([scale], np.float32)
    inputs = [name if name in feeds else "" for name in ("x", "roi", "scales", "sizes")]
    proto = onnx.helper.make_node("Resize", inputs, ["y"], **attributes)
    opset = max(node.graph.opset_imports.get("", 19) if isinstance(node.graph, ir.Graph) else 19, 19)
    (result,) = ReferenceEvaluator(proto, opsets={"": opset}).run(None, feeds)
    answers = np.asarray(result, np.float32)
    if answers.shape[1] != new:
        raise RefusedError(f"a Resize from {old} to {answers.shape[1]}, expected {new}")
    return answers[1:] - answers[0], answers[0]


class _Taps(NamedTuple):
    """A window along one axis."""

    taps: int
    stride: int
    dilation: int
    windows: int
    before: int

    def folded(self, write: Rewriting, value: ir.Value, axis: int, fill: float, op_type: str) -> ir.Value:
        """Return what ``op_type`` makes of the elements under each window: a strided slice for each tap."""
        span = (self.windows - 1) * self.stride + self.dilation * (self.taps - 1) + 1
        after = max(span - shape_of(value)[axis] - self.before, 0)
        padded = write.pad(value, axis, self.before, after, fill)
        starts = [tap * self.dilation for tap in range(self.taps)]
        parts = [write.part(padded, axis, start, self.windows, self.stride) for start in starts]
        return reduce(lambda left, right: write.add(op_type, left, right), parts)

    def num_inside(self, low: int, high: int) -> np.ndarray:
        """Return how many taps of each window lie in ``[low, high)``."""
        first = np.arange(self.windows)[:, None] * self.stride - self.before
        places = first + np.arange(self.taps) * self.dilation
        return np.asarray(((places >= low) & (places < high)).sum(axis=1))


def _taps_of(node: ir.Node) -> list[_Taps]:
    settings = [ints_of(node, name) for name in ("kernel_shape", "strides", "dilations")]
    counts, pads = shape_of(node.outputs[0])[2:], ints_of(node, "pads")
    if not all(is_known(size) for size in (*counts, *shape_of(node.inputs[0])[2:])):
        raise RefusedError("dilated pooling, or pooling over three axes, of a dynamic shape")
    taps = [_Taps(*numbers) for numbers in zip(*settings, counts, pads, strict=False)]
    if any(not along.num_inside(0, size).all() for along, size in zip(taps, shape_of(node.inputs[0])[2:], strict=True)):
        raise RefusedError("a window that lies outside")
    return taps


def _pool_by_axis(node: ir.Node) -> None:
    """Pool along one axis after the other, which is the same for a maximum and for a sum."""
    (write, source, _), taps = start(node), _taps_of(node)
    is_max, power = node.op_type == "MaxPool", node.attributes.get_int("p", 2)
    value = source
    if node.op_type == "LpPool":
        value = write.add("Pow", write.add("Abs", source), write.number(power, source))
    for axis, along in enumerate(taps, start=2):
        fill, op_type = (-math.inf, "Max") if is_max else (0.0, "Add")
        value = along.folded(write, value, axis, fill, op_type)
    if node.op_type == "LpPool":
        value = write.add("Pow", value, write.number(1 / power, source))
    if node.op_type == "AveragePool":
        value = write.add("Div", value, write.constant(_num_counted(node, taps)))
    write.finish(value)


def _num_counted(node: ir.Node, taps: list[_Taps]) -> np.ndarray:
    """Return by what an AveragePool divides, window by window."""
    pads, rank = ints_of(node, "pads"), len(taps)
    counts = [
        along.num_inside(-pads[i], size + pads[i + rank])
        if node.attributes.get_int("count_include_pad", 0)
        else along.num_inside(0, size)
        for i, (along, size) in enumerate(zip(taps, shape_of(node.inputs[0])[2:], strict=True))
    ]
    return reduce(np.multiply.outer, counts).astype(np.float32)[None, None]


def _local_response(node: ir.Node) -> None:
    """LRN: divide by a power of the mean square of the neighbouring channels."""
    (write, source, shape), attributes = start(node), node.attributes
    size = attributes.get_int("size")
    neighbours = _Taps(size, 1, 1, shape[1], (size - 1) // 2)
    total = neighbours.folded(write, write.add("Mul", source, source), 1, 0.0, "Add")
    factor, bias = attributes.get_float("alpha", 1e-4) / size, attributes.get_float("bias", 1.0)
    base = write.add("Add", write.add("Mul", total, write.number(factor, source)), write.number(bias, source))
    write.finish(
        write.add("Div", source, write.add("Pow", base, write.number(attributes.get_float("beta", 0.75), source)))
    )


WINDOWS: Mapping[str, Callable[[ir.Node], None]] = {
    "AveragePool": window,
    "Conv": window,
    "ConvTranspose": transposed_window,
    "LRN": _local_response,
    "LpPool": window,
    "MaxPool": window,
    "Resize": resize,
}
