"""The nearest weight of few bits: 4 bits, three values or two, with a scale for each output channel.

Each projection leaves what it made as it is, bit for bit: its scales are float64.

Source: Li, Liu: Ternary Weight Networks, 2016, arXiv 1605.04711, equations 4 and 6; Rastegari et al.: XNOR-Net, 2016,
arXiv 1603.05279, section 3.1.
"""

from __future__ import annotations

import torch

_INT4_MAX = 7
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
    scale = weight.double().abs().amax(dim=1, keepdim=True) / _INT4_MAX
    steps = (weight / scale.clamp(min=torch.finfo(weight.dtype).tiny)).round().clamp(-_INT4_MAX, _INT4_MAX)
    return (steps * scale).to(weight.dtype)


def rows_of(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Return a weight as rows that have one scale each: the output channels, which are on ``axis``."""
    return weight.movedim(axis, 0).flatten(1)


def from_rows(rows: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    """Return rows of :func:`rows_of` as the weight that they were taken from."""
    return rows.reshape(like.movedim(axis, 0).shape).movedim(0, axis)
