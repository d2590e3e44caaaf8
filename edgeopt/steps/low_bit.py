"""What ``method = "low_bit"`` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeopt.training import TrainSettings


@dataclass(frozen=True)
class LowBitSettings:
    """Weights of 4 bits, three values or two, with a scale for each output channel.

    ``finetune`` trains float weights behind the coarse ones. The first layer and those that make the outputs stay as
    they are, unless ``every_layer``.
    """

    method: Literal["low_bit"] = "low_bit"
    weights: Literal["int4", "ternary", "binary"] = "int4"
    every_layer: bool = False
    ignored_layers: tuple[str, ...] = ()
    finetune: TrainSettings | None = None
