"""The door as a whole: exact answers, borders, determinism, refusals, versions."""

from __future__ import annotations

import copy
import gc

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from tflite_graphs import GraphWriter, one_operator, quantized_convolution, small_residual_net
from tflite_runtimes import file_of, lowered, random_feeds, run_onnx, run_tflite, steps_apart

from edgeopt.errors import LoweringError
from edgeopt.tflite.inspect import read_tflite
from edgeopt.tflite.lower import lower


def test_lower_equals_onnxruntime_bit_for_bit_when_net_is_a_quantized_residual_cnn():
    model = small_residual_net()
    content = lowered(model)
    for seed in range(8):
        assert steps_apart(model, content, random_feeds(model, seed), 0.1).max() == 0


def test_lower_runs_every_operator_in_integers_when_whole_net_is_quantized():
    file = file_of(small_residual_net(), input_layouts={"image": "NHWC"})
    assert file.integer_coverage == 1.0
    assert [operator.builtin for operator in file.operators if not operator.is_integer] == []


def test_lower_leaves_no_transpose_when_input_is_channels_last():
    file = file_of(small_residual_net(), input_layouts={"image": "NHWC"})
    assert "TRANSPOSE" not in [operator.builtin for operator in file.operators]
    assert file.inputs["image"].shape == (1, 16, 16, 3)


def test_lower_transposes_int8_once_when_input_stays_channels_first():
    file = file_of(small_residual_net())
    transposes = [operator for operator in file.operators if operator.builtin == "TRANSPOSE"]
    assert [operator.outputs[0].dtype for operator in transposes] == ["int8"]
    assert file.inputs["image"].shape == (1, 3, 16, 16)


def test_lower_keeps_scales_of_the_graph_when_quantized():
    file = file_of(small_residual_net())
    assert file.inputs["image"].scales == (np.float32(0.02),)
    assert file.inputs["image"].zero_points == (-3,)
    assert file.outputs["logits"].scales == (np.float32(0.1),)
    assert file.outputs["logits"].zero_points == (4,)


def test_lower_gives_float_borders_when_integer_io_is_off():
    model = small_residual_net()
    content = lowered(model, integer_io=False)
    file = file_of(model, integer_io=False)
    assert [tensor.dtype for tensor in (*file.inputs.values(), *file.outputs.values())] == ["float32", "float32"]
    assert [file.operators[0].builtin, file.operators[-1].builtin] == ["QUANTIZE", "DEQUANTIZE"]
    assert steps_apart(model, content, random_feeds(model), 0.1).max() == 0


def test_lower_takes_any_batch_when_batch_is_symbolic():
    model = small_residual_net(batch="batch")
    content = lowered(model)
    feeds = {"image": np.random.default_rng(0).uniform(-3, 3, (5, 3, 16, 16)).astype(np.float32)}
    assert file_of(model).inputs["image"].shape == (-1, 3, 16, 16)
    assert steps_apart(model, content, feeds, 0.1).max() == 0


@pytest.mark.parametrize("end", [2**31 - 1, 10**9], ids=str)
def test_lower_takes_any_batch_when_a_slice_names_all_of_it(end):
    write = GraphWriter()
    x = write.input("x", ("batch", 5, 2048))
    bounds = [np.array(bound) for bound in ([0, 1], [end, 4], [0, 1])]
    write.output(write.node("Slice", x, *map(write.constant, bounds), name="y"))
    feeds = {"x": np.random.default_rng(0).uniform(-3, 3, (4, 5, 2048)).astype(np.float32)}
    (actual,) = run_tflite(lowered(write.model()), feeds).values()
    np.testing.assert_array_equal(actual, feeds["x"][:, 1:4])


def test_lower_reflects_by_one_operator_when_the_batch_is_dynamic():
    write = GraphWriter()
    x = write.input("x", ("batch", 5, 7))
    write.output(write.node("Pad", x, write.constant(np.array([0, 2, 3, 0, 4, 6])), name="y", mode="reflect"))
    feeds = {"x": np.random.default_rng(0).uniform(-3, 3, (4, 5, 7)).astype(np.float32)}
    content = lowered(write.model())
    (actual,) = run_tflite(content, feeds).values()
    np.testing.assert_array_equal(actual, np.pad(feeds["x"], ((0, 0), (2, 4), (3, 6)), mode="reflect"))
    assert [operator.builtin for operator in read_tflite(content).operators] == ["MIRROR_PAD"]


@pytest.mark.parametrize(("start", "end"), [(0, 1000), (1, 2**31 - 1)])
def test_lower_refuses_a_slice_when_it_may_cut_a_dynamic_axis(start, end):
    write = GraphWriter()
    x = write.input("x", ("batch", 5))
    bounds = [np.array([bound]) for bound in (start, end, 0)]
    write.output(write.node("Slice", x, *map(write.constant, bounds), name="y"))
    with pytest.raises(LoweringError, match="cutting a dynamic axis"):
        lowered(write.model())


