"""Affine arithmetic: values by hand, and ONNX Runtime's QuantizeLinear as the referee."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.affine import (
    MIN_SCALE,
    QuantParams,
    asymmetric_int8,
    dequantize,
    per_channel_weight_scales,
    quantize_int8,
    quantize_to,
    symmetric_int8,
)
from edgeopt.errors import QuantizationError


def referee(dtype: str) -> ort.InferenceSession:
    """QuantizeLinear of ONNX Runtime, scale and zero-point as inputs."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])],
        "quantize",
        [tensor("x", 1, ["N"]), tensor("s", 1, []), tensor("z", kind, [])],
        [tensor("y", kind, ["N"])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


REFEREES = {dtype: referee(dtype) for dtype in ("int8", "uint8")}


@pytest.mark.parametrize(
    ("minimum", "maximum", "scale", "zero_point"),
    [
        (-1.0, 1.55, 0.01, -28),  # 2.55 / 255; -128 + 100
        (0.0, 255.0, 1.0, -128),
        (-255.0, 0.0, 1.0, 127),
        (51.0, 102.0, 0.4, -128),  # widened down to 0
        (-102.0, -51.0, 0.4, 127),  # negative only: widened up to 0
        (0.0, 0.0, 1.0, -128),  # nothing to express but 0
        (-127.5, 127.5, 1.0, 0),  # -128 + 127.5 = -0.5, a tie, goes to the even 0
        (-126.5, 128.5, 1.0, -2),  # -1.5 goes to -2
    ],
)
def test_asymmetric_int8_gives_what_is_worked_out_by_hand_when(
    minimum: float, maximum: float, scale: float, zero_point: int
) -> None:
    assert asymmetric_int8(minimum, maximum) == QuantParams(float(np.float32(scale)), zero_point)


@pytest.mark.parametrize(
    ("minimum", "maximum", "scale"),
    [(-2.54, 1.0, 0.02), (-1.0, 2.54, 0.02), (3.0, 12.7, 0.1), (-12.7, -3.0, 0.1), (0.0, 0.0, 1.0)],
)
def test_symmetric_int8_puts_the_larger_magnitude_on_127_when(minimum: float, maximum: float, scale: float) -> None:
    assert symmetric_int8(minimum, maximum) == QuantParams(float(np.float32(scale)), 0)


@pytest.mark.parametrize("params", [asymmetric_int8, symmetric_int8])
def test_params_are_finite_when_the_range_is_all_of_float32(params) -> None:
    largest = float(np.finfo(np.float32).max)
    found = params(-largest, largest)
    assert found.zero_point == 0
    assert found.scale == pytest.approx(largest / 127.5 if params is asymmetric_int8 else largest / 127, rel=1e-6)


@pytest.mark.parametrize("params", [asymmetric_int8, symmetric_int8])
@pytest.mark.parametrize("width", [1e-45, 1e-40, float(np.finfo(np.float32).tiny)])
def test_params_take_scale_1_when_the_range_is_narrower_than_any_scale(params, width: float) -> None:
    assert params(0.0, width).scale == 1.0
    assert np.float32(1) / np.float32(MIN_SCALE) < np.inf


@pytest.mark.parametrize("params", [asymmetric_int8, symmetric_int8])
@pytest.mark.parametrize(("low", "high"), [(np.nan, 1), (0, np.nan), (-np.inf, 0), (0, np.inf), (1, 0)])
def test_params_refuse_when_the_range_is_none(params, low: float, high: float) -> None:
    with pytest.raises(QuantizationError, match="a range must be finite and ordered"):
        params(low, high)


@settings(max_examples=200, deadline=None)
@given(st.floats(-(2.0**100), 2.0**100, width=32), st.floats(-(2.0**100), 2.0**100, width=32))
def test_asymmetric_int8_expresses_0_and_both_ends_when_the_range_is_any(one: float, other: float) -> None:
    low, high = min(one, other, 0.0), max(one, other, 0.0)
    params = asymmetric_int8(low, high)
    assert -128 <= params.zero_point <= 127
    if params.scale > MIN_SCALE and params.scale != 1.0:
        ends = np.array([-128, 127], np.float64)
        lowest, highest = (ends - params.zero_point) * params.scale
        assert lowest <= low + 0.51 * params.scale
        assert highest >= high - 0.51 * params.scale


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (126.5, 126), (127.5, 127), (1e30, 127), (-1e30, -128),
     (np.inf, 127), (-np.inf, -128), (-0.0, 0)],
)  # fmt: skip
def test_quantize_int8_rounds_ties_to_even_and_saturates_when(value: float, expected: int) -> None:
    found = quantize_int8(np.array([value], np.float32), 1.0)
    assert (found.dtype, found.tolist()) == (np.int8, [expected])


def test_quantize_int8_keeps_128_out_when_low_is_given() -> None:
    assert quantize_int8(np.array([-200.0, -127.6], np.float32), 1.0, low=-127).tolist() == [-127, -127]


def test_quantize_to_saturates_without_a_warning_when_the_quotient_overflows_float32() -> None:
    values = np.array([3e38, -3e38, 0.0], np.float32)
    assert quantize_to("uint8", values, float(np.float32(1e-30)), 128).tolist() == [255, 0, 128]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
    st.floats(2.0**-10, 100, width=32),
    st.integers(0, 255),
    st.sampled_from(["int8", "uint8"]),
)
def test_quantize_to_answers_like_onnxruntime_when_values_are_any(
    values: list[float], scale: float, offset: int, dtype: str
) -> None:
    zero_point = offset - 128 if dtype == "int8" else offset
    data = np.array([*values, *(scale * (step + 0.5) for step in (-3, -2, 0, 1, 2))], np.float32)
    feed = {"x": data, "s": np.float32(scale), "z": np.array(zero_point, dtype)}
    expected = REFEREES[dtype].run(None, {name: np.asarray(value) for name, value in feed.items()})[0]
    found = quantize_to(dtype, data, scale, zero_point)
    assert found.dtype == expected.dtype
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("function", [quantize_int8, lambda *items: quantize_to("uint8", *items, 0)])
def test_quantize_refuses_when_a_value_is_nan(function) -> None:
    with pytest.raises(QuantizationError, match="NaN"):
        function(np.array([1.0, np.nan], np.float32), 1.0)


def test_dequantize_gives_the_real_value_when_the_type_is_unsigned() -> None:
    found = dequantize(np.array([0, 128, 255], np.uint8), 0.5, 128)
    assert (found.dtype, found.tolist()) == (np.float32, [-64.0, 0.0, 63.5])


def test_per_channel_weight_scales_are_one_a_slice_when_the_axis_is() -> None:
    weight = np.array([[[127.0, -1.0], [2.0, -254.0]], [[0.0, 0.0], [63.5, 0.0]]], np.float32)
    assert per_channel_weight_scales(weight, 0).tolist() == [2.0, 0.5]
    assert per_channel_weight_scales(weight, 1).tolist() == [1.0, 2.0]
    assert per_channel_weight_scales(weight, -1).tolist() == [1.0, 2.0]


def test_per_channel_weight_scales_are_1_when_a_channel_is_zero_or_subnormal() -> None:
    weight = np.array([[0.0, 0.0], [1e-40, 0.0], [127.0, 0.0]], np.float32)
    assert per_channel_weight_scales(weight, 0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_per_channel_weight_scales_refuse_when_a_weight_is_not_finite(value: float) -> None:
    with pytest.raises(QuantizationError, match="a weight is NaN or infinite"):
        per_channel_weight_scales(np.array([[1.0, value]], np.float32), 0)
