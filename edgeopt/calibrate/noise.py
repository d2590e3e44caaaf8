"""The noise that a scale adds to a tensor, from its histogram: what rounding costs inside and clipping outside.

Within a bin values are taken to lie evenly. The squared error of rounding ``t`` to ``n * scale``, with ``n`` the
nearest step there is, has the integral ``n * scale**3 / 12 + (t - n * scale)**3 / 3`` from 0 to ``t``, whether ``t`` is
between two steps or beyond the last one. No simulation is needed, and none of the values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.affine import INT8_MAX, INT8_MIN, QuantParams
from edgeopt.calibrate.histogram import Distribution


def mean_squared_errors(distribution: Distribution, params: Sequence[QuantParams]) -> NDArray[np.float64]:
    """Return the mean squared error of int8 with each of K scales and zero points, ``(K,)``.

    Args:
        distribution: of at least one value.
        params: K scales with their zero points.
    """
    scale = np.array([item.scale for item in params])[:, np.newaxis]
    zero_point = np.array([item.zero_point for item in params])[:, np.newaxis]
    bounds = INT8_MIN - zero_point, INT8_MAX - zero_point
    lower, upper, weights = distribution.lower, distribution.upper, distribution.counts / distribution.counts.sum()
    width = upper - lower
    spread = width > 0
    errors = np.empty((len(params), len(width)))
    ends = (_integral(edge[spread], scale, *bounds) for edge in (upper, lower))
    errors[:, spread] = np.subtract(*ends) / width[spread]
    alone = lower[~spread]
    errors[:, ~spread] = (alone - _step(alone, scale, *bounds) * scale) ** 2
    return np.asarray(errors @ weights, np.float64)


def _integral(
    end: NDArray[np.float64], scale: NDArray[np.float64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> NDArray[np.float64]:
    step = _step(end, scale, first, last)
    return np.asarray(step * scale**3 / 12 + (end - step * scale) ** 3 / 3, np.float64)


def _step(
    value: NDArray[np.float64], scale: NDArray[np.float64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> NDArray[np.float64]:
    return np.asarray(np.clip(np.rint(value / scale), first, last), np.float64)
