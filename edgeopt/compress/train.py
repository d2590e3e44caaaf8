"""Train a network from what its factory builds, or go on from weights: cross entropy on labelled samples."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from edgeopt.artifacts import canonical_json, digest_of
from edgeopt.compress.batches import Buckets, Labelled, load_buckets, num_samples, samples_digest, split_validation
from edgeopt.compress.checkpoint import Checkpoint
from edgeopt.compress.class_loss import cross_entropy
from edgeopt.compress.constraints import constrained
from edgeopt.compress.determinism import deterministic
from edgeopt.compress.fit import LossFunction, StepHook, answers_of, fit, top1
from edgeopt.compress.parallel import num_processes
from edgeopt.compress.step import StepContext, hand_on
from edgeopt.compress.structure import Structure
from edgeopt.compress.weights import model_digest, refuse_not_finite
from edgeopt.errors import CompressionError
from edgeopt.training import TrainSettings, wherever


@dataclass(frozen=True)
class Along:
    """Modules that are trained with a network and stay behind; inside ``applied()`` they do what they are there for."""

    modules: nn.Module
    applied: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class TrainReport:
    """How a training went, the same for a training that was interrupted; scores are shares of right top-1 answers.

    ``judged_by`` says what right is: the samples' labels, or the teacher's own answers for samples without labels.
    ``validation_scores`` has one entry an epoch, or none with ``validation_share = 0``. ``held_out_score`` was
    measured once, at the end, on samples that took no part in any choice.
    """

    num_train: int
    num_validation: int
    num_held_out: int
    num_epochs: int
    best_epoch: int
    losses: tuple[float, ...]
    validation_scores: tuple[float, ...]
    held_out_score: float
    judged_by: Literal["labels", "teacher"] = "labels"
    num_processes: int = 1

    @property
    def summary(self) -> str:
        """The score, for people."""
        kind = "agreement with the teacher" if self.judged_by == "teacher" else ""
        return f"{self.held_out_score:.1%} {kind + ' ' if kind else ''}on {self.num_held_out} held-out samples"


def train(context: StepContext, settings: TrainSettings, folder: Path) -> TrainReport:
    """Train the network of ``context.source`` and write it to ``folder`` with new weights.

    Early stop and the best epoch are chosen on a part that is split off the training set (``validation_share``),
    never on ``held_out``, which is scored once when everything is decided. A call that was killed goes on from its
    last epoch when it is made again with the same arguments.

    Args:
        context: what to start from; without weights, the factory's initial weights are drawn from ``settings.seed``.
            Its splits ``train`` and ``held_out`` are labelled.
        settings: how.
        folder: where the result and, while training, ``checkpoint.pt`` are written.

    Raises:
        CompressionError: the loss or a weight is not finite, or the network cannot be trained.
        DataError: samples are missing, not labelled or not finite.
    """
    with deterministic(settings.seed, settings.threads):
        model = context.build(context.source)
        return train_network(model, hard_loss, "", context, settings, folder, "train")


def train_network(
    model: nn.Module,
    loss_function: LossFunction,
    loss_digest: str,
    context: StepContext,
    settings: TrainSettings,
    folder: Path,
    description: str,
    hook: StepHook | None = None,
    teacher: nn.Module | None = None,
    structure: Structure | None = None,
    along: Along | None = None,
) -> TrainReport:
    """Train ``model`` with any loss under its constraints, and hand it on.

    Args:
        model: the network, with the weights to start from.
        loss_function: see :data:`edgeopt.compress.fit.LossFunction`.
        loss_digest: stands for what the loss and the hook hold.
        context: what the step was given.
        settings: how.
        folder: where the result and, while training, ``checkpoint.pt`` are written.
        description: the name of the training in logs and progress.
        hook: see :class:`edgeopt.compress.fit.StepHook`.
        teacher: for samples that need no labels; its answers choose the best epoch and judge where there are none.
        structure: that of ``model``, if it is no longer that of ``context.source``.
        along: what is trained along and stays behind.

    Raises:
        CompressionError: the loss or a weight is not finite, or the network cannot be trained.
        DataError: samples are missing or not finite, or not labelled where there is no teacher.
    """
    refuse_not_finite(model, "before training")
    judged = load_buckets(context.open_split("held_out"), "held_out", needs_labels=teacher is None)
    everything = load_buckets(context.open_split("train"), "train", needs_labels=teacher is None)
    data, validation = split_validation(everything, settings.validation_share, settings.seed)
    judged_by: Literal["labels", "teacher"] = "labels" if judged[0].labels is not None else "teacher"
    if teacher is not None:
        judged = _answered(judged, teacher, settings.batch_size)
        validation = _answered(validation, teacher, settings.batch_size)
    structure = structure or context.structure
    digest = digest_of([loss_digest, canonical_json(structure.constraints)])
    checkpoint = Checkpoint(folder, _fingerprint(model, digest, everything, settings))
    if along and num_processes() > 1 and any(True for _ in along.modules.parameters()):
        # DDP averages the gradients of what the network's own forward uses, and of nothing else.
        raise CompressionError("what is trained along with a student trains in one process", hint="set devices = 1")
    with constrained(model, structure.constraints), along.applied() if along else nullcontext():
        trained = _Together(model, along.modules) if along else model
        history = fit(trained, loss_function, data, validation, settings, checkpoint, description, hook)
    report = TrainReport(
        num_train=num_samples(data),
        num_validation=num_samples(validation),
        num_held_out=num_samples(judged),
        num_epochs=history.num_epochs,
        best_epoch=history.best_epoch,
        losses=tuple(history.losses),
        validation_scores=tuple(history.validation_scores),
        held_out_score=top1(model, judged, settings.batch_size),
        judged_by=judged_by,
        num_processes=num_processes(),
    )
    hand_on(model, structure, folder)
    checkpoint.remove()
    return report


class _Together(nn.Module):
    """A network that has other modules trained with it."""

    def __init__(self, network: nn.Module, along: nn.Module) -> None:
        super().__init__()
        self.network, self.along = network, along

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Return the network's answer."""
        return self.network(*inputs)


def hard_loss(_inputs: tuple[torch.Tensor, ...], logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """Return the cross entropy of the logits with the labels, which must be there."""
    assert labels is not None
    return cross_entropy(logits, labels)


def _answered(data: Buckets, teacher: nn.Module, batch_size: int) -> Buckets:
    """Return samples without labels with the teacher's answers for labels; others as they are."""
    if not data or data[0].labels is not None:
        return data
    return tuple(
        Labelled(bucket.inputs, torch.cat(list(answers_of(teacher, (bucket,), batch_size)))) for bucket in data
    )


def _fingerprint(model: nn.Module, loss_digest: str, data: Buckets, settings: TrainSettings) -> str:
    """Return one digest of everything that decides how a training goes."""
    settings_text = type(settings).__name__ + canonical_json(asdict(wherever(settings)))
    return digest_of([torch.__version__, model_digest(model), loss_digest, samples_digest(data), settings_text])
