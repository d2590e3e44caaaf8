"""Replace operators that ONNX defines by other operators, where we have no lowering of our own.

The body is ONNX's, for the opset of the graph, so what is lowered is what the specification says.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from edgeopt.tflite.operators import OPERATORS
from edgeopt.tflite.rewrites import REWRITES

_DOMAIN = "edgeopt.bodies"
_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "Range"})  # a Range is folded, its body would be a Loop


def expand_functions(model: ir.Model) -> None:
    """Inline the model's own functions, then ONNX's, until every operator has a lowering or no body."""
    common.InlinePass()(model)
    while [node for node in list(model.graph) if _calls_body(model, node)]:
        common.InlinePass()(model)
        common.ShapeInferencePass()(model)


def _calls_body(model: ir.Model, node: ir.Node) -> bool:
    """Turn a node into a call of a function of the model, whose body is ONNX's; say whether there is one."""
    opset = model.graph.opset_imports.get("", 1)
    is_lowered = node.op_type in REWRITES or ("", node.op_type) in OPERATORS or node.op_type in _KEPT
    if node.domain or is_lowered or any(value is not None and value.type is None for value in node.inputs):
        return False
    body = _body(node, opset)
    if body is None:
        return False
    body.domain, body.name = _DOMAIN, f"{node.op_type}_{len(model.functions)}"
    body.opset_import[0].version = opset
    for part in body.node:  # a refusal has to name the node that the user knows
        part.name = f"{node.name or node.op_type}_{part.op_type}"
    named = [index for index, output in enumerate(node.outputs) if output.name]  # the others are left out
    outputs = [body.output[index] for index in named]
    del body.output[:]
    body.output.extend(outputs)
    function = ir.serde.deserialize_function(body)
    model.functions[function.identifier()] = function
    model.graph.opset_imports[_DOMAIN] = 1
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    call = ir.node(function.name, node.inputs, attributes, domain=_DOMAIN, num_outputs=len(named), name=node.name)
    old = [node.outputs[index] for index in named]
    for before, after in zip(old, call.outputs, strict=True):
        after.name, after.shape, after.type = before.name, before.shape, before.type
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [call], old, call.outputs)
    return True


def _body(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, opset, "")  # onnx's stub knows nothing of bodies
    except onnx.defs.SchemaError:
        return None
    for name, attribute in schema.attributes.items():  # a body refers to attributes by name, also to those left out
        if name not in node.attributes and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
            node.attributes.add(ir.from_proto(attribute.default_value))
    fixed = [version for version in schema.function_opset_versions if version <= opset]
    flexible = [version for version in schema.context_dependent_function_opset_versions if version <= opset]
    if fixed:
        content = schema.get_function_with_opset_version(max(fixed))
    elif flexible:
        content = schema.get_context_dependent_function_with_opset_version(
            max(flexible), _serialized(node), [_type(value) for value in node.inputs]
        )
    else:
        return None
    return onnx.FunctionProto.FromString(content) if content else None


def _serialized(node: ir.Node) -> bytes:
    proto = ir.to_proto(node)
    assert isinstance(proto, onnx.NodeProto)
    return bytes(proto.SerializeToString())


def _type(value: ir.Value | None) -> bytes:
    if value is None:
        return b""
    proto = ir.to_proto(value)
    assert isinstance(proto, onnx.ValueInfoProto)
    return bytes(proto.type.SerializeToString())
