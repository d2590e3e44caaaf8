"""What slides over pictures or resizes them: attributes written out, so that nothing is left to defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from edgeopt.tflite.constants import read_array
from edgeopt.tflite.program import RefusedError
from edgeopt.tflite.shapes import Shape, is_known, shape_of


def resize_attributes(node: ir.Node, source: Shape, target: Shape) -> dict[str, Any] | None:
    """Return how a Resize of height and width maps coordinates, or ``None`` if it does more than that."""
    if len(source) != 4 or source[:2] != target[:2] or _does_more(node):
        return None
    defaults = {
        "mode": "nearest",
        "coordinate_transformation_mode": "half_pixel",
        "nearest_mode": "round_prefer_floor",
    }
    attributes: dict[str, Any] = {name: node.attributes.get_string(name, value) for name, value in defaults.items()}
    return attributes | {"scales": _resize_scales(node, source, target)}


def _does_more(node: ir.Node) -> bool:
    flags = any(node.attributes.get_int(name, 0) for name in ("antialias", "exclude_outside"))
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    return flags or policy != "stretch" or bool(ints_of(node, "axes"))


def has_resize_kernel(source: Shape, target: Shape, attributes: Mapping[str, Any]) -> bool:
    """Whether TFLite's kernel maps the coordinates of height and width as these attributes say."""
    coordinates, sizes, new_sizes = attributes["coordinate_transformation_mode"], source[2:], target[2:]
    if not all(is_known(size) for size in (*sizes, *new_sizes)):
        return False
    scales = attributes["scales"]
    if attributes["mode"] == "nearest":
        return _repeats_whole_pixels(sizes, new_sizes, scales, coordinates, attributes["nearest_mode"])
    if attributes["mode"] != "linear":
        return False
    exact = all(scale * old == new for old, new, scale in zip(sizes, new_sizes, scales, strict=True))
    if coordinates == "align_corners":
        return min(new_sizes) > 1
    return exact and (
        coordinates in ("half_pixel", "asymmetric") or (coordinates == "pytorch_half_pixel" and min(new_sizes) > 1)
    )


def _repeats_whole_pixels(
    sizes: Shape, new_sizes: Shape, scales: Sequence[float], coordinates: str, rounding: str
) -> bool:
    """Whether ONNX picks pixel ``i // factor``, as TFLite's ``floor(i * old / new)`` does for whole factors."""
    triples = zip(sizes, new_sizes, scales, strict=True)
    if any(new % old or scale != new // old for old, new, scale in triples):
        return False
    if coordinates == "asymmetric":
        return rounding == "floor"
    # Half-pixel centres lie inside the pixel that they repeat, so any rounding to the nearest gives it.
    return coordinates in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round_")


def _resize_scales(node: ir.Node, source: Shape, target: Shape) -> list[float]:
    given = read_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if given is not None and given.size == 4:
        return [float(scale) for scale in given[2:]]
    return [target[axis] / source[axis] for axis in (2, 3)]


def complete_window(node: ir.Node) -> None:
    """Conv and the pools: write out every attribute, and ``auto_pad`` as explicit pads."""
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        raise RefusedError("the places of the maxima")
    shape, rank = shape_of(node.inputs[0]), len(shape_of(node.inputs[0])) - 2
    kernel = ints_of(node, "kernel_shape") or shape_of(node.inputs[1])[2:]
    strides = ints_of(node, "strides") or [1] * rank
    dilations = ints_of(node, "dilations") or [1] * rank
    pads = _explicit_pads(node, shape[2:], kernel, strides, dilations)
    if pads is None:
        return
    attributes = {name: attribute.value for name, attribute in node.attributes.items() if name != "auto_pad"}
    attributes |= {"kernel_shape": list(kernel), "strides": list(strides), "dilations": list(dilations), "pads": pads}
    node.attributes.clear()
    for name, value in attributes.items():
        node.attributes.add(ir.convenience.convert_attribute(name, value))


def ints_of(node: ir.Node, name: str) -> list[int]:
    """Return an attribute of integers, empty if the node does not have it."""
    return list(node.attributes.get_ints(name, ()))


def _explicit_pads(
    node: ir.Node, sizes: Shape, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int] | None:
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return list(ints_of(node, "pads") or [0] * (2 * len(sizes)))
    if mode == "VALID":
        return [0] * (2 * len(sizes))
    if not all(is_known(size) for size in sizes):
        return None
    before, after = [], []
    for size, length, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + dilation * (length - 1) + 1 - size, 0)
        smaller, larger = total // 2, total - total // 2
        before.append(larger if mode == "SAME_LOWER" else smaller)
        after.append(smaller if mode == "SAME_LOWER" else larger)
    return before + after
