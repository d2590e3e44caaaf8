"""What training must keep of a weight, as a torch parametrization that is there only while training goes on.

The values of a constraint are in the weight itself: a mask is where it is zero. So a network that was saved as plain
weights is trained on under the constraints that its structure names, and nothing else has to be stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from edgeopt.compress.projection import (
    binary,
    block_int4,
    from_inputs_last,
    from_rows,
    inputs_last,
    int4,
    rows_of,
    ternary,
)
from edgeopt.compress.structure import LOW_BIT_KINDS, Constraint, Structure
from edgeopt.errors import CompressionError


class Sparse(nn.Module):
    """Keeps zeros zero: what was zero is masked.

    ``scores`` of each weight are there for a mask that is tightened by them (``{"kind": "sparse", "scores": true}``).
    """

    mask: torch.Tensor

    def __init__(self, weight: torch.Tensor, constraint: Constraint) -> None:
        super().__init__()
        self.register_buffer("mask", weight.detach() != 0)
        if constraint.get("scores"):
            self.register_buffer("scores", torch.zeros_like(weight))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with its zeros."""
        return weight.where(self.mask, 0)


class Shared(nn.Module):
    """Keeps a weight to its different values, which are what is trained: a value moves by the sum of its gradients.

    Zero, if it is one of them, stays zero.

    Source: Han, Mao, Dally: Deep Compression, 2016, arXiv 1510.00149, section 3.3.
    """

    indices: torch.Tensor
    is_free: torch.Tensor

    def __init__(self, weight: torch.Tensor, _constraint: Constraint) -> None:
        super().__init__()
        codebook, indices = torch.unique(weight.detach(), return_inverse=True)
        self.codebook: torch.Tensor = codebook
        self.register_buffer("indices", indices)
        self.register_buffer("is_free", codebook != 0)

    def right_inverse(self, _weight: torch.Tensor) -> torch.Tensor:
        """Return the codebook, ``(K,)``: what is trained in the weight's place."""
        return self.codebook

    def forward(self, codebook: torch.Tensor) -> torch.Tensor:
        """Return the weight: each entry's value."""
        weight: torch.Tensor = _Lookup.apply(codebook.where(self.is_free, 0), self.indices)  # type: ignore[no-untyped-call]
        return weight


class _Lookup(torch.autograd.Function):
    """``codebook[indices]``, with a gradient that takes a quarter of the time."""

    @staticmethod
    def forward(context: Any, codebook: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(indices)
        context.num_values = len(codebook)
        return codebook[indices]

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (indices,) = context.saved_tensors
        flat = gradients[0].flatten()
        return torch.bincount(indices.flatten(), weights=flat, minlength=context.num_values).to(flat.dtype), None


class LowBit(nn.Module):
    """Answers with the nearest weight of few bits; the gradient goes to the float weight behind it as it is.

    The constraint says the ``axis`` of the output channels, whether what was zero stays zero (``keeps_zeros``), and of
    weights in blocks the ``block_size``.
    """

    mask: torch.Tensor

    def __init__(self, weight: torch.Tensor, constraint: Constraint) -> None:
        super().__init__()
        self.constraint = constraint
        zeros_stay = constraint["keeps_zeros"]
        self.register_buffer("mask", weight.detach() != 0 if zeros_stay else torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the coarse weight."""
        kept = weight.where(self.mask, 0)
        coarse: torch.Tensor = _StraightThrough.apply(kept, _nearest(kept.detach(), self.constraint))  # type: ignore[no-untyped-call]
        return coarse


def _nearest(weight: torch.Tensor, constraint: Constraint) -> torch.Tensor:
    """Return the weight of few bits that a constraint asks for."""
    axis = constraint["axis"]
    if constraint["kind"] == "block_int4":
        blocks = block_int4(inputs_last(weight, axis), constraint["block_size"])
        return from_inputs_last(blocks, weight, axis)
    return from_rows(_PROJECTIONS[constraint["kind"]](rows_of(weight, axis)), weight, axis)


class _StraightThrough(torch.autograd.Function):
    """Returns its second argument, exactly, and hands the gradient to its first."""

    @staticmethod
    def forward(_context: Any, _weight: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        return coarse

    @staticmethod
    def backward(_context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


_PROJECTIONS = {"int4": int4, "ternary": ternary, "binary": binary}
_KINDS = {"sparse": Sparse, "shared": Shared, **dict.fromkeys(LOW_BIT_KINDS, LowBit)}


@contextmanager
def constrained(model: nn.Module, constraints: Mapping[str, Constraint]) -> Iterator[None]:
    """Hold the weights of ``model`` to their constraints inside the block; afterwards they are plain weights again.

    Raises:
        CompressionError: a constraint is of an unknown kind, or its weight is not there.
    """
    held = []
    owners: dict[int, str] = {}
    for name, constraint in sorted(constraints.items()):
        layer, tensor = _place(model, name)
        owner = owners.setdefault(id(getattr(layer, tensor)), name)
        if owner != name and constraint.get("kind") == "shared":
            raise CompressionError(
                f"weights {owner!r} and {name!r} are one parameter and cannot have a codebook each",
                hint="name one of them in 'ignored_layers'",
            )
        if constraint.get("kind") not in _KINDS:
            raise CompressionError(f"structure: weight {name!r} has a constraint of kind {constraint.get('kind')!r}")
        holder = _KINDS[constraint["kind"]](getattr(layer, tensor), constraint)
        parametrize.register_parametrization(layer, tensor, holder)
        held.append((layer, tensor))
    try:
        yield
    finally:
        for layer, tensor in held:
            # What was put on top of a constraint may have taken it along.
            if parametrize.is_parametrized(layer, tensor):
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


def holder_of(model: nn.Module, name: str) -> tuple[nn.Module, nn.Parameter]:
    """Return what holds a weight inside :func:`constrained`, and the parameter that is trained in its place."""
    layer, tensor = _place(model, name)
    holders = layer.get_submodule(f"parametrizations.{tensor}")
    return holders.get_submodule("0"), holders.get_parameter("original")


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that owns a weight, and what it calls it."""
    path, _, tensor = name.rpartition(".")
    modules = dict(model.named_modules())
    if path not in modules or not hasattr(modules[path], tensor):
        raise CompressionError(
            f"structure: the network has no weight {name!r}", hint="the network was changed since: run the step again"
        )
    return modules[path], tensor
