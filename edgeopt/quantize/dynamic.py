"""Activations of 8 bits whose scale is found while the network runs: in the QDQ graph, and in ONNX Runtime.

A graph can fix the int8 weights and their scales; the scale of an activation that is quantized dynamically is measured
on the spot: one for each row of a matrix product (each token of a sentence), one for each picture of a convolution.
Such a pair stands in the graph as calls of ``Quantize`` and ``Dequantize``, functions of standard operators that the
file brings along, so that every ONNX runtime can execute it. They compute what LiteRT's kernels do, XNNPACK's and the
built-in ones alike: on random rows the answers were 133 dB and more apart, which are the last bits of a float.

ONNX Runtime's own pair, DynamicQuantizeLinear and MatMulInteger, has one scale for a whole tensor. Measured on MiniLM,
100 sentences, mean cosine to float: one scale for a tensor 0.994, one for each row 0.999, for 1.3 times its time.

Source: XNNPACK, ``xnn_f32_qd8_asymmetric_quantization_params``; ONNX operators MatMulInteger and ConvInteger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import passes
from onnx_ir.passes import common

DOMAIN = "edgeopt.dynamic"
OLDEST_OPSET = 18  # from which on the reductions take their axes as an input

# A row of zeros has the scale of ``tiny``. The zero-point is a whole number in float32, in [0, 255].
_PAIR = (
    """
    Quantize <axes> (x) => (integers, scale, zero_point)
    {
        axes = Constant <value_ints: ints = @axes> ()
        zero = Constant <value_float = 0.0> ()
        one = Constant <value_float = 1.0> ()
        tiny = Constant <value_float = 1e-30> ()
        top = Constant <value_float = 255.0> ()
        bottom = Constant <value = uint8 {0}> ()
        least = ReduceMin (x, axes)
        most = ReduceMax (x, axes)
        low = Min (least, zero)
        high = Max (most, tiny)
        span = Sub (high, low)
        scale = Div (span, top)
        below = Div (low, scale)
        above = Neg (below)
        zero_point = Round (above)
        steps = Div (x, scale)
        shifted = Add (steps, zero_point)
        integers = QuantizeLinear (shifted, one, bottom)
    }
    """,
    """
    Dequantize (integers, scale, zero_point) => (y)
    {
        floats = Cast <to = 1> (integers)
        steps = Sub (floats, zero_point)
        y = Mul (steps, scale)
    }
    """,
)

# ``weight_sum`` is the sum over each column of weights, times its scale. A convolution pads with the zero-point.
_PRODUCTS = (
    """
    Product (integers, scale, zero_point, weight, weight_scale, weight_sum) => (y)
    {
        sums = MatMulInteger (integers, weight)
        floats = Cast <to = 1> (sums)
        uncentred = Mul (floats, weight_scale)
        excess = Mul (zero_point, weight_sum)
        centred = Sub (uncentred, excess)
        y = Mul (centred, scale)
    }
    """,
    """
    Convolution <auto_pad, dilations, kernel_shape, pads, strides>
        (integers, scale, zero_point, weight, weight_scale) => (y)
    {
        byte = Cast <to = 2> (zero_point)
        point = Squeeze (byte)
        sums = ConvInteger <auto_pad: string = @auto_pad, dilations: ints = @dilations,
            kernel_shape: ints = @kernel_shape, pads: ints = @pads, strides: ints = @strides> (integers, weight, point)
        floats = Cast <to = 1> (sums)
        centred = Mul (floats, weight_scale)
        y = Mul (centred, scale)
    }
    """,
)


def has_dynamic_kernel(node: ir.Node) -> bool:
    """Whether the runtimes multiply quantized weights by activations that they quantize themselves, and fast.

    LiteRT has a kernel for depthwise convolutions too, which took three times as long as the float one.
    """
    if node.op_type == "Conv":
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        return node.attributes.get_int("group", 1) == 1 and shape is not None and len(shape) == 4 and shape[0] == 1
    return node.op_type in ("Gemm", "MatMul")


def quantize_dynamically(model: ir.Model, node: ir.Node) -> None:
    """Let a product or convolution read its first operand through a dynamic pair, which all such readers share."""
    value = node.inputs[0]
    assert value is not None
    axes = [1, 2, 3] if node.op_type == "Conv" else [-1]
    node.replace_input_with(0, _known_pair(value, axes) or _new_pair(model, value, axes))


def is_dynamic(node: ir.Node) -> bool:
    """Whether a node's first operand is quantized while the network runs."""
    producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return producer is not None and producer.domain == DOMAIN and producer.op_type == "Dequantize"


