"""Small ONNX graphs, float and QDQ, written out by hand with onnx.helper."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18


class GraphWriter:
    """Collects nodes and initializers; method calls return names of values."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.random = np.random.default_rng(seed)

    def constant(self, array: Any, name: str = "") -> str:
        name = name or f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=f"node_{output}", **attributes))
        return output

    def input(self, name: str, shape: tuple[int | str, ...], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str) -> None:
        self.outputs.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))

    def quantized(self, value: str, scale: float, zero_point: int, name: str = "") -> str:
        """Put a QuantizeLinear/DequantizeLinear pair behind ``value``."""
        params = [self.constant(np.float32(scale)), self.constant(np.int8(zero_point))]
        quantized = self.node("QuantizeLinear", value, *params)
        return self.node("DequantizeLinear", quantized, *params, name=name)

    def weight(self, shape: tuple[int, ...], scales: Any, axis: int = 0) -> str:
        """Int8 weights, one scale a channel or one for all, behind a DequantizeLinear."""
        array = self.random.integers(-127, 128, shape).astype(np.int8)
        scales = np.asarray(scales, np.float32)
        inputs = [self.constant(array), self.constant(scales), self.constant(np.zeros(scales.shape, np.int8))]
        return self.node("DequantizeLinear", *inputs, **({"axis": axis} if scales.ndim else {}))

    def bias(self, scales: Any) -> str:
        """An int32 bias in the units of the products."""
        scales = np.asarray(scales, np.float32)
        array = self.random.integers(-2000, 2000, scales.shape).astype(np.int32)
        return self.node("DequantizeLinear", self.constant(array), self.constant(scales), axis=0)

    def model(self, opset: int = OPSET) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "graph", self.inputs, self.outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model)
        return model


def channel_scales(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.002, 0.01, count).astype(np.float32)


def quantized_convolution(
    write: GraphWriter, source: str, source_scale: float, shape: tuple[int, ...], **attributes: Any
) -> str:
    """A Conv with int8 weights and int32 bias; its result is not quantized yet."""
    scales = channel_scales(shape[0])
    weight, bias = write.weight(shape, scales), write.bias(np.float32(source_scale) * scales)
    return write.node("Conv", source, weight, bias, **attributes)


def one_operator(
    op_type: str, *shapes: tuple[int | str, ...], opset: int = OPSET, **attributes: Any
) -> onnx.ModelProto:
    """A float graph of one operator whose operands are all inputs."""
    write = GraphWriter()
    names = [write.input(f"x{i}", shape) for i, shape in enumerate(shapes)]
    write.output(write.node(op_type, *names, name="y", **attributes))
    return write.model(opset)


def small_residual_net(batch: int | str = 1) -> onnx.ModelProto:
    """Quantized: padded strided stem, depthwise, residual Add, average, Flatten, classifier."""
    write = GraphWriter()
    x = write.quantized(write.input("image", (batch, 3, 16, 16)), 0.02, -3)
    stem = write.node("Relu", quantized_convolution(write, x, 0.02, (8, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]))
    stem = write.quantized(stem, 0.05, -128)
    inner = write.node("Relu", quantized_convolution(write, stem, 0.05, (8, 1, 3, 3), group=8, pads=[1, 1, 1, 1]))
    inner = write.quantized(inner, 0.11, -128)
    inner = write.quantized(quantized_convolution(write, inner, 0.11, (8, 8, 1, 1)), 0.31, 7)
    added = write.quantized(write.node("Add", stem, inner), 0.33, -11)
    average = write.quantized(write.node("GlobalAveragePool", added), 0.2, -5)
    flat = write.quantized(write.node("Flatten", average), 0.2, -5)
    scales = channel_scales(10)
    product = write.node("Gemm", flat, write.weight((10, 8), scales), write.bias(np.float32(0.2) * scales), transB=1)
    write.output(write.quantized(product, 0.1, 4, name="logits"))
    return write.model()
