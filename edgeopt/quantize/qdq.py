"""Writes the QDQ graph: the float graph with QuantizeLinear/DequantizeLinear pairs, weights as int8.

The result is the single source of truth: every target lowers the scales that stand in it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.version_converter import convert_version

from edgeopt.affine import (
    BLOCK_INT4_MAX,
    INT4_MAX,
    INT8_MAX,
    MIN_SCALE,
    QuantParams,
    per_channel_weight_scales,
    quantize_int8,
    quantize_to,
)
from edgeopt.artifacts import FloatModel, QdqModel, Ranges
from edgeopt.errors import QuantizationError
from edgeopt.quantize.dynamic import OLDEST_OPSET, quantize_dynamically
from edgeopt.quantize.half import weights_as_half
from edgeopt.quantize.names import QuantizedNames, write_names
from edgeopt.quantize.placement import BITS, Bits, Params, QuantizedNode, activation_params, quantized_nodes
from edgeopt.quantize.scheme import Family, Scheme, adapted
from edgeopt.settings import QuantizeSettings

_DTYPES = {"int8": ir.DataType.INT8, "int16": ir.DataType.INT16}
_INT16_OPSET = 21  # from which on QuantizeLinear writes int16
_WHOLE = 1.5e-6  # of a channel's largest: how far from a whole number the folding of a batch norm leaves a weight
_INT32_ROOM = 2**30  # a bias may fill half of int32, so that the accumulator keeps the other half


def quantize(source: FloatModel, ranges: Ranges, scheme: Scheme, settings: QuantizeSettings, out_dir: Path) -> QdqModel:
    """Turn a float graph and its ranges into a QDQ graph under a scheme, or into one with float16 weights.

    Raises:
        QuantizationError: if nothing can be quantized, a weight is not finite or a range is missing.
    """
    model, scheme = ir.load(source.path), adapted(scheme, settings)
    values = (*model.graph.inputs, *(value for node in model.graph for value in node.outputs))
    names = {str(value.name): QuantizedNames(str(value.name), str(value.name)) for value in values}
    if settings.precision == "float16":
        weights_as_half(model.graph)
    else:
        _to_integers(model, ranges, scheme, settings, names)
    path = out_dir / "model.onnx"
    ir.save(model, path)
    write_names(names, out_dir)
    return QdqModel(path, scheme.name)


def _to_integers(
    model: ir.Model,
    ranges: Ranges,
    scheme: Scheme,
    settings: QuantizeSettings,
    names: dict[str, QuantizedNames],
) -> None:
    """Put the Q/DQ pairs into a float graph, and into ``names`` what the tensors that got one are called now.

    A tensor between an operator and the activation that it absorbs is gone from ``names``: no kernel writes it.
    """
    graph = model.graph
    if "dynamic" in (settings.precision, *settings.nodes.values()) and graph.opset_imports[""] < OLDEST_OPSET:
        convert_version(model, OLDEST_OPSET)
    canonical_gemms(graph)
    nodes = quantized_nodes(graph, scheme, settings)
    if not any(item.family is Family.WEIGHTED for item in nodes):
        raise QuantizationError(
            "the graph has no convolution or matrix product with constant weights to quantize",
            hint="quantize.nodes leaves none over, or the network is not one that int8 helps",
        )
    writer = _QdqWriter(graph, activation_params(nodes, ranges, scheme), scheme)
    for item in nodes:
        if item.precision == "dynamic":
            writer.quantize_weights(item.node, None)
            quantize_dynamically(model, item.node)
        else:
            writer.quantize_node(item, item.precision)
    _drop_unused_initializers(graph)  # the float weights
    if any(item.precision == "int16" for item in nodes) and graph.opset_imports[""] < _INT16_OPSET:
        convert_version(model, _INT16_OPSET)
    for item in nodes:
        if item.writes and item.writes[0] is not item.node.outputs[0]:
            del names[str(item.node.outputs[0].name)]
    names |= writer.names()


class _QdqWriter:
    """Puts Q/DQ pairs into one graph; each activation gets one pair that all of its readers of one precision share.

    A reader of another precision than the writer's reads through a second pair behind the first.
    """

    def __init__(self, graph: ir.Graph, params: Params, scheme: Scheme) -> None:
        self._graph = graph
        self._params = params
        self._scheme = scheme
        self._dequantized: dict[tuple[ir.Value, Bits], ir.Value] = {}
        self._written: dict[ir.Value, ir.Value] = {}  # what an integer operator wrote, dequantized
        self._source: dict[ir.Value, ir.Value] = {}  # the float graph's tensor behind a pair
        self._first: dict[str, tuple[ir.Value, ir.Value]] = {}  # integers and result of each tensor's first pair

    def names(self) -> dict[str, QuantizedNames]:
        """Return the record of what the tensors of the float graph became."""
        return {name: QuantizedNames(str(q.name), str(real.name)) for name, (q, real) in self._first.items()}

    def quantize_node(self, item: QuantizedNode, bits: Bits) -> None:
        """Route one node's activations through Q/DQ and quantize its constants."""
        node = item.node
        for index, value in enumerate(node.inputs):
            source = None if value is None else self._source.get(value, value)
            if source is not None and any(source is read for read in item.reads):
                node.replace_input_with(index, self._read(node, source, bits))
        if item.family is Family.WEIGHTED:
            self.quantize_weights(node, self._params[bits][item.reads[0]])
        if self._scheme.outputs:
            for value in item.writes:
                self._written[value] = self._pair(value, bits)

    def _read(self, node: ir.Node, value: ir.Value, bits: Bits) -> ir.Value:
        return self._pair(value, bits) if value.const_value is None else self._constant(node, value, bits)

    def _pair(self, value: ir.Value, bits: Bits) -> ir.Value:
        """Return what ``value`` is after a Q/DQ pair, which it gets if it has none of this precision.

        Where the scheme quantizes results, all readers and the graph output take the first pair of a tensor.
        """
        if (value, bits) in self._dequantized:
            return self._dequantized[value, bits]
        is_first = all((value, other) not in self._dequantized for other in BITS)
        name = str(value.name) if is_first else f"{value.name}.{bits}"
        params, before = self._params[bits][value], self._written.get(value, value)
        scale = self._initializer(f"{name}.scale", np.float32(params.scale))
        zero_point = self._initializer(f"{name}.zero_point", np.dtype(bits).type(params.zero_point))
        quantize = ir.node("QuantizeLinear", [before, scale, zero_point], name=f"{name}.quantize")
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero_point], name=f"{name}.dequantize")
        result = _typed(dequantize.outputs[0], f"{name}.dequantized", ir.DataType.FLOAT, value.shape)
        _typed(quantize.outputs[0], f"{name}.quantized", _DTYPES[bits], value.shape)
        if is_first:
            self._first[str(value.name)] = quantize.outputs[0], result
        if is_first and self._scheme.outputs:
            self._replace_everywhere(value, result, quantize)
        self._insert(before, [quantize, dequantize])
        self._dequantized[value, bits] = result
        self._source[result] = value
        return result

    def _replace_everywhere(self, value: ir.Value, result: ir.Value, quantize: ir.Node) -> None:
        for use in list(value.uses()):
            if use.node is not quantize:
                use.node.replace_input_with(use.idx, result)
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                name = value.name
                value.name, result.name = f"{name}.float", name
                self._graph.outputs[index] = result

    def _insert(self, value: ir.Value, nodes: list[ir.Node]) -> None:
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, nodes)
        else:
            self._graph.insert_before(self._graph[0], nodes)

    def _constant(self, node: ir.Node, value: ir.Value, bits: Bits) -> ir.Value:
        """Quantize a constant operand of an elementwise operator, per tensor."""
        params = self._params[bits][value]
        integers = quantize_to(bits, _array(value), params.scale, params.zero_point)
        zero_point = np.dtype(bits).type(params.zero_point)
        return self._stored(node, str(value.name), integers, np.float32(params.scale), zero_point)

    def quantize_weights(self, node: ir.Node, activation: QuantParams | None) -> None:
        """Quantize a node's weights, and its bias if kernels add it to products with a scale that is known."""
        weight_value = _given(node, 1)
        axis = self._scheme.weight_axes.get(node.op_type)
        weight = _array(weight_value)
        bias_value = node.inputs[2] if len(node.inputs) > 2 else None
        bias = None if bias_value is None else _array(bias_value)
        scales = _weight_scales(weight, axis, self._scheme.largest_weight)
        if bias is not None and activation is not None and self._scheme.integer_bias:
            scales = _wide_enough_for_bias(scales, bias, activation.scale)
        integers = quantize_int8(weight, _along(scales, axis, weight.ndim), low=-INT8_MAX)
        zeros = np.zeros(scales.shape, np.int8)
        name = str(weight_value.name)
        node.replace_input_with(1, self._stored(node, name, integers, scales, zeros, axis))
        if bias is not None and bias_value is not None and activation is not None and self._scheme.integer_bias:
            # LiteRT and ONNX Runtime add the bias to the accumulator, whose scale is this product.
            # The groups of a ConvTranspose share one list of scales.
            bias_scales = np.resize(np.float32(activation.scale) * scales, bias.shape).astype(np.float32)
            steps = np.rint(bias.astype(np.float64) / bias_scales.astype(np.float64)).astype(np.int32)
            zeros32 = np.zeros(bias.shape, np.int32)
            stored = self._stored(node, f"{name}.{bias_value.name}", steps, bias_scales, zeros32, 0)
            node.replace_input_with(2, stored)

    def _stored(
        self,
        node: ir.Node,
        name: str,
        integers: NDArray[np.integer],
        scale: NDArray[np.float32] | np.float32,
        zero_point: NDArray[np.integer] | np.integer,
        axis: int | None = None,
    ) -> ir.Value:
        """Store integers as an initializer and return what its DequantizeLinear gives to ``node``."""
        stem = f"{node.name}.{name}"
        stored = self._initializer(f"{stem}.quantized", integers)
        scale_value = self._initializer(f"{stem}.scale", scale)
        zero_value = self._initializer(f"{stem}.zero_point", zero_point)
        attributes = {} if axis is None else {"axis": axis % np.ndim(integers)}
        dequantize = ir.node(
            "DequantizeLinear", [stored, scale_value, zero_value], attributes=attributes, name=f"{stem}.dequantize"
        )
        self._graph.insert_before(node, dequantize)
        shape = ir.Shape(integers.shape)
        return _typed(dequantize.outputs[0], f"{stem}.dequantized", ir.DataType.FLOAT, shape)

    def _initializer(self, name: str, data: NDArray[np.generic] | np.generic) -> ir.Value:
        tensor = ir.tensor(np.asarray(data), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(np.shape(data)), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value


def canonical_gemms(graph: ir.Graph) -> None:
    """Give every Gemm with constant weights ``transB == 1`` and ``alpha == beta == 1``, so that channels are axis 0."""
    for node in graph:
        if node.op_type != "Gemm" or node.inputs[1] is None or node.inputs[1].const_value is None:
            continue
        weight = _array(node.inputs[1]) * np.float32(_float_attribute(node, "alpha", 1.0))
        if not _integer_attribute(node, "transB", 0):
            weight = np.ascontiguousarray(weight.T)
        node.replace_input_with(1, _constant_value(graph, f"{node.name}.weight", weight))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and bias.const_value is not None:
            data = _array(bias) * np.float32(_float_attribute(node, "beta", 1.0))
            flat = np.broadcast_to(data.reshape(-1), (weight.shape[0],)).astype(np.float32)
            node.replace_input_with(2, _constant_value(graph, f"{node.name}.bias", flat))
        for key, attribute in (("transB", ir.AttrInt64("transB", 1)), ("alpha", None), ("beta", None)):
            node.attributes.pop(key, None)
            if attribute is not None:
                node.attributes[key] = attribute
    _drop_unused_initializers(graph)


def _drop_unused_initializers(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _constant_value(graph: ir.Graph, name: str, data: NDArray[np.float32]) -> ir.Value:
    tensor = ir.tensor(data, name=name)
    value = ir.Value(name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _wide_enough_for_bias(
    scales: NDArray[np.float32], bias: NDArray[np.float32], activation_scale: float
) -> NDArray[np.float32]:
    """Widen the weight scale of a channel whose bias would not fit int32: its weights are as good as zero."""
    needed = np.abs(bias.astype(np.float64)) / (activation_scale * _INT32_ROOM)
    needed = needed.reshape(-1, scales.size).max(axis=0).reshape(scales.shape)
    return np.asarray(np.maximum(scales, np.maximum(needed, MIN_SCALE)), np.float32)


def _along(scales: NDArray[np.float32], axis: int | None, rank: int) -> NDArray[np.float32]:
    """Shape scales so that they broadcast along ``axis`` of a weight with ``rank`` axes."""
    if axis is None:
        return scales
    shape = [1] * rank
    shape[axis] = -1
    return scales.reshape(shape)


def _weight_scales(weight: NDArray[np.float32], axis: int | None, largest: int) -> NDArray[np.float32]:
    """Return the scales of weights along ``axis``, or one for all of them.

    Weights that were trained as integers of 4 bits, or three values, or two, keep those: they are whole sevenths of
    their largest, or 126ths where blocks have factors.
    """
    if axis is None:
        return _weight_scales(weight.reshape(1, -1), 0, largest).reshape(())
    for coarsest in (INT4_MAX, BLOCK_INT4_MAX):
        coarse = per_channel_weight_scales(weight, axis, coarsest)
        steps = weight / _along(coarse, axis, weight.ndim)
        is_whole = np.abs(steps - np.rint(steps)).max() < _WHOLE * coarsest
        if coarsest <= largest and len(coarse) < weight.size and is_whole:
            return coarse
    return per_channel_weight_scales(weight, axis, largest)


def _typed(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    value.name, value.type, value.shape = name, ir.TensorType(dtype), shape
    return value


def _array(value: ir.Value) -> NDArray[np.float32]:
    if value.const_value is None:
        raise QuantizationError(f"{value.name!r} is not a constant")
    data = np.asarray(value.const_value.numpy(), np.float32)
    if not np.isfinite(data).all():
        raise QuantizationError(f"constant {value.name!r} has NaN or infinite values")
    return data


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise QuantizationError(f"{node.op_type} {node.name!r} has no input {index}")
    return value


def _integer_attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _float_attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()
