"""How a training went, epoch by epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


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
