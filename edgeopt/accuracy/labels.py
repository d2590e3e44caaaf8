"""What answers are judged by: the samples' labels, or where there are none the float network's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeopt.accuracy.metrics import Answers, Labels, Metric, mask_of
from edgeopt.errors import DataError, MetricError
from edgeopt.samples import Sample

_MIN_CLASSES = {"top1": 2, "top5": 6}
_AXES = {"class": (2, "(classes)"), "mask": (4, "(classes, height, width)")}


@dataclass(frozen=True)
class Truth:
    """Labels ``(N, ...)``; ``is_proxy`` says that they are the float network's own answers."""

    labels: Labels | None
    is_proxy: bool


def truth_of(samples: Sequence[Sample], metric: Metric, answers: Answers) -> Truth:
    """Return what to judge by.

    Args:
        samples: the held-out samples, all of them with a label or none.
        metric: which decides what a label is.
        answers: of the float network, ``(N, ...)`` in the order of the samples.

    Raises:
        DataError: some samples have no label, or a label does not fit the output or the metric.
        MetricError: the metric does not fit the output, or means nothing without labels.
    """
    _check_output(metric, answers)
    without = [sample.name for sample in samples if sample.label is None]
    if without and len(without) < len(samples):
        raise DataError(f"{len(without)} of {len(samples)} held-out samples have no label, {without[0]!r} among them")
    if without:
        return Truth(_own_answers(metric, answers), is_proxy=True)
    for sample in samples:
        _check_label(sample, metric, answers)
    return Truth(np.stack([np.asarray(sample.label) for sample in samples]), is_proxy=False)


def _check_output(metric: Metric, answers: Answers) -> None:
    if metric.label in _AXES and answers.ndim != _AXES[metric.label][0]:
        found, axes = list(answers.shape[1:]), _AXES[metric.label][1]
        raise MetricError(f"metric {metric.name!r} needs an output of shape {axes}, got {found}")
    if metric.label == "class" and answers.shape[1] < _MIN_CLASSES[metric.name]:
        wanted = _MIN_CLASSES[metric.name]
        raise MetricError(f"metric {metric.name!r} needs at least {wanted} classes, the output has {answers.shape[1]}")


def _own_answers(metric: Metric, answers: Answers) -> Labels | None:
    if metric.name == "psnr":
        raise MetricError(
            "metric 'psnr' needs labels: the float network's ratio to its own answers is infinite",
            hint="without labels take 'mae' or 'cosine'",
        )
    if metric.label == "class":
        classes: Labels = np.argmax(answers, axis=1)
        return classes
    if metric.label == "mask":
        return mask_of(answers)
    return answers if metric.label == "target" else None


def _check_label(sample: Sample, metric: Metric, answers: Answers) -> None:
    label, where = np.asarray(sample.label), f"held-out sample {sample.name!r}"
    if metric.label == "any":
        return
    if metric.label == "target":
        if label.size != answers[0].size or not np.isfinite(label.astype(np.float64)).all():
            shape = list(answers.shape[1:])
            raise DataError(f"{where}: the label has shape {list(label.shape)}, expected finite numbers {shape}")
        return
    expected = () if metric.label == "class" else answers.shape[2:]
    if label.shape != expected or not np.issubdtype(label.dtype, np.integer):
        shown = "one class number" if metric.label == "class" else f"a mask of integers {list(expected)}"
        raise DataError(f"{where}: the label is {label.dtype}{list(label.shape)}, expected {shown}")
    num_classes = max(answers.shape[1], 2)
    lowest = 0 if metric.label == "class" else -1
    if label.min() < lowest or label.max() >= num_classes:
        outside = label.min() if label.min() < lowest else label.max()
        raise DataError(f"{where}: label {outside} is no class of an output with {num_classes}, expected 0 to "
                        f"{num_classes - 1}")  # fmt: skip
