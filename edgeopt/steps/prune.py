"""What ``method = "prune"`` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgeopt.errors import RecipeError


@dataclass(frozen=True)
class PruneSettings:
    """Structured pruning: which share of the channels goes, and how they are ranked.

    ``pruning_ratios`` overrides ``pruning_ratio`` for layers by name. ``round_to`` left out takes the target's fact.
    """

    method: Literal["prune"] = "prune"
    pruning_ratio: float = 0.5
    pruning_ratios: Mapping[str, float] = field(default_factory=dict)
    importance: Literal["l1", "l2"] = "l2"
    scope: Literal["local", "global"] = "local"
    round_to: int | None = None
    ignored_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse ratios that leave nothing or take nothing."""
        for ratio in (self.pruning_ratio, *self.pruning_ratios.values()):
            if not 0 <= ratio < 1:
                raise RecipeError(f"a pruning ratio must be in [0, 1), got {ratio}")
        if self.round_to is not None and self.round_to < 1:
            raise RecipeError(f"'round_to' must be at least 1, got {self.round_to}")
