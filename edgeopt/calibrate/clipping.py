"""Ranges that leave out a tail: few values are clipped so that all others get finer steps.

Every method takes where the values lie, and how the scheme makes scales of a range: symmetric and asymmetric schemes
spend their steps differently, so that the same values are clipped elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.affine import INT8_MAX, INT8_MIN, QuantParams
from edgeopt.artifacts import TensorRange
from edgeopt.calibrate.histogram import Distribution
from edgeopt.calibrate.noise import mean_squared_errors

ParamsOf = Callable[[float, float], QuantParams]

# A range that clips more than this is no candidate: what is in the tail by then is no outlier.
_MOST_CLIPPED = 0.05
_NUM_CANDIDATES = 48
# Source: NVIDIA, "8-bit Inference with TensorRT", GTC 2017: 2,048 bins for the whole range, 8 a step here.
_BINS_PER_STEP = 8
_EMPTY = 1e-12


def percentile(distribution: Distribution, share: float) -> TensorRange:
    """Return the range that holds a share of the values, with as many left out below as above."""
    outside = (1 - share) / 2
    return TensorRange(-distribution.mirrored().value(1 - outside), distribution.value(1 - outside))


def least_squared_error(distribution: Distribution, params_of: ParamsOf) -> TensorRange:
    """Return the range whose int8 values are nearest to the tensor's own: both sides together, then each alone.

    Source: Banner et al., "Post training 4-bit quantization of convolutional networks", arXiv 1810.05723, section 3.
    """
    found = TensorRange(distribution.minimum, distribution.maximum)
    for narrowed in (_narrowed_on_both_sides, _narrowed_above, _narrowed_below):
        candidates = [found, *narrowed(distribution, found)]
        errors = mean_squared_errors(distribution, [params_of(item.minimum, item.maximum) for item in candidates])
        found = candidates[int(np.argmin(errors))]
    return found


def least_divergence(distribution: Distribution, params_of: ParamsOf) -> TensorRange:
    """Return the range whose int8 values are distributed most like the tensor's own (Kullback-Leibler).

    Zeros are left out: every scheme represents them exactly. Outliers count as values at the end of the range.

    Source: NVIDIA, "8-bit Inference with TensorRT", GTC 2017.
    """
    whole = TensorRange(distribution.minimum, distribution.maximum)
    candidates = [whole, *_narrowed_on_both_sides(distribution, whole)]
    reached = _Reached.of(distribution)
    divergences = [_divergence(reached, params_of(item.minimum, item.maximum)) for item in candidates]
    return candidates[int(np.argmin(divergences))]


def _narrowed_on_both_sides(distribution: Distribution, within: TensorRange) -> Iterator[TensorRange]:
    for bound in _thresholds(max(-within.minimum, within.maximum), distribution.magnitude(1 - _MOST_CLIPPED)):
        yield TensorRange(max(within.minimum, -bound), min(within.maximum, bound))


def _narrowed_above(distribution: Distribution, within: TensorRange) -> Iterator[TensorRange]:
    for bound in _thresholds(within.maximum, distribution.value(1 - _MOST_CLIPPED)):
        yield TensorRange(within.minimum, bound)


def _narrowed_below(distribution: Distribution, within: TensorRange) -> Iterator[TensorRange]:
    for bound in _thresholds(-within.minimum, distribution.mirrored().value(1 - _MOST_CLIPPED)):
        yield TensorRange(-bound, within.maximum)


def _thresholds(largest: float, smallest: float) -> list[float]:
    """Return bounds from below ``largest`` down to ``smallest``, each a fixed share of the one before it."""
    if not 0 < smallest < largest:
        return []
    return [float(bound) for bound in np.geomspace(largest, smallest, _NUM_CANDIDATES + 1)[1:]]


def _divergence(reached: _Reached, params: QuantParams) -> float:
    """Return the divergence of what int8 makes of a distribution from the distribution itself."""
    first, last = INT8_MIN - params.zero_point, INT8_MAX - params.zero_point
    width = params.scale / _BINS_PER_STEP
    edges = (first - 0.5) * params.scale + width * np.arange((last - first + 1) * _BINS_PER_STEP + 1, dtype=np.float64)
    up_to = np.interp(edges, reached.ends, reached.counts)
    inside = np.diff(up_to)
    steps = inside.reshape(-1, _BINS_PER_STEP)
    filled = steps > 0
    even = np.where(filled, steps.sum(1, keepdims=True) / np.maximum(filled.sum(1, keepdims=True), 1), 0).reshape(-1)
    inside[0] += up_to[0]
    inside[-1] += reached.counts[-1] - up_to[-1]
    if not even.sum():
        return np.inf
    seen = inside > 0
    actual, given = inside[seen] / inside.sum(), np.maximum(even[seen] / even.sum(), _EMPTY)
    return float(np.sum(actual * np.log(actual / given)))


@dataclass(frozen=True)
class _Reached:
    """How many values lie up to the end of each bin, zeros left out: ``ends`` and ``counts`` are float64 ``(2 B,)``."""

    ends: NDArray[np.float64]
    counts: NDArray[np.float64]

    @classmethod
    def of(cls, distribution: Distribution) -> _Reached:
        counts = np.where((distribution.lower <= 0) & (distribution.upper >= 0), 0, distribution.counts)
        ends = np.stack([distribution.lower, distribution.upper], 1).reshape(-1)
        sums = np.stack([np.cumsum(counts) - counts, np.cumsum(counts)], 1).reshape(-1)
        return cls(ends, sums.astype(np.float64))
