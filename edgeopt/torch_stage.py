"""A stage in PyTorch as plain data: any process can do it, given the recipe and what it starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.artifacts import TorchModel
from edgeopt.candidate_latency import CandidateLatency
from edgeopt.dataset import DatasetFolder, find_dataset
from edgeopt.provenance import locate
from edgeopt.recipe import LoadedRecipe
from edgeopt.samples import Dataset, Split
from edgeopt.steps import NetworkSettings
from edgeopt.target import discover_targets
from edgeopt.training import TrainSettings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgeopt.compress.step import StepContext


@dataclass(frozen=True)
class RecipeNetworks:
    """The networks and the samples that a recipe names."""

    loaded: LoadedRecipe

    def dataset(self) -> DatasetFolder:
        """Find the recipe's samples."""
        return find_dataset(self.loaded.recipe.calibration, self.loaded.folder)

    def open(self, split: Split) -> Dataset:
        """Return one split of the samples."""
        return self.dataset().open(split, self.loaded.recipe.model.inputs)

    @property
    def round_to(self) -> int:
        """What widths are a multiple of.

        All targets count, asked for or not: one network serves them all, and it must not depend on the command line.
        """
        return max(spec.round_to for spec in discover_targets().values())

    def rebuild(self, artifact: TorchModel) -> nn.Module:
        """Return the network of an artifact, in eval mode."""
        from edgeopt.compress.rebuild import rebuild

        return rebuild(self.loaded.recipe.model, self.loaded.folder, artifact)

    def other(self, network: NetworkSettings) -> nn.Module:
        """Return another network that a step names, in eval mode."""
        from edgeopt.compress.rebuild import other_model, rebuild

        settings = other_model(self.loaded.recipe.model, network.factory, network.arguments, network.weights)
        return rebuild(settings, self.loaded.folder, TorchModel(structure=network.structure))

    def read_weights(self, reference: str) -> Mapping[str, torch.Tensor]:
        """Return the state dict that a step names."""
        from edgeopt.source import read_state_dict

        return read_state_dict(locate(reference, self.loaded.folder))

    def context(self, source: TorchModel, teacher: TorchModel) -> StepContext:
        """Return what a step is given."""
        from edgeopt.compress.step import StepContext
        from edgeopt.source import example_inputs

        inputs = example_inputs(self.loaded.recipe.model)
        return StepContext(
            self.rebuild,
            source,
            teacher,
            inputs,
            self.open,
            self.round_to,
            self.other,
            self.read_weights,
            CandidateLatency(self.loaded.recipe, partial(self.open, "calibration")),
        )


@dataclass(frozen=True)
class TorchStage:
    """The training of the teacher (``step`` is nothing), or one step of the chain."""

    networks: RecipeNetworks
    step: str | None
    source: TorchModel
    teacher: TorchModel

    def __call__(self, folder: Path) -> tuple[dict[str, Any], str]:
        """Write the stage's result to ``folder``; return its report as JSON types, and one line about it."""
        context = self.networks.context(self.source, self.teacher)
        recipe = self.networks.loaded.recipe
        if self.step is not None:
            from edgeopt.compress.chain import run_step

            return run_step(context, recipe.compress[self.step], folder)
        from edgeopt.compress.train import train

        assert recipe.train is not None
        report = train(context, recipe.train, folder)
        return asdict(report), report.summary


Report = tuple[dict[str, Any], str]
# How a stage that trains is done: from the stage, its folder, and what it is told of its trainings.
TrainIn = Callable[[TorchStage, Path, Sequence[TrainSettings]], Report]


def own_processes(job: TorchStage, folder: Path, trainings: Sequence[TrainSettings]) -> Report:
    """Do a stage in as many processes of this machine as its trainings ask for.

    Raises:
        RecipeError: these are more than there are cores.
        CompressionError: a process was lost.
    """
    count = max(training.devices for training in trainings)
    if count == 1:
        return job(folder)
    from edgeopt.compress.processes import check_cores, do_together

    check_cores(count, oversubscribe=any(training.oversubscribe for training in trainings))
    return do_together(job, folder, count)
