"""Shapes of ONNX values as plain tuples, with -1 for the axis that the application chooses."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgeopt.tflite.program import DYNAMIC, RefusedError

Shape = tuple[int, ...]
Permutation = tuple[int, ...]
MAX_ELEMENTS = 2**31 - 1  # what TFLite's kernels count with 32 bits


class UnknownShapeError(RefusedError):
    """A value whose rank is not known; inside this package only."""


def shape_of(value: ir.Value | None) -> Shape:
    """Return the sizes of a value's axes.

    Raises:
        UnknownShapeError: if the graph does not say, and inference could not find out.
    """
    if value is None or value.shape is None:
        raise UnknownShapeError(f"the shape of {value.name!r}" if value is not None else "a missing operand")
    return tuple(dim if isinstance(dim, int) else DYNAMIC for dim in value.shape)


def broadcast_shape(shapes: Sequence[Shape]) -> Shape:
    """Return the shape that broadcasting gives; a dynamic axis stays dynamic."""
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))


def is_known(size: int) -> bool:
    """Whether an axis has a fixed size."""
    return size != DYNAMIC


def permuted(shape: Sequence[int], permutation: Permutation) -> Shape:
    """Return ``shape`` with its axes in the order of ``permutation``, as NumPy's transpose would."""
    return tuple(shape[axis] for axis in permutation)


def inverse(permutation: Permutation) -> Permutation:
    """Return the permutation that undoes ``permutation``."""
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


def identity(rank: int) -> Permutation:
    """Return the permutation that moves nothing."""
    return tuple(range(rank))
