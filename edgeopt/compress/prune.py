"""Structured pruning: the channels that matter least are removed, and the network is really smaller afterwards.

A channel's importance is the L1 or L2 norm of the weights that make and use it, over all layers that must lose it
together: a residual connection couples layers, a batch norm follows its convolution. Torch-Pruning's dependency graph
finds these groups.

Source: Li et al.: Pruning Filters for Efficient ConvNets, 2017, arXiv 1608.08710; Fang et al.: DepGraph: Towards Any
Structural Pruning, 2023, arXiv 2301.12900.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_pruning.pruner import MagnitudePruner
from torch_pruning.pruner.importance import MagnitudeImportance

from edgeopt.compress.channels import Removal, removal_edit
from edgeopt.compress.layers import (
    PRUNABLE,
    num_channels,
    output_layers,
    prunable_layers,
    quietly,
    run_named,
    traceable,
)
from edgeopt.compress.step import StepContext, hand_on
from edgeopt.compress.weights import refuse_not_finite
from edgeopt.errors import CompressionError, did_you_mean
from edgeopt.steps import PruneSettings


@dataclass(frozen=True)
class LayerChange:
    """How many output channels or features a layer had and has."""

    name: str
    channels_before: int
    channels_after: int


@dataclass(frozen=True)
class PruneReport:
    """The widths that pruning left."""

    layers: tuple[LayerChange, ...]

    @property
    def summary(self) -> str:
        """Nothing: the sizes say it."""
        return ""


def prune(context: StepContext, settings: PruneSettings, folder: Path) -> PruneReport:
    """Remove channels from ``context.source`` and write what is left to ``folder``.

    The layers that make the network's outputs are never pruned. Before the files are handed on, the network is built
    again from them, must answer bit for bit like the one that was pruned, and must go through ``torch.export``. A
    network that was pruned before can be pruned again: the removals add up. Channels that remain are a multiple of
    ``context.round_to``, unless ``settings.round_to`` says otherwise.

    Raises:
        CompressionError: a layer that is not there, nothing to prune, weights that are not finite, or a network whose
            code does not follow its layers when they shrink.
    """
    inputs = context.example_inputs
    with torch.random.fork_rng(devices=[]):
        model = context.build(context.source).eval()
        refuse_not_finite(model, "before pruning")
        widths_before = _widths(model)
        removals = _remove_channels(model, inputs, settings, settings.round_to or context.round_to)
        structure = context.structure.edited(removal_edit(removals)) if removals else context.structure
        artifact = hand_on(model, structure, folder)
        _check_reload(context.build(artifact).eval(), model, inputs)
    widths = _widths(model)
    return PruneReport(tuple(LayerChange(name, width, widths[name]) for name, width in widths_before.items()))


class _Pruner(MagnitudePruner):  # type: ignore[misc]
    """Torch-Pruning's pruner, but a width is rounded to the nearest multiple and never to nothing.

    Its own rounding goes down, to 0 for a layer narrower than ``round_to``, which is then left as wide as it was.
    """

    def _round_to(self, num_pruned: int, num_channels: int, round_to: int) -> int:
        return num_channels - rounded_width(num_channels - num_pruned, num_channels, round_to)


def rounded_width(wanted: int, num_channels: int, round_to: int) -> int:
    """Return the multiple of ``round_to`` nearest to ``wanted`` channels, in ``[round_to, num_channels]``.

    Ties go up. A layer with fewer than ``round_to`` channels keeps them all.
    """
    if num_channels < round_to:
        return num_channels
    nearest = (wanted + round_to // 2) // round_to * round_to
    return max(round_to, min(nearest, num_channels // round_to * round_to))


def _remove_channels(
    model: nn.Module, example_inputs: tuple[torch.Tensor, ...], settings: PruneSettings, round_to: int
) -> list[Removal]:
    """Prune ``model`` in place and return what was removed."""
    ratios = {layer: ratio for name, ratio in settings.pruning_ratios.items() for layer in _layers_in(model, name)}
    with traceable(model):
        shapes = [output.shape for output in run_named(model, example_inputs)]
        outputs = output_layers(model, example_inputs)
        ignored = outputs.union(*(_layers_in(model, name) for name in settings.ignored_layers))
        _refuse_no_choice(model, outputs, ignored, ratios)
        pruner = quietly(lambda: _pruner(model, example_inputs, settings, round_to, ignored, ratios))
        quietly(pruner.step)
        if shapes != [output.shape for output in run_named(model, example_inputs)]:
            raise CompressionError(
                "pruning changed the shape of the network's outputs", hint="name more ignored_layers"
            )
    removals = [(name, is_output, channels) for name, is_output, channels in pruner.pruning_history() if channels]
    if not removals and max((settings.pruning_ratio, *ratios.values())) > 0:
        raise CompressionError(
            f"nothing was pruned: no group of layers can lose channels and keep a multiple of {round_to}",
            hint="lower round_to, raise pruning_ratio or ignore fewer layers",
        )
    return removals


def _pruner(
    model: nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    settings: PruneSettings,
    round_to: int,
    ignored: Iterable[str],
    ratios: Mapping[str, float],
) -> Any:
    """Return Torch-Pruning's magnitude pruner; the dicts are passed because its own defaults are shared."""
    layers = prunable_layers(model)
    return _Pruner(
        model,
        example_inputs,
        importance=MagnitudeImportance(p=1 if settings.importance == "l1" else 2),
        global_pruning=settings.scope == "global",
        pruning_ratio=settings.pruning_ratio,
        pruning_ratio_dict={layers[name]: ratio for name, ratio in ratios.items()},
        ignored_layers=[layers[name] for name in sorted(ignored)],
        round_to=round_to,
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        root_module_types=list(PRUNABLE),
    )


