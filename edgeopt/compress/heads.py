"""Attention heads: which groups of layers are the projections of an attention, and how whole heads go.

An attention is a module with a number of heads (``num_heads`` or another usual name) and linear layers for queries,
keys and values, or one for all three, whose result another linear layer takes. A head goes from all of them at once,
and the module is told that it has fewer.

As an edit: ``{"kind": "remove_heads", "removed": [...]}``, each entry with the name of the ``attention``, of the layers
that are its ``makers`` and ``users``, and the numbers of its ``heads`` that went.

Source: Michel et al.: Are Sixteen Heads Really Better than One?, 2019, arXiv 1905.10650.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from edgeopt.compress.groups import Group, Member
from edgeopt.compress.structure import Edit
from edgeopt.errors import CompressionError
from edgeopt.stage import logger

_NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
_WIDTH = ("all_head_size", "inner_dim", "attn_dim", "attention_dim")


def with_heads(groups: Sequence[Group], model: nn.Module) -> list[Group]:
    """Return the groups, those of an attention's projections with heads for units.

    A group of several projections of one attention that are not the usual ones is left out: a channel of a head cannot
    go alone.
    """
    found = []
    for group in groups:
        name = _attention_of(group, model)
        if name is None:
            found.append(group)
        elif (heads := _as_heads(group, name, model)) is not None:
            found.append(heads)
        elif len(group.makers) == 1:
            found.append(group)
        else:
            logger.info("the heads of %s are left whole: its projections are not the usual ones", name)
    return found


def head_removal(group: Group, units: torch.Tensor) -> dict[str, Any]:
    """Return one entry of the edit."""
    users = [member.name for member in group.members if member.side == "uses"]
    return {
        "attention": group.attention,
        "makers": list(group.makers),
        "users": users,
        "heads": units.tolist(),
    }


def remove_heads(model: nn.Module, edit: Edit, _example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Remove from ``model``, in place, the heads that the edit lists.

    Raises:
        CompressionError: the edit is damaged, or names attentions or heads that the network does not have.
    """
    modules = dict(model.named_modules())
    try:
        for removal in edit["removed"]:
            attention, heads = modules[removal["attention"]], [int(head) for head in removal["heads"]]
            makers, users = ([modules[name] for name in removal[side]] for side in ("makers", "users"))
            attribute = _heads_attribute(attention)
            num_heads = getattr(attention, attribute)
            if not heads or min(heads) < 0 or max(heads) >= num_heads or len(set(heads)) >= num_heads:
                raise ValueError(f"{removal['attention']!r} with {num_heads} heads cannot lose {heads}")
            _remove(attention, attribute, makers, users, heads)
    except (KeyError, TypeError, ValueError) as error:
        raise CompressionError(
            f"structure: heads that the network does not have: {error}",
            hint="the network was changed since it was pruned: prune it again",
        ) from error


def num_heads(attention: nn.Module) -> int:
    """Return how many heads an attention has."""
    return int(getattr(attention, _heads_attribute(attention)))


def _remove(
    attention: nn.Module, attribute: str, makers: Sequence[Any], users: Sequence[Any], heads: Sequence[int]
) -> None:
    count = getattr(attention, attribute)
    width = users[0].in_features
    kept = [head for head in range(count) if head not in heads]
    channels = torch.arange(width).reshape(count, -1)[kept].flatten()
    for layer in makers:
        # One layer for queries, keys and values makes three times the width.
        rows = torch.cat([channels + start for start in range(0, layer.out_features, width)])
        layer.weight = nn.Parameter(layer.weight.detach()[rows], layer.weight.requires_grad)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[rows], layer.bias.requires_grad)
        layer.out_features = len(rows)
    for layer in users:
        layer.weight = nn.Parameter(layer.weight.detach()[:, channels], layer.weight.requires_grad)
        layer.in_features = len(channels)
    setattr(attention, attribute, len(kept))
    for name in _WIDTH:
        if getattr(attention, name, None) == width:
            setattr(attention, name, len(channels))


def _attention_of(group: Group, model: nn.Module) -> str | None:
    """Return the name of the one module with heads that holds all layers that make a group's channels."""
    modules = dict(model.named_modules())
    owners = {_owner(name, modules) for name in group.makers}
    return owners.pop() if len(owners) == 1 else None


def _owner(layer: str, modules: dict[str, nn.Module]) -> str | None:
    """Return the innermost module around a layer that has heads."""
    while layer:
        layer = layer.rpartition(".")[0]
        if _heads_attribute(modules[layer]):
            return layer
    return None


def _heads_attribute(module: nn.Module) -> str:
    return next((name for name in _NUM_HEADS if isinstance(getattr(module, name, None), int)), "")


def _as_heads(group: Group, attention: str, model: nn.Module) -> Group | None:
    """Return a group of projections with heads for units, or nothing if they are not those of an attention."""
    projections = [member for member in group.members if member.side != "scales"]
    made, used = ([_width_of(member) for member in projections if member.side == side] for side in ("makes", "uses"))
    if not used or None in (*made, *used):
        return None
    width, count = used[0] or 0, num_heads(model.get_submodule(attention))
    if set(used) != {width} or width % count or made not in ([width] * 3, [width * 3]):
        return None
    members = []
    for member in projections:
        own = torch.arange(_width_of(member) or 0)
        members.append(replace(member, own=own, channels=own % width))
    return Group(attention, width, torch.arange(width).reshape(count, -1), tuple(members), attention)


def _width_of(member: Member) -> int | None:
    """Return how many channels a linear layer makes or uses."""
    if not isinstance(member.layer, nn.Linear):
        return None
    return member.layer.in_features if member.side == "uses" else member.layer.out_features
