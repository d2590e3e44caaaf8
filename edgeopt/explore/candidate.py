"""What a candidate will cost, before anything is trained.

The factory's network is built as it is, and pruned as the chain says. Where channels of all layers are ranked together
that is an estimate, as trained weights rank them in another order. How far a step factorizes is not known before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.chain import run_step
from edgeopt.compress.layers import PRUNABLE, count_macs
from edgeopt.compress.rebuild import rebuild
from edgeopt.compress.step import StepContext, result_in
from edgeopt.dataset import find_dataset
from edgeopt.explore.layers import Layer, layers_of
from edgeopt.recipe import LoadedRecipe
from edgeopt.source import example_inputs
from edgeopt.stage import inner_stages
from edgeopt.steps import PruneSettings
from edgeopt.target import discover_targets

_DECIDED_BY_WEIGHTS = ("factorize", "transfer")


@dataclass(frozen=True)
class Candidate:
    """What is known of a network by its structure: parameters with batch norms folded, and MACs of one sample.

    A bundle can have a few more MACs: those of averages that its target runs as convolutions.
    """

    num_parameters: int
    num_macs: int
    layers: tuple[Layer, ...]


def foresee(loaded: LoadedRecipe) -> Candidate:
    """Return what the network that a recipe ends with will be like.

    Raises:
        ModelError: the factory does not build it.
        CompressionError: a step cannot be done on it, or it cannot be run.
    """
    inputs = example_inputs(loaded.recipe.model)
    with TemporaryDirectory(prefix="edgeopt.") as folder, inner_stages():
        network = _untrained(loaded, Path(folder))
        num_macs = count_macs(network, inputs)
        return Candidate(_num_parameters(network), num_macs, tuple(layers_of(network, inputs)))


def is_foreseeable(loaded: LoadedRecipe) -> bool:
    """Return whether no step changes the structure by what training made of the weights."""
    return all(step.method not in _DECIDED_BY_WEIGHTS for step in loaded.recipe.compress.values())


def _untrained(loaded: LoadedRecipe, folder: Path) -> nn.Module:
    """Build the factory's network and prune it."""
    recipe, artifact = loaded.recipe, TorchModel()
    build = partial(rebuild, recipe.model, loaded.folder)
    dataset = find_dataset(recipe.calibration, loaded.folder)
    round_to = max(spec.round_to for spec in discover_targets().values())
    for name, step in recipe.compress.items():
        if isinstance(step, PruneSettings):
            (folder / name).mkdir()
            context = StepContext(
                build, artifact, artifact, example_inputs(recipe.model),
                lambda split: dataset.open(split, recipe.model.inputs), round_to,
            )  # fmt: skip
            # Widths are the same whatever the ranks; these need no gradients and no training between.
            run_step(context, replace(step, importance="l2", iterations=1, finetune=None), folder / name)
            artifact = result_in(folder / name)
    return build(artifact)


def _num_parameters(network: nn.Module) -> int:
    """Count parameters as the exported graph has them: a batch norm gives a layer before it without a bias one."""
    count, biased = 0, True
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            count += 0 if biased else module.num_features
            biased = True
            continue
        count += sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if isinstance(module, PRUNABLE):
            biased = module.bias is not None
    return count
