"""Optimization profiles: the range of shapes that an engine with a dynamic batch is built for.

Source: NVIDIA TensorRT documentation, "Working with Dynamic Shapes"; IOptimizationProfile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgeopt.artifacts import TensorInfo
from edgeopt.errors import UsageError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeProfile:
    """The smallest, the best-tuned and the largest shape of one input."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def problem(self, declared: tuple[int | str, ...]) -> str | None:
        """Return what is wrong with the profile for an input of the declared shape; ``None`` if it fits."""
        shapes = (self.minimum, self.optimum, self.maximum)
        if any(len(shape) != len(declared) for shape in shapes):
            return f"has {len(self.minimum)} dimensions, expected {len(declared)}"
        for axis, size in enumerate(declared):
            low, best, high = (shape[axis] for shape in shapes)
            if not 1 <= low <= best <= high:
                return f"axis {axis} goes {low}, {best}, {high}, expected 1 <= minimum <= optimum <= maximum"
            if isinstance(size, int) and (low, high) != (size, size):
                return f"axis {axis} goes from {low} to {high}, but the input is fixed at {size}"
        return None


def batch_profiles(inputs: Iterable[TensorInfo], max_batch: int) -> dict[str, ShapeProfile]:
    """Return a profile for every input with a dynamic batch: from 1 to ``max_batch``, tuned for ``max_batch``.

    Raises:
        UsageError: if ``max_batch`` is below 1, or a dimension other than the first is dynamic.
    """
    if max_batch < 1:
        raise UsageError(f"max_batch must be at least 1, got {max_batch}")
    profiles = {}
    for info in inputs:
        dynamic = [axis for axis, size in enumerate(info.shape) if isinstance(size, str)]
        if not dynamic:
            continue
        rest = tuple(size for size in info.shape[1:] if isinstance(size, int))
        if dynamic != [0]:
            raise UsageError(f"input {info.name!r} has shape {list(info.shape)}, only the batch may be dynamic")
        profiles[info.name] = ShapeProfile((1, *rest), (max_batch, *rest), (max_batch, *rest))
    return profiles
