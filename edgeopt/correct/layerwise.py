"""Walks a QDQ graph layer by layer with calibration samples, so that each layer is mended on what it really gets.

What a layer reads has been quantized, and has gone through the layers before as they are after their own mending.
Each piece of the graph between two layers runs once on each sample; only tensors that are still read are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.correct.operands import constant, is_constant
from edgeopt.quantize.dynamic import functions_of
from edgeopt.quantize.qdq import canonical_gemms
from edgeopt.session import OnnxSession

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_IR_VERSION = 10  # ONNX Runtime refuses the newest that onnx would write

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Layer:
    """A weighted node of the QDQ graph, its float weights, and what it reads on each sample, on the quantized grid."""

    node: ir.Node
    weights: NDArray[np.float32]
    inputs: Sequence[NDArray[np.float32]]

    def products(self, weights: NDArray[np.floating]) -> Iterator[NDArray[np.float32]]:
        """Yield what the layer would compute on each sample with other weights and without a bias."""
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(self.node.op_type, ["x", "weights"], ["y"])],
            "layer",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(weights.astype(np.float32), "weights")],
        )
        graph.node[0].attribute.extend(ir.to_proto(self.node).attribute)
        session = _opened(graph, self.node)
        for array in self.inputs:
            yield np.asarray(session.run({"x": array})["y"], np.float32)


def float_weights(graph: ir.Graph) -> Mapping[str, NDArray[np.float32]]:
    """Return the weights of each layer of the float graph by the node's name, laid out as in the QDQ graph."""
    canonical_gemms(graph)
    layers = (node for node in graph if node.op_type in WEIGHTED and is_constant(node, 1))
    return {str(node.name): np.asarray(constant(node, 1), np.float32) for node in layers}


def layers(
    model: ir.Model, weights: Mapping[str, NDArray[np.float32]], samples: Sequence[Mapping[str, Array]]
) -> Iterator[Layer]:
    """Yield each layer with quantized constant weights, in graph order; what the caller changes holds from there on.

    Args:
        model: the QDQ graph.
        weights: from :func:`float_weights`.
        samples: inputs by name; each tensor that is still read is kept for all of them, so a few dozen.
    """
    nodes = [node for node in model.graph if not _is_stored(node)]
    live: list[dict[str, Array]] = [dict(sample) for sample in samples]
    known = {str(value.name): value for value in model.graph.inputs}
    begin = 0
    for index, node in enumerate(nodes):
        if not is_layer(node):
            continue
        _advance(nodes[begin:index], nodes[index:], known, live, model.graph)
        begin = index
        name = str(node.inputs[0].name) if node.inputs[0] is not None else ""
        if name in live[0] and str(node.name) in weights:
            yield Layer(node, weights[str(node.name)], [np.asarray(sample[name], np.float32) for sample in live])


def is_layer(node: ir.Node) -> bool:
    """Whether a node multiplies what it reads by constants that are stored as integers."""
    if node.op_type not in WEIGHTED or node.inputs[1] is None:
        return False
    producer = node.inputs[1].producer()
    return producer is not None and _is_stored(producer)


def stored_constant(node: ir.Node, index: int) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Return the integers that an operand is dequantized from, and their scale."""
    stored, scale = (_parameter(node, index, place).const_value for place in (0, 1))
    assert stored is not None
    assert scale is not None
    return stored.numpy(), scale.numpy().astype(np.float64)


def dequantized(node: ir.Node, index: int) -> NDArray[np.float64]:
    """Return what stored weights stand for; their zero point is 0."""
    integers, scale = stored_constant(node, index)
    operand = node.inputs[index]
    producer = operand.producer() if operand is not None else None
    assert producer is not None
    shape = [1] * integers.ndim
    if scale.ndim:
        shape[producer.attributes.get_int("axis", 1)] = -1
    real: NDArray[np.float64] = integers.astype(np.float64) * scale.reshape(shape)
    return real


def set_stored_constant(node: ir.Node, index: int, integers: NDArray[np.generic]) -> None:
    """Put other integers in the place of those that an operand is dequantized from."""
    value = _parameter(node, index, 0)
    assert value.const_value is not None
    array = np.ascontiguousarray(integers).astype(value.const_value.dtype.numpy())
    value.const_value = ir.tensor(array, name=value.name)


def _parameter(node: ir.Node, index: int, place: int) -> ir.Value:
    """Return the integers, the scale or the zero point of the DequantizeLinear behind an operand."""
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    parameter = producer.inputs[place] if producer is not None else None
    assert parameter is not None
    return parameter


def _is_stored(node: ir.Node) -> bool:
    """Whether a node only dequantizes a constant, which may change until the node behind it runs."""
    stored = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    return stored is not None and stored.const_value is not None


def _advance(
    piece: Sequence[ir.Node],
    rest: Sequence[ir.Node],
    known: dict[str, ir.Value],
    live: list[dict[str, Array]],
    graph: ir.Graph,
) -> None:
    """Run a piece of the graph on every sample and keep what the rest of it reads."""
    read_later = {str(value.name) for node in rest for value in node.inputs if value is not None}
    written = {str(value.name): value for node in piece for value in node.outputs}
    wanted = [value for name, value in written.items() if name in read_later]
    read = {str(value.name) for node in piece for value in node.inputs if value is not None}
    inputs = {name: value for name, value in known.items() if name in read and name in live[0]}
    if wanted:
        session = _session(piece, inputs, wanted)
        for sample in live:
            sample.update(session.run({name: sample[name] for name in inputs}))
    for sample in live:
        for name in [name for name in sample if name not in read_later]:
            del sample[name]
    known.update(written)


def _session(nodes: Sequence[ir.Node], inputs: Mapping[str, ir.Value], outputs: Sequence[ir.Value]) -> OnnxSession:
    around = (value.producer() for node in nodes for value in node.inputs if value is not None)
    nodes = [*dict.fromkeys(node for node in around if node is not None and _is_stored(node)), *nodes]
    written = {value for node in nodes for value in node.outputs}
    constants = {
        str(value.name): value.const_value
        for node in nodes
        for value in node.inputs
        if value is not None and value.const_value is not None and value not in written
    }
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "piece",
        [ir.to_proto(value) for value in inputs.values()],
        [ir.to_proto(value) for value in outputs],
        [ir.to_proto(tensor) for tensor in constants.values()],
    )
    return _opened(graph, nodes[-1])


def _opened(graph: onnx.GraphProto, node: ir.Node) -> OnnxSession:
    """Open a graph as it is written, in the opsets of the graph that a node is from."""
    owner = node.graph
    opsets = [onnx.helper.make_opsetid(*item) for item in (owner.opset_imports if owner is not None else {}).items()]
    functions = functions_of(owner) if isinstance(owner, ir.Graph) else []
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, functions=functions)
    return OnnxSession(model.SerializeToString(), optimize=False)
