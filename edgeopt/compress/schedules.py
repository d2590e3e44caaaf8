"""What sets the learning rate while a training goes on: PyTorch's schedules, each stepped when it should be.

Source of one-cycle: Smith, Topin: Super-Convergence, 2017, arXiv 1708.07120; of cosine: Loshchilov, Hutter: SGDR, 2016,
arXiv 1608.03983, without restarts; of the warm-up: Goyal et al.: Accurate, Large Minibatch SGD, 2017, arXiv 1706.02677,
section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from edgeopt.training import TrainSettings


@dataclass(frozen=True)
class Schedule:
    """A schedule of PyTorch, and whether it moves on with every step of the optimizer or with every epoch."""

    scheduler: LRScheduler
    per_step: bool

    def after_step(self) -> None:
        """Move on after a step of the optimizer."""
        if self.per_step:
            self.scheduler.step()

    def after_epoch(self) -> None:
        """Move on after an epoch."""
        if not self.per_step:
            self.scheduler.step()


def make_schedule(optimizer: Optimizer, settings: TrainSettings, steps_per_epoch: int) -> Schedule:
    """Return what sets the learning rate.

    ``cosine`` goes from the learning rate towards 0 over all epochs, ``step`` multiplies it by ``gamma`` every
    ``step_epochs`` epochs, ``exponential`` by ``gamma`` every epoch. ``one_cycle`` rises to the learning rate over the
    first 30 % of the steps and falls to almost nothing over the rest; it leaves the momentum alone. Before the others,
    ``warmup_epochs`` = n epochs have the rate times 1 / (n + 1), 2 / (n + 1), ...
    """
    if settings.schedule == "one_cycle":
        num_steps = settings.epochs * steps_per_epoch
        cycle = OneCycleLR(optimizer, settings.learning_rate, total_steps=num_steps + 1, cycle_momentum=False)
        return Schedule(cycle, per_step=True)
    warmup = settings.warmup_epochs
    if not warmup:
        return Schedule(_by_epoch(optimizer, settings), per_step=False)
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), end_factor=1.0, total_iters=warmup)
    both = SequentialLR(optimizer, [rise, _by_epoch(optimizer, settings)], milestones=[warmup])
    return Schedule(both, per_step=False)


def _by_epoch(optimizer: Optimizer, settings: TrainSettings) -> LRScheduler:
    """Return what follows the warm-up."""
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=settings.epochs - settings.warmup_epochs)
    if settings.schedule == "step":
        return StepLR(optimizer, step_size=settings.step_epochs, gamma=settings.gamma)
    if settings.schedule == "exponential":
        return ExponentialLR(optimizer, gamma=settings.gamma)
    return ConstantLR(optimizer, factor=1.0)
