"""The steps of ``[[compress]]`` on a network that is at hand, without a recipe: for notebooks and training scripts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.chain import run_step
from edgeopt.compress.rebuild import apply_structure
from edgeopt.compress.step import StepContext, result_in
from edgeopt.compress.structure import read_structure
from edgeopt.errors import UsageError
from edgeopt.samples import Dataset, Split
from edgeopt.source import check_finite, load_weights
from edgeopt.stage import stage
from edgeopt.steps import Step


@dataclass(frozen=True)
class Compressed:
    """A compressed network, in eval mode; ``reports`` has what each step says, ``artifact`` its files."""

    network: nn.Module
    artifact: TorchModel
    reports: Mapping[str, Mapping[str, Any]]


def compress_network(
    network: nn.Module,
    steps: Sequence[Step],
    example_inputs: tuple[torch.Tensor, ...],
    out: Path,
    *,
    train: Dataset | None = None,
    held_out: Dataset | None = None,
    round_to: int = 1,
) -> Compressed:
    """Do steps on a copy of ``network``, which is also their teacher.

    Args:
        network: the network with its weights; it is not changed.
        steps: in order, ``[PruneSettings(pruning_ratio=0.5), FinetuneSettings(epochs=3)]``.
        example_inputs: one sample, to trace with; values do not matter.
        out: a folder for what each step writes: ``structure.json`` and ``weights.safetensors``.
        train: labelled samples, for steps that train.
        held_out: samples that judge a training and choose nothing.
        round_to: a multiple that widths are to be.

    Raises:
        UsageError: a step asks for samples that were not given.
        CompressionError: a step cannot be done; says which.
    """

    def build(artifact: TorchModel) -> nn.Module:
        model = copy.deepcopy(network)
        apply_structure(model, read_structure(artifact.structure), example_inputs)
        if artifact.weights is not None:
            load_weights(model, artifact.weights)
        check_finite(model.state_dict(), "the network")
        return model.eval()

    def open_split(split: Split) -> Dataset:
        dataset = {"train": train, "held_out": held_out}.get(split)
        if dataset is None:
            raise UsageError(f"a step asks for {split} samples, and none were given", hint=f"pass {split}=")
        return dataset

    artifact, reports = TorchModel(), {}
    for number, step in enumerate(steps, start=1):
        name = f"{number}-{step.method}"
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        with stage(name):
            context = StepContext(build, artifact, TorchModel(), example_inputs, open_split, round_to)
            reports[name], _ = run_step(context, step, folder)
        artifact = result_in(folder)
    return Compressed(build(artifact), artifact, reports)
