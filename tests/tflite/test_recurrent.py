"""LSTM, GRU and RNN: unrolled, and equal to ONNX Runtime in every form that PyTorch exports."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tflite_graphs import GraphWriter
from tflite_runtimes import file_of, lowered, random_feeds, run_onnx, run_tflite

from edgeopt.errors import LoweringError

STEPS, BATCH, INPUTS, HIDDEN = 5, 2, 3, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op_type: str, *, states: bool = True, steps: int | str = STEPS, **attributes: Any) -> onnx.ModelProto:
    """A node with bias, and with initial states as inputs and all of its outputs as outputs."""
    write = GraphWriter()
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[op_type] * HIDDEN
    shapes = [(directions, rows, INPUTS), (directions, rows, HIDDEN), (directions, 2 * rows)]
    parameters = [write.constant(write.random.normal(size=shape).astype(np.float32)) for shape in shapes]
    names = ["h", "c"] if op_type == "LSTM" else ["h"]
    initial = [write.input(name, (directions, BATCH, HIDDEN)) for name in names] if states else []
    inputs = [write.input("x", (steps, BATCH, INPUTS)), *parameters, "", *initial]
    outputs = ["y", *(f"{name}_last" for name in names)]
    write.nodes.append(helper.make_node(op_type, inputs, outputs, hidden_size=HIDDEN, **attributes))
    for name in outputs:
        write.output(name)
    return write.model()


def assert_equals_onnxruntime(model: onnx.ModelProto) -> None:
    feeds = random_feeds(model)
    reference, actual = run_onnx(model, feeds), run_tflite(lowered(model), feeds)
    assert reference.keys() == actual.keys()
    for name, expected in reference.items():
        assert expected.std() > 0
        np.testing.assert_allclose(actual[name], expected, rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("op_type", GATES)
def test_recurrent_layer_equals_onnxruntime_when_unrolled(op_type, states, direction):
    assert_equals_onnxruntime(recurrent(op_type, states=states, direction=direction))


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("GRU", {"linear_before_reset": 1}),
        ("RNN", {"activations": ["Relu"]}),
        ("RNN", {"activations": ["Relu", "Sigmoid"], "direction": "bidirectional"}),
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}),
    ],
)
def test_recurrent_layer_equals_onnxruntime_when_attributes_are_given(op_type, attributes):
    assert_equals_onnxruntime(recurrent(op_type, **attributes))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's exporter uses what torch deprecates
@pytest.mark.parametrize(("kind", "layers"), [(torch.nn.LSTM, 1), (torch.nn.GRU, 2)])
def test_recurrent_layer_equals_onnxruntime_when_torch_exports_it(kind, layers, tmp_path):
    torch.manual_seed(0)
    net = kind(INPUTS, HIDDEN, layers, batch_first=True).eval()
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, (torch.randn(1, STEPS, INPUTS),), path, dynamo=True, opset_version=18, verbose=False)
    model = onnx.load(path)
    assert kind.__name__ in [node.op_type for node in model.graph.node]
    assert_equals_onnxruntime(model)


def test_recurrent_layer_multiplies_the_input_once_when_unrolled():
    builtins = [operator.builtin for operator in file_of(recurrent("LSTM")).operators]
    assert builtins.count("FULLY_CONNECTED") == STEPS + 1


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"steps": "length"}, "a dynamic number of steps"),
        ({"clip": 1.0}, "clipped or coupled gates"),
        ({"activations": ["Sigmoid", "Tanh", "Elu"]}, "the activation Elu"),
    ],
)
def test_recurrent_layer_is_refused_when_it_cannot_be_unrolled(attributes, reason):
    with pytest.raises(LoweringError, match=reason):
        lowered(recurrent("LSTM", **attributes))


def test_recurrent_layer_is_refused_when_lengths_are_computed():
    model = recurrent("GRU")
    model.graph.input.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [BATCH]))
    model.graph.node[0].input[4] = "lengths"
    with pytest.raises(LoweringError, match="sequences of unequal or computed lengths"):
        lowered(model)
