"""Removed channels as an edit of a network's structure: ``{"kind": "remove_channels", "removed": [...]}``.

Each entry names a layer, whether its output or its input channels went, and their numbers at that moment.
Torch-Pruning's dependency graph finds all other layers that must lose them too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgeopt.compress.layers import dependency_graph, prunable_layers, quietly, traceable
from edgeopt.compress.structure import Edit
from edgeopt.errors import CompressionError

# Name of the layer, whether its output (or else its input) channels go, and their numbers at that moment.
Removal = tuple[str, bool, list[int]]


def removal_edit(removals: list[Removal]) -> Edit:
    """Return the edit that makes these removals again."""
    removed = [{"layer": name, "output": is_output, "channels": channels} for name, is_output, channels in removals]
    return {"kind": "remove_channels", "removed": removed}


def remove_channels(model: nn.Module, edit: Edit, example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Remove from ``model``, in place, the channels that the edit lists.

    Args:
        model: the network before this edit.
        edit: what :func:`removal_edit` returned.
        example_inputs: inputs to trace the network with; values do not matter.

    Raises:
        CompressionError: the edit is damaged, or names layers or channels that the network does not have.
    """
    removals = _removals(edit)
    layers = prunable_layers(model)
    with traceable(model):
        graph = quietly(lambda: dependency_graph(model, example_inputs))
        for name, is_output, channels in removals:
            layer = layers.get(name)
            width = 0 if layer is None else (graph.get_out_channels if is_output else graph.get_in_channels)(layer)
            if layer is None or not channels or min(channels) < 0 or max(channels) >= width or len(channels) >= width:
                raise CompressionError(
                    f"structure: layer {name!r} with {width} channels cannot lose {len(channels)} of them",
                    hint="the network was changed since it was pruned: prune it again",
                )
            graph.load_pruning_history([(name, is_output, channels)])


def _removals(edit: Edit) -> list[Removal]:
    try:
        removed: list[dict[str, Any]] = edit["removed"]
        return [(str(step["layer"]), bool(step["output"]), [int(n) for n in step["channels"]]) for step in removed]
    except (KeyError, TypeError, ValueError) as error:
        raise CompressionError(f"structure: an edit does not list removed channels: {error!r}") from error
