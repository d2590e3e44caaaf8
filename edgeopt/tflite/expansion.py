"""Replace operators that ONNX defines by other operators, where we have no lowering of our own.

The body is ONNX's, for the opset of the graph, so what is lowered is what the specification says.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import inliner

from edgeopt.tflite.operators import OPERATORS
from edgeopt.tflite.rewrites import REWRITES

_DOMAIN = "edgeopt.bodies"


def expand_functions(model: ir.Model) -> None:
    """Turn every such operator into a call of a function of the model; inlining is left to the caller."""
    for node in list(model.graph):
        if not node.domain and not _is_lowered(node.op_type) and _has_body(node):
            _call_body(model, node)


def _is_lowered(op_type: str) -> bool:
    return op_type in REWRITES or ("", op_type) in OPERATORS or op_type in ("QuantizeLinear", "DequantizeLinear")


def _has_body(node: ir.Node) -> bool:
    assert isinstance(node.graph, ir.Graph)
    try:
        schema = onnx.defs.get_schema(node.op_type, node.graph.opset_imports.get("", 1), "")
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]  # no stub


def _write_defaults(proto: onnx.NodeProto, opset: int) -> None:
    """Write out attributes that were left to their defaults: a body refers to them by name."""
    given = {attribute.name for attribute in proto.attribute}
    for name, attribute in onnx.defs.get_schema(proto.op_type, opset, "").attributes.items():
        if name not in given and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
            proto.attribute.append(attribute.default_value)


def _call_body(model: ir.Model, node: ir.Node) -> None:
    """Let ONNX inline the node in a graph of its own, and keep that graph as a function of the model."""
    values = [value for value in dict.fromkeys(node.inputs) if value is not None]
    if any(value.shape is None or value.dtype is None for value in values):
        return
    proto = ir.to_proto(node)
    assert isinstance(proto, onnx.NodeProto)
    _write_defaults(proto, model.graph.opset_imports[""])
    inputs = [ir.to_proto(ir.val(value.name, shape=value.shape, type=value.type)) for value in values]
    outputs = [onnx.helper.make_empty_tensor_value_info(output.name) for output in node.outputs if output.name]
    graph = onnx.helper.make_graph([proto], "body", inputs, outputs)
    opset = onnx.helper.make_opsetid("", model.graph.opset_imports[""])
    whole = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    lowered = [("", name) for name in {*REWRITES, *(name for domain, name in OPERATORS if not domain)}]
    try:
        inlined = inliner.inline_selected_functions(whole, lowered, exclude=True, inline_schema_functions=True)
    except RuntimeError:  # onnx's own inliner gives up on bodies with left-out inputs; the node is refused as it is
        return
    if any(part.op_type == node.op_type for part in inlined.graph.node):
        return
    body = ir.from_proto(inlined).graph
    name = f"{node.op_type}_{len(model.functions)}"
    function = ir.Function(_DOMAIN, name, graph=body, attributes=[])
    model.functions[function.identifier()] = function
    model.graph.opset_imports[_DOMAIN] = 1
    named = [output for output in node.outputs if output.name]
    call = ir.node(name, values, domain=_DOMAIN, num_outputs=len(named), name=node.name)
    for old, new in zip(named, call.outputs, strict=True):
        new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [call], named, call.outputs)
