"""Small float graphs, ranges for all of their tensors, and the numbers that stand in a QDQ graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.artifacts import FloatModel, Ranges, TensorRange
from edgeopt.export import float_model
from edgeopt.quantize.qdq import quantize
from edgeopt.quantize.scheme import ASYMMETRIC, Scheme
from edgeopt.session import OnnxSession
from edgeopt.settings import QuantizeSettings


def node(op_type: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    """Return a node that has the name of its output; ``inputs`` are names with spaces between."""
    return helper.make_node(op_type, inputs.split(), [output], name=f"{op_type}_{output}", **attributes)


def write_graph(
    folder: Path,
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    shape: tuple[int, ...] = (1, 3, 4, 4),
    outputs: tuple[str, ...] = ("y",),
) -> FloatModel:
    """Write a float graph with the input ``x``."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, shape)], [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / "float.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), str(path))
    return float_model(path)


def quantized(
    source: FloatModel,
    ranges: Mapping[str, tuple[float, float]],
    scheme: Scheme = ASYMMETRIC,
    float_nodes: tuple[str, ...] = (),
    nodes: Mapping[str, str] | None = None,
    precision: str = "int8",
) -> onnx.ModelProto:
    """Quantize a graph; tensors without a given range have [-1, 1]."""
    described = onnx.load(str(source.path)).graph
    names = [value.name for value in (*described.input, *described.value_info, *described.output)]
    found = {name: TensorRange(*ranges.get(name, (-1.0, 1.0))) for name in names}
    settings = QuantizeSettings(precision, nodes={**dict.fromkeys(float_nodes, "float"), **(nodes or {})})
    made = quantize(source, Ranges(source.path, found, 1), scheme, settings, source.path.parent)
    model = onnx.load(str(made.path))
    onnx.checker.check_model(model, full_check=True)
    return model


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return every initializer by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def activations(model: onnx.ModelProto) -> dict[str, tuple[float, int]]:
    """Return scale and zero-point of every quantized activation by the float tensor's name."""
    constants = constants_of(model)
    return {
        item.input[0].removesuffix(".float"): (float(constants[item.input[1]]), int(constants[item.input[2]]))
        for item in model.graph.node
        if item.op_type == "QuantizeLinear"
    }


def dequantizer(model: onnx.ModelProto, op_type: str, index: int) -> tuple[onnx.NodeProto, list[np.ndarray]]:
    """Return what dequantizes an input of the one node of a type: the node, and its integers, scale, zero-point."""
    (user,) = [item for item in model.graph.node if item.op_type == op_type]
    (found,) = [item for item in model.graph.node if item.output[0] == user.input[index]]
    assert found.op_type == "DequantizeLinear"
    constants = constants_of(model)
    return found, [constants[name] for name in found.input]


def axis_of(item: onnx.NodeProto) -> int | None:
    """Return a node's ``axis`` attribute."""
    return next((attribute.i for attribute in item.attribute if attribute.name == "axis"), None)


def answers(model: onnx.ModelProto, x: np.ndarray, *, optimize: bool = False) -> list[np.ndarray]:
    """Run a graph in ONNX Runtime, as it is written unless ``optimize``."""
    return list(OnnxSession(model.SerializeToString(), optimize=optimize).run({"x": x}).values())
