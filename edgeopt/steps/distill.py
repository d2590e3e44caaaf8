"""What ``method = "distill"`` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeopt.errors import RecipeError
from edgeopt.steps.network import NetworkSettings
from edgeopt.training import TrainSettings


@dataclass(frozen=True)
class FeatureSettings:
    """What the student also learns from inside its teacher: ``[[compress.features]]``.

    The output of its layer ``student`` is held against that of the first teacher's layer ``teacher``, which is called
    alike if nothing is said. ``hint`` compares values (through a 1 x 1 layer that is trained along where widths
    differ), ``attention`` where in the image they are large, ``relational`` how samples lie to one another.
    """

    student: str
    teacher: str | None = None
    loss: Literal["hint", "attention", "relational"] = "hint"
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a loss that does not count."""
        if self.weight <= 0:
            raise RecipeError(f"'weight' must be above 0, got {self.weight}")


@dataclass(frozen=True)
class DistillSettings(TrainSettings):
    """How a student learns from its teachers: ``alpha`` weighs the soft loss, ``1 - alpha`` the labels.

    With ``alpha = 1`` samples need no labels. The teacher is the network that the chain started from, ``teachers`` are
    others; of several the mean of what they say counts, and ``own_teacher = false`` leaves the chain's own out.
    ``quantization_aware`` rounds weights and activations to 8 bits while the student learns, as int8 does: activations
    by the ``asymmetric`` scheme of CPUs or the ``symmetric`` one of TensorRT.
    """

    method: Literal["distill"] = "distill"
    temperature: float = 4.0
    alpha: float = 0.7
    features: tuple[FeatureSettings, ...] = ()
    teachers: tuple[NetworkSettings, ...] = ()
    own_teacher: bool = True
    quantization_aware: Literal["off", "asymmetric", "symmetric"] = "off"

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        super().__post_init__()
        if self.temperature <= 0 or not 0 <= self.alpha <= 1:
            raise RecipeError("temperature must be above 0 and alpha in [0, 1]")
        if not self.own_teacher and not self.teachers:
            raise RecipeError("own_teacher = false leaves no teacher", hint="add [[compress.teachers]]")
