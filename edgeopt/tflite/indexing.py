"""Operators that pick and place by index: Gather and Scatter in their forms, Tile, OneHot, Trilu.

TFLite's kernels take no negative indices. Constant ones are made positive in normal form; computed ones here.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.tflite.program import DYNAMIC, RefusedError, Tensor
from edgeopt.tflite.step import Step


def take(step: Step) -> Tensor:
    """Lower a Gather along one axis with constant indices."""
    attributes = step.node.attributes
    indices = np.array(attributes.get_ints("indices"), np.int32).reshape(attributes.get_ints("indices_shape"))
    return _gather(step, step.emitter.constant(f"{step.output.name}_indices", indices), attributes.get_int("axis"))


def gather(step: Step) -> Tensor:
    """Lower a Gather along one axis with computed indices."""
    axis = step.node.attributes.get_int("axis", 0) % len(step.data.shape)
    return _gather(step, _positive(step, step.operand(1), step.data.shape[axis]), axis)


def gather_points(step: Step) -> Tensor:
    """Lower GatherND with computed coordinates."""
    points = step.operand(1)
    positive = _positive(step, points, *step.data.shape[: points.shape[-1]])
    return step.emitter.emit("GATHER_ND", [step.data, positive], step.output, schema.GatherNdOptionsT())


def _positive(step: Step, indices: Tensor, *sizes: int) -> Tensor:
    """Add the size of the axis, or of each axis, to indices that count from behind."""
    if DYNAMIC in sizes:
        raise RefusedError("computed indices into a dynamic axis")
    emitter = step.emitter
    from_behind = emitter.apply("LESS", indices, emitter.number(0, indices), dtype=np.bool_)
    wrapped = emitter.apply("ADD", indices, emitter.constant("sizes", np.array(sizes, indices.dtype)))
    return emitter.emit("SELECT_V2", [from_behind, wrapped, indices], emitter.like(indices, "positive"), data=1)


def _gather(step: Step, indices: Tensor, axis: int) -> Tensor:
    return step.emitter.emit("GATHER", [step.data, indices], step.output, schema.GatherOptionsT(axis))


def take_points(step: Step) -> Tensor:
    """Lower GatherND and GatherElements with constant indices, given as whole coordinates."""
    points = _points(step)
    shape = (*points.shape[:-1], *step.data.shape[points.shape[-1] :])
    picked = step.emitter.like(step.output, "picked", shape)
    constant = step.emitter.constant(f"{step.output.name}_points", points)
    step.emitter.emit("GATHER_ND", [step.data, constant], picked, schema.GatherNdOptionsT())
    return step.emitter.reshape(picked, step.output.shape, step.output)


def _points(step: Step) -> np.ndarray:
    attributes = step.node.attributes
    return np.array(attributes.get_ints("points"), np.int32).reshape(attributes.get_ints("points_shape"))


def put_points(step: Step) -> Tensor:
    """Lower ScatterND and ScatterElements with constant places, each at most once unless they add up.

    SCATTER_ND writes into zeros, so a constant mask chooses between it and the data.
    """
    emitter, points = step.emitter, _points(step)
    if DYNAMIC in step.data.shape:
        raise RefusedError("placing into a dynamic shape")
    updates = emitter.reshape(step.operand(1), (*points.shape[:-1], *step.data.shape[points.shape[-1] :]))
    constants = (("points", points), ("shape", np.array(step.data.shape, np.int32)))
    places, shape = (emitter.constant(f"{step.output.name}_{name}", array) for name, array in constants)
    placed = emitter.like(step.output, "placed")
    emitter.emit("SCATTER_ND", [places, updates, shape], placed, schema.ScatterNdOptionsT(), data=1)
    if step.node.attributes.get_string("reduction") == "add":
        return emitter.apply("ADD", step.data, placed)
    mask = np.zeros(step.data.shape, np.bool_)
    mask[tuple(points.reshape(-1, points.shape[-1]).T)] = True
    chosen = emitter.constant(f"{step.output.name}_mask", mask)
    return emitter.emit("SELECT_V2", [chosen, placed, step.data], step.output, data=1)


def reverse_sequence(step: Step) -> Tensor:
    """Lower ReverseSequence."""
    attributes = step.node.attributes
    axes = {"seqDim": attributes.get_int("time_axis", 0), "batchDim": attributes.get_int("batch_axis", 1)}
    options = schema.ReverseSequenceOptionsT(**axes)
    return step.emitter.emit("REVERSE_SEQUENCE", [step.data, step.operand(1)], step.output, options)


def tile(step: Step) -> Tensor:
    """Lower Tile and Expand."""
    repeats = np.array(step.node.attributes.get_ints("repeats"), np.int32)
    constant = step.emitter.constant(f"{step.output.name}_repeats", repeats)
    return step.emitter.emit("TILE", [step.data, constant], step.output, schema.TileOptionsT())


def one_hot(step: Step) -> Tensor:
    """Lower OneHot; an index outside ``[-depth, depth)`` gives a row of off values."""
    emitter, attributes = step.emitter, step.node.attributes
    depth, axis, rank = attributes.get_int("depth"), attributes.get_int("axis"), len(step.output.shape)
    indices, positive = step.data, _positive(step, step.data, depth)
    axis %= rank
    spread = emitter.reshape(positive, (*indices.shape[:axis], 1, *indices.shape[axis:]))
    numbers = np.arange(depth, dtype=indices.dtype).reshape((depth,) + (1,) * (rank - 1 - axis))
    hit = emitter.apply("EQUAL", spread, emitter.constant("numbers", numbers), dtype=np.bool_)
    return emitter.emit("SELECT_V2", [hit, step.operand(1), step.operand(2)], step.output, data=1)
