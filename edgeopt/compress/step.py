"""What a step of ``[[compress]]`` is given, and how it hands on a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Never

import torch
from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.structure import Structure, read_structure
from edgeopt.compress.weights import save_weights
from edgeopt.errors import CompressionError
from edgeopt.samples import Dataset, Split
from edgeopt.steps import NetworkSettings

# From an artifact to its network: the recipe's factory, the structure's edits, the weights.
Build = Callable[[TorchModel], nn.Module]


def _none_named(reference: object) -> Never:
    raise CompressionError(f"there is no recipe that could name another network: {reference}")


@dataclass(frozen=True)
class StepContext:
    """What every step may look at.

    Attributes:
        build: makes the network of an artifact, in eval mode.
        source: what the step starts from.
        teacher: what the chain started from.
        example_inputs: one sample of zeros, to trace with.
        open_split: returns the samples of a split.
        round_to: a multiple that the targets want widths to be.
        network: makes another network than the recipe's, with its structure and weights, in eval mode.
        weights: reads a state dict by the recipe's words.
        relative_latency: returns how long a network takes in a target's runtime, as a share of another one.
    """

    build: Build
    source: TorchModel
    teacher: TorchModel
    example_inputs: tuple[torch.Tensor, ...]
    open_split: Callable[[Split], Dataset]
    round_to: int = 1
    network: Callable[[NetworkSettings], nn.Module] = _none_named
    weights: Callable[[str], Mapping[str, torch.Tensor]] = _none_named
    relative_latency: Callable[[nn.Module, nn.Module, str], float] | None = None

    @property
    def structure(self) -> Structure:
        """The structure of the source."""
        return read_structure(self.source.structure)


def hand_on(model: nn.Module, structure: Structure, folder: Path) -> TorchModel:
    """Write a step's result into its folder, ``structure.json`` and ``weights.safetensors``, and return it."""
    artifact = result_in(folder)
    assert artifact.structure is not None
    assert artifact.weights is not None
    structure.write(artifact.structure)
    save_weights(model, artifact.weights)
    return artifact


def result_in(folder: Path) -> TorchModel:
    """Return what :func:`hand_on` wrote into a folder."""
    return TorchModel(folder / "structure.json", folder / "weights.safetensors")
