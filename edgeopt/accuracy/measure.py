"""Measures one model by the metric, beside the float network on the same samples."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from edgeopt import parity
from edgeopt.accuracy.labels import Truth
from edgeopt.accuracy.metrics import Answers, Metric, Parts, mask_of
from edgeopt.accuracy.paired import drop_interval
from edgeopt.accuracy.report import Measured
from edgeopt.errors import MetricError


def measure(metric: Metric, output: str, truth: Truth, reference: Answers, actual: Answers) -> tuple[Measured, Parts]:
    """Return how a model compares with the float network, and the parts of both, ``(2, N, ...)`` or ``(2,)``.

    Args:
        metric: see :func:`edgeopt.accuracy.metrics.metric_named`.
        output: the name of the output.
        truth: see :func:`edgeopt.accuracy.labels.truth_of`.
        reference: the float network's answers ``(N, ...)``.
        actual: the model's.

    Raises:
        MetricError: the metric raises, or gives a figure that is not finite.
    """
    if not np.isfinite(actual).all():
        index = int(np.argmax(~np.isfinite(actual).reshape(len(actual), -1).all(axis=1)))
        raise MetricError(f"output {output!r} of the quantized network is NaN or infinite on held-out sample {index}")
    parts = [metric.parts(answers, truth.labels) for answers in (reference, actual)]
    figures = [
        _finite(metric, metric.total(part), whose) for part, whose in zip(parts, ("float", "quantized"), strict=True)
    ]
    ratios = [parity.sqnr_db(wanted, got) for wanted, got in zip(reference, actual, strict=True)]
    measured = Measured(
        metric=metric.name,
        output=output,
        unit=metric.unit,
        is_proxy=truth.is_proxy,
        float_figure=figures[0],
        figure=figures[1],
        drop=metric.drop(*figures),
        disagreement=_disagreement(reference, actual),
        mean_sqnr_db=float(np.mean(ratios)),
        num_samples=len(reference),
        interval=drop_interval(metric, parts[0], parts[1]),
    )
    return measured, np.stack(parts)


def save_parts(parts: Parts, folder: Path) -> None:
    """Keep the parts of both networks beside a measurement, for an interval over several looks."""
    np.save(folder / "parts.npy", parts)


def load_parts(folder: Path) -> Parts:
    """Read what :func:`save_parts` wrote."""
    parts: Parts = np.load(folder / "parts.npy", allow_pickle=False)
    return parts


def _finite(metric: Metric, figure: float, whose: str) -> float:
    if not math.isfinite(figure):
        raise MetricError(
            f"metric {metric.name!r} gave {figure} for the {whose} network",
            hint="a verdict on NaN would be worth nothing; mend the metric or the labels",
        )
    return figure


def _disagreement(reference: Answers, actual: Answers) -> float | None:
    """Return the share of samples, or of pixels, whose class is another."""
    if reference.ndim == 2 and reference.shape[1] > 1:
        return float(np.mean(np.argmax(reference, axis=1) != np.argmax(actual, axis=1)))
    return float(np.mean(mask_of(reference) != mask_of(actual))) if reference.ndim == 4 else None
