"""What training must keep of a weight, as a torch parametrization that is there only while training goes on.

The values of a constraint are in the weight itself: a mask is where it is zero. So a network that was saved as plain
weights is trained on under the constraints that its structure names, and nothing else has to be stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

from edgeopt.compress.structure import Constraint, Structure
from edgeopt.errors import CompressionError


class Sparse(nn.Module):
    """Keeps zeros zero: the weight is multiplied by the mask of what was not zero."""

    mask: torch.Tensor

    def __init__(self, weight: torch.Tensor, _constraint: Constraint) -> None:
        super().__init__()
        self.register_buffer("mask", weight.detach() != 0)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with its zeros."""
        return weight * self.mask


_KINDS = {"sparse": Sparse}


@contextmanager
def constrained(model: nn.Module, constraints: Mapping[str, Constraint]) -> Iterator[None]:
    """Hold the weights of ``model`` to their constraints inside the block; afterwards they are plain weights again.

    Raises:
        CompressionError: a constraint is of an unknown kind, or its weight is not there.
    """
    held = []
    for name, constraint in sorted(constraints.items()):
        layer, tensor = _place(model, name)
        if constraint.get("kind") not in _KINDS:
            raise CompressionError(f"structure: weight {name!r} has a constraint of kind {constraint.get('kind')!r}")
        parametrization = _KINDS[constraint["kind"]](getattr(layer, tensor), constraint)
        parametrize.register_parametrization(layer, tensor, parametrization)
        held.append((layer, tensor))
    try:
        yield
    finally:
        for layer, tensor in held:
            parametrize.remove_parametrizations(layer, tensor, leave_parametrized=True)


def refuse_loss(structure: Structure, weights: Iterable[str], method: str, keeps: Collection[str] = ()) -> None:
    """Raise if a method would make new values of weights that an earlier step constrained.

    ``keeps`` are the kinds of constraints that the method does not destroy.

    Raises:
        CompressionError: names the first of them and what it would lose.
    """
    for name in weights:
        kind = structure.constraints.get(name, {"kind": None})["kind"]
        if kind is not None and kind not in keeps:
            raise CompressionError(
                f"{method} would make new values of weight {name!r}, which is {kind} since an earlier step",
                hint=f"put {method} before the step that made it {kind}",
            )


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that owns a weight, and what it calls it."""
    path, _, tensor = name.rpartition(".")
    modules = dict(model.named_modules())
    if path not in modules or not hasattr(modules[path], tensor):
        raise CompressionError(
            f"structure: the network has no weight {name!r}", hint="the network was changed since: run the step again"
        )
    return modules[path], tensor
