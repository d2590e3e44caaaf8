"""The training loop that ``train`` and ``distill`` share: epochs, checkpoints, the best epoch, early stop.

Everything that decides the result is seeded and saved, so a training that was killed and called again ends with the
same bits as one that was left alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, ExponentialLR, LRScheduler, StepLR

from edgeopt.compress.batches import Buckets, Labelled, num_batches, num_samples, shift_images, shuffled_batches
from edgeopt.compress.checkpoint import Checkpoint
from edgeopt.compress.weights import copy_state, refuse_not_finite
from edgeopt.errors import CompressionError
from edgeopt.stage import logger, track
from edgeopt.training import TrainSettings

# From the inputs of a batch, the network's logits (N, classes) and the labels (N,), if there are any, to one number:
# the mean of a sample.
LossFunction = Callable[[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class StepHook:
    """What is done in each step of a training, between the gradients and the step of the optimizer.

    ``on_step`` is called with the share of the training that ends with this step, in (0, 1]. What it changes lies in
    the network's own buffers, so that a checkpoint holds it. ``settled_at`` is the share from which on it changes
    nothing more: the best epoch is chosen from those that end there or later.
    """

    on_step: Callable[[float], None]
    settled_at: float = 0.0


@dataclass
class History:
    """How a training went; ``best_epoch`` counts from 1, 0 before the first."""

    losses: list[float] = field(default_factory=list)
    validation_scores: list[float] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def num_epochs(self) -> int:
        """Return how many epochs have ended."""
        return len(self.losses)

    def record(self, loss: float, score: float | None) -> bool:
        """Add an epoch and return whether it is the best so far: the last one where nothing is validated.

        A tie goes to the later epoch, which has seen more.
        """
        best_before = max(self.validation_scores, default=-math.inf)
        self.losses.append(loss)
        if score is not None:
            self.validation_scores.append(score)
        is_best = score is None or score >= best_before
        if is_best:
            self.best_epoch = self.num_epochs
        return is_best

    def is_stalled(self, patience: int | None) -> bool:
        """Return whether the best epoch is ``patience`` epochs ago."""
        return patience is not None and self.num_epochs - self.best_epoch >= patience


def fit(
    model: nn.Module,
    loss_function: LossFunction,
    data: Buckets,
    validation: Buckets,
    settings: TrainSettings,
    checkpoint: Checkpoint,
    description: str,
    hook: StepHook | None = None,
) -> History:
    """Train ``model`` in place and leave it with the weights of its best epoch, in eval mode.

    Args:
        model: from the inputs ``(N, ...)`` to logits ``(N, classes)``.
        loss_function: see :data:`LossFunction`.
        data: what is trained on.
        validation: what chooses the best epoch and the early stop; none keeps the last epoch. The score is
            :func:`top1` of its labels, or minus the loss where it has none.
        settings: how.
        checkpoint: goes on from there if it fits; saved after each epoch, and left in place for the caller to remove.
        description: the name of the training in logs and progress.
        hook: see :class:`StepHook`.

    Raises:
        CompressionError: a loss or weight is not finite, or the network cannot take a step.
    """
    trainer = _Trainer(model, loss_function, settings, hook)
    history, best = trainer.resume(checkpoint, description)
    for epoch in track(range(settings.epochs), total=settings.epochs, description=description):
        if epoch < history.num_epochs:  # done before the interruption
            continue
        if history.is_stalled(settings.patience):
            break
        loss = trainer.run_epoch(data, epoch)
        is_settled = hook is None or (epoch + 1) / settings.epochs >= hook.settled_at
        score = trainer.score(validation) if validation and is_settled else None
        if history.record(loss, score):
            best = copy_state(model)
        checkpoint.save({"trainer": trainer.state(), "history": asdict(history), "best": best})
        validated = "" if score is None else f", validation {score:.4f}"
        logger.info("%s epoch %d/%d: loss %.4f%s", description, epoch + 1, settings.epochs, loss, validated)
    model.load_state_dict(best)
    model.eval()
    return history


def top1(model: nn.Module, data: Buckets, batch_size: int) -> float:
    """Return the share of samples whose largest logit is the label's; on a tie the lower class is the answer."""
    answers = torch.cat(list(answers_of(model, data, batch_size)))
    labels = torch.cat([bucket.labels for bucket in data if bucket.labels is not None])
    return int((answers == labels).sum()) / num_samples(data)