def _layers_in(model: nn.Module, name: str) -> list[str]:
    """Return the prunable layers that a name in the recipe means: itself, or all inside it.

    Raises:
        CompressionError: there are none.
    """
    layers = prunable_layers(model)
    inside = [layer for layer in layers if layer == name or layer.startswith(name + ".")]
    if not inside:
        raise CompressionError(
            f"the network has no convolution or linear layer {name!r}", hint=did_you_mean(name, list(layers))
        )
    return inside


def _refuse_no_choice(model: nn.Module, outputs: set[str], ignored: set[str], ratios: Mapping[str, float]) -> None:
    """Raise if no layer is left to prune, or a ratio is asked of a layer that makes an output."""
    pinned = sorted(outputs & {name for name, ratio in ratios.items() if ratio > 0})
    if pinned:
        raise CompressionError(f"layer {pinned[0]!r} makes an output of the network, whose shape must stay")
    if not set(prunable_layers(model)) - ignored:
        raise CompressionError(
            "nothing to prune: every convolution and linear layer makes an output or is ignored",
            hint="remove [prune] or ignore fewer layers",
        )


def _check_reload(rebuilt: nn.Module, pruned: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Raise unless the rebuilt network answers bit for bit like the pruned one and can be exported."""
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(
        torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for tensor in example_inputs
    )
    with torch.no_grad():
        for expected, actual in zip(run_named(pruned, inputs), run_named(rebuilt, inputs), strict=True):
            if not torch.equal(expected, actual):
                raise CompressionError("the pruned network answers differently after it was saved and built again")
    try:
        quietly(lambda: torch.export.export(rebuilt, inputs))
    except Exception as error:  # torch.export has no common root for its refusals, and each of them means the same
        raise CompressionError(f"the pruned network cannot be exported: {error}") from error


def _widths(model: nn.Module) -> dict[str, int]:
    """Return the output channels of every prunable layer."""
    return {name: num_channels(layer) for name, layer in prunable_layers(model).items()}