def test_lower_gives_the_same_bytes_when_called_twice():
    model = ir.from_proto(small_residual_net())
    assert lower(model) == lower(model)


def test_lower_leaves_its_argument_alone_when_it_rewrites():
    proto = small_residual_net()
    model = ir.from_proto(copy.deepcopy(proto))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    lower(model, input_layouts={"image": "NHWC"})
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_lower_needs_only_old_versions_when_net_is_an_int8_cnn():
    oldest = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "ADD": 2, "MEAN": 2, "PAD": 2, "TRANSPOSE": 2}
    oldest["FULLY_CONNECTED"] = 10  # TensorFlow 2.14; all the others 1.14
    found = {operator.builtin: operator.version for operator in file_of(small_residual_net()).operators}
    assert found == oldest


def test_lower_refuses_all_nodes_at_once_when_several_are_unknown():
    write = GraphWriter()
    x = write.input("x", (1, 4, 8, 8))
    cut = write.node("Pad", x, write.constant(np.array([0, 0, -1, -1, 0, 0, 0, 0])), name="cut")
    write.output(write.node("Bernoulli", write.node("Det", cut, name="det"), name="coin"))
    with pytest.raises(LoweringError) as caught:
        lowered(write.model())
    refused = [(refusal.node, refusal.op_type) for refusal in caught.value.refusals]
    assert refused == [("node_cut", "Pad"), ("node_det", "Det"), ("node_coin_RandomUniformLike", "RandomUniformLike")]
    assert "negative pads" in str(caught.value)


def test_lower_names_the_first_node_when_a_shape_is_not_known():
    write = GraphWriter()
    x = write.input("x", (1, 4))
    nonzero = helper.make_node("NonZero", [x], ["places"], name="node_places")
    write.nodes.append(nonzero)
    write.nodes.append(helper.make_node("NoSuchOperator", ["places"], ["y"], name="node_y", domain="elsewhere"))
    graph = helper.make_graph(write.nodes, "g", write.inputs, [helper.make_tensor_value_info("y", 1, None)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    with pytest.raises(LoweringError) as caught:
        lower(ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9)))
    assert [refusal.node for refusal in caught.value.refusals] == ["node_places", "node_y"]


def test_lower_refuses_an_old_opset_when_below_13():
    model = one_operator("Relu", (1, 4), opset=12)
    with pytest.raises(LoweringError, match="opset 12, expected 13 or later"):
        lowered(model)


def test_lower_refuses_a_layout_when_the_name_is_not_there():
    with pytest.raises(LoweringError, match="layout of input 'picture': got no such input"):
        lowered(small_residual_net(), input_layouts={"picture": "NHWC"})


def test_lower_refuses_a_scale_when_it_is_not_a_number():
    write = GraphWriter()
    write.output(write.quantized(write.input("x", (1, 4)), float("nan"), 0))
    with pytest.raises(LoweringError, match="QuantizeLinear"):
        lowered(write.model())


@pytest.mark.parametrize(("op_type", "scales"), [
    ("Add", (0.02, 3e-5, 0.05)),
    ("Sub", (0.02, 1.3e36, 1.3e36)),  # a mask of -3e38, on which LiteRT's own kernel ends the process
    ("Mul", (0.02, 3e-5, 0.05)),
])  # fmt: skip
def test_lower_computes_in_float_between_when_scales_are_too_far_apart(op_type, scales):
    write = GraphWriter()
    left, right = (write.quantized(write.input(n, (1, 64)), s, 3) for n, s in zip("ab", scales[:2], strict=True))
    write.output(write.quantized(write.node(op_type, left, right), scales[2], -2, name="y"))
    model = write.model()
    random = np.random.default_rng(0)
    feeds = {n: (random.uniform(-100, 100, (1, 64)) * scales["ab".index(n)]).astype(np.float32) for n in "ab"}
    found = [operator.builtin for operator in file_of(model).operators]
    assert sorted(found) == sorted(["DEQUANTIZE", "DEQUANTIZE", op_type.upper(), "QUANTIZE"])
    (expected,), (actual,) = run_onnx(model, feeds).values(), run_tflite(lowered(model), feeds).values()
    np.testing.assert_array_equal(actual, expected)


def test_lower_computes_in_float_between_when_an_operator_has_no_int8_kernel():
    write = GraphWriter()
    x = write.quantized(write.input("x", (1, 8)), 0.02, 3)
    divided = write.node("Div", x, write.constant(np.full((1, 8), 3.0, np.float32)))
    write.output(write.quantized(divided, 0.01, -2, name="y"))
    model = write.model()
    assert [op.builtin for op in file_of(model).operators] == ["DEQUANTIZE", "DIV", "QUANTIZE"]
    assert steps_apart(model, lowered(model), random_feeds(model), 0.01).max() == 0


