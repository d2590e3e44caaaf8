"""Smoothing: outliers in few channels of a transformer's activations move into the weights that read them.

Behind a layer normalization some channels are a hundred times larger than the rest, in every sample, and set the
scale for all. Dividing channel ``i`` by ``max|X[i]|^alpha / max|W[i]|^(1 - alpha)``, in the weights of the
normalization, and multiplying the rows of the products that read it shares the difficulty out. ``alpha`` is tried
from even shares to all of it, on the formula for the noise (:mod:`edgeopt.correct.noise`). Factors are powers of 2,
so the float network stays what it was to the last bit. Where a residual sum or another normalization reads the same
tensor, nothing can take the factors in, and it is left alone.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", arXiv
2211.10438, equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeopt.correct.channels import ChannelGroup, channel_groups
from edgeopt.correct.noise import ChannelStatistics, Vector, scale_where_quieter, together, weights_by_channel

_ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def smooth(graph: ir.Graph, statistics: Mapping[str, ChannelStatistics]) -> int:
    """Scale the channels of normalized tensors where the formula promises less noise, in place; return how many.

    Args:
        graph: the float graph.
        statistics: of the observed tensors of its groups, by name.
    """
    groups = [group for group in channel_groups(graph) if group.is_normalized]
    return sum(_smooth_group(group, together([statistics[name] for name in group.observed()])) for group in groups)


def _smooth_group(group: ChannelGroup, found: ChannelStatistics) -> bool:
    by_channel = [np.abs(weights_by_channel(reader, group.num_channels)).max(axis=(1, 2)) for reader in group.readers]
    weights = np.max(by_channel, axis=0)
    if not (found.largest.all() and weights.all()):
        return False
    return scale_where_quieter(group, found, (_factors(found.largest, weights, alpha) for alpha in _ALPHAS))


def _factors(activations: Vector, weights: Vector, alpha: float) -> Vector:
    divisors = activations**alpha / weights ** (1 - alpha)
    return np.exp2(-np.rint(np.log2(divisors / np.median(divisors))))
