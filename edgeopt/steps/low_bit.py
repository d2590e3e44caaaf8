"""What ``method = "low_bit"`` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeopt.errors import RecipeError
from edgeopt.training import TrainSettings

BLOCK_SIZES = (4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class LowBitSettings:
    """Weights of 4 bits, three values or two, with a scale for each output channel.

    ``block_size`` gives int4 weights a factor from 1 to 18 for each block of so many input channels, 0 none.
    ``finetune`` trains float weights behind the coarse ones. The first layer and those that make the outputs stay as
    they are, unless ``every_layer``.
    """

    method: Literal["low_bit"] = "low_bit"
    weights: Literal["int4", "ternary", "binary"] = "int4"
    block_size: int = 0
    every_layer: bool = False
    ignored_layers: tuple[str, ...] = ()
    finetune: TrainSettings | None = None

    @property
    def kind(self) -> str:
        """The kind of constraint that the weights get."""
        return "block_int4" if self.block_size else self.weights

    def __post_init__(self) -> None:
        """Refuse blocks of no kind."""
        if self.block_size not in (0, *BLOCK_SIZES):
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise RecipeError(f"low_bit: a block has {sizes} input channels, or 0 for no blocks, got {self.block_size}")
        if self.block_size and self.weights != "int4":
            raise RecipeError(f"low_bit has blocks of int4 weights only, not of {self.weights} ones")
