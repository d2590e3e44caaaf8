"""The formulas of edgeopt.quantize.rounding against the runtimes themselves, on every pair of int8 inputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tflite_graphs import GraphWriter
from tflite_runtimes import lowered, run_onnx, run_tflite

from edgeopt.affine import QuantParams, dequantize
from edgeopt.quantize.rounding import (
    add_in_onnxruntime,
    add_in_xnnpack,
    additions_agree,
    averages_agree,
    nearest_agreeing,
    subtract_in_onnxruntime,
    subtractions_agree,
    sums_agree,
)

GRID = np.arange(-128, 128, dtype=np.int8)


def random_params(seed: int) -> tuple[QuantParams, QuantParams, QuantParams]:
    random = np.random.default_rng(seed)
    scales = random.uniform(0.01, 0.1, 2)
    output = max(scales) * random.uniform(0.9, 1.5)
    points = random.integers(-60, 60, 3)
    params = [QuantParams(float(np.float32(s)), int(p)) for s, p in zip([*scales, output], points, strict=True)]
    return params[0], params[1], params[2]


def addition(
    left: QuantParams, right: QuantParams, output: QuantParams, op_type: str = "Add"
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    write = GraphWriter()
    shape = (1, 1, 256, 256)
    values = [write.quantized(write.input(n, shape), p.scale, p.zero_point) for n, p in (("a", left), ("b", right))]
    write.output(write.quantized(write.node(op_type, *values), output.scale, output.zero_point, name="y"))
    rows, columns = np.meshgrid(GRID, GRID, indexing="ij")
    feeds = {
        "a": dequantize(rows.reshape(shape), left.scale, left.zero_point),
        "b": dequantize(columns.reshape(shape), right.scale, right.zero_point),
    }
    return write.model(), feeds


def as_integers(answers: dict[str, np.ndarray], output: QuantParams) -> np.ndarray:
    (values,) = answers.values()
    return (np.rint(values / np.float32(output.scale)) + output.zero_point).astype(np.int64).reshape(256, 256)


@pytest.mark.parametrize("seed", range(6))
def test_add_formulas_equal_their_runtimes_on_every_pair_when_scales_are_random(seed):
    left, right, output = random_params(seed)
    model, feeds = addition(left, right, output)
    in_onnxruntime = as_integers(run_onnx(model, feeds), output)
    in_xnnpack = as_integers(run_tflite(lowered(model), feeds), output)
    assert len(np.unique(in_onnxruntime)) > 100
    np.testing.assert_array_equal(add_in_onnxruntime(left, right, output), in_onnxruntime)
    np.testing.assert_array_equal(add_in_xnnpack(left, right, output), in_xnnpack)


def test_nearest_agreeing_makes_the_runtimes_equal_on_every_pair_when_they_were_not():
    disagreeing = [p for p in map(random_params, range(40)) if not additions_agree(*p)]
    assert len(disagreeing) >= 4
    for left, right, output in disagreeing[:4]:
        chosen = nearest_agreeing(output, lambda params, left=left, right=right: additions_agree(left, right, params))
        assert chosen is not None
        assert output.scale < chosen.scale < 1.01 * output.scale
        model, feeds = addition(left, right, chosen)
        np.testing.assert_array_equal(
            as_integers(run_onnx(model, feeds), chosen), as_integers(run_tflite(lowered(model), feeds), chosen)
        )


@pytest.mark.parametrize("seed", range(4))
def test_sums_agree_makes_pooled_averages_equal_when_the_scale_is_widened(seed):
    source, _, given = random_params(seed)
    output = nearest_agreeing(given, lambda params: sums_agree(source, params, 4, divisor=4, in_float=True))
    assert output is not None
    assert sums_agree(source, source, 4, divisor=4, in_float=True) is False
    pixels = np.random.default_rng(seed).integers(-128, 128, (1, 16, 64, 64)).astype(np.int8)
    write = GraphWriter()
    x = write.quantized(write.input("x", pixels.shape), source.scale, source.zero_point)
    pooled = write.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    write.output(write.quantized(pooled, output.scale, output.zero_point, name="y"))
    model, feeds = write.model(), {"x": dequantize(pixels, source.scale, source.zero_point)}
    (reference,), (actual,) = run_onnx(model, feeds).values(), run_tflite(lowered(model), feeds).values()
    assert len(np.unique(reference)) > 50
    np.testing.assert_array_equal(actual, reference)


def test_nearest_agreeing_keeps_the_scale_when_it_agrees_already():
    params = QuantParams(0.5, 3)
    assert nearest_agreeing(params, lambda candidate: True) == params


def test_nearest_agreeing_gives_up_when_nothing_agrees():
    assert nearest_agreeing(QuantParams(0.5, 3), lambda candidate: False) is None


@pytest.mark.parametrize("seed", [3, 10])
def test_subtractions_agree_when_the_scale_was_chosen_so(seed):
    left, right, output = random_params(seed)
    chosen = nearest_agreeing(output, lambda params: subtractions_agree(left, right, params))
    assert chosen is not None
    for params, differ in ((output, True), (chosen, False)):
        model, feeds = addition(left, right, params, "Sub")
        in_onnxruntime = as_integers(run_onnx(model, feeds), params)
        in_xnnpack = as_integers(run_tflite(lowered(model), feeds), params)
        np.testing.assert_array_equal(subtract_in_onnxruntime(left, right, params), in_onnxruntime)
        np.testing.assert_array_equal(add_in_xnnpack(left, right, params, sign=-1), in_xnnpack)
        assert (in_onnxruntime != in_xnnpack).any() == differ


@pytest.mark.parametrize(("mode", "weights"), [("half_pixel", 64), ("asymmetric", 16), ("align_corners", 55 * 55)])
def test_sums_agree_is_true_only_if_a_linear_resize_is_equal_in_both(mode, weights):
    source = QuantParams(float(np.float32(0.031)), -7)
    output = nearest_agreeing(source, lambda p: sums_agree(source, p, weights, divisor=weights, in_float=True))
    assert output is not None
    feeds = {"x": np.random.default_rng(0).uniform(-4, 4, (1, 32, 14, 14)).astype(np.float32)}
    differing = []
    for params in (source, output):
        write = GraphWriter()
        x = write.quantized(write.input("x", (1, 32, 14, 14)), source.scale, source.zero_point)
        scales = write.constant(np.array([1, 1, 4, 4], np.float32))
        y = write.node("Resize", x, "", scales, mode="linear", coordinate_transformation_mode=mode)
        write.output(write.quantized(y, params.scale, params.zero_point, name="y"))
        model = write.model()
        (reference,), (actual,) = run_onnx(model, feeds).values(), run_tflite(lowered(model), feeds).values()
        differing.append(int((reference != actual).sum()))
    assert differing[1] == 0
    assert (output != source) == (differing[0] > 0)


@pytest.mark.parametrize(("op_type", "divisor"), [("ReduceSum", 1), ("ReduceMean", 35)])
def test_sums_agree_is_true_only_if_a_reduction_is_equal_in_both(op_type, divisor):
    source = QuantParams(0.0213, -5)
    wanted = QuantParams(float(np.float32(0.0213 * 8 / divisor)), 3)
    assert not sums_agree(source, wanted, 35, divisor=divisor, in_float=True)
    output = nearest_agreeing(wanted, lambda p: sums_agree(source, p, 35, divisor=divisor, in_float=True))
    assert output is not None
    feeds = {"x": np.random.default_rng(0).uniform(-3, 3, (1, 2000, 5, 7)).astype(np.float32)}
    write = GraphWriter()
    x = write.quantized(write.input("x", (1, 2000, 5, 7)), source.scale, source.zero_point)
    y = write.node(op_type, x, write.constant(np.array([2, 3])))
    write.output(write.quantized(y, output.scale, output.zero_point, name="y"))
    model = write.model()
    (reference,), (actual,) = run_onnx(model, feeds).values(), run_tflite(lowered(model), feeds).values()
    assert len(np.unique(reference)) > 30
    np.testing.assert_array_equal(actual, reference)


@pytest.mark.parametrize("seed", range(4))
def test_averages_agree_is_true_only_if_the_runtimes_are_equal_on_every_sum(seed):
    source, _, output = random_params(seed)
    output = nearest_agreeing(output, lambda params: averages_agree(source, params, 49))
    assert output is not None
    sums = np.arange(-128 * 49, 127 * 49 + 1)
    quotient, rest = np.divmod(sums, 49)
    pixels = (quotient[:, None] + (np.arange(49) < rest[:, None])).astype(np.int8)
    assert (pixels.sum(axis=1) == sums).all()
    write = GraphWriter()
    x = write.quantized(write.input("x", (1, len(sums), 7, 7)), source.scale, source.zero_point)
    write.output(write.quantized(write.node("GlobalAveragePool", x), output.scale, output.zero_point, name="y"))
    model = write.model()
    feeds = {"x": dequantize(pixels.reshape(1, -1, 7, 7), source.scale, source.zero_point)}
    (reference,), (actual,) = run_onnx(model, feeds).values(), run_tflite(lowered(model), feeds).values()
    assert len(np.unique(reference)) > 100
    np.testing.assert_array_equal(actual, reference)


def test_averages_agree_is_false_when_the_zero_point_costs_the_last_bits_that_decide():
    source, output, num_elements = QuantParams(0.049975402653217316, -122), QuantParams(0.0027931337244808674, -77), 256
    pixels = np.full((1, 1, 16, 16), -122, np.int8)
    pixels.reshape(-1)[:93] -= 1
    average = -93 * source.scale / (output.scale * num_elements)
    assert -6.5 < average < -6.4999
    write = GraphWriter()
    x = write.quantized(write.input("x", pixels.shape), source.scale, source.zero_point)
    write.output(write.quantized(write.node("GlobalAveragePool", x), output.scale, output.zero_point, name="y"))
    feeds = {"x": dequantize(pixels, source.scale, source.zero_point)}
    (actual,) = run_tflite(lowered(write.model()), feeds).values()
    assert np.rint(actual / np.float32(output.scale)) == -7  # and ONNX Runtime gives -6
    assert not averages_agree(source, output, num_elements)


@pytest.mark.parametrize("scale", [0.5, float(np.nextafter(np.float32(0.5), np.float32(1)))])
def test_averages_agree_is_false_when_a_sum_is_a_tie_or_within_a_hair_of_one(scale):
    assert not averages_agree(QuantParams(scale, 0), QuantParams(0.5, 0), 2)
