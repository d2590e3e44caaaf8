"""What a QDQ graph takes and gives: names, shapes, and which scale each input and output has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from edgeopt.affine import QuantParams
from edgeopt.artifacts import QdqModel, Ranges
from edgeopt.errors import QuantizationError
from edgeopt.inspection import Border, TensorFacts
from edgeopt.quantize.dynamic import is_behind_dynamic
from edgeopt.quantize.scheme import scheme_named
from edgeopt.settings import InputSettings


def border_of(source: QdqModel, ranges: Ranges, inputs: Mapping[str, InputSettings]) -> Border:
    """Describe a QDQ graph's inputs and outputs.

    An output that the scheme leaves float gets the scale that its range would have, so that differences can be told
    in steps there too. Integers have none.
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
        return TensorFacts(name, "float32", _sizes(value), layout, params.scale, params.zero_point, integer_dtype)

    def input_facts(value: ir.Value) -> TensorFacts:
        given = inputs[str(value.name)]
        if given.dtype == "float32":
            return facts(value, _input_params(value), given.layout)
        return TensorFacts(str(value.name), given.dtype, _sizes(value), given.layout)

    return Border(
        tuple(map(input_facts, graph.inputs)),
        tuple(
            replace(facts(value, _output_params(value), "any"), is_dynamic=is_behind_dynamic(value))
            for value in graph.outputs
        ),
    )


def _sizes(value: ir.Value) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in (value.shape or ()))


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
