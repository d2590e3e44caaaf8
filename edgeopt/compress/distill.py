"""Knowledge distillation: a student learns from its teachers' softened answers, from inside the first, and from labels.

    loss = alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * cross_entropy(student, label)
           + what :mod:`edgeopt.compress.features` adds

The factor T^2 keeps the gradient of the soft part at the size of the hard part's, whatever the temperature T. With
alpha = 1 no labels are needed. A quantization-aware student is rounded while it learns
(:mod:`edgeopt.compress.fake_quantization`), its batch norms folded before.

Source: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, section 2; Polino,
Pascanu, Alistarh: Model Compression via Distillation and Quantization, 2018, arXiv 1802.05668 (quantization-aware).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from edgeopt.compress.class_loss import cross_entropy
from edgeopt.compress.determinism import deterministic
from edgeopt.compress.fake_quantization import ActivationRounding
from edgeopt.compress.features import FeatureLoss
from edgeopt.compress.fit import LossFunction
from edgeopt.compress.folding import fold_batch_norm, folding_edit
from edgeopt.compress.step import StepContext
from edgeopt.compress.structure import Structure
from edgeopt.compress.teachers import Teachers
from edgeopt.compress.train import Along, TrainReport, train_network
from edgeopt.compress.weights import model_digest
from edgeopt.errors import CompressionError
from edgeopt.steps import DistillSettings
from edgeopt.steps.distill import FeatureSettings


def distill(context: StepContext, settings: DistillSettings, folder: Path) -> TrainReport:
    """Train ``context.source`` to answer like its teachers, and write it to ``folder`` with new weights.

    The teachers see the very images that the student sees, shifted alike, and do not change. Validation, held-out
    samples, files and checkpoints are as in :func:`edgeopt.compress.train.train`.

    Raises:
        CompressionError: teacher and student have different numbers of classes, a layer is not there, or the loss or a
            weight is not finite.
        DataError: samples are missing or not finite, or not labelled while ``alpha`` is below 1.
    """
    with deterministic(settings.seed, settings.threads):
        own = [context.build(context.teacher)] if settings.own_teacher else []
        teachers = Teachers([*own, *map(context.network, settings.teachers)])
        student = context.build(context.source)
        structure = context.structure
        if settings.quantization_aware != "off":
            structure = _folded(student, structure, context.example_inputs)
        _refuse_folded(structure, settings.features)
        first = teachers.networks[0]
        features = FeatureLoss(student, first, settings.features, context.example_inputs) if settings.features else None
        along = _along(student, structure, features, settings)
        return train_network(
            student,
            _loss(teachers, features, settings),
            model_digest(teachers),
            context,
            settings,
            folder,
            "distill",
            teacher=teachers if settings.alpha == 1 else None,
            structure=structure,
            along=along,
        )


def _refuse_folded(structure: Structure, features: Sequence[FeatureSettings]) -> None:
    """Raise if a layer whose batch norm was folded into it would be held against one that answers before its own."""
    folded = {layer: norm for edit in structure.edits for layer, norm in edit.get("pairs", ())}
    for pair in features:
        if pair.student in folded:
            norm = folded[pair.student]
            raise CompressionError(
                f"the student's layer {pair.student!r} has its batch norm {norm!r} folded in, the teacher's has not",
                hint=f"student = {norm!r}",
            )


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor | None, temperature: float, alpha: float
) -> torch.Tensor:
    """Return the mean loss a sample, in nats.

    Args:
        student: logits ``(N, classes)``.
        teacher: logits ``(N, classes)``.
        labels: int64 ``(N,)``; not needed for ``alpha = 1``.
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
    if alpha == 1:
        return temperature**2 * soft
    assert labels is not None
    return alpha * temperature**2 * soft + (1 - alpha) * cross_entropy(student, labels)


def _loss(teachers: Teachers, features: FeatureLoss | None, settings: DistillSettings) -> LossFunction:
    """Return the loss against the teachers' answers and what the first computes inside."""

    def loss(inputs: tuple[torch.Tensor, ...], logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            taught = teachers.soften(inputs, settings.temperature) * settings.temperature
        total = distillation_loss(logits, taught, labels, settings.temperature, settings.alpha)
        return total if features is None else total + features()

    return loss


def _folded(student: nn.Module, structure: Structure, example_inputs: tuple[torch.Tensor, ...]) -> Structure:
    """Fold the student's batch norms, in place, and return the structure that says so."""
    edit = folding_edit(student, example_inputs)
    if edit is None:
        return structure
    fold_batch_norm(student, edit, example_inputs)
    return structure.edited(edit)


def _along(
    student: nn.Module, structure: Structure, features: FeatureLoss | None, settings: DistillSettings
) -> Along | None:
    """Return what is trained along with the student and stays behind: adapters of hints, ranges of activations."""
    modules = nn.ModuleList([] if features is None else [features.adapters])
    rounding = None
    if settings.quantization_aware != "off":
        rounding = ActivationRounding(student, symmetric=settings.quantization_aware == "symmetric")
        modules.append(rounding)
    if not len(modules):
        return None

    @contextmanager
    def watching() -> Iterator[None]:
        with ExitStack() as stack:
            if features is not None:
                stack.enter_context(features.watching())
            if rounding is not None:
                stack.enter_context(rounding.applied(student, structure.constraints))
            yield

    return Along(modules, watching)
