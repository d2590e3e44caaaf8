"""cuda: the symmetric QDQ graph as it is, or the one in float16, after TensorRT's published rules were checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnx_ir as ir

from edgeopt.artifacts import LoweredModel, QdqModel, TensorInfo
from edgeopt.errors import LoweringError, Refusal
from edgeopt.inspection import Border, Inspection
from edgeopt.quantize.audit import audit_explicit
from edgeopt.quantize.names import own_places
from edgeopt.target import LoweringRequest

from .half import in_half_precision, is_half
from .profile import batch_profiles
from .rules import violations
from .support_rules import oldest_tensorrt
from .trtexec import shape_flags, trtexec_command


def lower(source: QdqModel, border: Border, request: LoweringRequest, out_dir: Path) -> LoweredModel:
    """Copy the graph, and put beside it what builds and checks the engine where TensorRT is.

    Raises:
        LoweringError: naming every node that breaks a rule.
    """
    model = onnx.load(str(source.path))
    inputs = (TensorInfo(facts.name, facts.dtype, facts.shape) for facts in border.inputs)
    profiles = batch_profiles(inputs, request.max_batch)
    broken = violations(model, profiles)
    if broken:
        raise LoweringError(
            "TensorRT would refuse this graph or run it in float",
            refusals=[Refusal(item.where, f"rule {item.number}", f"{item.fact}; {item.remedy}") for item in broken],
        )
    path, script = out_dir / "model.onnx", out_dir / "build_engine.sh"
    shutil.copy(Path(__file__).with_name("build_engine.sh"), script)
    if is_half(model):
        model = in_half_precision(model)
        script.write_text(script.read_text(encoding="utf-8").replace("\nprecision=int8", "\nprecision=fp16"), "utf-8")
    onnx.save(model, str(path))
    extra = [script]
    if profiles:
        shapes = out_dir / "engine_shapes.txt"
        shapes.write_text("\n".join(shape_flags(profiles)) + "\n", encoding="utf-8")
        extra.append(shapes)
    notes = _notes(model, trtexec_command("model.onnx", "model.engine", profiles))
    return LoweredModel(path, border, tuple(extra), notes, tensors=own_places(ir.from_proto(model)))


def inspect(model: Path) -> Inspection:
    """Count what Q/DQ lets TensorRT run on int8; what it really runs shows ``build_engine.sh`` on such a machine."""
    return audit_explicit(model, "ONNX, explicit QDQ")


def _notes(model: onnx.ModelProto, command: str) -> str:
    release = oldest_tensorrt(model)
    return f"""## Build the engine

On a machine with TensorRT ({f"{release} or newer" if release else "a release that reads this opset"}):

    ./build_engine.sh

builds the engine, lists which layers run in the graph's precision, and runs it once. By hand:

    {command}
"""
