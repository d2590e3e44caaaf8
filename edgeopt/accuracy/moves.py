"""Moves: which quantizer groups go to which precision, in the order in which they are to be tried.

Groups are ranked by the damage that they do for the work that they hold. Down this ranking they are taken in tiers:
those that do nine tenths of all damage, then nine tenths of the rest, and so on. In each tier first every group goes to
the mildest precision that can help it, then each to float. So one bad group costs two moves and no other is touched,
and where damage is spread over many, all of them have had wider activations before the first one computes in float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgeopt.accuracy.groups import QuantizerGroup
from edgeopt.accuracy.sensitivity import Damage
from edgeopt.settings import Precision, QuantizeSettings

# Other activations are worth a move if at least this share of the damage is not the constants'.
_WORTH = 0.5
_TIER = 0.9

Ranked = tuple[QuantizerGroup, Damage]


@dataclass(frozen=True)
class Move:
    """One group to another precision; ``nodes`` says for each node which: not all have dynamic kernels."""

    group: str
    precision: Precision
    nodes: Mapping[str, Precision]


def ranked_moves(
    groups: Sequence[QuantizerGroup], damages: Sequence[Damage], precisions: Sequence[Precision]
) -> list[Move]:
    """Return the moves in their order.

    Args:
        groups: see :func:`edgeopt.accuracy.groups.quantizer_groups`.
        damages: of the same groups.
        precisions: that the target has, the first that helps a group is tried first; float comes last in any case.
    """
    pairs = [(group, damage) for group, damage in zip(groups, damages, strict=True) if damage.total > 0]
    pairs.sort(key=lambda pair: -pair[1].total / max(pair[0].work, 1))
    found: list[Move] = []
    for tier in _tiers(pairs):
        mild = {group.name: _mildest(group, damage, precisions) for group, damage in tier}
        found += [_move(group, kind) for group, _ in tier if (kind := mild[group.name]) is not None]
        if "float" in precisions:
            found += [_move(group, "float") for group, _ in tier if mild[group.name] != "float"]
    return found


def plan_after(settings: QuantizeSettings, moves: Sequence[Move]) -> QuantizeSettings:
    """Return a plan with these moves made; a later one wins, but a node that went to float stays there."""
    nodes: dict[str, Precision] = {}
    for move in moves:
        nodes.update((name, kind) for name, kind in move.nodes.items() if nodes.get(name) != "float")
    return replace(settings, nodes={**settings.nodes, **nodes})


def moved(plan: QuantizeSettings, settings: QuantizeSettings) -> Mapping[str, Precision]:
    """Return the nodes that a plan adds to what the recipe says, by name."""
    return {name: precision for name, precision in sorted(plan.nodes.items()) if name not in settings.nodes}


def _tiers(pairs: Sequence[Ranked]) -> Iterator[list[Ranked]]:
    """Cut the ranking where a tier holds nine tenths of the damage that is left."""
    left = sum(damage.total for _, damage in pairs)
    tier: list[Ranked] = []
    held = 0.0
    for pair in pairs:
        tier.append(pair)
        held += pair[1].total
        if held >= _TIER * left:
            yield tier
            left, tier, held = left - held, [], 0.0
    if tier:
        yield tier


def _move(group: QuantizerGroup, precision: Precision) -> Move:
    nodes = dict.fromkeys(group.nodes, precision)
    if precision == "dynamic":
        nodes = {name: "dynamic" if name in group.dynamic else "float" for name in group.nodes}
    return Move(group.name, precision, nodes)


def _mildest(group: QuantizerGroup, damage: Damage, precisions: Sequence[Precision]) -> Precision | None:
    """Return the first precision that helps: constants stay as they are in all but float."""
    by_activations = damage.total - damage.constants >= _WORTH * damage.total
    for precision in precisions:
        if precision == "float" or (by_activations and (precision != "dynamic" or group.dynamic)):
            return precision
    return None
