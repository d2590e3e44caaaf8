"""What a QDQ graph takes and gives: names, shapes, and which scale each input and output has."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgeopt.affine import QuantParams
from edgeopt.artifacts import QdqModel, Ranges
from edgeopt.errors import QuantizationError
from edgeopt.inspection import Border, TensorFacts
from edgeopt.quantize.scheme import scheme_named
from edgeopt.settings import InputSettings


def border_of(source: QdqModel, ranges: Ranges, inputs: Mapping[str, InputSettings]) -> Border:
    """Describe a QDQ graph's inputs and outputs.

    An output that the scheme leaves float gets the scale that its range would have, so that differences can be told
    in steps there too.
    """
    graph = ir.load(source.path).graph
    activation_params = scheme_named(source.scheme).activation_params

    def facts(value: ir.Value, params: QuantParams | None, layout: str) -> TensorFacts:
        name = str(value.name)
        integer_dtype = None if params is None else "int8"
        if params is None:
            observed = ranges.tensors.get(name)
            if observed is None:
                raise QuantizationError(f"{name!r} was not calibrated", hint="rebuild with --force")
            params = activation_params(observed.minimum, observed.maximum)
        shape = tuple(size if isinstance(size, int) else str(size) for size in (value.shape or ()))
        return TensorFacts(name, "float32", shape, layout, params.scale, params.zero_point, integer_dtype)

    return Border(
        tuple(facts(value, _input_params(value), inputs[str(value.name)].layout) for value in graph.inputs),
        tuple(facts(value, _output_params(value), "any") for value in graph.outputs),
    )


def _input_params(value: ir.Value) -> QuantParams | None:
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear":
            return _params(use.node)
    return None


def _output_params(value: ir.Value) -> QuantParams | None:
    producer = value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return _params(producer)


def _params(node: ir.Node) -> QuantParams:
    scale, zero_point = node.inputs[1], node.inputs[2]
    if scale is None or zero_point is None or scale.const_value is None or zero_point.const_value is None:
        raise QuantizationError(f"{node.name!r} has no constant scale and zero-point")
    return QuantParams(float(scale.const_value.numpy()), int(zero_point.const_value.numpy()))
