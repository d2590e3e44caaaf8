"""The door: a QDQ or float ONNX graph in, the bytes of a .tflite file out, with the graph's own scales.

    normal form -> channels-last layout -> program -> flatbuffer

Each step works on the result of the one before; the argument is never changed. What cannot be expressed exactly is
refused before anything is written, all of it at once.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import onnx_ir as ir

from edgeopt.inspection import Place
from edgeopt.tflite.half import halve_constants
from edgeopt.tflite.layout import to_channels_last
from edgeopt.tflite.normal_form import to_normal_form
from edgeopt.tflite.refusals import refuse
from edgeopt.tflite.translate import translate
from edgeopt.tflite.writer import write


def lower(
    model: ir.Model,
    *,
    input_layouts: Mapping[str, Literal["NCHW", "NHWC"]] | None = None,
    output_layouts: Mapping[str, Literal["NCHW", "NHWC"]] | None = None,
    integer_io: bool = True,
    record: dict[str, Place] | None = None,
) -> bytes:
    """Lower an ONNX graph to the bytes of a .tflite file; the same graph gives the same bytes.

    Args:
        model: a graph of opset 13 or later. What lies between DequantizeLinear and QuantizeLinear runs in
            integer kernels, everything else in float.
        input_layouts: how the application hands over inputs with four axes, by name; left out, as in the ONNX graph.
        output_layouts: the same for outputs.
        integer_io: whether quantized inputs and outputs are integers, or floats with QUANTIZE and DEQUANTIZE.
        record: is filled with where each value of the ONNX graph lies that has a tensor in the file.

    Raises:
        ModelError: if the graph contradicts itself.
        LoweringError: naming every node that cannot be lowered exactly.
    """
    with _collector_paused():
        normal = to_normal_form(model)
        orders = to_channels_last(normal, input_layouts or {}, output_layouts or {})
        program, refusals = translate(normal.graph, integer_io=integer_io)
        refuse(refusals, model.graph.opset_imports[""])
        if any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values()):
            halve_constants(program)
        if record is not None:
            alive = {tensor for operator in program.operators for tensor in (*operator.inputs, *operator.outputs)}
            record |= {n: Place(t.name, orders.get(n, ())) for n, t in program.names.items() if t in alive}
        return write(program)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python from searching a growing graph for garbage: a third of the time of 10,000 nodes, for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
