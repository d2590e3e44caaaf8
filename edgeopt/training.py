"""What a training can be told: the settings that ``[train]`` and every step of ``[[compress]]`` that trains share."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

from edgeopt.errors import RecipeError

_ABOVE_ZERO = ("epochs", "batch_size", "learning_rate", "threads", "step_epochs", "gamma", "accumulate", "devices")

_Settings = TypeVar("_Settings")


@dataclass(frozen=True)
class TrainSettings:
    """How to train: ``schedule`` sets the learning rate of each epoch from ``learning_rate`` down.

    The optimizer takes one step a batch of ``batch_size`` samples, wherever they are computed: ``accumulate`` in how
    many parts one after the other, ``devices`` in how many processes side by side (:mod:`edgeopt.compress.parallel`).
    ``momentum`` and ``nesterov`` belong to ``sgd``; ``step_epochs`` and ``gamma`` to the schedules ``step`` and
    ``exponential``. For ``warmup_epochs`` the rate first rises to ``learning_rate`` in a straight line.

    ``max_gradient_norm`` scales longer gradients down to this L2 norm. With ``ema_decay`` the weights that are judged
    and kept are an average over the steps (:mod:`edgeopt.compress.average`). ``precision`` is that of products and
    sums in training; weights stay float32.

    ``bn_penalty`` times the magnitudes of all factors of batch norms is part of what is made small, and pulls those
    that matter little to zero: ``importance = "bn_scale"`` prunes them then (Liu et al.: Learning Efficient
    Convolutional Networks through Network Slimming, 2017, arXiv 1708.06519). Losses are told without it.

    ``validation_share`` of the training samples are not trained on: they choose the best epoch, whose weights are
    kept, and stop a training that got no better for ``patience`` epochs. With 0, all samples train and the last
    epoch is kept. Held-out samples choose nothing. ``max_shift`` and ``flip`` move and mirror images at random.

    ``threads`` are those of all processes together; ``oversubscribe`` allows more processes than there are cores.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Literal["sgd", "adagrad", "rmsprop", "adam", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "step", "exponential", "one_cycle"] = "cosine"
    step_epochs: int = 10
    gamma: float = 0.1
    warmup_epochs: int = 0
    precision: Literal["float32", "bf16-mixed"] = "float32"
    accumulate: int = 1
    max_gradient_norm: float | None = None
    ema_decay: float | None = None
    bn_penalty: float = 0.0
    seed: int = 0
    threads: int = 2
    validation_share: float = 0.1
    patience: int | None = None
    max_shift: int = 0
    flip: bool = False
    devices: int = 1
    strategy: Literal["ddp", "fsdp", "tensor_parallel"] = "ddp"
    oversubscribe: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise RecipeError(f"'{name}' must be above 0, got {getattr(self, name)}")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and not -(2**31) <= value < 2**31:
                raise RecipeError(f"'{item.name}' must fit 32 bits, got {value}")
        for name in ("weight_decay", "bn_penalty", "max_shift"):
            if not getattr(self, name) >= 0:
                raise RecipeError(f"'{name}' must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise RecipeError(f"'momentum' must be in [0, 1), got {self.momentum}")
        if self.max_gradient_norm is not None and not self.max_gradient_norm > 0:
            raise RecipeError(f"'max_gradient_norm' must be above 0, got {self.max_gradient_norm}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise RecipeError(f"'ema_decay' must be in (0, 1), got {self.ema_decay}", hint="0.99 to 0.9999 are usual")
        if self.accumulate > self.batch_size:
            raise RecipeError(f"accumulate = {self.accumulate} parts of a batch of {self.batch_size} samples")
        self._check_optimizer_and_schedule()
        self._check_validation()

    def _check_optimizer_and_schedule(self) -> None:
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise RecipeError("'nesterov' needs optimizer = \"sgd\" and a momentum above 0")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise RecipeError(f"'warmup_epochs' must be in [0, epochs = {self.epochs}), got {self.warmup_epochs}")
        if self.warmup_epochs and self.schedule == "one_cycle":
            raise RecipeError(
                'schedule = "one_cycle" warms up by itself, got warmup_epochs', hint="leave 'warmup_epochs' out"
            )

    def _check_validation(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise RecipeError(f"'patience' must be at least 1 epoch, got {self.patience}")
        if not 0 <= self.validation_share < 1:
            raise RecipeError(f"'validation_share' must be in [0, 1), got {self.validation_share}")
        if self.patience is not None and self.validation_share == 0:
            raise RecipeError(
                "'patience' needs validation samples, got validation_share = 0",
                hint="set validation_share = 0.1, or leave 'patience' out",
            )


def trainings_in(settings: Any) -> list[TrainSettings]:
    """Return the trainings that the settings of a step ask for: themselves, or one inside them, or none."""
    inner = [getattr(settings, item.name) for item in fields(settings)]
    return [item for item in (settings, *inner) if isinstance(item, TrainSettings)]


def wherever(settings: _Settings) -> _Settings:
    """Return settings without what only says where they are computed.

    A result has the same name whether one process made it or several: what ``torchrun`` trained is found by a build,
    and a training that was interrupted goes on with another number of processes.
    """
    here: dict[str, Any] = {
        item.name: wherever(getattr(settings, item.name))
        for item in fields(settings)  # type: ignore[arg-type]
        if isinstance(getattr(settings, item.name), TrainSettings)
    }
    if isinstance(settings, TrainSettings):
        here |= {"devices": 1, "strategy": "ddp", "oversubscribe": False}
    return replace(settings, **here)  # type: ignore[type-var]
