"""Counts of a tensor's values, in bins that can hold whatever a float32 can be.

A value's bin is the upper half of its float32: sign, exponent and 7 bits of mantissa. Every bin but those at 0 is less
than 0.8 % of its value wide, from the smallest number to the largest. So no range has to be known before or to grow
meanwhile, and an outlier of 1e30 takes no resolution from the rest. Counts are integers: they are the same in whatever
order and in whatever batches the values come.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NUM_CODES = 1 << 16
_SIGN = 1 << 15
_INFINITE = 0x7F80


class Histogram:
    """Counts values by the upper half of their float32; ``counts`` is int64 ``(65536,)``, by that half."""

    def __init__(self) -> None:
        self.counts = np.zeros(_NUM_CODES, np.int64)

    def update(self, values: NDArray[np.floating]) -> None:
        """Count every value of an array of any shape."""
        codes = np.ascontiguousarray(values, "<f4").reshape(-1).view("<u2")[1::2]
        found = np.bincount(codes)
        self.counts[: len(found)] += found


@dataclass(frozen=True)
class Distribution:
    """Where a tensor's values lie: B bins in ascending order, none of them empty, none overlapping another.

    ``lower`` and ``upper`` are float64 ``(B,)``, ``counts`` int64 ``(B,)``. The outermost bins end at the smallest and
    the largest value, so that a bin of one value alone has no width.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def minimum(self) -> float:
        """Return the smallest value."""
        return float(self.lower[0])

    @property
    def maximum(self) -> float:
        """Return the largest value."""
        return float(self.upper[-1])

    def clipped_share(self, minimum: float, maximum: float) -> float:
        """Return the share of values in bins that end outside ``[minimum, maximum]``; 0 if there are no values."""
        outside = (self.lower < minimum) | (self.upper > maximum)
        return float(self.counts[outside].sum() / max(self.counts.sum(), 1))

    def value(self, share: float) -> float:
        """Return the value that this share of the values does not exceed, by the upper end of its bin."""
        reached = np.cumsum(self.counts)
        return float(self.upper[np.searchsorted(reached, share * reached[-1])])

    def magnitude(self, share: float) -> float:
        """Return the magnitude that this share of the values does not exceed, by the far end of its bin."""
        far = np.maximum(np.abs(self.lower), np.abs(self.upper))
        order = np.argsort(far, kind="stable")
        reached = np.cumsum(self.counts[order])
        return float(far[order][np.searchsorted(reached, share * reached[-1])])

    def mirrored(self) -> Distribution:
        """Return the distribution of the negated values."""
        return Distribution(-self.upper[::-1], -self.lower[::-1], self.counts[::-1])


def distribution_of(
    codes: NDArray[np.uint16], counts: NDArray[np.int64], minimum: float, maximum: float, *, merged_bits: int = 0
) -> Distribution:
    """Return the bins of a histogram by value.

    Args:
        codes: which bins are not empty, ascending, uint16 ``(B,)``.
        counts: what is in them, int64 ``(B,)``.
        minimum: the smallest value.
        maximum: the largest value.
        merged_bits: join ``2**merged_bits`` neighbours into one bin.
    """
    wide, starts = np.unique(codes >> merged_bits << merged_bits, return_index=True)
    sums = np.add.reduceat(counts, starts) if len(counts) else counts
    negative = wide >= _SIGN
    near = _value(wide % _SIGN)
    far = _value(np.minimum(wide % _SIGN + (1 << merged_bits), _INFINITE))
    lower, upper = np.where(negative, -far, near), np.where(negative, -near, far)
    order = np.concatenate([np.flatnonzero(negative)[::-1], np.flatnonzero(~negative)])
    lower, upper = (np.clip(edges[order], minimum, maximum) for edges in (lower, upper))
    return Distribution(lower, upper, sums[order])


def _value(codes: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Return the smallest magnitude of each bin."""
    return (codes.astype("<u4") << 16).view("<f4").astype(np.float64)
