"""k-means over the values of one tensor: the few values that stand for all with the least squared error.

In one dimension a cluster is an interval, so that a value finds its centroid by where it lies between the midpoints.
All sums are float64 and in a fixed order: the same values give the same centroids.

Source: Han, Mao, Dally: Deep Compression, 2016, arXiv 1510.00149, section 3.1 and 3.2 (linear and density-based
initialization; linear keeps the rare large weights, which matter most).
"""

from __future__ import annotations

from typing import Literal

import torch


def share_values(
    weight: torch.Tensor, num_values: int, initialization: Literal["linear", "density"], max_iterations: int
) -> torch.Tensor:
    """Return a weight of at most ``num_values`` different values, each the mean of those that it stands for.

    Args:
        weight: any shape, float; where it is zero it stays zero, and zero is then one of the values.
        num_values: at least 2.
        initialization: where the centroids begin: at equal distances from the smallest to the largest value, or at
            quantiles.
        max_iterations: after how many rounds to stop, if the clusters still change.
    """
    is_zero = weight == 0
    values = weight[~is_zero].double()
    num_centroids = num_values - int(bool(is_zero.any()))
    if len(torch.unique(values)) <= num_centroids:
        return weight.clone()
    centroids, clusters = k_means(values, num_centroids, initialization, max_iterations)
    shared = torch.zeros_like(weight)
    shared[~is_zero] = centroids[clusters].to(weight.dtype)
    return shared


def k_means(
    values: torch.Tensor, num_centroids: int, initialization: Literal["linear", "density"], max_iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the centroids, float64 ``(K,)`` in order, and the cluster of each value, int64 ``(N,)``.

    A cluster without values, such as one in the gap that pruning left around zero, begins again at the value that is
    farthest from its centroid; ``values`` are float64 ``(N,)``, more than ``K`` different ones.
    """
    shares = torch.linspace(0, 1, num_centroids, dtype=torch.float64)
    if initialization == "linear":
        centroids = values.min() + shares * (values.max() - values.min())
    else:
        centroids = values.sort().values[(shares * (len(values) - 1)).round().long()]
    clusters = _nearest(values, centroids)
    for _ in range(max_iterations):
        counts = torch.bincount(clusters, minlength=num_centroids)
        means = torch.bincount(clusters, weights=values, minlength=num_centroids) / counts.clamp(min=1)
        farthest = (values - means[clusters]).abs().argsort(descending=True, stable=True)
        means[counts == 0] = values[farthest[: int((counts == 0).sum())]]
        centroids = means.sort().values
        before, clusters = clusters, _nearest(values, centroids)
        if torch.equal(before, clusters):
            break
    return centroids, clusters


def _nearest(values: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Return the index of the nearest centroid; of two equally near the lower."""
    return torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)