def test_lower_keeps_names_and_order_when_there_are_several_inputs_and_outputs():
    write = GraphWriter()
    first, second = write.input("first", (1, 4)), write.input("second", (1, 4))
    write.output(write.node("Sub", second, first, name="difference"))
    write.output(write.node("Mul", second, first, name="product"))
    model = write.model()
    file = file_of(model)
    assert (list(file.inputs), list(file.outputs)) == (["first", "second"], ["difference", "product"])
    feeds = random_feeds(model)
    answers, reference = run_tflite(lowered(model), feeds), run_onnx(model, feeds)
    for name, value in reference.items():
        np.testing.assert_array_equal(answers[name], value)


def test_lower_copies_a_tensor_when_it_is_input_and_output():
    write = GraphWriter()
    x = write.input("x", (1, 4))
    write.output(write.node("Identity", x, name="same"))
    write.output(write.node("Transpose", x, name="turned", perm=[0, 1]))
    model = write.model()
    feeds = random_feeds(model)
    for value in run_tflite(lowered(model), feeds).values():
        np.testing.assert_array_equal(value, feeds["x"])


def test_lower_fuses_the_float_activation_when_net_is_not_quantized():
    write = GraphWriter()
    x = write.input("x", (1, 3, 8, 8))
    weight = write.constant(write.random.normal(size=(4, 3, 3, 3)).astype(np.float32))
    clipped = write.node(
        "Clip", write.node("Conv", x, weight), write.constant(np.float32(0)), write.constant(np.float32(6))
    )
    write.output(clipped)
    model = write.model()
    file = file_of(model, input_layouts={"x": "NHWC"}, output_layouts={clipped: "NHWC"})
    assert [operator.builtin for operator in file.operators] == ["CONV_2D"]
    feeds = random_feeds(model)
    (reference,), (actual,) = run_onnx(model, feeds).values(), run_tflite(lowered(model), feeds).values()
    np.testing.assert_allclose(actual, reference, atol=1e-5)
    assert 0 < (reference == 6).sum() < reference.size


def test_lower_shares_bytes_when_two_constants_are_equal():
    write = GraphWriter()
    x, big = write.input("x", (1, 4096)), np.arange(4096, dtype=np.float32)[None]
    once = write.node("Add", x, write.constant(big))
    write.output(write.node("Mul", once, write.constant(big)))
    assert len(lowered(write.model())) < 1.5 * big.nbytes


def test_lower_requantizes_exactly_when_concat_joins_two_scales():
    write = GraphWriter()
    parts = [write.quantized(write.input(f"x{i}", (1, 256)), scale, i) for i, scale in enumerate((0.0213, 0.0137))]
    write.output(write.quantized(write.node("Concat", *parts, axis=1), 0.0311, -7, name="y"))
    model = write.model()
    grid = np.arange(-128, 128, dtype=np.float32)[None]
    feeds = {"x0": grid * np.float32(0.0213), "x1": (grid - 1) * np.float32(0.0137)}
    assert steps_apart(model, lowered(model), feeds, 0.0311).max() == 0
    assert file_of(model).operators[-1].is_integer


def test_lower_runs_in_integers_when_data_is_quantized_only_after_it_moved():
    write = GraphWriter()
    x = write.quantized(write.input("x", (1, 16, 5, 7)), 0.02, 3)
    mean = write.node("ReduceMean", x, write.constant(np.array([2, 3])), keepdims=1)
    turned = write.node("Transpose", write.node("Reshape", mean, write.constant(np.array([4, 4]))), perm=[1, 0])
    write.output(write.quantized(turned, 0.0071, 1, name="y"))
    model = write.model()
    assert [op.builtin for op in file_of(model).operators if not op.is_integer] == []
    assert steps_apart(model, lowered(model), random_feeds(model), 0.0071).max() == 0


def test_lower_accepts_the_oldest_opset_when_it_is_13():
    write = GraphWriter()
    x = write.quantized(write.input("x", (1, 3, 8, 8)), 0.02, 0)
    write.output(write.quantized(quantized_convolution(write, x, 0.02, (4, 3, 3, 3)), 0.2, 0, name="y"))
    model = write.model(opset=13)
    assert steps_apart(model, lowered(model), random_feeds(model), 0.2).max() == 0


def test_lower_takes_int64_weights_for_nothing_when_input_is_not_float():
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, (2, 3))],
        [helper.make_tensor_value_info("y", TensorProto.INT64, (3, 2))],
        [onnx.numpy_helper.from_array(np.array([3, 2]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    feeds = {"x": np.arange(6).reshape(2, 3)}
    np.testing.assert_array_equal(run_tflite(lowered(model), feeds)["y"], feeds["x"].reshape(3, 2))


@pytest.mark.parametrize("enabled", [True, False])
def test_lower_leaves_the_garbage_collector_as_it_was_when_done_or_refused(enabled):
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        lowered(small_residual_net())
        done = gc.isenabled()
        with pytest.raises(LoweringError):
            lowered(one_operator("Det", (2, 2)))
        assert (done, gc.isenabled()) == (enabled, enabled)
    finally:
        (gc.enable if was_enabled else gc.disable)()
