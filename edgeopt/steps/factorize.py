"""What ``method = "factorize"`` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgeopt.errors import RecipeError


@dataclass(frozen=True)
class FactorizeSettings:
    """Layers become products of smaller ones; only those for which that saves multiplications.

    ``form`` is what becomes of a spatial convolution: ``tucker2`` or ``cp``; linear layers and 1 x 1 convolutions are
    split by their singular values. The rank keeps a share ``energy`` of the squared singular values, unless ``ranks``
    says one for a layer by name, or ``max_macs`` (a share of the network's before) asks for the largest energy that
    keeps the budget. Ranks are multiples of ``round_to``; left out, of what the targets want.
    """

    method: Literal["factorize"] = "factorize"
    form: Literal["tucker2", "cp"] = "tucker2"
    energy: float = 0.9
    ranks: Mapping[str, int] = field(default_factory=dict)
    max_macs: float | None = None
    layers: tuple[str, ...] = ()
    ignored_layers: tuple[str, ...] = ()
    round_to: int | None = None

    def __post_init__(self) -> None:
        """Refuse ranks of nothing and shares that are none."""
        if not 0 < self.energy <= 1:
            raise RecipeError(f"'energy' is a share in (0, 1], got {self.energy}")
        if self.max_macs is not None and not 0 < self.max_macs < 1:
            raise RecipeError(f"'max_macs' is a share in (0, 1), got {self.max_macs}")
        if any(rank < 1 for rank in self.ranks.values()) or (self.round_to is not None and self.round_to < 1):
            raise RecipeError("ranks and 'round_to' must be at least 1")
