"""Knowledge distillation: a pruned student learns from its teacher's softened answers and from the labels.

    loss = alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * cross_entropy(student, label)

The factor T^2 keeps the gradient of the soft part at the size of the hard part's, whatever the temperature T.

Source: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from edgeopt.compress.determinism import deterministic
from edgeopt.compress.fit import LossFunction, logits_of, prefer_channels_last
from edgeopt.compress.step import StepContext
from edgeopt.compress.train import TrainReport, train_network
from edgeopt.compress.weights import model_digest, refuse_not_finite
from edgeopt.errors import CompressionError
from edgeopt.steps import DistillSettings


def distill(context: StepContext, settings: DistillSettings, folder: Path) -> TrainReport:
    """Train ``context.source`` to answer like ``context.teacher``, and write it to ``folder`` with new weights.

    The teacher sees the very images that the student sees, shifted alike, and does not change. Validation, held-out
    samples, files and checkpoints are as in :func:`edgeopt.compress.train.train`.

    Raises:
        CompressionError: the two have different numbers of classes, or the loss or a weight is not finite.
        DataError: samples are missing, not labelled or not finite.
    """
    with deterministic(settings.seed, settings.threads):
        guide = prefer_channels_last(context.build(context.teacher)).eval().requires_grad_(False)
        refuse_not_finite(guide, "teacher")
        model = context.build(context.source)
        loss = _soft_and_hard_loss(guide, settings)
        return train_network(model, loss, model_digest(guide), context, settings, folder, "distill")


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, alpha: float
) -> torch.Tensor:
    """Return the mean loss a sample, in nats.

    Args:
        student: logits ``(N, classes)``.
        teacher: logits ``(N, classes)``.
        labels: int64 ``(N,)``.
        temperature: above 0; the higher, the softer.
        alpha: the weight of the soft part, in [0, 1].

    Raises:
        CompressionError: the two have different numbers of classes.
    """
    if student.shape != teacher.shape:
        raise CompressionError(f"the teacher answers {teacher.shape[1]} classes, the student {student.shape[1]}")
    soft = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return alpha * temperature**2 * soft + (1 - alpha) * functional.cross_entropy(student, labels)


def _soft_and_hard_loss(guide: nn.Module, settings: DistillSettings) -> LossFunction:
    """Return the loss against one teacher."""

    def loss(inputs: tuple[torch.Tensor, ...], logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        assert labels is not None
        with torch.no_grad():
            teacher = logits_of(guide, inputs)
        return distillation_loss(logits, teacher, labels, settings.temperature, settings.alpha)

    return loss
