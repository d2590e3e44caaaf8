"""What ``method = "low_bit"`` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeopt.errors import RecipeError
from edgeopt.training import TrainSettings


@dataclass(frozen=True)
class LowBitSettings:
    """Weights of 4 bits, three values or two, with a scale for each output channel.

    ``block`` gives so many neighbouring int4 weights a scale of their own. ``finetune`` trains float weights behind
    the coarse ones. The first layer and those that make the outputs stay as they are, unless ``every_layer``.
    """

    method: Literal["low_bit"] = "low_bit"
    weights: Literal["int4", "ternary", "binary"] = "int4"
    block: int | None = None
    every_layer: bool = False
    ignored_layers: tuple[str, ...] = ()
    finetune: TrainSettings | None = None

    def __post_init__(self) -> None:
        """Refuse blocks that are none."""
        if self.block is not None and (self.block < 2 or self.weights != "int4"):
            raise RecipeError("'block' is at least 2 weights, and goes with weights = \"int4\"")
