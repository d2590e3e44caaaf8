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
from edgeopt.compress.distill import distill
from edgeopt.compress.prune import PruneReport, prune
from edgeopt.compress.rebuild import apply_structure
from edgeopt.compress.step import Build, StepContext, result_in
from edgeopt.compress.structure import read_structure
from edgeopt.compress.train import TrainReport, train
from edgeopt.samples import Dataset, Sample
from edgeopt.steps import DistillSettings, PruneSettings
from edgeopt.training import TrainSettings


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
    """Return the ``build`` that a stage is given: factory, then the structure's edits, then weights, strictly."""

    def build(artifact: TorchModel) -> nn.Module:
        model = factory()
        apply_structure(model, read_structure(artifact.structure), (torch.zeros(input_shape),))
        if artifact.weights is not None:
            model.load_state_dict(load_file(artifact.weights), strict=True)
        return model

    return build


def step_context(
    build: Build,
    *input_shape: int,
    source: TorchModel | None = None,
    teacher: TorchModel | None = None,
    data: tuple[Dataset, Dataset] | None = None,
    round_to: int = 1,
) -> StepContext:
    """Return what a step is given; ``data`` are the splits ``train`` and ``held_out``."""

    def open_split(split: str) -> Dataset:
        assert data is not None, "the step is not to ask for samples"
        return data[("train", "held_out").index(split)]

    start = source or TorchModel()
    return StepContext(build, start, teacher or start, (torch.zeros(input_shape),), open_split, round_to)


def train_stage(
    build: Build, source: TorchModel, train_set: Dataset, held_out: Dataset, settings: TrainSettings, out_dir: Path
) -> tuple[TorchModel, TrainReport]:
    """Train ``source`` on two splits, and return the result and the report."""
    report = train(step_context(build, 1, 1, 8, 8, source=source, data=(train_set, held_out)), settings, out_dir)
    return result_in(out_dir), report


def distill_stage(
    build: Build,
    student: TorchModel,
    teacher: TorchModel,
    train_set: Dataset,
    held_out: Dataset,
    settings: DistillSettings,
    out_dir: Path,
) -> tuple[TorchModel, TrainReport]:
    """Train ``student`` to answer like ``teacher``, and return the result and the report."""
    context = step_context(build, 1, 1, 8, 8, source=student, teacher=teacher, data=(train_set, held_out))
    return result_in(out_dir), distill(context, settings, out_dir)


def prune_stage(
    build: Build,
    source: TorchModel,
    input_shape: tuple[int, ...],
    settings: PruneSettings,
    round_to: int,
    out_dir: Path,
) -> tuple[TorchModel, PruneReport]:
    """Prune ``source``, and return the result and the report."""
    report = prune(step_context(build, *input_shape, source=source, round_to=round_to), settings, out_dir)
    return result_in(out_dir), report


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
