"""Weights of 4 bits, three values or two, trained through what cannot be differentiated.

The network answers with the coarse weights, and the gradient goes to float weights behind them as if they were the
same (Bengio, Leonard, Courville: Estimating or Propagating Gradients Through Stochastic Neurons, 2013, arXiv
1308.3432, section 4). Which target computes with them and which only stores them is a fact of the target.

Source: see :mod:`edgeopt.compress.projection`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from edgeopt.compress.constraints import constrained, refuse_loss
from edgeopt.compress.determinism import deterministic
from edgeopt.compress.layers import layers_in, output_layers, prunable_layers, run_hooked, traceable
from edgeopt.compress.step import StepContext, hand_on
from edgeopt.compress.structure import Constraint, Structure
from edgeopt.compress.train import TrainReport, hard_loss, train_network
from edgeopt.compress.weights import refuse_not_finite
from edgeopt.errors import CompressionError
from edgeopt.steps import LowBitSettings
from edgeopt.training import TrainSettings

# What keeps the zeros of an earlier mask: two values of one magnitude have none.
_KEEPS = {
    "int4": ("sparse", "int4"),
    "block_int4": ("sparse", "block_int4"),
    "ternary": ("sparse", "ternary"),
    "binary": ("binary",),
}


@dataclass(frozen=True)
class LowBitLayer:
    """A layer of coarse weights; ``relative_error`` is the squared error's share before any training."""

    name: str
    num_weights: int
    relative_error: float


@dataclass(frozen=True)
class LowBitReport:
    """The layers of coarse weights, those that stayed as they were, and how the training went."""

    weights: str
    layers: tuple[LowBitLayer, ...]
    left_whole: tuple[str, ...]
    training: TrainReport | None

    @property
    def summary(self) -> str:
        """How many weights are coarse."""
        num_weights = sum(layer.num_weights for layer in self.layers)
        text = f"{num_weights:,} weights of {len(self.layers)} layers are {self.weights}"
        return text if self.training is None else f"{text}; {self.training.summary}"


def low_bit(context: StepContext, settings: LowBitSettings, folder: Path) -> LowBitReport:
    """Give the layers of ``context.source`` coarse weights, train them if asked, and hand the network on.

    Raises:
        CompressionError: a layer is not there, none is left, or a weight is constrained to other values.
    """
    training = settings.finetune or TrainSettings()
    with deterministic(training.seed, training.threads):
        model = context.build(context.source)
        refuse_not_finite(model, "before weights get few bits")
        layers = _chosen(model, context.example_inputs, settings)
        names = [f"{name}.weight" for name in layers]
        refuse_loss(context.structure, names, "low_bit", keeps=_KEEPS[settings.kind])
        constraints = {
            f"{name}.weight": _constraint(layer, context.structure.constraints.get(f"{name}.weight", {}), settings)
            for name, layer in layers.items()
        }
        structure = context.structure.constrained(constraints)
        errors = _errors(context.build(context.source), constraints)
        if settings.finetune is None:
            with constrained(model, constraints):
                pass
            hand_on(model, structure, folder)
            report = None
        else:
            report = _train(model, structure, context, settings.finetune, folder)
    left = tuple(name for name in prunable_layers(model) if name not in layers)
    blocks = f" in blocks of {settings.block_size}" if settings.block_size else ""
    return LowBitReport(f"{settings.weights}{blocks}", errors, left, report)


def _train(
    model: nn.Module, structure: Structure, context: StepContext, settings: TrainSettings, folder: Path
) -> TrainReport:
    """Train the float weights behind the coarse ones, from those that the network had."""
    whole = hand_on(model, structure, folder)
    return train_network(model, hard_loss, "", replace(context, source=whole), settings, folder, "low_bit")


def _constraint(layer: nn.Module, before: Constraint, settings: LowBitSettings) -> Constraint:
    """Return the constraint of a layer's weight; zeros that an earlier step made stay."""
    axis = 1 if isinstance(layer, _ConvTransposeNd) else 0
    keeps_zeros = before.get("kind") == "sparse" or before.get("keeps_zeros", False)
    constraint = {"kind": settings.kind, "axis": axis, "keeps_zeros": keeps_zeros}
    return constraint | ({"block_size": settings.block_size} if settings.block_size else {})


def _errors(model: nn.Module, constraints: dict[str, Constraint]) -> tuple[LowBitLayer, ...]:
    """Return what the coarse weights of a network lose; its weights become coarse."""
    before = {name: model.get_parameter(name).detach().double() for name in constraints}
    with constrained(model, constraints):
        pass
    found = []
    for name, weight in before.items():
        error = (model.get_parameter(name).detach().double() - weight).square().sum()
        share = float(error / weight.square().sum().clamp(min=1e-30))
        found.append(LowBitLayer(name.removesuffix(".weight"), weight.numel(), share))
    return tuple(found)


def _chosen(
    model: nn.Module, example_inputs: tuple[torch.Tensor, ...], settings: LowBitSettings
) -> dict[str, nn.Module]:
    """Return the layers that get coarse weights, by name."""
    left = {layer for name in settings.ignored_layers for layer in layers_in(model, name)}
    if not settings.every_layer:
        left |= _first_and_last(model, example_inputs)
    chosen = {name: layer for name, layer in prunable_layers(model).items() if name not in left}
    if not chosen:
        raise CompressionError(
            "no layer is left for weights of few bits", hint="ignore fewer layers, or write every_layer = true"
        )
    return chosen


def _first_and_last(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> set[str]:
    """Return the layer that runs first, and those that make the outputs."""
    order: list[str] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, layer in prunable_layers(model).items()
    ]
    run_hooked(model, example_inputs, hooks)
    with traceable(model):
        return {*order[:1], *output_layers(model, example_inputs)}
