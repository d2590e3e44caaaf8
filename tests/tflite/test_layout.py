"""The passes proven by execution: the graph answers the same before and after each, and few transposes are left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from tflite_graphs import GraphWriter, quantized_convolution, small_residual_net
from tflite_meanings import MEANINGS, as_plain_onnx
from tflite_runtimes import file_of, lowered, random_feeds, run_onnx, run_tflite, steps_apart

from edgeopt.errors import LoweringError
from edgeopt.tflite.layout import CHANNELS_LAST, to_channels_last
from edgeopt.tflite.normal_form import DOMAIN, to_normal_form
from edgeopt.tflite.operators import OPERATORS
from edgeopt.tflite.reshaping import permutation_after_reshape


def conv(write: GraphWriter, source: str, shape: tuple[int, ...], **attributes) -> str:
    weight = write.constant(write.random.normal(size=shape, scale=0.3).astype(np.float32))
    return write.node("Conv", source, weight, **attributes)


def residual(write: GraphWriter, x: str) -> str:
    stem = conv(write, x, (4, 3, 3, 3), pads=[1] * 4)
    return write.node("Add", stem, conv(write, write.node("Relu", stem), (4, 4, 1, 1)))


def channel_shuffle(write: GraphWriter, x: str) -> str:
    stem = conv(write, x, (6, 3, 3, 3))
    split = write.node("Reshape", stem, write.constant(np.array([1, 2, 3, 6, 6])))
    turned = write.node("Transpose", split, perm=[0, 2, 1, 3, 4])
    return conv(write, write.node("Reshape", turned, write.constant(np.array([1, 6, 6, 6]))), (3, 6, 1, 1))


def squeeze_excite(write: GraphWriter, x: str) -> str:
    stem = conv(write, x, (4, 3, 3, 3))
    gate = write.node("Flatten", write.node("GlobalAveragePool", stem))
    gate = write.node("MatMul", gate, write.constant(write.random.normal(size=(4, 4)).astype(np.float32)))
    gate = write.node("Sigmoid", write.node("Reshape", gate, write.constant(np.array([1, 4, 1, 1]))))
    return conv(write, write.node("Mul", stem, gate), (3, 4, 1, 1))


def concat_of_branches(write: GraphWriter, x: str) -> str:
    stem = conv(write, x, (4, 3, 1, 1))
    joined = write.node("Concat", stem, write.node("MaxPool", stem, kernel_shape=[3, 3], pads=[1] * 4), axis=1)
    return conv(
        write, write.node("Mul", joined, write.constant(np.arange(8, dtype=np.float32).reshape(8, 1, 1))), (3, 8, 1, 1)
    )


def u_net(write: GraphWriter, x: str) -> str:
    top = conv(write, x, (4, 3, 3, 3), pads=[1] * 4)
    low = conv(write, write.node("MaxPool", top, kernel_shape=[2, 2], strides=[2, 2]), (4, 4, 3, 3), pads=[1] * 4)
    scales = write.constant(np.array([1, 1, 2, 2], np.float32))
    up = write.node(
        "Resize", low, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    return conv(write, write.node("Concat", top, up, axis=1), (3, 8, 1, 1))


def pad_and_slice(write: GraphWriter, x: str) -> str:
    padded = write.node("Pad", conv(write, x, (4, 3, 1, 1)), write.constant(np.array([0, 1, 2, 0, 0, 0, 1, 3])))
    bounds = [write.constant(np.array(v)) for v in ([1, 2], [5, 9], [1, 3], [2, 1])]
    return conv(write, write.node("Slice", padded, *bounds), (3, 2, 1, 1))


def softmax_over_channels(write: GraphWriter, x: str) -> str:
    return conv(write, write.node("Softmax", conv(write, x, (4, 3, 1, 1)), axis=1), (3, 4, 1, 1))


def mean_over_pixels(write: GraphWriter, x: str) -> str:
    axes = write.constant(np.array([2, 3]))
    return write.node("ReduceMean", conv(write, x, (4, 3, 3, 3)), axes, keepdims=0)


def flatten_then_classify(write: GraphWriter, x: str) -> str:
    flat = write.node("Flatten", write.node("Relu", conv(write, x, (4, 3, 3, 3))))
    return write.node("Gemm", flat, write.constant(write.random.normal(size=(5, 144)).astype(np.float32)), transB=1)


def channels_last_by_the_model_itself(write: GraphWriter, x: str) -> str:
    rows = write.node("Transpose", conv(write, x, (4, 3, 1, 1)), perm=[0, 2, 3, 1])
    return write.node("MatMul", rows, write.constant(write.random.normal(size=(4, 5)).astype(np.float32)))


def flat_pixels(write: GraphWriter, x: str) -> str:
    tokens = write.node("Reshape", conv(write, x, (4, 3, 1, 1)), write.constant(np.array([0, 4, -1])))
    tokens = write.node("Transpose", tokens, perm=[0, 2, 1])
    return write.node("MatMul", tokens, write.constant(write.random.normal(size=(4, 5)).astype(np.float32)))


def resize_with_defaults_written_out(write: GraphWriter, x: str) -> str:
    defaults = {"antialias": 0, "exclude_outside": 0, "keep_aspect_ratio_policy": "stretch"}
    scales = write.constant(np.array([1, 1, 2, 2], np.float32))
    return conv(
        write, write.node("Resize", conv(write, x, (4, 3, 3, 3)), "", scales, mode="linear", **defaults), (3, 4, 1, 1)
    )


def residual_over_one_axis(write: GraphWriter, x: str) -> str:
    rows = write.constant(np.array([2]))
    stem = write.node("Relu", conv(write, write.node("ReduceMean", x, rows, keepdims=0), (4, 3, 3), pads=[1, 1]))
    inner = conv(write, write.node("LeakyRelu", conv(write, stem, (4, 4, 3), pads=[1, 1])), (4, 4, 1))
    halved = write.node("Mul", inner, write.constant(np.array([[[0.5]]], np.float32)))
    return write.node("ReduceMean", conv(write, write.node("Relu", write.node("Add", stem, halved)), (3, 4, 3)), rows)


def attention_of_two_heads(write: GraphWriter, x: str) -> str:
    def linear(source: str, num_inputs: int, num_outputs: int) -> str:
        weights = write.random.normal(size=(num_inputs, num_outputs)).astype(np.float32)
        return write.node("MatMul", source, write.constant(weights))

    tokens = linear(flat_pixels(write, x), 5, 12)
    joined = write.node("Reshape", tokens, write.constant(np.array([0, 64, 3, 4])))
    joined = write.node("Transpose", joined, perm=[2, 0, 1, 3])
    parts = [write.node("Gather", joined, write.constant(np.array(index)), axis=0) for index in range(3)]
    heads = [write.node("Reshape", part, write.constant(np.array([0, 0, 2, 2]))) for part in parts]
    query, value = (write.node("Transpose", heads[index], perm=[0, 2, 1, 3]) for index in (0, 2))
    key = write.node("Transpose", heads[1], perm=[0, 2, 3, 1])
    shares = write.node("Softmax", write.node("MatMul", query, key), axis=-1)
    mixed = write.node("Transpose", write.node("MatMul", shares, value), perm=[0, 2, 1, 3])
    return linear(write.node("Reshape", mixed, write.constant(np.array([1, 64, 4]))), 4, 5)


CASES: list[Callable[[GraphWriter, str], str]] = [
    residual,
    channel_shuffle,
    squeeze_excite,
    concat_of_branches,
    u_net,
    pad_and_slice,
    softmax_over_channels,
    mean_over_pixels,
    flatten_then_classify,
    channels_last_by_the_model_itself,
    flat_pixels,
    resize_with_defaults_written_out,
    residual_over_one_axis,
    attention_of_two_heads,
]
OF_THE_MODEL = {channel_shuffle: 1, attention_of_two_heads: 4}


def model_of(case: Callable[[GraphWriter, str], str]) -> onnx.ModelProto:
    write = GraphWriter()
    write.output(case(write, write.input("x", (1, 3, 8, 8))))
    return write.model()


def answer(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Without optimizations, so that nothing but the graph decides."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def assert_same(reference: np.ndarray, actual: np.ndarray) -> None:
    assert actual.shape == reference.shape
    assert reference.std() > 0
    np.testing.assert_allclose(actual, reference, rtol=0, atol=1e-6 * max(1.0, float(np.abs(reference).max())))


@pytest.mark.parametrize("case", CASES)
def test_to_normal_form_answers_the_same_when_run_as_plain_onnx(case):
    model = model_of(case)
    x = random_feeds(model)["x"]
    normal = to_normal_form(ir.from_proto(model))
    assert_same(answer(model, x), answer(ir.to_proto(as_plain_onnx(normal)), x))


@pytest.mark.parametrize("case", CASES)
def test_to_channels_last_answers_the_same_when_run_as_plain_onnx(case):
    model = model_of(case)
    x = random_feeds(model)["x"]
    stored = to_normal_form(ir.from_proto(model))
    to_channels_last(stored, {"x": "NHWC"}, {})
    assert_same(answer(model, x), answer(ir.to_proto(as_plain_onnx(stored)), x.transpose(CHANNELS_LAST)))


@pytest.mark.parametrize("case", CASES)
def test_lower_answers_the_same_when_layouts_are_onnx_s_own(case):
    model = model_of(case)
    feeds = random_feeds(model)
    (reference,), (actual,) = run_onnx(model, feeds).values(), run_tflite(lowered(model), feeds).values()
    np.testing.assert_allclose(actual, reference, rtol=0, atol=1e-5 * float(np.abs(reference).max()))


@pytest.mark.parametrize("case", CASES)
def test_to_channels_last_leaves_only_the_model_s_own_transposes_when_borders_are_channels_last(case):
    model = model_of(case)
    rank_4 = (
        len(model.graph.output[0].type.tensor_type.shape.dim) == 4 and case is not channels_last_by_the_model_itself
    )
    layouts = {model.graph.output[0].name: "NHWC"} if rank_4 else {}
    builtins = [op.builtin for op in file_of(model, input_layouts={"x": "NHWC"}, output_layouts=layouts).operators]
    assert builtins.count("TRANSPOSE") == OF_THE_MODEL.get(case, 0)


def test_to_channels_last_moves_int8_when_a_quantized_value_has_to_move():
    write = GraphWriter()
    x = write.quantized(write.input("x", (1, 3, 8, 8)), 0.02, 1)
    y = write.quantized(quantized_convolution(write, x, 0.02, (4, 3, 3, 3)), 0.2, 3, name="y")
    write.output(y)
    model = write.model()
    moved = [op for op in file_of(model).operators if op.builtin == "TRANSPOSE"]
    assert [op.outputs[0].dtype for op in moved] == ["int8", "int8"]
    assert steps_apart(model, lowered(model), random_feeds(model), 0.2).max() == 0


def test_to_channels_last_rearranges_int8_weights_when_a_flatten_is_in_between():
    write = GraphWriter()
    x = write.quantized(write.input("x", (1, 3, 8, 8)), 0.02, 1)
    y = write.quantized(write.node("Relu", quantized_convolution(write, x, 0.02, (4, 3, 3, 3))), 0.05, -128)
    flat = write.quantized(write.node("Flatten", y), 0.05, -128)
    scales = np.linspace(0.002, 0.01, 5, dtype=np.float32)
    weight, bias = write.weight((5, 144), scales), write.bias(np.float32(0.05) * scales)
    write.output(write.quantized(write.node("Gemm", flat, weight, bias, transB=1), 0.9, 3, name="y"))
    model = write.model()
    assert "TRANSPOSE" not in [op.builtin for op in file_of(model, input_layouts={"x": "NHWC"}).operators]
    assert steps_apart(model, lowered(model), random_feeds(model), 0.9).max() == 0


def test_lower_keeps_convolutions_over_one_axis_whole_when_they_are_quantized():
    write = GraphWriter()

    def stage(source: str, scale: float, shape: tuple[int, ...]) -> str:
        return quantized_convolution(write, source, scale, shape, pads=[1, 1])

    x = write.quantized(write.input("x", (1, 4, 20)), 0.02, 1)
    stem = write.quantized(write.node("Relu", stage(x, 0.02, (4, 4, 3))), 0.05, -128)
    added = write.node("Add", stem, write.quantized(stage(stem, 0.05, (4, 4, 3)), 0.1, 3))
    last = write.quantized(write.node("Relu", added), 0.11, -128)
    write.output(write.quantized(stage(last, 0.11, (4, 4, 3)), 0.2, 3, name="y"))
    model = write.model()
    file = file_of(model)
    assert file.integer_coverage == 1
    builtins = [op.builtin for op in file.operators]
    borders = (["RESHAPE", "TRANSPOSE"], ["TRANSPOSE", "RESHAPE"])
    assert sorted(builtins[:2]) == sorted(borders[0])
    assert sorted(builtins[-2:]) == sorted(borders[1])
    assert builtins[2:-2] == ["CONV_2D", "CONV_2D", "ADD", "CONV_2D"]
    assert steps_apart(model, lowered(model), random_feeds(model), 0.2).max() == 0


def test_quantized_net_answers_the_same_when_run_as_plain_onnx():
    model = small_residual_net()
    x = random_feeds(model)["image"]
    stored = to_normal_form(ir.from_proto(model))
    to_channels_last(stored, {}, {})
    np.testing.assert_allclose(answer(ir.to_proto(as_plain_onnx(stored)), x), answer(model, x), rtol=0, atol=1e-6)


def test_to_channels_last_refuses_a_layout_when_the_output_is_no_image():
    model = model_of(flatten_then_classify)
    with pytest.raises(LoweringError, match="got 2 axes, expected an output with 4 axes"):
        lowered(model, output_layouts={model.graph.output[0].name: "NHWC"})


@pytest.mark.parametrize(
    ("source", "target", "stored_as", "expected"),
    [
        ((1, 4, 8, 8), (1, 4, 64), (0, 2, 3, 1), (0, 2, 1)),
        ((1, 4, 1, 1), (1, 4), (0, 2, 3, 1), (0, 1)),
        ((1, 6, 5, 5), (1, 2, 3, 5, 5), (0, 2, 3, 1), (0, 3, 4, 1, 2)),
        ((2, 4, 8, 8), (2, 256), (0, 2, 3, 1), None),
        ((2, 4, 8, 8), (2, 256), (0, 1, 2, 3), (0, 1)),
        ((-1, 4, 8, 8), (-1, 4, 64), (0, 2, 3, 1), (0, 2, 1)),
        ((6, 4), (4, 6), (0, 1), (0, 1)),
        ((6, 4), (4, 6), (1, 0), None),
        ((2, 3, 4), (2, 12), (1, 0, 2), None),
        ((2, 3, 4), (2, 12), (1, 2, 0), (1, 0)),
        ((2, 3, 4, 5), (6, 20), (0, 3, 2, 1), None),
    ],
)
def test_permutation_after_reshape_is_what_numpy_finds_when_tried(source, target, stored_as, expected):
    assert permutation_after_reshape(source, target, stored_as) == expected
    if expected is not None:
        sizes = [abs(size) for size in source]
        values = np.arange(np.prod(sizes)).reshape(sizes)
        stored = values.transpose(stored_as)
        result = values.reshape([abs(size) for size in target])
        in_place = stored.reshape(result.transpose(expected).shape)
        np.testing.assert_array_equal(in_place, result.transpose(expected))


def test_meanings_cover_the_normal_form_when_an_operator_is_added():
    assert set(MEANINGS) == {name for domain, name in OPERATORS if domain == DOMAIN}
