"""What ``method = "transfer"`` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgeopt.errors import RecipeError
from edgeopt.steps.network import NetworkSettings


@dataclass(frozen=True)
class TransferSettings(NetworkSettings):
    """The chain goes on with another network: of ``factory``, with ``arguments``, with the edits of ``structure``.

    ``parameters`` says what it gets of the network before: those of the same name and shape (``"matching"``), besides
    these the common corner of those that differ in width (``"partial"``), or ``"none"``. With ``weights`` they come
    from that file. ``rename`` replaces the beginnings of names, ``{ "backbone." = "features." }``. What gets none is
    drawn from ``seed``. A transfer that fills a smaller share than ``min_matched`` of the new network's parameters is
    refused.
    """

    method: Literal["transfer"] = "transfer"
    parameters: Literal["matching", "partial", "none"] = "matching"
    rename: Mapping[str, str] = field(default_factory=dict)
    min_matched: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a transfer of nothing into the same."""
        if not 0 <= self.min_matched <= 1:
            raise RecipeError(f"'min_matched' is a share in [0, 1], got {self.min_matched}")
        if not (self.factory or self.arguments or self.structure or self.weights):
            raise RecipeError(
                "a transfer needs a new network or other weights",
                hint="give 'factory', 'arguments', 'structure' or 'weights'",
            )
        if self.weights is not None and self.parameters == "none":
            raise RecipeError("parameters = 'none' takes no weights, got both")
