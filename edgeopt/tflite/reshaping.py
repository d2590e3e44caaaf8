"""Which reshapes of a stored tensor are the same as reshapes of the tensor that it stands for.

A reshape splits and merges axes: ``(N, C, H, W) -> (N, C, H*W)`` keeps N and C and merges H with W. Axes that keep
together form a *group*. If the tensor is stored in another order, say ``(N, H, W, C)``, the reshape can still be done
in place as long as the axes of each group stay neighbours in their order; the groups themselves may stand in any order,
and axes of size 1 anywhere. Channel shuffles, ``(N, C, 1, 1) -> (N, C)`` and most Unsqueezes pass; a Flatten of a photo
with several pixels and channels does not.
"""

from __future__ import annotations

from edgeopt.tflite.shapes import Permutation, Shape

_Group = tuple[tuple[int, ...], tuple[int, ...]]  # input axes and output axes with the same product
_DYNAMIC_STAND_IN = 1_000_003  # a prime, so that a dynamic axis can only be grouped with itself


def permutation_after_reshape(source: Shape, target: Shape, stored_as: Permutation) -> Permutation | None:
    """Return how ``target`` is stored after an in-place reshape, or ``None`` if the data would have to move.

    Args:
        source: logical shape before the reshape.
        target: logical shape after it.
        stored_as: axis ``i`` of the stored tensor is logical axis ``stored_as[i]`` of ``source``.
    """
    source, target = _concrete(source), _concrete(target)
    order = [axis for axis in stored_as if source[axis] != 1]
    result: list[int] = []
    groups = {inputs[0]: (inputs, outputs) for inputs, outputs in _groups(source, target)}
    while order:
        if order[0] not in groups:
            return None
        inputs, outputs = groups[order[0]]
        if tuple(order[: len(inputs)]) != inputs:
            return None
        order = order[len(inputs) :]
        result.extend(outputs)
    return _with_unit_axes(result, target)


def order_that_allows_reshape(source: Shape, target: Shape, stored_as: Permutation) -> Permutation:
    """Return the order in which ``source`` has to be stored to be reshaped in place, closest to the one it is in.

    Each group of axes gathers, in its order, where its last axis is met, so that what lies together stays together.
    """
    source, target = _concrete(source), _concrete(target)
    groups = {inputs[-1]: inputs for inputs, _ in _groups(source, target)}
    order = [axis for last in stored_as for axis in groups.get(last, ())]
    complete = len(order) == sum(size != 1 for size in source)
    return _with_unit_axes(order, source) if complete else tuple(range(len(source)))


def moves_no_data(shape: Shape, stored_as: Permutation, wanted: Permutation) -> bool:
    """Whether going from one permutation to another only moves axes of size 1."""
    return [axis for axis in stored_as if shape[axis] != 1] == [axis for axis in wanted if shape[axis] != 1]


def _concrete(shape: Shape) -> Shape:
    return tuple(_DYNAMIC_STAND_IN if size < 0 else size for size in shape)


def _groups(source: Shape, target: Shape) -> list[_Group]:
    """Match the axes of two shapes from the left until products agree; axes of size 1 take no part."""
    left = [axis for axis, size in enumerate(source) if size != 1]
    right = [axis for axis, size in enumerate(target) if size != 1]
    groups: list[_Group] = []
    while left and right:
        inputs, outputs = [left.pop(0)], [right.pop(0)]
        product_in, product_out = source[inputs[0]], target[outputs[0]]
        while product_in != product_out:
            if product_in < product_out and left:
                inputs.append(left.pop(0))
                product_in *= source[inputs[-1]]
            elif product_out < product_in and right:
                outputs.append(right.pop(0))
                product_out *= target[outputs[-1]]
            else:
                return []
        groups.append((tuple(inputs), tuple(outputs)))
    return groups


def _with_unit_axes(order: list[int], target: Shape) -> Permutation:
    """Put each axis of size 1 right behind the axis that precedes it logically."""
    result = list(order)
    for axis, size in enumerate(target):
        if size == 1:
            result.insert(result.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(result)