def is_behind_dynamic(value: ir.Value) -> bool:
    """Whether something before a value is quantized while the network runs."""
    seen, waiting = set(), [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [given.producer() for given in node.inputs if given is not None]
    return any(node.domain == DOMAIN for node in seen)


def functions_of(graph: ir.Graph) -> list[onnx.FunctionProto]:
    """Return the functions without which no piece of a graph with dynamic pairs runs."""
    return [_parsed(text, graph.opset_imports[""]) for text in _PAIR] if DOMAIN in graph.opset_imports else []


def dynamic_as_integers(model: ir.Model) -> None:
    """Put ONNX Runtime's integer kernels in the place of what reads a dynamic pair, in standard operators, in place."""
    found = [node for node in model.graph if is_dynamic(node)]
    if not found:
        return
    _define(model, _PRODUCTS)
    for node in found:
        _as_integers(model.graph, node)
    passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.InlinePass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.ShapeInferencePass(),
    )(model)


def _known_pair(value: ir.Value, axes: Sequence[int]) -> ir.Value | None:
    for node in value.consumers():
        if (node.domain, node.op_type) == (DOMAIN, "Quantize") and list(node.attributes.get_ints("axes")) == axes:
            return next(iter(node.outputs[0].consumers())).outputs[0]
    return None


def _new_pair(model: ir.Model, value: ir.Value, axes: Sequence[int]) -> ir.Value:
    _define(model, _PAIR)
    name, measured = f"{value.name}.dynamic", list(value.shape or ())
    for axis in axes:
        measured[axis] = 1
    attributes = {"axes": ir.AttrInt64s("axes", axes)}
    quantize = ir.node("Quantize", [value], attributes, domain=DOMAIN, num_outputs=3, name=f"{name}.quantize")
    dequantize = ir.node("Dequantize", quantize.outputs, domain=DOMAIN, name=f"{name}.dequantize")
    _describe(quantize.outputs[0], f"{name}.quantized", ir.DataType.UINT8, value.shape)
    _describe(quantize.outputs[1], f"{name}.scale", ir.DataType.FLOAT, ir.Shape(measured))
    _describe(quantize.outputs[2], f"{name}.zero_point", ir.DataType.FLOAT, ir.Shape(measured))
    _describe(dequantize.outputs[0], f"{name}.dequantized", ir.DataType.FLOAT, value.shape)
    producer = value.producer()
    if producer is not None:
        model.graph.insert_after(producer, [quantize, dequantize])
    else:
        model.graph.insert_before(model.graph[0], [quantize, dequantize])
    return dequantize.outputs[0]


def _as_integers(graph: ir.Graph, node: ir.Node) -> None:
    pair, dequantize = _producer(node, 0), _producer(node, 1)
    weight, scale = (_constant(dequantize, index) for index in (0, 1))
    if node.op_type == "Gemm":
        weight = weight.T  # canonical Gemms have their outputs first
    spread = (-1, 1, 1) if node.op_type == "Conv" else (-1,)
    constants = {"weight": weight, "weight_scale": scale.reshape(spread)}
    if node.op_type != "Conv":
        constants["weight_sum"] = weight.sum(axis=0, dtype=np.float32) * scale
    inputs = [
        *pair.inputs,
        *(_initializer(graph, f"{node.name}.dynamic.{key}", item) for key, item in constants.items()),
    ]
    name, attributes = ("Convolution", node.attributes) if node.op_type == "Conv" else ("Product", {})
    kept = {key: value for key, value in attributes.items() if key != "group"}
    nodes = [ir.node(name, inputs, kept, domain=DOMAIN, name=node.name)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _initializer(graph, f"{node.name}.dynamic.bias", _constant(node, 2).reshape(spread))
        nodes.append(ir.node("Add", [nodes[0].outputs[0], bias], name=f"{node.name}.add"))
        _describe(nodes[0].outputs[0], f"{node.name}.product", ir.DataType.FLOAT, node.outputs[0].shape)
    old, new = node.outputs[0], nodes[-1].outputs[0]
    _describe(new, str(old.name), ir.DataType.FLOAT, old.shape)
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [old], [new])


def _define(model: ir.Model, texts: Sequence[str]) -> None:
    """Add functions to a model, for its opset."""
    opset = model.graph.opset_imports[""]
    for text in texts:
        function = ir.serde.deserialize_function(_parsed(text, opset))
        model.functions[function.identifier()] = function
    model.graph.opset_imports[DOMAIN] = 1


def _parsed(text: str, opset: int) -> onnx.FunctionProto:
    return onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["": {opset}]>{text}')


def _producer(node: ir.Node, index: int) -> ir.Node:
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    assert producer is not None
    return producer


def _constant(node: ir.Node, index: int) -> NDArray[Any]:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _describe(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value.name, value.type, value.shape = name, ir.TensorType(dtype), shape
