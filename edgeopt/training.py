"""What a training can be told: the settings that ``[train]`` and every step of ``[[compress]]`` that trains share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeopt.errors import RecipeError


@dataclass(frozen=True)
class TrainSettings:
    """How to train: ``schedule`` sets the learning rate of each epoch from ``learning_rate`` down.

    ``validation_share`` of the training samples are not trained on: they choose the best epoch, whose weights are
    kept, and stop a training that got no better for ``patience`` epochs. With 0, all samples train and the last
    epoch is kept. Held-out samples choose nothing.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "step", "exponential"] = "cosine"
    step_epochs: int = 10
    gamma: float = 0.1
    seed: int = 0
    threads: int = 2
    validation_share: float = 0.1
    patience: int | None = None
    max_shift: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for name in ("epochs", "batch_size", "learning_rate", "threads", "step_epochs", "gamma"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"'{name}' must be above 0, got {getattr(self, name)}")
        if self.weight_decay < 0 or not 0 <= self.momentum < 1 or self.max_shift < 0:
            raise RecipeError("weight_decay and max_shift must be at least 0, and momentum in [0, 1)")
        if self.patience is not None and self.patience < 1:
            raise RecipeError(f"'patience' must be at least 1 epoch, got {self.patience}")
        if not 0 <= self.validation_share < 1:
            raise RecipeError(f"'validation_share' must be in [0, 1), got {self.validation_share}")
        if self.patience is not None and self.validation_share == 0:
            raise RecipeError(
                "'patience' needs validation samples, got validation_share = 0",
                hint="set validation_share = 0.1, or leave 'patience' out",
            )
