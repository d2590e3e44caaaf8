"""Graphs with unsigned quantized tensors, as ONNX Runtime's quantizer writes them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, numpy_helper
from tflite_graphs import GraphWriter, small_residual_net
from tflite_runtimes import file_of, lowered, random_feeds, run_onnx, steps_apart, unsigned

from edgeopt.errors import LoweringError


def test_lower_gives_the_same_bytes_when_activations_are_unsigned():
    model = small_residual_net()
    assert unsigned(model) != model
    assert lowered(unsigned(model)) == lowered(model)


def with_unsigned_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.INT8:
            shifted = numpy_helper.to_array(tensor).astype(np.int16) + 128
            tensor.CopyFrom(numpy_helper.from_array(shifted.astype(np.uint8), tensor.name))
    del copy.graph.value_info[:]
    return copy


def test_lower_gives_the_same_bytes_when_weights_are_unsigned_too():
    model = small_residual_net()
    assert lowered(with_unsigned_weights(model)) == lowered(model)


@pytest.mark.parametrize("dtype", [TensorProto.UINT8, TensorProto.INT8, TensorProto.INT16])
def test_lower_takes_zero_as_zero_point_when_none_is_given(dtype):
    write = GraphWriter()
    scale = write.constant(np.float32(0.0213 if dtype != TensorProto.INT16 else 1e-4))
    quantized = write.node("QuantizeLinear", write.input("x", (1, 4, 6, 6)), scale, output_dtype=dtype)
    x = write.node("DequantizeLinear", quantized, scale)
    y = write.node("QuantizeLinear", write.node("MaxPool", x, kernel_shape=[2, 2]), scale, output_dtype=dtype)
    write.output(write.node("DequantizeLinear", y, scale))
    model = write.model(21)
    assert [operator.is_integer for operator in file_of(model).operators if operator.builtin == "MAX_POOL_2D"] == [True]
    content = lowered(model, integer_io=False)
    assert steps_apart(model, content, random_feeds(model), 1e-4).max() == 0


@pytest.mark.parametrize(("dtype", "scale"), [(TensorProto.UINT16, 1e-4), (TensorProto.UINT4, 0.4)])
def test_lower_shifts_by_half_the_range_when_a_tensor_has_16_or_4_bits(dtype, scale):
    middle = {TensorProto.UINT16: 32768, TensorProto.UINT4: 8}[dtype]
    write = GraphWriter()
    write.initializers.append(helper.make_tensor("point", dtype, (), [middle]))
    write.initializers.append(helper.make_tensor("weight", dtype, (3, 5), [(7 * i) % 16 for i in range(15)]))
    weight = write.node("DequantizeLinear", "weight", write.constant(np.float32(scale)), "point")
    write.output(write.node("Gemm", write.input("x", (2, 5)), weight, transB=1))
    model = write.model(21)
    feeds = random_feeds(model)
    (reference,) = run_onnx(model, feeds).values()
    assert steps_apart(model, lowered(model), feeds, 1e-5 * float(np.abs(reference).max())).max() <= 1


def test_lower_refuses_when_something_else_sees_an_unsigned_tensor():
    write = GraphWriter()
    params = [write.constant(np.float32(0.02)), write.constant(np.uint8(7))]
    quantized = write.node("QuantizeLinear", write.input("x", (1, 8)), *params)
    write.output(write.node("Cast", quantized, to=TensorProto.FLOAT))
    with pytest.raises(LoweringError, match="not a constant for int8 or int16"):
        lowered(write.model())


@pytest.mark.parametrize("dtype", [TensorProto.INT8, TensorProto.INT16])
def test_lower_takes_integers_from_the_application_when_the_graph_does(dtype):
    numpy_dtype = helper.tensor_dtype_to_np_dtype(dtype)
    write = GraphWriter()
    params = [write.constant(np.float32(0.02)), write.constant(numpy_dtype.type(0))]
    x = write.node("DequantizeLinear", write.input("x", (1, 4, 6, 6), dtype), *params)
    y = write.node("QuantizeLinear", write.node("MaxPool", x, kernel_shape=[2, 2]), *params)
    write.output(write.node("DequantizeLinear", y, *params))
    model = write.model(21)
    file = file_of(model)
    assert (file.inputs["x"].dtype, file.inputs["x"].scales) == (numpy_dtype.name, (np.float32(0.02),))
    assert [operator.builtin for operator in file.operators if not operator.is_integer] == []
    feeds = {"x": np.random.default_rng(0).integers(-120, 120, (1, 4, 6, 6)).astype(numpy_dtype)}
    (reference,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    runner = Interpreter(model_content=lowered(model), num_threads=1).get_signature_runner()
    (actual,) = runner(**feeds).values()
    np.testing.assert_array_equal(actual, np.rint(reference / np.float32(0.02)))


def test_lower_refuses_when_integers_are_read_with_two_scales():
    write = GraphWriter()
    x = write.input("x", (1, 8), TensorProto.INT8)
    readings = [
        write.node("DequantizeLinear", x, write.constant(np.float32(scale)), write.constant(np.int8(0)))
        for scale in (0.02, 0.03)
    ]
    write.output(write.node("Add", *readings))
    with pytest.raises(LoweringError, match="with another scale"):
        lowered(write.model())


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_lower_looks_up_integers_when_a_table_is_quantized(dtype):
    write = GraphWriter()
    table = np.random.default_rng(3).integers(0, 100, (500, 64)).astype(dtype)
    inputs = [write.constant(table), write.constant(np.float32(0.02)), write.constant(dtype(7))]
    found = write.node("Gather", write.node("DequantizeLinear", *inputs), write.input("i", (1, 9), TensorProto.INT64))
    write.output(write.node("Relu", found))
    model = write.model()
    content, feeds = lowered(model), {"i": np.array([[0, 499, -1, 3, 3, 250, -500, 77, 1]])}
    assert len(content) < 1.3 * table.size
    (reference,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    (actual,) = Interpreter(model_content=content, num_threads=1).get_signature_runner()(**feeds).values()
    assert len(np.unique(reference)) > 50
    np.testing.assert_array_equal(actual, reference)
