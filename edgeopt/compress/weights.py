"""A network's weights: written to safetensors, checked, counted, told apart."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from edgeopt.artifacts import digest_of
from edgeopt.errors import CompressionError


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict to ``path`` as safetensors through a temporary name; same weights, same bytes."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(save(copy_state(model)))  # save_file would hide a full disk in an error of its own
    os.replace(temporary, path)


def copy_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the state dict in which no two tensors share memory."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}


def model_digest(model: nn.Module) -> str:
    """Return one SHA-256 over a network's layers and weights."""
    return digest_of([repr(model), hashlib.sha256(save(copy_state(model))).hexdigest()])


def refuse_not_finite(model: nn.Module, when: str) -> None:
    """Raise unless every weight is finite.

    Raises:
        CompressionError: names the first tensor that has NaN or infinite values.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CompressionError(f"{when}: weight {name!r} has NaN or infinite values")
