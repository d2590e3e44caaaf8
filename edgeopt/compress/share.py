"""Weight sharing: the weights of a layer take a few different values, of which the packed bundle stores the indices.

Each tensor gets a codebook by k-means, and training moves its values, not the weights. A mask that an earlier step
made stays: zero is one of the values.

Source: Han, Mao, Dally: Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
Huffman Coding, 2016, arXiv 1510.00149, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeopt.compress.codebook import share_values
from edgeopt.compress.constraints import refuse_loss
from edgeopt.compress.determinism import deterministic
from edgeopt.compress.layers import layers_in, prunable_layers
from edgeopt.compress.step import StepContext, hand_on
from edgeopt.compress.train import TrainReport, hard_loss, train_network
from edgeopt.compress.weights import refuse_not_finite
from edgeopt.errors import CompressionError
from edgeopt.stage import logger
from edgeopt.steps import ShareSettings
from edgeopt.training import TrainSettings


@dataclass(frozen=True)
class SharedLayer:
    """A layer whose weights take ``num_values`` different values; ``relative_error`` is the squared error's share."""

    name: str
    num_weights: int
    num_values: int
    relative_error: float


@dataclass(frozen=True)
class ShareReport:
    """The layers that share weights, as k-means left them, and how the training of their values went."""

    layers: tuple[SharedLayer, ...]
    training: TrainReport | None

    @property
    def summary(self) -> str:
        """How many values the layers have."""
        most = max(layer.num_values for layer in self.layers)
        shared = f"{len(self.layers)} layers of at most {most} values each"
        return shared if self.training is None else f"{shared}; {self.training.summary}"


def share(context: StepContext, settings: ShareSettings, folder: Path) -> ShareReport:
    """Give the layers of ``context.source`` codebooks, train their values if asked, and hand the network on.

    Raises:
        CompressionError: a layer is not there, none is left, or a weight is constrained to other values.
    """
    training = settings.finetune or TrainSettings()
    with deterministic(training.seed, training.threads):
        model = context.build(context.source)
        refuse_not_finite(model, "before weights are shared")
        counts = _counts(model, settings)
        weights = {f"{name}.weight": model.get_parameter(f"{name}.weight").data for name in counts}
        refuse_loss(context.structure, weights, "share", keeps=("sparse", "shared"))
        layers = tuple(_share(name, weights[f"{name}.weight"], counts[name], settings) for name in counts)
        structure = context.structure.constrained({name: {"kind": "shared"} for name in weights})
        shared = hand_on(model, structure, folder)
        if settings.finetune is None:
            return ShareReport(layers, None)
        trained = train_network(
            model, hard_loss, "", replace(context, source=shared), settings.finetune, folder, "share"
        )
        return ShareReport(layers, trained)


def _share(name: str, weight: torch.Tensor, num_values: int, settings: ShareSettings) -> SharedLayer:
    """Give one weight its codebook, in place."""
    shared = share_values(weight, num_values, settings.initialization, settings.max_iterations)
    error = float((shared - weight).double().square().sum() / weight.double().square().sum().clamp(min=1e-30))
    weight.copy_(shared)
    return SharedLayer(name, weight.numel(), len(torch.unique(shared)), error)


def _counts(model: nn.Module, settings: ShareSettings) -> dict[str, int]:
    """Return how many values each layer may keep, in the network's order."""
    own = {layer: count for name, count in settings.values.items() for layer in layers_in(model, name)}
    ignored = {layer for name in settings.ignored_layers for layer in layers_in(model, name)}
    counts = {
        name: own.get(name, settings.linear_values if isinstance(layer, nn.Linear) else settings.conv_values)
        for name, layer in prunable_layers(model).items()
        if name not in ignored
    }
    chosen = {name: count for name, count in counts.items() if count > 0}
    if not chosen:
        raise CompressionError("no layer is left to share weights", hint="ignore fewer layers")
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        logger.warning(
            "share: batch norm scales every channel of a shared weight by its own factor when it is folded, and few "
            "values become many; a network without batch norm keeps them"
        )
    return chosen
