"""Transposed convolutions as convolutions whose channels become pixels, which ONNX Runtime has x86 kernels for.

A transposed convolution with stride ``s`` writes, for each place of its input, ``s * s`` neighbouring pixels, each with
the taps of the kernel that fall on it. So the same numbers come from a convolution with ``s * s`` times the channels
and ``ceil(kernel / s)`` taps an axis, DepthToSpace behind it, and a Slice where there are pads. ONNX Runtime 1.31 has
no integer ConvTranspose: it adds up floats, where LiteRT adds up integers, and a sum near a tie comes out one step
apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_END = np.iinfo(np.int64).max


def transposed_as_subpixels(graph: ir.Graph) -> None:
    """Rewrite every quantized ConvTranspose over pictures that has one group, one stride and no dilation."""
    for node in list(graph):
        if node.op_type == "ConvTranspose":
            geometry, quantize = _geometry(node), _quantizer_behind(node.outputs[0])
            if geometry is not None and quantize is not None:
                _write(graph, node, geometry, quantize)


@dataclass(frozen=True)
class _Geometry:
    """Stride, taps an axis of the convolution, and how many rows and columns are cut off in front and behind."""

    stride: int
    taps: tuple[int, int]
    before: tuple[int, int]
    behind: tuple[int, int]

    @classmethod
    def of(cls, stride: int, kernel: list[int], pads: list[int], extra: list[int]) -> _Geometry:
        needed = [max(size, size + more - pad) for size, more, pad in zip(kernel, extra, pads[2:], strict=True)]
        taps = [-(-size // stride) for size in needed]
        behind = [n * stride - k + p - e for n, k, p, e in zip(taps, kernel, pads[2:], extra, strict=True)]
        return cls(stride, (taps[0], taps[1]), (pads[0], pads[1]), (behind[0], behind[1]))


def _geometry(node: ir.Node) -> _Geometry | None:
    weight = _stored(node, 1)
    has_float_bias = len(node.inputs) > 2 and node.inputs[2] is not None and _stored(node, 2) is None
    if weight is None or weight.ndim != 4 or has_float_bias or "output_shape" in node.attributes:
        return None
    strides, dilations, extra = (
        list(node.attributes.get_ints(name, default))
        for name, default in (("strides", [1, 1]), ("dilations", [1, 1]), ("output_padding", [0, 0]))
    )
    plain = node.attributes.get_int("group", 1) == 1 and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    if not plain or strides[0] != strides[1] or max(dilations) > 1:
        return None
    pads = list(node.attributes.get_ints("pads", [0, 0, 0, 0]))
    return _Geometry.of(strides[0], list(weight.shape[2:]), pads, extra)


def _stored(node: ir.Node, index: int) -> NDArray[np.integer] | None:
    """Return the integers of a constant operand, or ``None`` if it is not a quantized constant."""
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    stored = producer.inputs[0]
    return None if stored is None or stored.const_value is None else stored.const_value.numpy()


def _quantizer_behind(value: ir.Value) -> ir.Node | None:
    """Return the QuantizeLinear that alone reads ``value``, past an activation function."""
    uses = list(value.uses())
    if len(uses) != 1 or uses[0].idx != 0 or value.is_graph_output():
        return None
    node = uses[0].node
    if node.op_type in ("Relu", "Clip"):
        return _quantizer_behind(node.outputs[0])
    return node if node.op_type == "QuantizeLinear" else None


def _write(graph: ir.Graph, node: ir.Node, geometry: _Geometry, quantize: ir.Node) -> None:
    (rows, columns), repeats = geometry.taps, geometry.stride**2
    inputs = [node.inputs[0], _dequantized(graph, node, 1, subpixel_weights(_integers(node, 1), geometry), repeats)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        inputs.append(_dequantized(graph, node, 2, np.tile(_integers(node, 2), repeats), repeats))
    attributes = {"kernel_shape": (rows, columns), "pads": (rows - 1, columns - 1) * 2}
    convolution = ir.node("Conv", inputs, attributes, name=node.name)
    result, old = convolution.outputs[0], node.outputs[0]
    result.name, result.type = f"{old.name}_subpixels", old.type
    graph.insert_before(node, convolution)
    old.replace_all_uses_with(result)
    graph.remove(node, safe=True)
    _spread(graph, geometry, quantize)


def _integers(node: ir.Node, index: int) -> NDArray[np.integer]:
    stored = _stored(node, index)
    assert stored is not None
    return stored


def _dequantized(graph: ir.Graph, node: ir.Node, index: int, integers: NDArray[np.integer], repeats: int) -> ir.Value:
    """Return other integers under an operand's scales, those of the channels repeated as the channels are."""
    operand = node.inputs[index]
    producer = operand.producer() if operand is not None else None
    assert producer is not None
    arrays = [integers]
    for value in producer.inputs[1:]:
        assert value is not None
        assert value.const_value is not None
        parameters = value.const_value.numpy()
        arrays.append(parameters if parameters.size == 1 else np.tile(parameters, repeats))
    inputs = [_initializer(graph, f"{node.name}_{index}_{place}", array) for place, array in enumerate(arrays)]
    attributes = {} if arrays[1].size == 1 else {"axis": 0}
    again = ir.node("DequantizeLinear", inputs, attributes, name=f"{producer.name}_subpixels")
    again.outputs[0].name, again.outputs[0].type = f"{node.name}_{index}_dequantized", ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(node, again)
    return again.outputs[0]


