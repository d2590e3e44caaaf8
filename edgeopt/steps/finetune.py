"""What ``method = "finetune"`` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeopt.training import TrainSettings


@dataclass(frozen=True)
class FinetuneSettings(TrainSettings):
    """How a network goes on training with the labels of its samples, and keeps what earlier steps made of it."""

    method: Literal["finetune"] = "finetune"
