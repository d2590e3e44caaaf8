"""What ``method = "replace_activations"`` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from edgeopt.errors import RecipeError, did_you_mean

Activation = Literal["SiLU", "GELU", "Sigmoid", "ReLU", "ReLU6", "Hardswish", "Hardsigmoid", "GELU_tanh"]

_CHEAPER: Mapping[str, Activation] = {
    "SiLU": "Hardswish",
    "GELU": "GELU_tanh",
    "Sigmoid": "Hardsigmoid",
    "ReLU": "ReLU6",
}


@dataclass(frozen=True)
class ReplaceActivationsSettings:
    """Which activations become which others, by their names in ``torch.nn``; ``GELU_tanh`` is GELU's tanh form.

    What is left out stays as it is. A network answers differently afterwards: let ``finetune`` or ``distill`` follow.
    """

    method: Literal["replace_activations"] = "replace_activations"
    activations: Mapping[str, Activation] = field(default_factory=lambda: dict(_CHEAPER))
    ignored_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no activation that is known."""
        for name in self.activations:
            if name not in get_args(Activation):
                hint = did_you_mean(name, list(get_args(Activation)))
                raise RecipeError(f"'activations' names {name!r}, which is none that can be replaced", hint=hint)
