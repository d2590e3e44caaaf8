"""Ranges that clip: by hand where that can be done, else against all other thresholds or ONNX Runtime's own method."""

import contextlib
import io
from collections.abc import Callable

import numpy as np
import pytest
from onnxruntime.quantization.calibrate import HistogramCollector
from test_histogram import SHAPES, distribution, true_error

from edgeopt.affine import QuantParams, asymmetric_int8, symmetric_int8
from edgeopt.artifacts import TensorRange
from edgeopt.calibrate.clipping import least_divergence, least_squared_error, percentile

Scheme = Callable[[float, float], QuantParams]


def test_percentile_leaves_out_as_many_below_as_above_when_values_are_counted() -> None:
    found = percentile(distribution(np.arange(-500, 500) / 8), 0.9)  # 50 values on either side
    assert found.minimum == pytest.approx(-450 / 8, rel=0.01)
    assert found.maximum == pytest.approx(449 / 8, rel=0.01)
    everything = distribution(np.arange(-500, 500) / 8)
    assert percentile(everything, 1.0) == TensorRange(everything.minimum, everything.maximum)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("scheme", [asymmetric_int8, symmetric_int8])
def test_least_squared_error_is_near_that_of_the_best_threshold_when_all_are_tried(name: str, scheme: Scheme) -> None:
    values = SHAPES[name]
    found = least_squared_error(distribution(values, merged_bits=2), scheme)
    shares = np.linspace(0.1, 1, 60)
    best = min(true_error(values, scheme(values.min() * share, values.max() * share)) for share in shares)
    assert true_error(values, scheme(found.minimum, found.maximum)) <= 1.1 * best
    assert values.astype(np.float32).min() <= found.minimum <= found.maximum <= values.astype(np.float32).max()


def test_least_squared_error_clips_more_when_a_symmetric_scheme_has_fewer_steps_for_the_same_values() -> None:
    values = distribution(SHAPES["swish"], merged_bits=2)
    one, other = (least_squared_error(values, scheme) for scheme in (asymmetric_int8, symmetric_int8))
    assert other.maximum < one.maximum < values.maximum


@pytest.mark.parametrize("name", ["normal", "swish"])
def test_least_divergence_is_near_onnx_runtime_when_both_choose(name: str) -> None:
    values = SHAPES[name].astype(np.float32)
    collector = HistogramCollector("entropy", True, 2048, 128, 99.99, None)
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"x": [values]})
        theirs = float(max(map(abs, collector.compute_collection_result()["x"][:2])))
    ours = least_divergence(distribution(values, merged_bits=2), symmetric_int8)
    assert max(-ours.minimum, ours.maximum) == pytest.approx(theirs, rel=0.2)


def test_least_divergence_drops_two_outliers_when_there_are_50_000_other_values() -> None:
    assert least_divergence(distribution(SHAPES["outliers"], merged_bits=2), symmetric_int8).maximum < 10


@pytest.mark.parametrize("method", [least_squared_error, least_divergence])
@pytest.mark.parametrize("values", [np.zeros(5), np.full(5, 3.0), np.full(5, -2e-40), np.array([-1e38, 1e38])])
def test_methods_keep_all_values_when_there_are_but_one_or_two(
    method: Callable[..., TensorRange], values: np.ndarray
) -> None:
    for scheme in (asymmetric_int8, symmetric_int8):
        found = method(distribution(values), scheme)
        assert (found.minimum, found.maximum) == (np.float32(values.min()), np.float32(values.max()))


def test_percentile_drops_an_outlier_that_squares_cannot_when_it_is_huge() -> None:
    values = distribution(np.append(np.random.default_rng(2).standard_normal(100_000), [1e30]))
    assert percentile(values, 0.9999).maximum < 5
