"""What ``method = "distill"`` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeopt.errors import RecipeError
from edgeopt.training import TrainSettings


@dataclass(frozen=True)
class DistillSettings(TrainSettings):
    """How a student learns from its teacher: ``alpha`` weighs the soft loss, ``1 - alpha`` the hard one."""

    method: Literal["distill"] = "distill"
    temperature: float = 4.0
    alpha: float = 0.7

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        super().__post_init__()
        if self.temperature <= 0 or not 0 <= self.alpha <= 1:
            raise RecipeError("temperature must be above 0 and alpha in [0, 1]")
