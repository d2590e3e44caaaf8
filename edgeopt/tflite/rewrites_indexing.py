"""What moves, repeats, picks and places elements, in normal form: Slice, Tile, Take and whole coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.tflite.constants import read_array, read_constant
from edgeopt.tflite.program import RefusedError
from edgeopt.tflite.rewriting import DOMAIN, Rewriting, is_read, start
from edgeopt.tflite.shapes import Shape, is_known, shape_of

_COMBINED = {"max": "Max", "min": "Min", "mul": "Mul"}


def _constant(node: ir.Node, index: int, what: str) -> np.ndarray:
    array = read_array(node.inputs[index]) if index < len(node.inputs) else None
    if array is None:
        raise RefusedError(f"{what} that are not constant")
    return array


def _known(shape: Shape, what: str) -> None:
    if not all(is_known(size) for size in shape):
        raise RefusedError(f"{what} of a dynamic shape")


def _split(node: ir.Node) -> None:
    """One Slice a part."""
    write, source, shape = start(node)
    axis, begin = node.attributes.get_int("axis", 0) % len(shape), 0
    results: list[ir.Value | None] = []
    for output in node.outputs:
        size = shape_of(output)[axis]
        results.append(write.part(source, axis, begin, size) if is_read(output) else None)
        begin += size
    write.finish(*results)


def _concat(node: ir.Node) -> None:
    """Leave out operands without elements."""
    parts = [value for value in node.inputs if value is not None and 0 not in shape_of(value)]
    if 0 < len(parts) < len(node.inputs):
        write, axis = Rewriting(node), node.attributes.get_int("axis")
        joined = write.add("Concat", *parts, shape=shape_of(node.outputs[0]), axis=axis)
        write.finish(joined if len(parts) > 1 else parts[0])


def _expand(node: ir.Node) -> None:
    write, source, shape = start(node)
    target = shape_of(node.outputs[0])
    padded = (1,) * (len(target) - len(shape)) + shape
    if any(new != old and not is_known(new) for new, old in zip(target, padded, strict=True)):
        raise RefusedError("a shape that is not constant")
    repeats = [new if old == 1 and new != old else 1 for new, old in zip(target, padded, strict=True)]
    write.finish(_tiled(write, write.reshape(source, padded), repeats))


def _tile(node: ir.Node) -> None:
    write, source, _ = start(node)
    write.finish(_tiled(write, source, _constant(node, 1, "repeats").tolist()))


def _tiled(write: Rewriting, value: ir.Value, repeats: Sequence[int]) -> ir.Value:
    if set(repeats) <= {1}:
        return write.copy(value)
    pairs = list(zip(shape_of(value), repeats, strict=True))
    shape = tuple(size * count if is_known(size) else size for size, count in pairs)
    return write.add("Tile", value, shape=shape, domain=DOMAIN, repeats=list(repeats))


def _gather(node: ir.Node) -> None:
    """A Gather with constant indices; with computed ones it stays as it is."""
    indices = read_array(node.inputs[1])
    if indices is None:
        _gather_stored(node)
        return
    write, source, shape = start(node)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    if not is_known(shape[axis]) and (indices < 0).any():
        raise RefusedError("negative indices into a dynamic axis")
    write.finish(write.take(source, indices, axis))


def _gather_stored(node: ir.Node) -> None:
    """Gather from the integers of a quantized table and dequantize what is found, not the whole table."""
    table, (write, source, _) = read_constant(node.inputs[0]), start(node)
    dequantize = source.producer()
    if (
        table is None
        or dequantize is None
        or len(dequantize.inputs) < 3
        or table.scales is None
        or table.scales.size > 1
    ):
        return
    shape, axis = shape_of(node.outputs[0]), node.attributes.get_int("axis", 0)
    found = write.add("Gather", dequantize.inputs[0], node.inputs[1], shape=shape, axis=axis)
    write.finish(write.add("DequantizeLinear", found, *dequantize.inputs[1:], shape=shape, dtype=source.dtype))


def _gather_points(node: ir.Node) -> None:
    """GatherND; a batch axis adds its own place to each coordinate. Without one, computed indices stay as they are."""
    shape, batch = shape_of(node.inputs[1]), node.attributes.get_int("batch_dims", 0)
    indices = read_array(node.inputs[1])
    if indices is None and not batch:
        return
    _known(shape[:-1] if batch else (), "batches")
    grid = np.indices(shape[:batch]).reshape(batch, *shape[:batch], *(1,) * (len(shape) - batch - 1))
    own = np.moveaxis(np.broadcast_to(grid, (batch, *shape[:-1])), 0, -1)
    if indices is not None:
        _pick(node, np.concatenate([own, indices], axis=-1))
    else:
        _pick_computed(node, own, np.zeros((*shape[:-1], 0), np.int64))


def _gather_elements(node: ir.Node) -> None:
    shape, axis = shape_of(node.inputs[1]), node.attributes.get_int("axis", 0)
    indices = read_array(node.inputs[1])
    if indices is not None:
        _pick(node, _coordinates(indices, axis))
        return
    _known(shape, "computed indices")
    grid = np.moveaxis(np.indices(shape), 0, -1)
    axis %= len(shape)
    _pick_computed(node, grid[..., :axis], grid[..., axis + 1 :])


def _pick_computed(node: ir.Node, before: np.ndarray, after: np.ndarray) -> None:
    """Put constant coordinates around computed ones, and pick by whole coordinates."""
    (write, source, _), indices, rows = start(node), node.inputs[1], before.shape[:-1]
    assert indices is not None
    assert indices.dtype is not None
    sides = [write.constant(part.astype(indices.dtype.numpy())) if part.size else None for part in (before, after)]
    middle = write.reshape(indices, (*rows, math.prod(shape_of(indices)) // math.prod(rows)))
    parts = [part for part in (sides[0], middle, sides[1]) if part is not None]
    size = sum(shape_of(part)[-1] for part in parts)
    points = write.add("Concat", *parts, shape=(*rows, size), axis=-1) if len(parts) > 1 else parts[0]
    write.finish(write.add("GatherND", source, points, shape=shape_of(node.outputs[0]), dtype=source.dtype))


def _coordinates(indices: np.ndarray, axis: int) -> np.ndarray:
    """Return whole coordinates: those of each index itself, but along ``axis`` the index."""
    grid: list[np.ndarray] = list(np.indices(indices.shape))
    grid[axis % indices.ndim] = indices
    return np.stack(grid, axis=-1)


def _pick(node: ir.Node, points: np.ndarray) -> None:
    write, source, shape = start(node)
    write.finish(
        write.add("TakePoints", source, shape=shape_of(node.outputs[0]), domain=DOMAIN, **_points(points, shape))
    )


def _points(points: np.ndarray, shape: Shape) -> dict[str, Any]:
    sizes = np.array(shape[: points.shape[-1]])
    if (points < 0).any() and not all(is_known(size) for size in sizes):
        raise RefusedError("negative indices into a dynamic axis")
    positive = np.where(points < 0, points + sizes, points)
    return {"points": positive.reshape(-1).tolist(), "points_shape": list(positive.shape)}


def _scatter_points(node: ir.Node) -> None:
    _place(node, _constant(node, 1, "indices"))


def _scatter_elements(node: ir.Node) -> None:
    indices = _constant(node, 1, "indices")
    _place(node, _coordinates(indices, node.attributes.get_int("axis", 0)))


def _place(node: ir.Node, points: np.ndarray) -> None:
    (write, source, shape), updates = start(node), node.inputs[2]
    how, attributes = node.attributes.get_string("reduction", "none"), _points(points, shape)
    rows = np.array(attributes["points"]).reshape(-1, points.shape[-1])
    if how in _COMBINED:
        assert updates is not None
        write.finish(_combined(write, source, updates, rows, _COMBINED[how]))
        return
    if how == "none" and len(np.unique(rows, axis=0)) < len(rows):
        raise RefusedError("several updates of one place, of which TFLite would write the sum")
    write.finish(write.add("PutPoints", source, updates, shape=shape, domain=DOMAIN, reduction=how, **attributes))


def _combined(write: Rewriting, value: ir.Value, updates: ir.Value, rows: np.ndarray, op_type: str) -> ir.Value:
    """Combine updates with what is there: each round at most one update a place."""
    shape = shape_of(value)
    flat = write.reshape(updates, (len(rows), *shape[rows.shape[1] :]))
    places = [tuple(row) for row in rows.tolist()]
    rounds = np.array([places[:index].count(place) for index, place in enumerate(places)])
    for number in range(rounds.max() + 1):
        (chosen,) = np.nonzero(rounds == number)
        points = _points(rows[chosen], shape)
        there = write.add("TakePoints", value, shape=(len(chosen), *shape_of(flat)[1:]), domain=DOMAIN, **points)
        new = write.add(op_type, there, write.take(flat, chosen, 0))
        value = write.add("PutPoints", value, new, shape=shape, domain=DOMAIN, reduction="none", **points)
    return value


def pad_by_index(node: ir.Node, pads: np.ndarray, mode: str) -> None:
    """Pads that repeat what is there (or cut it off), as indices along each axis."""
    write, value, shape = start(node)
    for axis, (before, after) in enumerate(pads.T.tolist()):
        if before or after:
            _known((shape[axis],), f"padding with mode {mode!r}")
            places = _padded_places(shape[axis], before, after, mode)
            value = write.take(value, places, axis)
    write.finish(value)


def _padded_places(size: int, before: int, after: int, mode: str) -> np.ndarray:
    places = np.arange(-before, size + after)
    if mode == "edge":
        return places.clip(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * size - 2, 1)
    folded = places % period
    return np.minimum(folded, period - folded) if size > 1 else folded * 0


def _one_hot(node: ir.Node) -> None:
    write, indices, shape = start(node)
    depth, values = _constant(node, 1, "depths"), read_constant(node.inputs[2])
    if values is None:
        raise RefusedError("values that are not constant")
    axis = node.attributes.get_int("axis", -1) % (len(shape) + 1)
    off, on = (write.constant(value) for value in values.real())
    count = int(depth.reshape(()))
    dtype = node.outputs[0].dtype
    target = (*shape[:axis], count, *shape[axis:])
    write.finish(
        write.add("OneHot", indices, on, off, shape=target, dtype=dtype, domain=DOMAIN, depth=count, axis=axis)
    )


def _triangle(node: ir.Node) -> None:
    write, source, shape = start(node)
    _known(shape[-2:], "a triangle")
    offset = int(_constant(node, 1, "diagonals").reshape(())) if len(node.inputs) > 1 and node.inputs[1] else 0
    part = np.triu if node.attributes.get_int("upper", 1) else np.tril
    mask = write.constant(part(np.ones(shape[-2:], np.bool_), offset))
    write.finish(write.add("Where", mask, source, write.number(0, source), shape=shape, dtype=source.dtype))


def _space(to_depth: bool) -> Callable[[ir.Node], None]:
    """DepthToSpace in the order that TFLite does not have, as a reshape of more axes; the others stay."""

    def rewrite(node: ir.Node) -> None:
        mode = node.attributes.get_string("mode", "DCR")
        if mode == "DCR":
            return
        write, source, shape = start(node)
        block = node.attributes.get_int("blocksize")
        n, c, h, w = shape
        if to_depth:
            parts = write.reshape(source, (n, c, h // block, block, w // block, block))
            moved = write.transpose(parts, (0, 1, 3, 5, 2, 4))
        else:
            parts = write.reshape(source, (n, c // block**2, block, block, h, w))
            moved = write.transpose(parts, (0, 1, 4, 2, 5, 3))
        write.finish(write.reshape(moved, shape_of(node.outputs[0])))

    return rewrite


INDEXING: Mapping[str, Callable[[ir.Node], None]] = {
    "Concat": _concat,
    "DepthToSpace": _space(to_depth=False),
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_points,
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_points,
    "SpaceToDepth": _space(to_depth=True),
    "Split": _split,
    "Tile": _tile,
    "Trilu": _triangle,
}