def answers_of(model: nn.Module, data: Buckets, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the class of the largest logit of each sample, int64 ``(N,)``, batch by batch in order."""
    model.eval()
    with torch.inference_mode():
        for batch in _in_order(data, batch_size):
            yield logits_of(model, batch.inputs).argmax(dim=1)


def mean_loss(model: nn.Module, loss_function: LossFunction, data: Buckets, batch_size: int) -> float:
    """Return the mean loss of a sample."""
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for batch in _in_order(data, batch_size):
            loss = loss_function(batch.inputs, logits_of(model, batch.inputs), batch.labels)
            total += float(loss) * len(batch)
    return total / num_samples(data)


def _in_order(data: Buckets, batch_size: int) -> Iterator[Labelled]:
    """Yield every sample once, in batches of at most ``batch_size``."""
    for bucket in data:
        for index in torch.split(torch.arange(len(bucket)), batch_size):
            yield bucket.take(index)


def logits_of(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Run the network and return its one output, ``(N, classes)``.

    Raises:
        CompressionError: the output is not one such tensor.
    """
    output = model(*inputs)
    if isinstance(output, (tuple, list)) and len(output) == 1:
        output = output[0]
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise CompressionError(f"training needs a network with one output of logits (N, classes), got {got}")
    return output


class _Trainer:
    """The network, its optimizer and its random numbers: what one epoch changes and a checkpoint holds."""

    def __init__(
        self, model: nn.Module, loss_function: LossFunction, settings: TrainSettings, hook: StepHook | None
    ) -> None:
        self.hook = hook
        self.model = prefer_channels_last(model)
        self.settings = settings
        self.loss_function = loss_function
        self.generator = torch.Generator().manual_seed(settings.seed)
        optimizer = make_optimizer(model, settings)
        self.scheduler = make_scheduler(optimizer, settings)
        self.fabric = _quiet_fabric()
        self.wrapped, self.optimizer = self.fabric.setup(model, optimizer)

    def score(self, validation: Buckets) -> float:
        """Return how well the network does: its share of right answers, or without labels minus its loss."""
        size = self.settings.batch_size
        if validation[0].labels is None:
            return -mean_loss(self.model, self.loss_function, validation, size)
        return top1(self.model, validation, size)

    def run_epoch(self, data: Buckets, epoch: int) -> float:
        """Take one step a batch and return the mean loss a sample."""
        self.wrapped.train()
        total, num_steps = 0.0, num_batches(data, self.settings.batch_size)
        for step, batch in enumerate(shuffled_batches(data, self.settings.batch_size, self.generator), start=1):
            where = f"epoch {epoch + 1}, step {step}"
            try:
                loss = self._step(batch, (epoch + step / num_steps) / self.settings.epochs)
            except RuntimeError as error:
                raise CompressionError(f"{where}: the network cannot be trained: {error}") from error
            if not math.isfinite(loss):
                raise CompressionError(
                    f"{where}: the loss is {loss}; the checkpoint of epoch {epoch} is kept",
                    hint=f"try a lower learning_rate than {self.settings.learning_rate}",
                )
            total += loss * len(batch)
        refuse_not_finite(self.model, f"after epoch {epoch + 1}")
        self.scheduler.step()
        return total / num_samples(data)

    def _step(self, batch: Labelled, progress: float) -> float:
        """Learn from one batch and return its loss."""
        inputs = tuple(shift_images(tensor, self.settings.max_shift, self.generator) for tensor in batch.inputs)
        self.optimizer.zero_grad()
        loss = self.loss_function(inputs, logits_of(self.wrapped, inputs), batch.labels)
        value = loss.item()
        if math.isfinite(value):
            self.fabric.backward(loss)
            if self.hook is not None:
                self.hook.on_step(progress)
            self.optimizer.step()
        return value

    def state(self) -> dict[str, Any]:
        """Return what the next epoch depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),
        }

    def resume(self, checkpoint: Checkpoint, description: str) -> tuple[History, dict[str, torch.Tensor]]:
        """Go on from a checkpoint that fits, or start: return the history and the weights of the best epoch."""
        saved = checkpoint.load()
        if saved is None:
            return History(), copy_state(self.model)
        trainer = saved["trainer"]
        self.model.load_state_dict(trainer["model"])
        self.optimizer.load_state_dict(trainer["optimizer"])
        self.scheduler.load_state_dict(trainer["scheduler"])
        self.generator.set_state(trainer["generator"])
        torch.set_rng_state(trainer["global_generator"])
        history = History(**saved["history"])
        logger.info("%s goes on after epoch %d", description, history.num_epochs)
        return history, saved["best"]


def prefer_channels_last(model: nn.Module) -> nn.Module:
    """Store the weights of 2-D convolutions channels last, in place: on a CPU they train a third faster that way."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def make_optimizer(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """Return the optimizer that the settings name, over all parameters that want a gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise CompressionError("the network has no parameters to train")
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return SGD(parameters, lr=rate, momentum=settings.momentum, weight_decay=decay)
    if settings.optimizer == "adam":
        return Adam(parameters, lr=rate, weight_decay=decay)
    return AdamW(parameters, lr=rate, weight_decay=decay)


def make_scheduler(optimizer: Optimizer, settings: TrainSettings) -> LRScheduler:
    """Return what sets the learning rate of each epoch.

    ``cosine`` goes from the learning rate towards 0 over all epochs, ``step`` multiplies it by ``gamma`` every
    ``step_epochs`` epochs, ``exponential`` by ``gamma`` every epoch.
    """
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=settings.epochs)
    if settings.schedule == "step":
        return StepLR(optimizer, step_size=settings.step_epochs, gamma=settings.gamma)
    if settings.schedule == "exponential":
        return ExponentialLR(optimizer, gamma=settings.gamma)
    return ConstantLR(optimizer, factor=1.0)


def _quiet_fabric() -> Fabric:
    """Return a Fabric on one CPU without its remarks about accelerators that it was told not to use."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*available but not used.*")
        return Fabric(accelerator="cpu", devices=1)
