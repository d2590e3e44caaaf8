"""The nearest weight of few bits: 4 bits, three values or two, with a scale for each output channel.

Blocks of input channels have a whole number each by which the channel's scale is multiplied, so that weights in blocks
are whole numbers of 8 bits too, and every target computes with them as they are.

Each projection leaves what it made as it is, bit for bit: its scales are float64.

Source: Li, Liu: Ternary Weight Networks, 2016, arXiv 1605.04711, equations 4 and 6; Rastegari et al.: XNOR-Net, 2016,
arXiv 1603.05279, section 3.1; for blocks the two levels of scales of Dai et al.: VS-Quant, 2021, arXiv 2102.04503, with
factors of at most 18, of which the one is taken that leaves the least squared error.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from edgeopt.affine import BLOCK_INT4_MAX, INT4_MAX, MOST_BLOCK_FACTOR

_TERNARY_THRESHOLD = 0.7  # of the mean magnitude


def ternary(weight: torch.Tensor) -> torch.Tensor:
    """Return each row as ``-a``, 0 or ``a``: 0 below 0.7 times its mean magnitude, ``a`` the mean of the others.

    Args:
        weight: ``(rows, weights)``; a row of zeros stays one.
    """
    magnitude = weight.double().abs()
    is_large = magnitude > _TERNARY_THRESHOLD * magnitude.mean(dim=1, keepdim=True)
    total, count = (magnitude * is_large).sum(dim=1, keepdim=True), is_large.sum(dim=1, keepdim=True)
    return (weight.sign() * is_large * (total / count.clamp(min=1))).to(weight.dtype)


def binary(weight: torch.Tensor) -> torch.Tensor:
    """Return each row's weights ``(rows, weights)`` as ``-a`` or ``a``, its mean magnitude; zero counts as positive."""
    scale = weight.double().abs().mean(dim=1, keepdim=True)
    return torch.where(weight < 0, -scale, scale).to(weight.dtype)


def int4(weight: torch.Tensor) -> torch.Tensor:
    """Return each row's weights ``(rows, weights)`` as multiples from -7 to 7 of a seventh of its largest magnitude."""
    scale = weight.double().abs().amax(dim=1, keepdim=True) / INT4_MAX
    steps = (weight / scale.clamp(min=torch.finfo(torch.float64).tiny)).round().clamp(-INT4_MAX, INT4_MAX)
    return (steps * scale).to(weight.dtype)


def block_int4(weight: torch.Tensor, block_size: int) -> torch.Tensor:
    """Return weights as ``q m s``: q from -7 to 7, m from 1 to 18 for each block, s for each row.

    ``7 * 18 * s`` is a row's largest magnitude, and the block that holds it has the factor 18.

    Args:
        weight: ``(rows, places, inputs)``; a block is ``block_size`` inputs of one place, the last one what is left.
        block_size: inputs a block.
    """
    largest = weight.double().abs().amax(dim=(1, 2))[:, None, None, None]
    scale = (largest / BLOCK_INT4_MAX).clamp(min=torch.finfo(torch.float64).tiny)
    padded = functional.pad(weight, (0, -weight.shape[2] % block_size))
    blocks = padded.reshape(*weight.shape[:2], -1, block_size)
    steps = (blocks / scale).to(weight.dtype)
    found, least = torch.zeros_like(steps), torch.full_like(steps[..., :1], torch.inf)
    for factor in range(1, MOST_BLOCK_FACTOR + 1):
        rounded = (steps / factor).round().clamp(-INT4_MAX, INT4_MAX) * factor
        error = (steps - rounded).square().sum(dim=3, keepdim=True)
        if factor == MOST_BLOCK_FACTOR:
            error = error.where(blocks.abs().amax(dim=3, keepdim=True) < largest, -1)
        found, least = torch.where(error < least, rounded, found), torch.minimum(error, least)
    return (found * scale).to(weight.dtype).flatten(2)[..., : weight.shape[2]]


def inputs_last(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Return a weight as ``(output channels, places, input channels)``; the output channels are on ``axis``, 0 or 1."""
    moved = weight.movedim((axis, 1 - axis), (0, -1))
    return moved.reshape(len(moved), -1, moved.shape[-1])


def from_inputs_last(blocks: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    """Return what :func:`inputs_last` made as the weight that it was taken from."""
    moved = like.movedim((axis, 1 - axis), (0, -1))
    return blocks.reshape(moved.shape).movedim((0, -1), (axis, 1 - axis))


def rows_of(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Return a weight as rows that have one scale each: the output channels, which are on ``axis``."""
    return weight.movedim(axis, 0).flatten(1)


def from_rows(rows: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    """Return rows of :func:`rows_of` as the weight that they were taken from."""
    return rows.reshape(like.movedim(axis, 0).shape).movedim(0, axis)
