"""x86: the QDQ graph with uint8 activations, which ONNX Runtime turns into integer kernels when it loads it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgeopt.artifacts import LoweredModel, QdqModel
from edgeopt.inspection import Border, Inspection
from edgeopt.quantize.audit import audit_onnxruntime
from edgeopt.quantize.names import own_places
from edgeopt.quantize.unsigned import may_saturate, unsigned_border, with_unsigned_activations
from edgeopt.target import LoweringRequest

# They add in 32 bits the products that VPMADDUBSW adds in 16.
WITHOUT_SATURATION = ("avx_vnni", "avx512_vnni")


def lower(source: QdqModel, border: Border, request: LoweringRequest, out_dir: Path) -> LoweredModel:
    """Write the QDQ graph with every activation's zero-point moved by 128; inputs and outputs stay float."""
    model = with_unsigned_activations(ir.load(source.path))
    path = out_dir / "model.onnx"
    ir.save(model, path)
    needed = WITHOUT_SATURATION if may_saturate(model.graph) else ()
    return LoweredModel(path, unsigned_border(border), instruction_sets=needed, tensors=own_places(model))


def inspect(model: Path) -> Inspection:
    """Count the kernels of the graph that ONNX Runtime makes of the model."""
    return audit_onnxruntime(model, "ONNX Runtime")
