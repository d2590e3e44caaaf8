"""The training loop that every step shares: epochs, checkpoints, the best epoch, early stop.

Everything that decides the result is seeded and saved, so a training that was killed and called again ends with the
same bits as one that was left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from edgeopt.compress.average import Average
from edgeopt.compress.batch_norm import add_penalty, whole_batch_norm
from edgeopt.compress.batches import (
    Buckets,
    Labelled,
    flip_images,
    num_batches,
    num_samples,
    shift_images,
    shuffled_batches,
)
from edgeopt.compress.checkpoint import Checkpoint
from edgeopt.compress.history import History
from edgeopt.compress.optimizers import make_optimizer
from edgeopt.compress.parallel import (
    clip_gradients,
    gathered,
    is_sharded,
    make_fabric,
    num_processes,
    of_all_processes,
    part_of,
    quiet_about_unused,
    sharded_copy,
    spread,
    total_over_processes,
)
from edgeopt.compress.processes import is_lost_connection
from edgeopt.compress.schedules import make_schedule
from edgeopt.compress.strided import strided_before
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
    trainer = _Trainer(model, loss_function, settings, hook, num_batches(data, settings.batch_size))
    history, best = trainer.resume(checkpoint, description)
    for epoch in track(range(settings.epochs), total=settings.epochs, description=description):
        if epoch < history.num_epochs:  # done before the interruption
            continue
        if history.is_stalled(settings.patience):
            break
        loss = trainer.run_epoch(data, epoch)
        is_settled = hook is None or (epoch + 1) / settings.epochs >= hook.settled_at
        with trainer.judged():
            refuse_not_finite(model, f"after epoch {epoch + 1}")
            score = trainer.score(validation) if validation and is_settled else None
            if history.record(loss, score):
                best = copy_state(model)
        state = {"trainer": trainer.state(), "history": asdict(history), "best": best}
        if trainer.fabric.is_global_zero:
            checkpoint.save(state)
        validated = "" if score is None else f", validation {score:.4f}"
        logger.info("%s epoch %d/%d: loss %.4f%s", description, epoch + 1, settings.epochs, loss, validated)
    model.load_state_dict(trainer.fabric.broadcast(best))
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
    """The network, its optimizer and its random numbers: what one epoch changes and a checkpoint holds.

    ``model`` is the caller's network and whole; ``trained`` is the same, or a copy that is spread over processes.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_function: LossFunction,
        settings: TrainSettings,
        hook: StepHook | None,
        steps_per_epoch: int,
    ) -> None:
        self.hook = hook
        self.model = model
        self.settings = settings
        self.loss_function = loss_function
        self.steps_per_epoch = steps_per_epoch
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.fabric = make_fabric(settings)
        if self.fabric.global_rank > 0 and settings.strategy != "tensor_parallel":
            torch.manual_seed(settings.seed + self.fabric.global_rank)  # dropout of its own
        self.advised = num_processes() > 1 and settings.strategy == "ddp"
        self.trained = sharded_copy(model, settings, hook is not None) if is_sharded(settings) else model
        self._set_up()
        self.average = None if settings.ema_decay is None else Average(self.trained, settings.ema_decay)

    def _set_up(self) -> None:
        """Give the network to Fabric, and make what takes its steps."""
        if self.trained is self.model:
            self._optimizer = make_optimizer(prefer_channels_last(self.model), self.settings)
            self.wrapped, self.optimizer = self.fabric.setup(self.model, self._optimizer)
        else:  # parameters are others once they are spread
            self.wrapped = self.fabric.setup_module(self.trained)
            self._optimizer = make_optimizer(self.trained, self.settings)
            self.optimizer = self.fabric.setup_optimizers(self._optimizer)
        self.schedule = make_schedule(self._optimizer, self.settings, self.steps_per_epoch)

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Give ``model`` the weights that are judged and kept inside the block: the whole ones, averaged if asked."""
        if self.trained is self.model and self.average is None:
            yield
            return
        own = copy_state(self.model)
        weights = self.trained.state_dict() if self.average is None else self.average.weights
        self.model.load_state_dict(gathered(weights))
        yield
        self.model.load_state_dict(own)

    def score(self, validation: Buckets) -> float:
        """Return how well the network does: its share of right answers, or without labels minus its loss."""
        size = self.settings.batch_size
        if validation[0].labels is None:
            score = -mean_loss(self.model, self.loss_function, validation, size)
        else:
            score = top1(self.model, validation, size)
        return self.fabric.broadcast(score)  # one decision for all processes

    def run_epoch(self, data: Buckets, epoch: int) -> float:
        """Take one step a batch and return the mean loss a sample."""
        self.wrapped.train()
        total = 0.0
        with whole_batch_norm(self.trained), strided_before(self.trained):
            for step, batch in enumerate(shuffled_batches(data, self.settings.batch_size, self.generator), start=1):
                where = f"epoch {epoch + 1}, step {step}"
                try:
                    loss = self._step(batch, (epoch + step / self.steps_per_epoch) / self.settings.epochs)
                except (RuntimeError, ValueError) as error:
                    if isinstance(error, RuntimeError) and is_lost_connection(error):
                        raise
                    raise CompressionError(f"{where}: the network cannot be trained: {error}") from error
                if not math.isfinite(loss):
                    raise CompressionError(
                        f"{where}: the loss is {loss}"
                        + (f"; the checkpoint of epoch {epoch} is kept" if epoch else ""),
                        hint=f"try a lower learning_rate than {self.settings.learning_rate}",
                    )
                total += loss * len(batch)
        self.schedule.after_epoch()
        return total / num_samples(data)

    def _step(self, batch: Labelled, progress: float) -> float:
        """Learn from one batch and return its loss; nothing is learnt from one that is not finite."""
        self.optimizer.zero_grad()
        loss = self._gradients(self._augmented(batch))
        if not math.isfinite(loss):
            return loss
        if self.settings.bn_penalty:
            add_penalty(self.trained, self.settings.bn_penalty)
        if self.settings.max_gradient_norm is not None:
            clip_gradients(self.trained, self.settings.max_gradient_norm)
        if self.hook is not None:
            self.hook.on_step(progress)
        self.optimizer.step()
        self.schedule.after_step()
        if self.average is not None:
            self.average.update()
        return loss

    def _augmented(self, batch: Labelled) -> Labelled:
        inputs = tuple(shift_images(tensor, self.settings.max_shift, self.generator) for tensor in batch.inputs)
        if self.settings.flip:
            inputs = tuple(flip_images(tensor, self.generator) for tensor in inputs)
        return Labelled(inputs, batch.labels)

    def _gradients(self, batch: Labelled) -> float:
        """Add up the gradients of a batch, part by part, and return its loss."""
        total = 0.0
        parts = [part for part in batch.split(self.settings.accumulate) if len(part)]
        for number, whole in enumerate(parts, start=1):
            mine, share = part_of(whole, self.settings)
            weight = len(whole) / len(batch)
            with self.fabric.no_backward_sync(self.wrapped, enabled=number < len(parts)):
                with quiet_about_unused() if self.advised else nullcontext():
                    loss = self.loss_function(mine.inputs, logits_of(self.wrapped, mine.inputs), mine.labels)
                self.advised = False
                # Of all processes, before any of them goes on: they must stop together.
                total += weight * total_over_processes(loss.item() * share)
                if not math.isfinite(total):
                    break
                # Gradients are averaged over the processes, where they are to be added up.
                self.fabric.backward(loss * (weight * share * num_processes()))
        return total

    def state(self) -> dict[str, Any]:
        """Return what the next epoch depends on, whole wherever it is computed; all processes must call it."""
        return {
            "model": gathered(self.trained.state_dict()),
            "optimizer": gathered(self._optimizer.state_dict()),
            "scheduler": self.schedule.scheduler.state_dict(),
            "average": None if self.average is None else gathered(self.average.state()),
            "generator": self.generator.get_state(),
            "global_generators": of_all_processes(torch.get_rng_state()),
        }

    def resume(self, checkpoint: Checkpoint, description: str) -> tuple[History, dict[str, torch.Tensor]]:
        """Go on from a checkpoint that fits, or start: return the history and the weights of the best epoch."""
        saved = self.fabric.broadcast(checkpoint.load() if self.fabric.is_global_zero else None)
        if saved is None:
            return History(), copy_state(self.model)
        trainer = saved["trainer"]
        like = self.trained.state_dict()
        self.trained.load_state_dict({name: spread(tensor, like[name]) for name, tensor in trainer["model"].items()})
        self._optimizer.load_state_dict(trainer["optimizer"])
        for parameter, state in self._optimizer.state.items():
            for name, value in state.items():
                state[name] = spread(value, parameter) if isinstance(value, torch.Tensor) else value
        self.schedule.scheduler.load_state_dict(trainer["scheduler"])
        if self.average is not None:
            weights = trainer["average"]["weights"]
            own = {name: spread(tensor, like[name]) for name, tensor in weights.items()}
            self.average.load(trainer["average"]["num_steps"], own)
        self.generator.set_state(trainer["generator"])
        if self.fabric.global_rank < len(trainer["global_generators"]):
            torch.set_rng_state(trainer["global_generators"][self.fabric.global_rank])
        history = History(**saved["history"])
        logger.info("%s goes on after epoch %d", description, history.num_epochs)
        return history, saved["best"]


def prefer_channels_last(model: nn.Module) -> nn.Module:
    """Store the weights of 2-D convolutions channels last, in place: on a CPU they train a third faster that way."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model
