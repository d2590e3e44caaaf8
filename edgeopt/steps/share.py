"""What ``method = "share"`` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgeopt.errors import RecipeError
from edgeopt.training import TrainSettings

_MOST_VALUES = 4096


@dataclass(frozen=True)
class ShareSettings:
    """Weight sharing: how many different values a weight tensor keeps; 32 of them are an index of 5 bits.

    ``values`` overrides the number for layers by name; 0 leaves a layer as it is. Where a tensor has zeros, zero is
    one of its values and stays zero. ``initialization`` says where k-means begins: at equal distances between the
    smallest and the largest weight, or at equal shares of the weights. ``finetune`` trains the values.
    """

    method: Literal["share"] = "share"
    conv_values: int = 256
    linear_values: int = 32
    values: Mapping[str, int] = field(default_factory=dict)
    initialization: Literal["linear", "density"] = "linear"
    max_iterations: int = 100
    ignored_layers: tuple[str, ...] = ()
    finetune: TrainSettings | None = None

    def __post_init__(self) -> None:
        """Refuse codebooks that hold nothing or everything."""
        for count in (self.conv_values, self.linear_values, *self.values.values()):
            if count != 0 and not 2 <= count <= _MOST_VALUES:
                raise RecipeError(f"a codebook has 2 to {_MOST_VALUES} values, or 0 for none, got {count}")
        if self.max_iterations < 1:
            raise RecipeError(f"'max_iterations' must be at least 1, got {self.max_iterations}")
