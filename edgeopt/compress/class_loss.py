"""Cross entropy with labels that are those of a class."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from edgeopt.errors import DataError


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> torch.Tensor:
    """Return the cross entropy of ``logits`` ``(N, classes)`` with ``labels`` ``(N,)``, in nats.

    Raises:
        DataError: a label is that of no class; PyTorch would pass over a label of -100.
    """
    least, most, classes = int(labels.min()), int(labels.max()), logits.shape[1]
    if least < 0 or most >= classes:
        raise DataError(
            f"train: a label is {least if least < 0 else most}, the network has classes 0 to {classes - 1}",
            hint="a network has one output for each class of its data set",
        )
    return functional.cross_entropy(logits, labels, reduction=reduction)
