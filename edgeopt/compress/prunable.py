"""What may be pruned: the groups that no output, no ignored layer and no single channel is in, with their ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from edgeopt.compress.attention import split_attention, split_edit
from edgeopt.compress.constraints import refuse_loss
from edgeopt.compress.groups import Group, channel_groups
from edgeopt.compress.heads import with_heads
from edgeopt.compress.layers import dependency_graph, layers_in, output_layers, quietly, traceable
from edgeopt.compress.structure import Structure
from edgeopt.compress.weights import refuse_not_finite
from edgeopt.errors import CompressionError
from edgeopt.steps.prune import PruneSettings


@dataclass(frozen=True)
class Prunable:
    """A network that can be pruned.

    Attributes:
        model: in eval mode, with torch's attentions split where heads may go.
        structure: of it.
        channels: groups that may lose channels.
        heads: groups that may lose heads.
        own_ratios: the ratio that the recipe gives a group, by the group's name.
    """

    model: nn.Module
    structure: Structure
    channels: Sequence[Group]
    heads: Sequence[Group]
    own_ratios: Mapping[str, float]


def prunable(
    model: nn.Module, structure: Structure, settings: PruneSettings, example_inputs: tuple[torch.Tensor, ...]
) -> Prunable:
    """Find what of ``model`` may be pruned; its attentions are split in place.

    Raises:
        CompressionError: a layer that is not there, two ratios for layers that go together, or nothing to prune.
    """
    refuse_not_finite(model, "before pruning")
    edit = split_edit(model)
    _refuse_constrained(structure, edit["attentions"] if edit else ())
    if edit:
        split_attention(model.eval(), edit, example_inputs)
        structure = structure.edited(edit)
    ratios = {layer: ratio for name, ratio in settings.pruning_ratios.items() for layer in layers_in(model, name)}
    with traceable(model):
        graph = quietly(lambda: dependency_graph(model, example_inputs))
        outputs = output_layers(model, example_inputs)
        pinned = sorted(outputs & {name for name, ratio in ratios.items() if ratio > 0})
        if pinned:
            raise CompressionError(f"layer {pinned[0]!r} makes an output of the network, whose shape must stay")
        ignored = outputs.union(*(layers_in(model, name) for name in settings.ignored_layers))
        groups = [
            group
            for group in with_heads(channel_groups(graph, model), model)
            if not ignored.intersection(group.makers) and group.num_units > 1
        ]
    channels, heads = ([g for g in groups if (g.attention is None) == is_width] for is_width in (True, False))
    _refuse_no_choice(channels, heads, settings)
    return Prunable(model, structure, channels, heads, _own_ratios(groups, ratios))


def _own_ratios(groups: Sequence[Group], ratios: Mapping[str, float]) -> dict[str, float]:
    """Return the ratio of each group with a layer that the recipe gives one."""
    found = {}
    for group in groups:
        given = {name: ratios[name] for name in group.makers if name in ratios}
        if len(set(given.values())) > 1:
            (first, ratio), (second, other) = list(given.items())[:2]
            raise CompressionError(
                f"layers {first!r} and {second!r} lose their channels together, got the ratios {ratio} and {other}",
                hint="give one of them a ratio, or both the same",
            )
        if given:
            found[group.name] = next(iter(given.values()))
    return found


def _refuse_no_choice(channels: Sequence[Group], heads: Sequence[Group], settings: PruneSettings) -> None:
    if settings.head_ratio > 0 and not heads:
        raise CompressionError(
            f"head_ratio is {settings.head_ratio}, and the network has no attention whose heads could go",
            hint="an attention is nn.MultiheadAttention, or a module with num_heads and linear layers for query, key "
            "and value",
        )
    if not channels and not heads:
        raise CompressionError(
            "nothing to prune: every convolution and linear layer makes an output or is ignored",
            hint="remove the step or ignore fewer layers",
        )


def _refuse_constrained(structure: Structure, attentions: Sequence[str]) -> None:
    """Raise if an earlier step gave a weight a form that does not live through pruning.

    Zeros and shared values stay what they are where channels go; a pattern or a scale over channels does not.
    """
    stays = {name for name, item in structure.constraints.items() if item in ({"kind": "sparse"}, {"kind": "shared"})}
    split = {name for name in stays if any(name.startswith(attention + ".") for attention in attentions)}
    refuse_loss(structure, sorted(set(structure.constraints) - stays | split), "prune")
