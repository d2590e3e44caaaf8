"""Observers see every value of one tensor, sample by sample, and remember a bounded summary of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeopt.artifacts import TensorRange
from edgeopt.calibrate.histogram import Histogram
from edgeopt.errors import DataError


class MinMaxObserver:
    """Remembers the smallest and the largest value; neither order nor batch of samples makes a difference."""

    def __init__(self) -> None:
        self._minimum = np.inf
        self._maximum = -np.inf

    def update(self, values: NDArray[np.floating], tensor: str, sample: str) -> None:
        """Take in the tensor's values on one sample.

        Raises:
            DataError: if there are none, or one is NaN or infinite: NumPy's ``min`` and ``max`` pass NaN on, so none is
                overlooked.
        """
        if not values.size:
            raise DataError(
                f"tensor {tensor!r} is empty on sample {sample!r}, of shape {list(values.shape)}",
                hint="what is empty has no range: an axis of size 0 in the network, or a sample without content",
            )
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(
                f"tensor {tensor!r} is NaN or infinite on sample {sample!r}",
                hint="the float network itself gives this answer: look at the sample, then at the network",
            )
        self._minimum = min(self._minimum, low)
        self._maximum = max(self._maximum, high)

    def range(self) -> TensorRange:
        """Return the range seen so far."""
        return TensorRange(float(self._minimum), float(self._maximum))


class HistogramObserver(MinMaxObserver):
    """Counts every value too, in half a megabyte, whatever the values and however many."""

    def __init__(self) -> None:
        super().__init__()
        self.histogram = Histogram()

    def update(self, values: NDArray[np.floating], tensor: str, sample: str) -> None:
        """Take in the tensor's values on one sample; see :meth:`MinMaxObserver.update`."""
        super().update(values, tensor, sample)
        self.histogram.update(values)
