"""Reductions over axes and along one axis: sums and extremes, arg-extremes, running sums, the largest few."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.tflite.program import DYNAMIC, RefusedError, Tensor
from edgeopt.tflite.step import Lower, Step

_OF_BOOL = {"REDUCE_MAX": "REDUCE_ANY", "REDUCE_MIN": "REDUCE_ALL"}


def over_axes(builtin: str) -> Lower:
    """Return the lowering of a reduction over the attribute ``axes``."""

    def lower(step: Step) -> Tensor:
        options = schema.ReducerOptionsT(keepDims=bool(step.node.attributes.get_int("keepdims")))
        axes = np.array(step.node.attributes.get_ints("axes"), np.int32)
        constant = step.emitter.constant(f"{step.output.name}_axes", axes)
        name = _OF_BOOL.get(builtin, builtin) if step.data.dtype == np.bool_ else builtin
        return step.emitter.emit(name, [step.data, constant], step.output, options)

    return lower


def arg_extreme(builtin: str) -> Lower:
    """Return the lowering of ArgMax or ArgMin: the first place of the extreme, or the last."""

    def lower(step: Step) -> Tensor:
        emitter, attributes = step.emitter, step.node.attributes
        (axis,) = attributes.get_ints("axes")
        size = step.data.shape[axis]
        from_behind = bool(attributes.get_int("select_last_index"))
        if from_behind and size == DYNAMIC:
            raise RefusedError("the last index of a dynamic axis")
        place = emitter.constant(f"{step.output.name}_axis", np.array([axis], np.int32))
        source = step.data
        if from_behind:
            source = emitter.emit("REVERSE_V2", [source, place], emitter.like(source, "reversed"))
        kind = schema.ArgMaxOptionsT if builtin == "ARG_MAX" else schema.ArgMinOptionsT
        options = kind(schema.TensorType.INT64)
        left = source.shape[:axis] + source.shape[axis + 1 :]
        found = emitter.tensor(f"{step.output.name}_found", left, np.dtype(np.int64))
        emitter.emit(builtin, [source, emitter.constant("axis", np.array(axis, np.int32))], found, options)
        if from_behind:
            found = emitter.apply("SUB", emitter.number(size - 1, found), found)
        return emitter.reshape(found, step.output.shape, step.output)

    return lower


def running_sum(step: Step) -> Tensor:
    """Lower CumSum."""
    options = schema.CumsumOptionsT(*(bool(step.node.attributes.get_int(n)) for n in ("exclusive", "reverse")))
    axis = step.emitter.constant(f"{step.output.name}_axis", np.array(step.node.attributes.get_int("axis"), np.int32))
    return step.emitter.emit("CUMSUM", [step.data, axis], step.output, options)


def top_k(step: Step) -> Tensor:
    """Lower TopK over the last axis: the largest, or the smallest as the largest of the negatives."""
    emitter, attributes = step.emitter, step.node.attributes
    largest = bool(attributes.get_int("largest"))
    if not largest and step.data.dtype != np.float32:
        raise RefusedError(f"the smallest of {step.data.dtype}, which cannot all be negated")
    source = step.data if largest else emitter.apply("NEG", step.data)
    values = emitter.like(source, "largest", step.output.shape)
    indices = emitter.tensor(f"{step.output.name}_places", step.output.shape, np.dtype(np.int32))
    count = emitter.constant(f"{step.output.name}_k", np.array(attributes.get_int("k"), np.int32))
    emitter.emit("TOPK_V2", [source, count], values, schema.TopKV2OptionsT(), extra=(indices,))
    if step.extra:
        emitter.cast(indices, np.int64, step.extra[0])
    return values if largest else emitter.apply("NEG", values)


def hard_max(step: Step) -> Tensor:
    """Lower Hardmax over the last axis: 1 at the first place of the maximum, 0 elsewhere."""
    emitter, size = step.emitter, step.data.shape[-1]
    rows = step.data.shape[:-1]
    options = schema.ArgMaxOptionsT(schema.TensorType.INT32)
    place = emitter.tensor(f"{step.output.name}_place", rows, np.dtype(np.int32))
    emitter.emit("ARG_MAX", [step.data, emitter.constant("axis", np.array(len(rows), np.int32))], place, options)
    if size == DYNAMIC:
        raise RefusedError("the maximum of a dynamic axis")
    numbers = emitter.constant("numbers", np.arange(size, dtype=np.int32))
    hit = emitter.apply("EQUAL", emitter.reshape(place, (*rows, 1)), numbers, dtype=np.bool_)
    return emitter.cast(hit, np.float32, step.output)
