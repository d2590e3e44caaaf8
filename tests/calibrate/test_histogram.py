"""Histograms: every value in its bin, the same counts in every order, and errors as quantizing itself makes them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.affine import QuantParams, asymmetric_int8, dequantize, quantize_int8, symmetric_int8
from edgeopt.calibrate.histogram import Distribution, Histogram, distribution_of
from edgeopt.calibrate.noise import mean_squared_errors

VALUES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60)
RANDOM = np.random.default_rng(0)
SHAPES = {
    "normal": RANDOM.standard_normal(50_000),
    "relu": np.maximum(RANDOM.standard_normal(50_000), 0),
    "swish": (lambda x: x / (1 + np.exp(-x)))(3 * RANDOM.standard_normal(50_000)),
    "relu6": np.clip(3 * RANDOM.standard_normal(50_000), 0, 6),
    "outliers": np.append(RANDOM.standard_normal(50_000), [30, -25]),
    "heavy tail": RANDOM.laplace(size=50_000) ** 3,
}


def distribution(values: np.ndarray, *, merged_bits: int = 0) -> Distribution:
    values = values.astype(np.float32)
    histogram = Histogram()
    histogram.update(values)
    codes = np.flatnonzero(histogram.counts)
    bounds = float(values.min()), float(values.max())
    return distribution_of(codes.astype(np.uint16), histogram.counts[codes], *bounds, merged_bits=merged_bits)


def true_error(values: np.ndarray, params: QuantParams) -> float:
    values = values.astype(np.float32)
    stored = quantize_int8(values, params.scale, params.zero_point)
    return float(np.mean((values.astype(np.float64) - dequantize(stored, params.scale, params.zero_point)) ** 2))


@settings(max_examples=50, deadline=None)
@given(VALUES, st.randoms(), st.lists(st.integers(0, 60), max_size=5))
def test_update_counts_the_same_when_values_come_in_another_order_and_in_batches(
    values: list[float], random: np.random.Generator, cuts: list[int]
) -> None:
    whole, parts = Histogram(), Histogram()
    whole.update(np.array(values, np.float32))
    shuffled = list(values)
    random.shuffle(shuffled)
    for part in np.split(np.array(shuffled, np.float32), sorted(cuts)):
        parts.update(part.reshape(-1, 1))
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert whole.counts.sum() == len(values)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.integers(0, 3))
def test_distribution_has_every_value_in_a_bin_when_bins_are_merged_or_not(values: list[float], merged: int) -> None:
    array = np.array(values, np.float32)
    found = distribution(array, merged_bits=merged)
    assert (np.diff(found.lower) >= 0).all()
    assert (found.lower[1:] >= found.upper[:-1]).all()
    assert found.minimum == array.min()
    assert found.maximum == array.max()
    inside = (array[:, np.newaxis] >= found.lower) & (array[:, np.newaxis] <= found.upper)
    assert inside.any(axis=1).all()
    assert found.counts.sum() == len(values)
    widths, near = found.upper - found.lower, np.minimum(np.abs(found.lower), np.abs(found.upper))
    normal = near > np.finfo(np.float32).tiny * 2**8
    assert (widths[normal] <= near[normal] * 2.0 ** (merged - 7)).all()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("scheme", [asymmetric_int8, symmetric_int8])
def test_mean_squared_errors_are_those_of_quantizing_when_a_range_is_whole_or_clips(name: str, scheme: object) -> None:
    assert callable(scheme)
    values = SHAPES[name]
    ranges = [(values.min() * share, values.max() * share) for share in (1.0, 0.8, 0.5, 0.2)]
    candidates = [scheme(*item) for item in ranges]
    estimated = mean_squared_errors(distribution(values), candidates)
    np.testing.assert_allclose(estimated, [true_error(values, item) for item in candidates], rtol=0.03)


def test_mean_squared_errors_are_zero_when_all_values_are_zero() -> None:
    assert mean_squared_errors(distribution(np.zeros(9)), [asymmetric_int8(0, 0)]) == [0]


def test_distribution_keeps_its_resolution_when_one_value_is_huge() -> None:
    found = distribution(np.append(np.linspace(1, 2, 10_000), [1e30]))
    assert len(found.counts) == 130  # 128 bins from 1 to 2, that of 2 itself and the outlier's
    assert found.clipped_share(1, 2.02) == pytest.approx(1 / 10_001)
    assert found.magnitude(0.5) == pytest.approx(1.5, rel=0.01)
    assert found.magnitude(1.0) == np.float32(1e30)