def _initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _spread(graph: ir.Graph, geometry: _Geometry, quantize: ir.Node) -> None:
    """Put DepthToSpace and Slice behind a quantized result, between a pair with the same scale."""
    stored, parameters = quantize.outputs[0], quantize.inputs[1:]
    readers = list(stored.uses())
    nodes = [ir.node("DequantizeLinear", [stored, *parameters], name=f"{quantize.name}_subpixels")]
    if geometry.stride > 1:
        block = {"blocksize": ir.AttrInt64("blocksize", geometry.stride), "mode": ir.AttrString("mode", "DCR")}
        nodes.append(ir.node("DepthToSpace", nodes[-1].outputs, block, name=f"{quantize.name}_pixels"))
    if any((*geometry.before, *geometry.behind)):
        ends = [-size or _END for size in geometry.behind]
        given = (("start", geometry.before), ("end", ends), ("axes", (2, 3)))
        bounds = [_initializer(graph, f"{quantize.name}_{name}", np.array(values)) for name, values in given]
        nodes.append(ir.node("Slice", [nodes[-1].outputs[0], *bounds], name=f"{quantize.name}_cut"))
    nodes.append(ir.node("QuantizeLinear", [nodes[-1].outputs[0], *parameters], name=f"{quantize.name}_again"))
    for index, node in enumerate(nodes):
        node.outputs[0].name = f"{stored.name}_{index}"
        node.outputs[0].type = stored.type if node.op_type == "QuantizeLinear" else ir.TensorType(ir.DataType.FLOAT)
    nodes[-1].outputs[0].shape, stored.shape = stored.shape, None
    value = quantize.inputs[0]
    while value is not None and (producer := value.producer()) is not None and producer.op_type != "Conv":
        value.shape, value = None, producer.inputs[0]  # an activation function works on the channels now
    graph.insert_after(quantize, nodes)
    for use in readers:
        use.node.replace_input_with(use.idx, nodes[-1].outputs[0])


def subpixel_weights(weight: NDArray[np.integer], geometry: _Geometry) -> NDArray[np.integer]:
    """Return IOHW weights as OIHW ones ``(s * s * O, I, rows, columns)``, in the order of DepthToSpace's DCR."""
    stride, (rows, columns) = geometry.stride, geometry.taps
    inputs, outputs, height, width = weight.shape
    padded = np.zeros((inputs, outputs, rows * stride, columns * stride), weight.dtype)
    padded[:, :, :height, :width] = weight
    taps = padded.reshape(inputs, outputs, rows, stride, columns, stride)[:, :, ::-1, :, ::-1, :]
    return taps.transpose(3, 5, 1, 0, 2, 4).reshape(stride * stride * outputs, inputs, rows, columns)
