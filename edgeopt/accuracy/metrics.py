"""Metrics: how right a network's answers are, as one figure over all samples.

A metric first makes a part of every sample and then one figure of all parts, so that samples can be drawn anew
(:mod:`edgeopt.accuracy.paired`): for top-1 a part is 0 or 1 and the figure their mean, for mIoU it is the overlap of
each class. ``answers`` are an output of the network, ``(N, ...)`` without the batch axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import MetricError, did_you_mean
from edgeopt.parity import MAX_SQNR_DB, cosine
from edgeopt.settings import METRICS

Answers = NDArray[Any]
Labels = NDArray[Any]
Parts = NDArray[np.float64]

_TOP = 5


def _mean(parts: Parts) -> float:
    return float(parts.mean())


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: as the recipe has it.
        label: what a sample's label is: a class, a mask of classes, or a target with the output's shape.
        parts: from answers ``(N, ...)`` and labels ``(N, ...)`` to one part a sample, ``(N, ...)``; a function of the
            user's may give one figure, ``()``, that cannot be taken apart.
        total: from the parts of any samples to the figure.
        higher_is_better: the sign of a drop.
        unit: how people write a figure: a share in percent, dB, or plain.
    """

    name: str
    label: Literal["class", "mask", "target", "any"]
    parts: Callable[[Answers, Labels | None], Parts]
    total: Callable[[Parts], float] = _mean
    higher_is_better: bool = True
    unit: Literal["%", "dB", ""] = ""

    def drop(self, reference: float, actual: float) -> float:
        """Return how much worse ``actual`` is; negative where it is better."""
        return reference - actual if self.higher_is_better else actual - reference


def metric_named(name: str, folder: Path) -> Metric:
    """Return a metric by its name, or the function of the user's that ``file.py:function`` names.

    Raises:
        MetricError: there is none of this name.
        ModelError: the file or the function is not there.
    """
    if ":" in name:
        return _users_metric(name, folder)
    if name not in _METRICS:
        raise MetricError(f"there is no metric {name!r}", hint=did_you_mean(name, list(METRICS)))
    return _METRICS[name]


def right_class(answers: Answers, labels: Labels | None) -> Parts:
    """Return 1 where the largest of ``(N, C)`` is the label's, else 0: ``(N,)``; of equal ones the first counts."""
    return np.asarray(np.argmax(answers, axis=1) == labels, np.float64)


def among_five(answers: Answers, labels: Labels | None) -> Parts:
    """Return 1 where fewer than five of ``(N, C)`` beat the label's, else 0: ``(N,)``; ties go to lower classes."""
    assert labels is not None
    order = np.argsort(-answers, axis=1, kind="stable")[:, :_TOP]
    return np.asarray((order == labels[:, np.newaxis]).any(axis=1), np.float64)


def mean_absolute_error(answers: Answers, labels: Labels | None) -> Parts:
    """Return the mean distance from the target of each sample, ``(N,)``."""
    return _per_sample(np.abs(answers - _as(labels, answers)))


def peak_ratio_db(answers: Answers, labels: Labels | None) -> Parts:
    """Return the peak signal-to-noise ratio of each sample in dB, ``(N,)``, at most 200.

    The peak is the span of all targets; it is the same for both networks, so that a drop does not depend on it.
    """
    target = _as(labels, answers)
    noise = _per_sample((answers - target) ** 2)
    peak = max(float(np.ptp(target)), np.finfo(np.float64).tiny)
    with np.errstate(divide="ignore"):
        ratios: Parts = np.minimum(20 * np.log10(peak) - 10 * np.log10(noise), MAX_SQNR_DB)
    return ratios


def cosines(answers: Answers, labels: Labels | None) -> Parts:
    """Return the cosine between answer and target of each sample, ``(N,)``."""
    return np.array([cosine(wanted, got) for wanted, got in zip(_as(labels, answers), answers, strict=True)])


def overlaps(answers: Answers, labels: Labels | None) -> Parts:
    """Return for each sample and class how many pixels are in both masks, and in either: ``(N, 2, C)``.

    ``(N, C, H, W)`` are the scores of C classes; with one channel a pixel is class 1 where it is above 0. Pixels whose
    label is negative are left out.
    """
    assert labels is not None
    found = mask_of(answers)
    num_classes = max(answers.shape[1], 2)
    counted = labels >= 0
    parts = np.empty((len(answers), 2, num_classes))
    for index in range(num_classes):
        mine, wanted = (found == index) & counted, labels == index
        parts[:, 0, index] = (mine & wanted).sum(axis=(1, 2))
        parts[:, 1, index] = (mine | wanted).sum(axis=(1, 2))
    return parts


def mean_overlap(parts: Parts) -> float:
    """Return the mean over classes of pixels in both masks over pixels in either; absent classes do not count."""
    both, either = parts.sum(axis=0)
    return float((both[either > 0] / either[either > 0]).mean()) if either.any() else 1.0


def mask_of(answers: Answers) -> NDArray[np.int64]:
    """Return the class of each pixel, ``(N, H, W)``, of scores ``(N, C, H, W)``."""
    return np.argmax(answers, axis=1) if answers.shape[1] > 1 else (answers[:, 0] > 0).astype(np.int64)


_METRICS = {
    metric.name: metric
    for metric in (
        Metric("top1", "class", right_class, unit="%"),
        Metric("top5", "class", among_five, unit="%"),
        Metric("miou", "mask", overlaps, mean_overlap, unit="%"),
        Metric("mae", "target", mean_absolute_error, higher_is_better=False),
        Metric("psnr", "target", peak_ratio_db, unit="dB"),
        Metric("cosine", "target", cosines),
    )
}


def _users_metric(name: str, folder: Path) -> Metric:
    """Return a metric whose parts come from ``function(answers, labels)``: one number, or one for each sample."""
    from edgeopt.source import load_factory

    function: Callable[..., Any] = load_factory(name, folder)

    def parts(answers: Answers, labels: Labels | None) -> Parts:
        try:
            found = np.asarray(function(answers, labels), np.float64)
        except Exception as error:  # whatever the user's code raises
            raise MetricError(
                f"metric {name!r} raised {type(error).__name__} on {len(answers)} samples: {error}",
                hint="it is called as function(answers, labels), arrays (N, ...); without labels they are None",
            ) from error
        if found.shape not in ((), (len(answers),)):
            raise MetricError(f"metric {name!r} gave {list(found.shape)}, expected a number or {len(answers)} numbers")
        return found

    return Metric(name, "any", parts)


def _as(labels: Labels | None, answers: Answers) -> NDArray[np.float64]:
    assert labels is not None
    return np.asarray(labels, np.float64).reshape(answers.shape)


def _per_sample(values: NDArray[np.float64]) -> Parts:
    means: Parts = values.reshape(len(values), -1).mean(axis=1)
    return means
