"""Predicts the noise that int8 adds where channels of a tensor are read, from magnitudes alone.

With one scale for a tensor, rounding adds the same noise to each channel, and channel ``i`` scaled by ``s[i]`` brings
``step^2 |W[i]|^2 / s[i]^2`` of it into the result. Rounding the weights adds ``step_w^2 |x[i]|^2 s[i]^2``, where a
row of weights has one step, and in a depthwise convolution each channel has its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.correct.channels import ChannelGroup
from edgeopt.correct.operands import Operand

Vector = NDArray[np.float64]

_STEPS = 255.0
_MAGNITUDES = 127.0
_LEAST = 1e-30
_LEAST_GAIN = 10**0.05  # half a decibel: less is not worth other numbers


@dataclass(frozen=True)
class ChannelStatistics:
    """Of each channel of a tensor ``(C,)`` over all samples: largest magnitude, mean square, and magnitude to expect.

    Few samples do not show how far a channel goes that seldom speaks. So what is expected lies as far above the largest
    magnitude as that lies above what is usual, the median of the samples' own largest magnitudes.
    """

    largest: Vector
    mean_square: Vector
    expected: Vector


def together(found: Sequence[ChannelStatistics]) -> ChannelStatistics:
    """Return the statistics of tensors that are scaled alike."""
    return ChannelStatistics(
        np.max([item.largest for item in found], axis=0),
        np.mean([item.mean_square for item in found], axis=0),
        np.max([item.expected for item in found], axis=0),
    )


def scale_where_quieter(group: ChannelGroup, found: ChannelStatistics, candidates: Iterable[Vector]) -> bool:
    """Scale a group by those factors for which the least noise is predicted, if that is less; return whether it was."""
    noise_of = {predicted_noise(group.readers, factors, found): factors for factors in candidates}
    now = predicted_noise(group.readers, np.ones(group.num_channels), found)
    if now < min(noise_of) * _LEAST_GAIN:
        return False
    group.multiply(noise_of[min(noise_of)])
    return True


def predicted_noise(readers: Sequence[Operand], factors: Vector, found: ChannelStatistics) -> float:
    """Return the noise of all readers, each relative to its signal, with channels scaled by ``factors`` ``(C,)``."""
    step = (found.largest * factors).max() / _STEPS
    total = 0.0
    for operand in readers:
        weight = weights_by_channel(operand, factors.size)
        energy = np.square(weight).sum(axis=(1, 2))
        activations = step**2 * (energy / factors**2).sum()
        rows = np.abs(weight).max(axis=2) / factors[:, None]
        steps = (rows if _is_depthwise(operand) else rows.max(axis=0, keepdims=True)) / _MAGNITUDES
        weights = weight.shape[2] * (steps**2 * (factors**2 * found.mean_square)[:, None]).sum()
        total += (activations + weights) / max(float((energy * found.mean_square).sum()), _LEAST)
    return float(total)


def reading_energy(readers: Sequence[Operand], num_channels: int) -> Vector:
    """Return ``|W[i]|^2`` ``(C,)``, summed over the readers, of which each counts the same."""
    total = np.zeros(num_channels)
    for operand in readers:
        energy = np.square(weights_by_channel(operand, num_channels)).sum(axis=(1, 2))
        total += energy / max(energy.sum(), _LEAST)
    return total


def weights_by_channel(operand: Operand, num_channels: int) -> Vector:
    """Return weights as ``(channels, outputs, taps)``."""
    weight = np.moveaxis(operand.array().astype(np.float64), operand.axis, 0)
    outputs = weight.shape[0] // num_channels if _is_depthwise(operand) else weight.shape[1]
    return weight.reshape(num_channels, outputs, -1)


def _is_depthwise(operand: Operand) -> bool:
    return operand.node.op_type == "Conv" and operand.axis == 0
