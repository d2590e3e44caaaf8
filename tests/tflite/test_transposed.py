"""ConvTranspose in int8 and float, in every way in which its frame can lie on TRANSPOSE_CONV's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tflite_graphs import GraphWriter, channel_scales
from tflite_runtimes import file_of, lowered, random_feeds, run_onnx, run_tflite, steps_apart

from edgeopt.errors import LoweringError
from edgeopt.quantize.unsigned import with_unsigned_activations
from edgeopt.session import OnnxSession

ALONE = ["TRANSPOSE_CONV"]
CUT = ["TRANSPOSE_CONV", "SLICE"]

CASES: dict[str, tuple[dict[str, Any], tuple[int, int], list[str]]] = {
    "as far as the kernel reaches": ({"strides": [2, 2]}, (3, 3), ALONE),
    "stride as long as the kernel": ({"strides": [2, 2]}, (2, 2), ALONE),
    "stride longer than the kernel": ({"strides": [3, 2]}, (2, 2), ALONE),
    "pads like SAME": ({"strides": [2, 2], "pads": [1] * 4}, (4, 4), ALONE),
    "pads like SAME, odd": ({"strides": [2, 2], "pads": [1] * 4}, (3, 3), ALONE),
    "pads like SAME, not strided": ({"pads": [1] * 4}, (3, 3), ALONE),
    "one row more in front than SAME has": (
        {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]},
        (3, 3),
        CUT,
    ),
    "lopsided pads": ({"strides": [2, 2], "pads": [0, 2, 1, 1]}, (4, 4), CUT),
    "longer than the kernel reaches": ({"strides": [3, 3], "output_padding": [2, 1]}, (3, 3), ALONE),
    "cut in front and longer behind": (
        {"strides": [2, 2], "pads": [1, 1, 0, 0], "output_padding": [1, 0]},
        (2, 3),
        CUT,
    ),
    "dilated": ({"strides": [2, 1], "dilations": [2, 3], "pads": [1] * 4}, (3, 2), CUT),
}


def graph(attributes: dict[str, Any], kernel: tuple[int, ...], *, quantized: bool, group: int = 1, **options: Any):
    """x of 4 channels -> ConvTranspose to 6."""
    write = GraphWriter()
    x = write.input("x", (1, 4, 5, 6)[: 2 + len(kernel)])
    if quantized:
        scales = channel_scales(6 // group) if options.get("per_channel", True) else np.float32(0.004)
        inputs = [write.quantized(x, 0.0213, -5), write.weight((4, 6 // group, *kernel), scales, axis=1)]
        inputs += [write.bias(np.float32(0.0213) * np.resize(scales, 6))] if options.get("bias", True) else []
    else:
        arrays = [write.random.normal(size=size).astype(np.float32) for size in ((4, 6 // group, *kernel), (6,))]
        inputs = [x, *map(write.constant, arrays)]
    y = write.node("ConvTranspose", *inputs, group=group, **attributes)
    write.output(write.quantized(y, 0.21, 9, name="y") if quantized else y)
    return write.model()


def assert_equal(model: Any, builtins: list[str]) -> None:
    content = lowered(model)
    for seed in range(3):
        assert steps_apart(model, content, random_feeds(model, seed), 0.21).max() == 0
    operators = [operator for operator in file_of(model).operators if operator.builtin != "TRANSPOSE"]
    assert [operator.builtin for operator in operators] == builtins
    assert all(operator.is_integer for operator in operators)


@pytest.mark.parametrize("case", CASES)
def test_conv_transpose_equals_onnxruntime_when_int8(case):
    attributes, kernel, builtins = CASES[case]
    assert_equal(graph(attributes, kernel, quantized=True), builtins)


@pytest.mark.parametrize("case", CASES)
def test_conv_transpose_equals_onnxruntime_when_float(case):
    attributes, kernel, _ = CASES[case]
    model = graph(attributes, kernel, quantized=False)
    feeds = random_feeds(model)
    (reference,), (actual,) = run_onnx(model, feeds).values(), run_tflite(lowered(model), feeds).values()
    assert reference.shape == actual.shape
    np.testing.assert_allclose(actual, reference, rtol=0, atol=1e-5 * float(np.abs(reference).max()))


@pytest.mark.parametrize("options", [{"bias": False}, {"per_channel": False}, {"per_channel": False, "bias": False}])
def test_conv_transpose_equals_onnxruntime_when_int8_without_bias_or_channel_scales(options):
    assert_equal(graph({"strides": [2, 2]}, (3, 3), quantized=True, **options), ALONE)


@pytest.mark.parametrize("per_channel", [True, False])
def test_conv_transpose_keeps_each_groups_scales_when_grouped(per_channel):
    model = graph({"strides": [2, 2]}, (3, 3), quantized=True, group=2, per_channel=per_channel)
    parts = ["SLICE", "TRANSPOSE_CONV"] * 2
    assert_equal(model, [*parts, "CONCATENATION"])


def test_conv_transpose_equals_onnxruntime_when_int8_along_one_axis():
    model = graph({"strides": [2], "pads": [1, 1]}, (4,), quantized=True)
    content = lowered(model)
    assert steps_apart(model, content, random_feeds(model), 0.21).max() == 0
    assert file_of(model).integer_coverage == 1.0


def test_conv_transpose_is_refused_when_its_output_padding_is_as_large_as_the_stride():
    model = graph({"dilations": [3, 3], "output_padding": [2, 1]}, (3, 3), quantized=True)
    with pytest.raises(LoweringError, match="an output padding as large as the stride"):
        lowered(model)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("dilated", "stride longer than the kernel")])
def test_conv_transpose_equals_onnxruntimes_integers_when_it_has_it_as_a_convolution(case):
    attributes, kernel, _ = CASES[case]
    model = graph(attributes, kernel, quantized=True)
    unsigned = ir.to_proto(with_unsigned_activations(ir.from_proto(model)))
    assert "ConvTranspose" not in [node.op_type for node in unsigned.graph.node]
    session, content = OnnxSession(unsigned.SerializeToString()), lowered(model)
    for seed in range(5):
        feeds = random_feeds(model, seed)
        (actual,) = run_tflite(content, feeds).values()
        np.testing.assert_array_equal(actual, session.run(feeds)["y"])
