"""Is a drop real? Two networks are asked the same samples, so that their difference is judged sample by sample.

What is right or wrong (top-1, top-5) has a closed form: only samples on which the two networks disagree count. The
interval is Agresti and Min's, which adds half a sample to each cell of the table and so never has width 0; the p-value
is McNemar's exact one. For everything else samples are drawn anew, with a fixed seed.

Sources: Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in
Medicine 24, 2005, section 3; McNemar, Psychometrika 12, 1947; Efron and Tibshirani, "An Introduction to the Bootstrap",
1993, chapter 13 (percentiles).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from edgeopt.accuracy.metrics import Metric, Parts

CONFIDENCE = 0.95
_DRAWS, _SEED = 2000, 0


@dataclass(frozen=True)
class Interval:
    """Where a drop lies with ``confidence``; ``p_value`` is of no drop at all, where there is an exact test."""

    low: float
    high: float
    confidence: float
    p_value: float | None = None

    @property
    def holds_zero(self) -> bool:
        """Return whether the drop cannot be told from none."""
        return self.low <= 0 <= self.high


def drop_interval(metric: Metric, reference: Parts, actual: Parts, num_looks: int = 1) -> Interval | None:
    """Return the interval of the drop from the parts of two networks on the same samples.

    Args:
        metric: what made the parts.
        reference: of the float network, ``(N, ...)``.
        actual: of the quantized network, ``(N, ...)``.
        num_looks: how many plans these samples were asked about. The best of several looks better than it is; with
            ``0.05 / num_looks`` in the place of 0.05 (Bonferroni) all intervals hold at once, the chosen one too.

    Returns:
        ``None`` where the metric gives one number for all samples, or there are fewer than two.
    """
    if reference.ndim == 0 or len(reference) < 2:
        return None
    alpha = (1 - CONFIDENCE) / num_looks
    if metric.label == "class":
        lost, won = int((reference > actual).sum()), int((actual > reference).sum())
        return _matched_proportions(lost, won, len(reference), alpha)
    drawn = _drawn_drops(metric, reference, actual)
    low, high = np.quantile(drawn, (alpha / 2, 1 - alpha / 2))
    return Interval(float(low), float(high), CONFIDENCE)


def mcnemar_p_value(lost: int, won: int) -> float:
    """Return how likely a split of the discordant samples at least as uneven is, if either side were as likely."""
    total, least = lost + won, min(lost, won)
    tail: float = sum(math.comb(total, count) for count in range(least + 1)) / 2**total
    return min(1.0, 2 * tail)


def _matched_proportions(lost: int, won: int, count: int, alpha: float) -> Interval:
    better, worse, total = won + 0.5, lost + 0.5, count + 2
    drop = (worse - better) / total
    spread = math.sqrt(max(worse + better - (worse - better) ** 2 / total, 0)) / total
    reach = NormalDist().inv_cdf(1 - alpha / 2) * spread
    return Interval(max(drop - reach, -1.0), min(drop + reach, 1.0), CONFIDENCE, mcnemar_p_value(lost, won))


def _drawn_drops(metric: Metric, reference: Parts, actual: Parts) -> list[float]:
    random = np.random.default_rng(_SEED)
    chosen = random.integers(0, len(reference), (_DRAWS, len(reference)))
    return [metric.drop(metric.total(reference[index]), metric.total(actual[index])) for index in chosen]
