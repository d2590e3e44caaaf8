"""What a file says about itself, and that it says the same whatever the ONNX opset is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from tflite_graphs import GraphWriter, small_residual_net
from tflite_runtimes import file_of, lowered, random_feeds, run_onnx, run_tflite

OPSETS = range(13, onnx.defs.onnx_opset_version() + 1)


def with_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.opset_import[0].version = opset
    return copy


def changing_net(opset: int) -> onnx.ModelProto:
    """Operators whose inputs, attributes or versions changed between opset 13 and the newest."""
    write = GraphWriter()

    def reduced(op_type: str, value: str, axes: list[int]) -> str:
        if opset >= 18 or op_type == "ReduceSum":
            return write.node(op_type, value, write.constant(np.array(axes)))
        return write.node(op_type, value, axes=axes)

    x = write.input("x", (2, 4, 6, 6))
    pooled = write.node("AveragePool", write.node("LeakyRelu", x), kernel_shape=[3, 3], pads=[1] * 4)
    pooled = write.node("Clip", pooled, write.constant(np.float32(-1)), write.constant(np.float32(0.5)))
    flags = {"num_outputs": 2} if opset >= 18 else {}
    write.nodes.append(onnx.helper.make_node("Split", [pooled], ["left", "right"], name="split", axis=1, **flags))
    padded = write.node("Pad", "left", write.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    scales = write.constant(np.array([1, 1, 2, 2], np.float32))
    resized = write.node("Resize", "right", "", scales, mode="nearest")
    merged = write.node("Concat", reduced("ReduceMax", padded, [2]), reduced("ReduceMean", resized, [2]), axis=3)
    flat = write.node("Squeeze", reduced("ReduceSum", merged, [1]), write.constant(np.array([1, 2])))
    whole = write.node("Cast", write.node("Cast", flat, to=TensorProto.INT32), to=TensorProto.FLOAT)
    scale, bias = (write.constant(write.random.normal(size=20).astype(np.float32)) for _ in range(2))
    statistics = [write.constant(np.full(20, value, np.float32)) for value in (0.1, 2.0)]
    normal = write.node("BatchNormalization", flat, scale, bias, *statistics)
    write.output(write.node("Softmax", write.node("Add", whole, normal), axis=1))
    return write.model(opset)


@pytest.mark.parametrize("opset", OPSETS)
def test_lower_gives_the_same_bytes_when_only_the_opset_differs(opset):
    model = small_residual_net()
    assert lowered(with_opset(model, opset)) == lowered(model)


@pytest.mark.parametrize("opset", OPSETS)
def test_lower_answers_as_onnx_says_when_operators_changed_with_the_opset(opset):
    model = changing_net(opset)
    feeds = random_feeds(model)
    if opset < 14:  # onnx's own evaluator takes the statistics of the batch there, as in training
        (reference,) = run_onnx(model, feeds).values()
    else:  # which ONNX Runtime does not know up to the newest
        (reference,) = ReferenceEvaluator(model).run(None, feeds)
    (actual,) = run_tflite(lowered(model), feeds).values()
    assert actual.shape == reference.shape == (2, 20)
    assert len(np.unique(reference)) > 10
    np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 5])
def test_lower_takes_any_batch_when_there_are_several_inputs_and_outputs(batch):
    write = GraphWriter()
    image, gate = write.input("image", ("batch", 3, 8, 8)), write.input("gate", ("batch", 3, 1, 1))
    weights = write.constant(write.random.normal(size=(4, 3, 3, 3)).astype(np.float32))
    gated = write.node("Mul", image, gate)
    write.output(write.node("Conv", gated, weights, pads=[1] * 4, name="features"))
    write.output(write.node("ReduceMean", gated, write.constant(np.array([2, 3])), keepdims=0, name="means"))
    model = write.model()
    random = np.random.default_rng(0)
    feeds = {
        "image": random.normal(size=(batch, 3, 8, 8)).astype(np.float32),
        "gate": random.normal(size=(batch, 3, 1, 1)).astype(np.float32),
    }
    file = file_of(model)
    assert [tensor.shape for tensor in file.inputs.values()] == [(-1, 3, 8, 8), (-1, 3, 1, 1)]
    assert [tensor.shape for tensor in file.outputs.values()] == [(-1, 4, 8, 8), (-1, 3)]
    answers = run_tflite(lowered(model), feeds)
    for name, reference in run_onnx(model, feeds).items():
        assert answers[name].shape == reference.shape
        np.testing.assert_allclose(answers[name], reference, rtol=0, atol=1e-5)


def test_file_has_one_signature_with_the_names_of_the_graph_when_read():
    signatures = Interpreter(model_content=lowered(small_residual_net())).get_signature_list()
    assert signatures == {"serving_default": {"inputs": ["image"], "outputs": ["logits"]}}


def test_file_says_in_its_metadata_which_release_runs_it_when_read():
    model = schema.ModelT.InitFromPackedBuf(lowered(small_residual_net()), 0)
    (entry,) = model.metadata
    assert entry.name == b"min_runtime_version"
    assert bytes(model.buffers[entry.buffer].data) == b"2.14.0".ljust(16, b"\0")
    assert model.version == 3
