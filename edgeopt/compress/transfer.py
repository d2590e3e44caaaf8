"""Go on with another network that takes over what fits: parameters by name, the structure of an earlier build, or both.

A layer that is narrower or wider than its namesake takes the common corner of the weights, as a supernet's smaller
members share those of the largest.

Source: Pan, Yang: A Survey on Transfer Learning, 2010, IEEE TKDE 22(10) (parameters); Yu et al.: Slimmable Neural
Networks, 2019, arXiv 1812.08928 (the common corner).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from edgeopt.compress.determinism import deterministic
from edgeopt.compress.layers import run_named
from edgeopt.compress.step import StepContext, hand_on
from edgeopt.compress.structure import Constraint, read_structure
from edgeopt.errors import CompressionError
from edgeopt.stage import logger
from edgeopt.steps import NetworkSettings, TransferSettings


@dataclass(frozen=True)
class TransferReport:
    """Where each parameter and buffer of the new network came from, by name; ``unused`` are those of the old one.

    ``matched_share`` is the share of the new network's values that were taken over.
    """

    matched: tuple[str, ...]
    partial: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    matched_share: float

    @property
    def summary(self) -> str:
        """The counts."""
        counts = (
            (self.matched, "taken over"),
            (self.partial, "in part"),
            (self.new, "new"),
            (self.unused, "left behind"),
        )
        return ", ".join(f"{len(names)} {what}" for names, what in counts if names)


_Held = TypeVar("_Held")


def transfer(context: StepContext, settings: TransferSettings, folder: Path) -> TransferReport:
    """Build the new network, fill in what fits of the old one, and hand it on.

    Raises:
        CompressionError: less than ``min_matched`` fits, or the network's answers are of another shape.
        ModelError: the new network cannot be built, or a weights file is not there.
    """
    donor = context.build(context.source)
    with deterministic(settings.seed, threads=1):
        network = context.network(NetworkSettings(settings.factory, settings.arguments, settings.structure))
    old = context.weights(settings.weights) if settings.weights else donor.state_dict()
    report = _fill(network, _renamed(old, settings.rename), settings.parameters)
    if settings.parameters != "none" and report.matched_share < settings.min_matched:
        raise CompressionError(
            f"{report.matched_share:.1%} of the new network's parameters found their place, expected "
            f"{settings.min_matched:.1%}: {', '.join(report.new[:3])} have no namesake in {', '.join(list(old)[:3])}",
            hint="'rename' replaces the beginnings of names; parameters = 'none' begins anew",
        )
    _refuse_other_outputs(donor, network.eval(), context.example_inputs)
    factory = {"factory": settings.factory, "arguments": dict(settings.arguments)}
    structure = replace(read_structure(settings.structure), factory=factory, constraints={})
    hand_on(network, structure.constrained(_kept(context, settings, report)), folder)
    return report


def _kept(context: StepContext, settings: TransferSettings, report: TransferReport) -> dict[str, Constraint]:
    """Return the constraints of the weights that were taken over whole; the others are new, and free.

    They are those of the network before, or of the structure that came with the weights.
    """
    if settings.weights is not None:
        constraints = read_structure(settings.structure).constraints
    else:
        constraints = _renamed(context.structure.constraints, settings.rename)
    for name in sorted(constraints.keys() - report.matched):
        logger.warning("weight %r was %s and is free in the new network", name, constraints[name]["kind"])
    return {name: constraints[name] for name in report.matched if name in constraints}


def _fill(network: nn.Module, old: Mapping[str, torch.Tensor], how: str) -> TransferReport:
    """Copy into ``network``, in place, what has a namesake of its shape, or of its rank for ``partial``."""
    state = network.state_dict()
    matched: list[str] = []
    partial: list[str] = []
    num_taken = 0
    for name, tensor in state.items():
        given = old.get(name) if how != "none" else None
        if given is None or given.dim() != tensor.dim():
            continue
        if given.shape == tensor.shape:
            matched.append(name)
        elif how == "partial":
            partial.append(name)
        else:
            continue
        corner = tuple(slice(min(sizes)) for sizes in zip(tensor.shape, given.shape, strict=True))
        tensor[corner] = given[corner].to(tensor.dtype)
        num_taken += tensor[corner].numel()
    network.load_state_dict(state)
    taken = {*matched, *partial}
    new = tuple(name for name in state if name not in taken)
    unused = tuple(name for name in old if name not in taken)
    num_values = sum(tensor.numel() for tensor in state.values())
    return TransferReport(tuple(matched), tuple(partial), new, unused, num_taken / num_values)


def _renamed(old: Mapping[str, _Held], rename: Mapping[str, str]) -> dict[str, _Held]:
    """Return what is held by name with the beginnings of names replaced, the longest that fits of each."""

    def new_name(name: str) -> str:
        fitting = max((before for before in rename if name.startswith(before)), key=len, default=None)
        return name if fitting is None else rename[fitting] + name.removeprefix(fitting)

    return {new_name(name): held for name, held in old.items()}


def _refuse_other_outputs(old: nn.Module, new: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    with torch.no_grad():
        before, after = ([tuple(output.shape) for output in run_named(model, inputs)] for model in (old, new))
    if before != after:
        raise CompressionError(f"the new network answers in shapes {after}, the one before in {before}")
