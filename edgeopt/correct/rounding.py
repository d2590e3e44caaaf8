"""Learned rounding: weights round up or down so that what a layer computes changes least, not each weight by itself.

One weight after the other is rounded, and the error is made up for by those of the same output that are not rounded
yet, as far as the samples say that they carry the same signal: for weights ``w`` of one output and inputs ``x`` the
error is ``(q - w)^T H (q - w)`` with ``H = E[x x^T]``. It costs a Cholesky factor a layer, no gradient and no random
number.

Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568 (AdaRound), for
the aim; Frantar et al., "GPTQ", arXiv 2210.17323, for this way of reaching it, after Hassibi and Stork, "Second Order
Derivatives for Network Pruning: Optimal Brain Surgeon", NIPS 1992.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.correct.layerwise import Layer, set_stored_constant, stored_constant

Matrix = NDArray[np.float64]

_DAMPING = 0.01  # of the mean of H's diagonal: what the samples do not show is kept near its weight
_MAX_PATCHES = 4096  # places that H is taken from, spread over all samples


def learn_rounding(layer: Layer) -> bool:
    """Round a layer's weights by what it reads, in place; return whether it is one that this is for."""
    node = layer.node
    if node.op_type == "ConvTranspose" or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    integers, scale = stored_constant(node, 1)
    limit = int(np.abs(integers.astype(np.int64)).max())  # 127, or less where products must not saturate
    weights = layer.weights.T if node.op_type == "MatMul" else layer.weights
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    steps = rows / np.broadcast_to(scale.reshape(-1), len(rows))[:, None]
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        moments = map(_moments, _patches(layer, groups))
        whole = np.concatenate([rounded(*pair, limit) for pair in zip(np.split(steps, groups), moments, strict=True)])
    else:
        inputs = np.concatenate([array.reshape(-1, array.shape[-1]) for array in layer.inputs]).astype(np.float64)
        whole = rounded(steps, _moments(inputs[:: -(-len(inputs) // _MAX_PATCHES)]), limit)
    set_stored_constant(node, 1, whole.T if node.op_type == "MatMul" else whole.reshape(weights.shape))
    return True


def rounded(steps: Matrix, moments: Matrix, limit: int) -> Matrix:
    """Return integers for weights so that their products with the inputs change least; zeros stay zero.

    Args:
        steps: weights over their scale ``(outputs, inputs)``.
        moments: ``E[x x^T]`` of the inputs ``(inputs, inputs)``.
        limit: the largest magnitude of a weight.
    """
    damping = _DAMPING * float(np.trace(moments)) / len(moments)
    if damping <= 0:
        return np.clip(np.rint(steps), -limit, limit)
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments[np.ix_(order, order)] + damping * np.eye(len(moments))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = steps[:, order]
    for index in range(len(moments)):
        whole = np.clip(np.rint(left[:, index]), -limit, limit) * (steps[:, order[index]] != 0)
        error = (left[:, index] - whole) / upper[index, index]
        left[:, index + 1 :] -= error[:, None] * upper[index, index + 1 :]
        left[:, index] = whole
    result = np.empty_like(left)
    result[:, order] = left
    return result


def _moments(inputs: Matrix) -> Matrix:
    """Return ``E[x x^T]`` of inputs ``(places, inputs)``."""
    moments: Matrix = inputs.T @ inputs / len(inputs)
    return moments


def _patches(layer: Layer, groups: int) -> Matrix:
    """Return what a convolution sees, ``(groups, places, inputs of one output)``, in places spread over all samples."""
    attributes, rank = layer.node.attributes, layer.inputs[0].ndim - 2
    kernel = layer.weights.shape[2:]
    strides, dilations = (attributes.get_ints(name, [1] * rank) for name in ("strides", "dilations"))
    pads = attributes.get_ints("pads", [0] * 2 * rank)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    seen = []
    for array in layer.inputs:
        padded = np.pad(array[0], [(0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(1, rank + 1)))
        index: Any = (slice(None), *_every(strides), *_every(dilations))
        taken = windows[index]
        places = np.unravel_index(_spread(taken.shape[1 : rank + 1], len(layer.inputs)), taken.shape[1 : rank + 1])
        chosen = taken[(slice(None), *places)]  # (channels, places, *kernel)
        by_group = chosen.reshape(groups, chosen.shape[0] // groups, chosen.shape[1], -1)
        seen.append(by_group.transpose(0, 2, 1, 3).reshape(groups, chosen.shape[1], -1))
    return np.concatenate(seen, axis=1).astype(np.float64)


def _every(steps: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(None, None, step) for step in steps)


def _spread(shape: tuple[int, ...], num_samples: int) -> NDArray[np.int64]:
    """Return the flat indices of evenly spread places, as many as one of the samples may give."""
    total = int(np.prod(shape))
    return np.unique(np.linspace(0, total - 1, min(total, max(1, _MAX_PATCHES // num_samples))).astype(np.int64))
