"""Which weights a mask keeps: those of the largest scores, by layer or over all layers, or two of every four.

``torch.nn.utils.prune`` takes the smallest of a tensor away; what it is given here are ranks, so that equal scores go
in the order in which they lie.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.utils import prune

from edgeopt.errors import CompressionError

Tensors = Mapping[str, torch.Tensor]


def smallest_removed(scores: torch.Tensor, num_zeros: int) -> torch.Tensor:
    """Return a mask of bool in the shape of ``scores`` that is false for the ``num_zeros`` smallest."""
    order = scores.flatten().argsort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    method = prune.L1Unstructured(amount=num_zeros)
    kept: torch.Tensor = method.compute_mask(ranks, torch.ones_like(ranks))  # type: ignore[no-untyped-call]
    return kept.bool().reshape(scores.shape)


def local_masks(scores: Tensors, sparsities: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Return a mask for each weight that leaves it its own share of zeros."""
    return {name: smallest_removed(score, round(sparsities[name] * score.numel())) for name, score in scores.items()}


def global_masks(scores: Tensors, sparsity: float) -> dict[str, torch.Tensor]:
    """Return masks that leave all weights together a share of zeros.

    Raises:
        CompressionError: a weight would lose all it has, and the network with it.
    """
    if not scores:
        return {}
    together = torch.cat([score.flatten().double() for score in scores.values()])
    kept = smallest_removed(together, round(sparsity * len(together)))
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    for name, part in zip(scores, parts, strict=True):
        if not part.any():
            raise CompressionError(
                f"weight {name!r} would lose all its values, and the network everything that passes through it",
                hint="scope = \"local\", or a ratio of its own in 'sparsities'",
            )
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def two_of_four(scores: torch.Tensor) -> torch.Tensor:
    """Return a mask that keeps the larger two of every four neighbours along axis 1, the input channels.

    Args:
        scores: ``(outputs, inputs, ...)``; the number of inputs is a multiple of 4.

    Source: NVIDIA TensorRT documentation, "Structured Sparsity": for each output channel and each pixel of the kernel,
    of every four input channels at least two must be zero.
    """
    last = scores.movedim(1, -1)
    fours = last.reshape(*last.shape[:-1], -1, 4)
    ranks = fours.argsort(dim=-1, stable=True).argsort(dim=-1)
    return (ranks >= 2).reshape(last.shape).movedim(-1, 1)


def cubic(initial: float, final: float, share: float) -> float:
    """Return the sparsity after a share in [0, 1] of the ramp: fast at first, when there is much to spare.

    Source: Zhu, Gupta: To Prune, or Not to Prune, 2017, arXiv 1710.01878, equation 1.
    """
    return final + (initial - final) * (1 - share) ** 3
