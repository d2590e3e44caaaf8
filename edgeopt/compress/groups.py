"""Groups: the channels that layers must lose together, and the weights that go with each of them.

A residual connection couples the layers that it adds up, a batch norm follows its convolution, and what makes a channel
is coupled with what uses it. Torch-Pruning's dependency graph finds these groups. What is removed at once is a *unit*:
one channel; one of each block where a convolution or normalization has blocks of channels; a whole attention head.

Source: Fang et al.: DepGraph: Towards Any Structural Pruning, 2023, arXiv 2301.12900.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edgeopt.compress.layers import PRUNABLE

Side = Literal["makes", "scales", "uses"]

_SCALING = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.PReLU)

# From a parameter of the network to something of its shape: itself, its square, its gradient.
Value = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Member:
    """What a group takes from one layer.

    Attributes:
        name: of the layer.
        layer: makes the channels, scales them (a normalization) or uses them.
        side: which of these.
        own: int64 ``(L,)``, channels as the layer counts them.
        channels: int64 ``(L,)``, the group's channel that each of them belongs to.
    """

    name: str
    layer: nn.Module
    side: Side
    own: torch.Tensor
    channels: torch.Tensor

    def rows(self, value: Value, *, biases: bool) -> list[torch.Tensor]:
        """Return ``value`` of the layer's parameters, one row a channel: ``(L, parameters of a channel)``, float64."""
        found = []
        if isinstance(weight := getattr(self.layer, "weight", None), torch.Tensor):
            found.append(channel_rows(self.layer, value(weight), self.side))
        bias = getattr(self.layer, "bias", None)
        if biases and self.side != "uses" and isinstance(bias, torch.Tensor):
            found.append(value(bias).reshape(-1, 1))
        return [rows[self.own].double() for rows in found]


@dataclass(frozen=True)
class Group:
    """Channels of which some go, in all members at once.

    Attributes:
        name: of the layer that makes the channels, the first of them where there are several.
        width: how many channels there are.
        units: int64 ``(U, C)``, the channels of each unit.
        members: all layers with parameters for the channels.
        attention: name of the module whose heads are the units; else ``None``.
    """

    name: str
    width: int
    units: torch.Tensor
    members: tuple[Member, ...]
    attention: str | None = None

    @property
    def num_units(self) -> int:
        """Return how many units there are."""
        return len(self.units)

    @property
    def makers(self) -> tuple[str, ...]:
        """Return the names of the layers that make the channels."""
        return tuple(member.name for member in self.members if member.side == "makes")

    @torch.no_grad()
    def channel_sums(
        self, value: Value, *, sides: Sequence[Side] = ("makes", "scales", "uses"), biases: bool = False
    ) -> torch.Tensor:
        """Add up ``value`` over the parameters of each channel, and return float64 ``(width,)``."""
        total = torch.zeros(self.width, dtype=torch.float64)
        for member in self.members:
            if member.side in sides:
                for rows in member.rows(value, biases=biases):
                    total.index_add_(0, member.channels, rows.sum(dim=1))
        return total

    def of_units(self, per_channel: torch.Tensor) -> torch.Tensor:
        """Average what was found for channels ``(width,)`` over those of each unit ``(U,)``."""
        return per_channel[self.units].mean(dim=1)

    def channels_of(self, units: torch.Tensor) -> list[int]:
        """Return the channels of some units, in order."""
        return sorted(self.units[units].flatten().tolist())


def channel_rows(layer: nn.Module, tensor: torch.Tensor, side: Side) -> torch.Tensor:
    """Return a tensor of the shape of ``layer.weight`` with one row a channel: ``(channels, all else)``.

    The weight of a convolution is ``(out, in / groups, ...)``, of a transposed one ``(in, out / groups, ...)``.
    """
    if isinstance(layer, nn.Linear):
        return tensor if side == "makes" else tensor.T
    if isinstance(layer, nn.Embedding):
        return tensor.T
    if not isinstance(layer, _ConvNd):
        return tensor.reshape(-1, 1)
    if (side == "makes") != isinstance(layer, _ConvTransposeNd):
        return tensor.flatten(1)
    blocks = tensor.reshape(layer.groups, tensor.shape[0] // layer.groups, tensor.shape[1], -1)
    return blocks.transpose(1, 2).reshape(layer.groups * tensor.shape[1], -1)


def channel_groups(graph: Any, model: nn.Module) -> list[Group]:
    """Return all groups whose channels a convolution or a linear layer makes, in the order of the network."""
    names = {module: name for name, module in model.named_modules()}
    groups = [_group(graph, found, names) for found in graph.get_all_groups(root_module_types=list(PRUNABLE))]
    return sorted(groups, key=lambda group: list(names.values()).index(group.name))


def _group(graph: Any, found: Any, names: dict[nn.Module, str]) -> Group:
    root = found[0].dep.target.module
    width = graph.get_out_channels(root)
    members, num_blocks = [], 1
    for item in found:
        layer, is_output = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        if layer not in names or None in item.root_idxs:
            continue
        if (side := _side(layer, is_output=is_output)) is not None:
            own, channels = torch.tensor(list(item.idxs)), torch.tensor(list(item.root_idxs))
            members.append(Member(names[layer], layer, side, own, channels))
        num_blocks = max(num_blocks, _num_blocks(layer))
    units = torch.arange(width).reshape(num_blocks, -1).T if width % num_blocks == 0 else torch.arange(width)[:, None]
    return Group(names[root], width, units, tuple(members))


def _side(layer: nn.Module, *, is_output: bool) -> Side | None:
    if isinstance(layer, _SCALING):
        return "scales"
    if isinstance(layer, nn.Embedding):
        return "makes"
    if isinstance(layer, PRUNABLE):
        return "makes" if is_output else "uses"
    return None


def _num_blocks(layer: nn.Module) -> int:
    """Return how many blocks of channels a layer has that must stay equally wide; a depthwise one has none."""
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    if isinstance(layer, _ConvNd) and layer.groups != layer.out_channels:
        return layer.groups
    return 1
