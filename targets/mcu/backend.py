"""mcu: the file of arm64 under the rules of TFLite Micro, with what it takes of RAM and flash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from edgeopt.artifacts import LoweredModel, Memory, QdqModel
from edgeopt.errors import LoweringError
from edgeopt.inspection import Border
from edgeopt.target import LoweringRequest
from edgeopt.tflite.inspect import TfliteFile, read_tflite

from ..arm64.backend import inspect as inspect  # the same file, counted in the same way
from ..arm64.backend import write_tflite
from .arena import smallest_arena
from .rules import refusals


def lower(source: QdqModel, border: Border, request: LoweringRequest, out_dir: Path) -> LoweredModel:
    """Write the TFLite file, refuse what TFLite Micro does not run, and measure the arena.

    Raises:
        LoweringError: naming every operator and shape that stands in the way.
        MissingDependencyError: tflite-micro is not installed.
    """
    lowered = write_tflite(ir.load(source.path), border, request, out_dir)
    content = lowered.path.read_bytes()
    file = read_tflite(content)
    broken = tuple(refusals(file))
    if broken:
        raise LoweringError(
            "TFLite Micro does not run this network",
            refusals=broken,
            hint="replace these operators in the network; inputs have fixed shapes with dynamic_batch = false",
        )
    memory = Memory(smallest_arena(content, len(file.inputs)), len(content))
    return replace(lowered, memory=memory, notes=_notes(file, memory))


def _notes(file: TfliteFile, memory: Memory) -> str:
    operators = sorted({operator.builtin for operator in file.operators})
    return f"""## Build it into a firmware

`firmware/` has model and golden vectors as C arrays, `const` and 16-byte aligned, for flash. The interpreter needs

- {memory.ram_bytes:,} bytes of arena in RAM, 16-byte aligned; kernels made for one chip may ask for more,
- {memory.flash_bytes:,} bytes of flash for the model, besides the golden vectors and the code of TFLite Micro,
- a resolver with {len(operators)} operators: {", ".join(operators)}.
"""
