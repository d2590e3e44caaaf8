"""The network of an artifact, from the three things that are on disk: factory, pruned channels, weights."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.prune import apply_pruning
from edgeopt.provenance import locate
from edgeopt.settings import ModelSettings
from edgeopt.source import call_factory, check_finite, example_inputs, load_weights


def rebuild(settings: ModelSettings, folder: Path, artifact: TorchModel) -> nn.Module:
    """Call the recipe's factory, take the pruned channels out, load the weights, and return the network in eval mode.

    Raises:
        ModelError: if a weight is missing, does not fit or is not finite.
        CompressionError: if the pruned channels do not fit what the factory builds.
    """
    model = call_factory(settings, folder)
    if artifact.pruning is not None:
        apply_pruning(model, artifact.pruning, example_inputs(settings))
    weights = artifact.weights or (locate(settings.weights, folder) if settings.weights else None)
    if weights is not None:
        load_weights(model, weights)
    check_finite(model.state_dict(), weights.name if weights else str(settings.factory))
    return model.eval()
