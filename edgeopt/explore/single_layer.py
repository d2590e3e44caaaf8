"""One layer as a .tflite file of its own, in int8, as the lowering writes it: what is measured on a target."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgeopt.explore.layers import Layer
from edgeopt.tflite.lower import lower

_OPSET, _IR_VERSION = 18, 9
_SCALE = 0.05  # neither weights nor scales change which code runs
_OP_TYPES = {
    "conv": "Conv",
    "depthwise_conv": "Conv",
    "linear": "Gemm",
    "max_pool": "MaxPool",
    "average_pool": "AveragePool",
}


def as_tflite(layer: Layer) -> bytes:
    """Return a model of one layer, quantized under the scheme of ``arm64``, images channels last."""
    graph = ir.from_proto(_qdq_graph(layer))
    layouts: Any = {} if layer.kind == "linear" else {"x": "NHWC"}
    return lower(graph, input_layouts=layouts, output_layouts={"y": "NHWC"} if layouts else {})


def _qdq_graph(layer: Layer) -> onnx.ModelProto:
    """Return ``x -> Q -> DQ -> layer -> Q -> DQ -> y`` with int8 weights and an int32 bias."""
    is_linear = layer.kind == "linear"
    shape = (layer.in_size[1], layer.in_channels) if is_linear else (1, layer.in_channels, *layer.in_size)
    constants: dict[str, Any] = {"scale": np.float32(_SCALE), "zero_point": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["x_integer"]),
        helper.make_node("DequantizeLinear", ["x_integer", "scale", "zero_point"], ["x_real"]),
    ]
    inputs = ["x_real"]
    if not layer.kind.endswith("pool"):
        weights = (layer.out_channels, layer.in_channels // layer.groups, *(() if is_linear else layer.kernel))
        scales = np.full(layer.out_channels, _SCALE, np.float32)
        constants |= {
            "weight_integer": np.random.default_rng(0).integers(-127, 128, weights, np.int8),
            "weight_scales": scales,
            "weight_zero_points": np.zeros(layer.out_channels, np.int8),
            "bias_integer": np.zeros(layer.out_channels, np.int32),
            "bias_scales": scales * np.float32(_SCALE),
        }
        of_weight = ["weight_integer", "weight_scales", "weight_zero_points"]
        nodes += [
            helper.make_node("DequantizeLinear", of_weight, ["weight"], axis=0),
            helper.make_node("DequantizeLinear", ["bias_integer", "bias_scales"], ["bias"], axis=0),
        ]
        inputs += ["weight", "bias"]
    nodes += [
        helper.make_node(_OP_TYPES[layer.kind], inputs, ["result"], name="layer", **_attributes(layer)),
        helper.make_node("QuantizeLinear", ["result", "scale", "zero_point"], ["y_integer"]),
        helper.make_node("DequantizeLinear", ["y_integer", "scale", "zero_point"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def _attributes(layer: Layer) -> dict[str, Any]:
    if layer.kind == "linear":
        return {"transB": 1}
    window = {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": layer.padding}
    if layer.kind == "average_pool":
        return window
    if layer.kind == "max_pool":
        return {**window, "dilations": layer.dilation}
    return {**window, "dilations": layer.dilation, "group": layer.groups}
