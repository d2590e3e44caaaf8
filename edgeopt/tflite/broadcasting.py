"""Broadcasting over more axes than a kernel has: neighbours that broadcast alike become one axis.

``(1, 3, 8, 8, 2) * (1, 3, 1, 1, 2)`` is ``(3, 64, 2) * (3, 1, 2)``. Memory stays as it is, so this costs no more than
the reshapes that say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from edgeopt.tflite.program import DYNAMIC, Tensor
from edgeopt.tflite.shapes import Shape
from edgeopt.tflite.step import Lower, Step

MAX_RANK = 4  # what the int8 kernels broadcast over in every runtime that we name


def in_few_axes(lower: Lower) -> Lower:
    """Return a lowering of an elementwise operator that sees operands with more axes than the kernels' merged."""

    def merged(step: Step) -> Tensor:
        operands = [step.operand(index) for index in range(len(step.inputs))]
        shapes = [tensor.shape for tensor in operands]
        if len(set(shapes)) == 1 or len(step.output.shape) <= MAX_RANK or step.output.shape.count(DYNAMIC) > 1:
            return lower(step)
        *few, output = merged_shapes([*shapes, step.output.shape])
        inputs = tuple(_reshaped(step, tensor, shape) for tensor, shape in zip(operands, few, strict=True))
        small = step.emitter.like(step.output, "merged", output)
        return step.emitter.reshape(lower(replace(step, inputs=inputs, output=small)), step.output.shape, step.output)

    return merged


def merged_shapes(shapes: Sequence[Shape]) -> list[Shape]:
    """Return the same shapes with every two neighbouring axes merged that all of the shapes have, or have as 1.

    Axes of size 1 in all shapes go. A dynamic axis that is in several of the operands may be 1 in one of them, so it
    stays by itself. The last shape is the result's.
    """
    rank = max(map(len, shapes))
    columns = list(zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True))
    groups: list[list[tuple[int, ...]]] = []
    for column in (column for column in columns if any(size != 1 for size in column)):
        if groups and _pattern(groups[-1][-1]) == _pattern(column) and not _may_differ(groups[-1][-1], column):
            groups[-1].append(column)
        else:
            groups.append([column])
    sizes = [tuple(_product(parts) for parts in zip(*group, strict=True)) for group in groups]
    return [tuple(shape) for shape in zip(*sizes, strict=True)]


def _pattern(column: tuple[int, ...]) -> tuple[bool, ...]:
    return tuple(size == 1 for size in column)


def _may_differ(*columns: tuple[int, ...]) -> bool:
    return any(column[:-1].count(DYNAMIC) > 1 for column in columns)


def _product(sizes: tuple[int, ...]) -> int:
    return DYNAMIC if DYNAMIC in sizes else math.prod(sizes)


def _reshaped(step: Step, tensor: Tensor, shape: Shape) -> Tensor:
    if tensor.data is None:
        return step.emitter.reshape(tensor, shape)
    return step.emitter.constant(tensor.name, tensor.data.reshape(shape), tensor.quantization)
