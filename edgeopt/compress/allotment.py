"""Allotment: how many units each group keeps for a ratio, by one of three scopes.

local        every group loses the same share
global       the least important units go, wherever they are
sensitivity  every group loses as much as costs the same, by a scan of each alone (:mod:`edgeopt.compress.sensitivity`)

Widths are rounded to the nearest multiple that the target wants, and never to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgeopt.compress.groups import Group
from edgeopt.compress.importance import Scores
from edgeopt.compress.sensitivity import Damage


@dataclass(frozen=True)
class Population:
    """Groups that share one ratio: all that lose channels, or all that lose heads.

    Attributes:
        groups: as they are now.
        scores: importance of their units.
        first_units: how many units each had when the step began, which ratios are of.
        own_ratios: the ratio of each group that the recipe gives one; else ``None``.
        round_to: a multiple for the channels of each.
        damage: what the scan found for each group; empty without a scan.
    """

    groups: Sequence[Group]
    scores: Scores
    first_units: Sequence[int]
    own_ratios: Sequence[float | None]
    round_to: int
    damage: Sequence[Damage] = ()

    def kept(self, ratio: float, share: float, scope: str) -> list[int]:
        """Return how many units each group keeps.

        Args:
            ratio: the share of all units that goes, where a group has no ratio of its own.
            share: how far of the way the iterations are, in (0, 1]; multiplies the ratios that groups have themselves.
            scope: ``local``, ``global`` or ``sensitivity``.
        """
        free = [index for index, own in enumerate(self.own_ratios) if own is None]
        wanted = [self.first_units[index] * (1 - (own or 0.0) * share) for index, own in enumerate(self.own_ratios)]
        if scope == "global":
            shares = self._lowest_go(free, ratio)
        elif scope == "sensitivity":
            shares = self._even_damage(free, ratio)
        else:
            shares = [self.first_units[index] * (1 - ratio) for index in free]
        for index, units in zip(free, shares, strict=True):
            wanted[index] = units
        return [self._rounded(index, units) for index, units in enumerate(wanted)]

    def removed(self, kept: Sequence[int]) -> list[torch.Tensor]:
        """Return which units of each group go: the least important; of equals, the first."""
        orders = (torch.argsort(scores, stable=True) for scores in self.scores)
        return [
            order[: group.num_units - count].sort().values
            for group, order, count in zip(self.groups, orders, kept, strict=True)
        ]

    def _rounded(self, index: int, wanted: float) -> int:
        group = self.groups[index]
        if wanted >= group.num_units:
            return group.num_units
        step = 1 if group.attention is not None else self.round_to // math.gcd(self.round_to, group.units.shape[1])
        return rounded_width(wanted, group.num_units, step)

    def _lowest_go(self, free: Sequence[int], ratio: float) -> list[float]:
        """Take the lowest scores of all groups together, but never a whole group."""
        kept = {index: self.groups[index].num_units for index in free}
        num_to_go = sum(kept.values()) - sum(self.first_units[index] for index in free) * (1 - ratio)
        ranked = sorted((score, index) for index in free for score in self.scores[index].tolist())
        for _, index in ranked:
            if num_to_go < 1 - 1e-9:  # a share such as 0.3 of 10 is not a whole number in binary
                break
            if kept[index] > 1:
                kept[index] -= 1
                num_to_go -= 1
        return [float(kept[index]) for index in free]

    def _even_damage(self, free: Sequence[int], ratio: float) -> list[float]:
        """Find the damage at which the groups lose ``ratio`` of all units if each loses what costs that much."""
        total = sum(self.first_units[index] for index in free)

        def units_at(limit: float) -> list[float]:
            return [self.first_units[index] * (1 - self.damage[index].ratio_at(limit)) for index in free]

        costs_nothing = total - sum(units_at(0.0))
        if costs_nothing > ratio * total:
            part = ratio * total / costs_nothing
            return [self.first_units[index] * (1 - part * self.damage[index].ratio_at(0.0)) for index in free]
        low, high = 0.0, max((self.damage[index].worst for index in free), default=0.0)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if total - sum(units_at(middle)) >= ratio * total else (middle, high)
        return units_at(high)


def rounded_width(wanted: float, num_channels: int, round_to: int) -> int:
    """Return the multiple of ``round_to`` nearest to ``wanted`` channels, in ``[round_to, num_channels]``.

    Ties go up. A layer with fewer than ``round_to`` channels keeps them all.
    """
    if num_channels < round_to:
        return num_channels
    nearest = math.floor(wanted / round_to + 0.5 + 1e-9) * round_to
    return max(round_to, min(nearest, num_channels // round_to * round_to))
