"""What can be said of results with several figures: none of a front is beaten by another one in all that counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """One figure that a search makes as large, or as small, as it can."""

    figure: str
    maximize: bool = False


def dominates(one: Mapping[str, float], other: Mapping[str, float], objectives: Sequence[Objective]) -> bool:
    """Return whether ``one`` is better than ``other`` in one objective and worse in none."""
    losses = [_loss(one, item) - _loss(other, item) for item in objectives]
    return max(losses) <= 0 and min(losses) < 0


def front(points: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> list[int]:
    """Return which points no other one dominates, best in the first objective first; of equal ones all are kept."""
    kept = [
        index for index, point in enumerate(points) if not any(dominates(other, point, objectives) for other in points)
    ]
    return sorted(kept, key=lambda index: ([_loss(points[index], item) for item in objectives], index))


def _loss(point: Mapping[str, float], objective: Objective) -> float:
    return -point[objective.figure] if objective.maximize else point[objective.figure]
