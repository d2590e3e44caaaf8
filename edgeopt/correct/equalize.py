"""Cross-layer equalization: channels of one tensor get magnitudes that one scale can serve.

A tensor has one scale for all of its channels, set by the largest. A channel a hundred times smaller is left with two
or three steps, and the layer behind it multiplies what is lost. The factors of a group
(:mod:`edgeopt.correct.channels`) are free, so they are chosen to make the noise least (:mod:`edgeopt.correct.noise`):
at ``s[i] = c * sqrt(|W[i]| / |x[i]|)``, with no channel above the largest one, or the scale would grow. What is left
to choose is ``c``; some values are tried on the formula. A depthwise convolution has a scale for each channel: its
weights do not mind, and all channels are raised.

Factors are powers of 2: every product in the float network stays what it was to the last bit. A channel is raised no
further than leaves room for what is to be expected of it: in int8 it is cut off where the scale ends, and a Clip at
6, which is not scaled with the channels, cuts it off in float too. One that comes near 6, or seldom speaks, is left
alone.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721,
section 4.1 (there for weights with one scale a tensor, by ``sqrt(range1 * range2) / range2``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from edgeopt.correct.channels import ChannelGroup, channel_groups
from edgeopt.correct.noise import ChannelStatistics, Vector, reading_energy, scale_where_quieter, together

_MOST = 2.0**8  # a channel that is smaller still has nothing to say
_BALANCES = tuple(2.0**power for power in range(-2, 11))
_TINY = 1e-30


def equalize(graph: ir.Graph, statistics: Mapping[str, ChannelStatistics]) -> int:
    """Scale the channels of each group where the formula promises less noise, in place; return how many groups.

    Args:
        graph: the float graph.
        statistics: of the observed tensors of its groups, by name.
    """
    groups = [group for group in channel_groups(graph) if not group.is_normalized]
    return sum(_equalize_group(group, together([statistics[name] for name in group.observed()])) for group in groups)


def _equalize_group(group: ChannelGroup, found: ChannelStatistics) -> bool:
    if not found.largest.any():
        return False
    return scale_where_quieter(group, found, _candidates(group, found))


def _candidates(group: ChannelGroup, found: ChannelStatistics) -> Iterator[Vector]:
    """Yield factors for each balance between the noise of the activations and that of the weights."""
    alive = found.largest > 0
    bounded = math.isfinite(group.ceiling)
    top = group.ceiling if bounded else found.largest.max()
    highest = np.clip(top / np.where(alive, found.expected, top), 1.0, _MOST)
    energy = reading_energy(group.readers, group.num_channels)
    best = ((energy + _TINY) / (found.mean_square + _TINY)) ** 0.25
    best /= np.median(best[alive])
    for balance in _BALANCES:
        wished = np.clip(balance * best, 1.0 if bounded else 1 / _MOST, highest)
        yield np.where(alive, np.exp2(np.floor(np.log2(wished))), 1.0)
