"""Graphs and bytes that are broken on purpose: a clear error each, never a crash, never a file that lies."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tflite_graphs import GraphWriter, small_residual_net
from tflite_runtimes import lowered, random_feeds, run_tflite

import edgeopt
from edgeopt.errors import EdgeoptError, LoweringError

SECONDS = 10  # of each fuzz run


def quantized_relu(scale: object = 0.02, point: object = np.int8(3)) -> onnx.ModelProto:
    write = GraphWriter()
    x = write.input("x", (1, 4))
    parameters = [write.constant(np.asarray(scale, np.float32)), write.constant(np.asarray(point))]
    quantized = helper.make_node("QuantizeLinear", [x, *parameters], ["q"], name="quantize")
    again = helper.make_node("DequantizeLinear", ["q", *parameters], ["y"], name="dequantize")
    write.nodes += [quantized, again]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4))]
    graph = helper.make_graph(write.nodes, "g", write.inputs, outputs, write.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("scale", [0.0, -0.02, np.nan, np.inf, -np.inf, [0.02, 0.03], []])
def test_lower_refuses_when_a_scale_is_none(scale):
    with pytest.raises(LoweringError, match="QuantizeLinear 'quantize'"):
        lowered(quantized_relu(scale))


@pytest.mark.parametrize("point", [np.uint16(3), np.int32(3), np.int16(3), np.array([1, 2], np.int8)])
def test_lower_refuses_when_a_zero_point_is_none_that_kernels_take(point):
    with pytest.raises(EdgeoptError, match="QuantizeLinear"):
        lowered(quantized_relu(point=point))


@pytest.mark.parametrize("scale", [np.nan, 0.0, -1.0, np.inf])
@pytest.mark.parametrize("index", [0, 1])
def test_lower_refuses_when_a_weight_has_no_scale(scale, index):
    scales = np.full(3, 0.01, np.float32)
    scales[index] = scale
    write = GraphWriter()
    x = write.quantized(write.input("x", (1, 4)), 0.02, 0)
    write.output(write.quantized(write.node("Gemm", x, write.weight((3, 4), scales), transB=1), 0.1, 0, name="y"))
    with pytest.raises(LoweringError, match="scale"):
        lowered(write.model())


def graph_of(*nodes: onnx.NodeProto, shape: tuple[int, ...] | None = (1, 4)) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


BROKEN = {
    "cycle": graph_of(helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "y"], ["b"]),
                      helper.make_node("Relu", ["b"], ["y"])),
    "dangling": graph_of(helper.make_node("Add", ["x", "nowhere"], ["y"])),
    "no producer": graph_of(helper.make_node("Relu", ["x"], ["z"])),
    "twice": graph_of(helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"])),
    "no shape": graph_of(helper.make_node("Relu", ["x"], ["y"]), shape=None),
    "too few inputs": graph_of(helper.make_node("Add", ["x"], ["y"])),
    "absurd size": graph_of(helper.make_node("Relu", ["x"], ["y"]), shape=(1 << 20, 1 << 20, 1 << 20)),
    "negative size": graph_of(helper.make_node("Relu", ["x"], ["y"]), shape=(1, -4)),
    "wrong shape": graph_of(helper.make_node("MatMul", ["x", "x"], ["y"])),
    "unknown operator": graph_of(helper.make_node("NoSuchThing", ["x"], ["y"])),
    "unknown attribute": graph_of(helper.make_node("Softmax", ["x"], ["y"], axis=7)),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_convert_says_what_is_wrong_when_the_graph_is_broken(case, tmp_path):
    source, destination = tmp_path / "model.onnx", tmp_path / "model.tflite"
    source.write_bytes(BROKEN[case].SerializeToString())
    with pytest.raises(EdgeoptError) as caught:
        edgeopt.convert(source, destination)
    assert len(str(caught.value)) > 20
    assert not destination.exists()


def convert_or_refuse(model: onnx.ModelProto | bytes, folder: Path) -> bytes | None:
    source, destination = folder / "model.onnx", folder / "model.tflite"
    source.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    destination.unlink(missing_ok=True)
    try:
        edgeopt.convert(source, destination)
    except EdgeoptError:
        assert not destination.exists()
        return None
    return destination.read_bytes()


def test_convert_refuses_or_answers_alike_when_bytes_are_mutated(tmp_path):
    whole, generator = small_residual_net().SerializeToString(), random.Random(0)
    refused, start = 0, time.monotonic()
    while time.monotonic() - start < SECONDS:
        content = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        if generator.random() < 0.3:
            del content[generator.randrange(len(content)) :]
        refused += convert_or_refuse(bytes(content), tmp_path) is None
    assert refused > 10


def mutated(model: onnx.ModelProto, generator: random.Random) -> onnx.ModelProto:
    """Change one thing of a graph: an edge, an operator, an attribute, a shape, a number."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph, kind = model.graph, generator.randrange(6)
    node, tensor = generator.choice(graph.node), generator.choice(graph.initializer)
    if kind == 0:
        node.input[generator.randrange(len(node.input))] = generator.choice(graph.node).output[0]
    elif kind == 1:
        node.op_type = generator.choice(["Add", "Relu", "Softmax", "Concat", "Conv", "Reshape", "Gather", "MatMul"])
    elif kind == 2:
        del node.attribute[:]
    elif kind == 3:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array.reshape(-1)[: generator.randrange(array.size + 1)], tensor.name))
    elif kind == 4:
        array = numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[generator.randrange(array.size)] = generator.choice([0, -1, 100, 1])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    else:
        graph.node.remove(node)
    return model


def as_written(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray | None:
    """Run a graph without optimizations, or return ``None`` if ONNX Runtime does not take it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, feeds)[0]
    except Exception:  # ONNX Runtime's errors share no root
        return None


def test_convert_refuses_or_answers_like_onnxruntime_when_graphs_are_mutated(tmp_path):
    whole, generator = small_residual_net(), random.Random(1)
    compared, refused, start = 0, 0, time.monotonic()
    while time.monotonic() - start < SECONDS:
        model = mutated(whole, generator)
        content = convert_or_refuse(model, tmp_path)
        if content is None:
            refused += 1
            continue
        feeds = random_feeds(model)
        (actual,) = run_tflite(content, feeds).values()
        reference = as_written(model, feeds)
        if reference is not None:
            assert actual.shape == reference.shape
            np.testing.assert_allclose(actual, reference, rtol=0, atol=2.01 * 0.1)
            compared += 1
    assert min(compared, refused) > 5


@pytest.mark.parametrize("case", ["weights of another layer", "a power of 0", "an input of float64"])
def test_lower_names_the_node_when_onnx_s_own_checks_let_it_through(case):
    write = GraphWriter()
    x = write.input("x", (1, 3, 8), TensorProto.DOUBLE if "float64" in case else TensorProto.FLOAT)
    if case == "weights of another layer":
        weights = [write.constant(np.zeros((1, 8, size), np.float32)) for size in (5, 2)]
        write.nodes.append(helper.make_node("LSTM", [x, *weights], ["y"], name="node", hidden_size=2))
    else:
        attributes = {"kernel_shape": [2], "p": 0} if case == "a power of 0" else {}
        write.nodes.append(helper.make_node("LpPool" if attributes else "Relu", [x], ["y"], name="node", **attributes))
    write.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    write.outputs[0].type.tensor_type.elem_type = write.inputs[0].type.tensor_type.elem_type
    with pytest.raises(LoweringError) as caught:
        lowered(write.model())
    assert [refusal.op_type for refusal in caught.value.refusals] in (["FullyConnected"], ["LpPool"], ["input"])
