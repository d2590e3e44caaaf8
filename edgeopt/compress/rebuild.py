"""The network of an artifact, from the three things that are on disk: factory, structure, weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.attention import split_attention
from edgeopt.compress.channels import remove_channels
from edgeopt.compress.folding import fold_batch_norm
from edgeopt.compress.heads import remove_heads
from edgeopt.compress.low_rank import apply_factorization
from edgeopt.compress.replace_activations import apply_replacement
from edgeopt.compress.structure import Structure, read_structure
from edgeopt.errors import CompressionError
from edgeopt.provenance import locate
from edgeopt.settings import ModelSettings
from edgeopt.source import call_factory, check_finite, example_inputs, load_weights

_APPLY = {
    "remove_channels": remove_channels,
    "remove_heads": remove_heads,
    "split_attention": split_attention,
    "factorize": apply_factorization,
    "fold_batch_norm": fold_batch_norm,
    "replace_activation": apply_replacement,
}


def rebuild(settings: ModelSettings, folder: Path, artifact: TorchModel) -> nn.Module:
    """Call the recipe's factory, make the structure's edits, load the weights, and return the network in eval mode.

    Raises:
        ModelError: if a weight is missing, does not fit or is not finite.
        CompressionError: if an edit does not fit what the factory builds.
    """
    structure = read_structure(artifact.structure)
    if structure.factory is not None:
        settings = other_model(settings, structure.factory.get("factory"), structure.factory["arguments"])
    model = call_factory(settings, folder)
    apply_structure(model, structure, example_inputs(settings))
    weights = artifact.weights or (locate(settings.weights, folder) if settings.weights else None)
    if weights is not None:
        load_weights(model, weights)
    check_finite(model.state_dict(), weights.name if weights else str(settings.factory))
    return model.eval()


def other_model(
    own: ModelSettings, factory: str | None, arguments: Mapping[str, object], weights: str | None = None
) -> ModelSettings:
    """Return the settings of another network; one of the recipe's own factory keeps arguments that are not named."""
    named = dict(arguments) if factory is not None else {**own.arguments, **arguments}
    return replace(own, factory=factory or own.factory, arguments=named, weights=weights)


def apply_structure(model: nn.Module, structure: Structure, example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Make the edits to ``model``, in place and in order.

    Raises:
        CompressionError: an edit is of an unknown kind or does not fit the network.
    """
    for edit in structure.edits:
        if edit["kind"] not in _APPLY:
            raise CompressionError(
                f"structure: an edit of kind {edit['kind']!r}, expected one of {', '.join(sorted(_APPLY))}",
                hint="it was written by a newer edgeopt",
            )
        _APPLY[edit["kind"]](model, edit, example_inputs)
