"""arm64: the QDQ graph's own scales in a full-integer TFLite file, images channels-last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from edgeopt.artifacts import LoweredModel, QdqModel
from edgeopt.inspection import Border, Inspection, Place, TensorFacts
from edgeopt.target import LoweringRequest
from edgeopt.tflite.inspect import inspect_tflite
from edgeopt.tflite.lower import lower as lower_to_tflite

from .int4 import pack_weights


def lower(source: QdqModel, border: Border, request: LoweringRequest, out_dir: Path) -> LoweredModel:
    """Write the TFLite file, weights of few bits packed; refuse what it cannot express exactly."""
    model = ir.load(source.path)
    pack_weights(model)
    return write_tflite(model, border, request, out_dir)


def write_tflite(model: ir.Model, border: Border, request: LoweringRequest, out_dir: Path) -> LoweredModel:
    """Write a QDQ graph as a TFLite file with its weights as they are."""
    path = out_dir / "model.tflite"
    tensors: dict[str, Place] = {}
    content = lower_to_tflite(
        model,
        input_layouts=request.input_layouts,
        output_layouts=request.output_layouts,
        record=tensors,
    )
    path.write_bytes(content)
    written = inspect_tflite(path).border
    ours = Border(_ours(written.inputs, border, request), _ours(written.outputs, border, request))
    return LoweredModel(path, ours, tensors=tensors)


def inspect(model: Path) -> Inspection:
    """Count the operators of the file; in a full-integer file each of them is an integer kernel."""
    return inspect_tflite(model)


def _ours(tensors: tuple[TensorFacts, ...], border: Border, request: LoweringRequest) -> tuple[TensorFacts, ...]:
    """Take dtypes and scales from the file, and what it does not say from the graph: layouts, the scales of floats."""
    known = {facts.name: facts for facts in (*border.inputs, *border.outputs)}
    layouts = {**request.input_layouts, **request.output_layouts}

    def ours(facts: TensorFacts) -> TensorFacts:
        given = replace(known[facts.name], layout=layouts.get(facts.name, known[facts.name].layout))
        if facts.scale is None:
            return replace(given, dtype=facts.dtype, shape=facts.shape, integer_dtype=None)
        return replace(facts, layout=given.layout, is_dynamic=given.is_dynamic)

    return tuple(map(ours, tensors))
