"""Small networks and samples for the compression tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.prune import apply_pruning
from edgeopt.samples import Sample

Build = Callable[[TorchModel], nn.Module]


@dataclass(frozen=True)
class Listed:
    """A data set from arrays: ``images`` (N, ...) and ``labels`` (N,), or no labels."""

    images: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        label = None if self.labels is None else int(self.labels[index])
        return Sample(f"sample {index}", {"image": self.images[index : index + 1]}, label)


def noisy_patterns() -> tuple[Listed, Listed]:
    """Return ten random 8 x 8 patterns under noise of their own size: 400 to train on, 200 held out."""
    random = np.random.default_rng(0)
    labels = np.arange(600) % 10
    patterns = random.standard_normal((10, 1, 8, 8))
    images = (patterns[labels] + random.standard_normal((600, 1, 8, 8))).astype(np.float32)
    return Listed(images[:400], labels[:400]), Listed(images[400:], labels[400:])


def rebuilding(factory: Callable[[], nn.Module], *input_shape: int) -> Build:
    """Return the ``build`` that a stage is given: factory, then removed channels, then weights, strictly."""

    def build(artifact: TorchModel) -> nn.Module:
        model = factory()
        if artifact.pruning is not None:
            apply_pruning(model, artifact.pruning, (torch.zeros(input_shape),))
        if artifact.weights is not None:
            model.load_state_dict(load_file(artifact.weights), strict=True)
        return model

    return build


def small_net() -> nn.Module:
    """Return a network for 8 x 8 images with batch norm and dropout, both of which have state to get wrong."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


build_small = rebuilding(small_net, 1, 1, 8, 8)


def interrupt_after(num_files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come right after that many files were put in place."""
    real_replace, calls = os.replace, 0

    def interrupted(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        real_replace(source, target)
        if calls == num_files:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
