"""NonMaxSuppression: TFLite's kernel for each batch and class, cut to the boxes that it found.

The only operator here whose result has as many rows as the data asks for: a SLICE with a computed size.
"""

from __future__ import annotations

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.tflite.program import DYNAMIC, RefusedError, Tensor
from edgeopt.tflite.step import Step


def non_max_suppression(step: Step) -> Tensor:
    """Lower NonMaxSuppression; rows are batch, class and box."""
    emitter, scores = step.emitter, step.operand(1)
    batches, classes, num_boxes = scores.shape
    if DYNAMIC in scores.shape:
        raise RefusedError("suppression among a dynamic number of boxes")
    limit = min(int(_setting(step, 2, 0)), num_boxes)
    if limit < 1:
        raise RefusedError("suppression of all boxes")
    boxes = _corners(step) if step.node.attributes.get_int("center_point_box", 0) else step.data
    overlap = np.nextafter(np.float32(_setting(step, 3, 0.0)), np.float32(2))  # TFLite's kernel suppresses at it too
    if overlap > 1:
        raise RefusedError("an overlap of 1, which suppresses nothing")
    settings = [emitter.constant("limit", np.array(limit, np.int32)), emitter.number(overlap, boxes)]
    settings.append(emitter.number(0, boxes))  # the least rank
    parts = []
    for batch, category in np.ndindex(batches, classes):
        box = emitter.reshape(emitter.slice(boxes, (batch, 0, 0), (1, num_boxes, 4)), (num_boxes, 4))
        score = emitter.reshape(emitter.slice(scores, (batch, category, 0), (1, 1, num_boxes)), (num_boxes,))
        order, rank = _ranked(step, score)
        found = emitter.tensor("found", (limit,), np.dtype(np.int32))
        count = emitter.tensor("count", (), np.dtype(np.int32))
        options = schema.NonMaxSuppressionV4OptionsT()
        inputs: list[Tensor | None] = [_gathered(step, box, order), rank, *settings]
        emitter.emit("NON_MAX_SUPPRESSION_V4", inputs, found, options, extra=(count,))
        found = _gathered(step, order, found)
        place = emitter.constant("place", np.full((limit, 2), (batch, category), np.int32))
        rows = _joined(step, 1, place, emitter.reshape(found, (limit, 1)))
        size = _joined(step, 0, emitter.reshape(count, (1,)), emitter.constant("columns", np.array([3], np.int32)))
        begin, part = emitter.constant("begin", np.zeros(2, np.int32)), emitter.like(rows, "part", (DYNAMIC, 3))
        parts.append(emitter.emit("SLICE", [rows, begin, size], part, schema.SliceOptionsT()))
    whole = _joined(step, 0, *parts) if len(parts) > 1 else parts[0]
    return emitter.cast(whole, np.int64, step.output)


def _ranked(step: Step, score: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order of the boxes, best first, and ranks instead of scores; 0 for those below the least score.

    Of equal scores, of which int8 makes many, ONNX Runtime takes the first, as TOPK_V2 does; TFLite's suppression would
    take any.
    """
    emitter, (num_boxes,) = step.emitter, score.shape
    order = emitter.tensor("order", score.shape, np.dtype(np.int32))
    values = emitter.like(score, "sorted")
    count = emitter.constant("num_boxes", np.array(num_boxes, np.int32))
    emitter.emit("TOPK_V2", [score, count], values, schema.TopKV2OptionsT(), extra=(order,))
    rank = emitter.constant("rank", np.arange(num_boxes, 0, -1).astype(np.float32))
    least = _setting(step, 4, -math.inf)
    if least == -math.inf:
        return order, rank
    is_enough = emitter.apply("GREATER", values, emitter.number(least, values), dtype=np.bool_)
    masked = emitter.like(rank, "masked")
    return order, emitter.emit("SELECT_V2", [is_enough, rank, emitter.number(0, rank)], masked, data=1)


def _gathered(step: Step, source: Tensor, indices: Tensor) -> Tensor:
    shape = (*indices.shape, *source.shape[1:])
    return step.emitter.emit(
        "GATHER", [source, indices], step.emitter.like(source, "gathered", shape), schema.GatherOptionsT()
    )


def _setting(step: Step, index: int, default: float) -> float:
    tensor = step.optional(index)
    if tensor is not None and tensor.data is None:
        raise RefusedError("limits that are not constant")
    return default if tensor is None or tensor.data is None else float(tensor.data.reshape(()))


def _corners(step: Step) -> Tensor:
    """Return two corners instead of centre and size."""
    emitter, (batches, count, _) = step.emitter, step.data.shape
    pairs = emitter.reshape(step.data, (batches, count, 2, 2))
    centre, size = (emitter.slice(pairs, (0, 0, part, 0), (batches, count, 1, 2)) for part in range(2))
    half = emitter.apply("MUL", size, emitter.number(0.5, size))
    corners = _joined(step, 2, emitter.apply("SUB", centre, half), emitter.apply("ADD", centre, half))
    return emitter.reshape(corners, step.data.shape)


def _joined(step: Step, axis: int, *parts: Tensor) -> Tensor:
    options = schema.ConcatenationOptionsT(axis)
    sizes = [part.shape[axis] for part in parts]
    shape = list(parts[0].shape)
    shape[axis] = DYNAMIC if DYNAMIC in sizes else sum(sizes)
    return step.emitter.emit("CONCATENATION", list(parts), step.emitter.like(parts[0], "joined", tuple(shape)), options)
