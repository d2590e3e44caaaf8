"""Figures of candidates before they are built, and which of them are worth to be tried first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeopt.artifacts import canonical_json
from edgeopt.errors import EdgeoptError, UsageError
from edgeopt.explore.candidate import Candidate, foresee, is_foreseeable
from edgeopt.explore.measuring import open_table
from edgeopt.explore.pareto import Objective, front
from edgeopt.explore.plan import SearchPlan
from edgeopt.explore.sampling import Point
from edgeopt.explore.space import draw
from edgeopt.stage import stage, track

_DRAWS_FOR_EACH = 12
_MAX_POINTS = 160
_MARGIN = 1.1
"""What a table predicts is no count: a candidate is left out if it is over the budget by more than its usual error."""


class Foresight:
    """Looks at candidates of one plan; each is looked at once."""

    def __init__(self, plan: SearchPlan, table: Path) -> None:
        self._plan = plan
        self._table = open_table(plan.table_figure, table) if plan.table_figure else None
        self._is_certain = is_foreseeable(plan.load({}))
        self._known: dict[str, Candidate] = {}

    def figures(self, point: Point) -> dict[str, float]:
        """Return what is foreseen of a point.

        Raises:
            EdgeoptError: the network cannot be built there.
        """
        candidate = self._candidate(point)
        foreseen: dict[str, float] = {"num_parameters": candidate.num_parameters, "num_macs": candidate.num_macs}
        if self._table is not None:
            foreseen[str(self._plan.table_figure)] = self._table.predict(candidate.layers)
        return foreseen

    def excess(self, foreseen: Mapping[str, float]) -> dict[str, float]:
        """Return by how much, relatively, what is foreseen exceeds each limit; what keeps it has 0 or less.

        Of a chain whose steps look at trained weights, nothing is certain enough to leave a candidate out.
        """
        if not self._is_certain:
            return {}
        margins = {self._plan.table_figure: _MARGIN}
        return {
            name: foreseen[name] / (most * margins.get(name, 1.0)) - 1
            for name, most in self._plan.budget.items()
            if name in foreseen
        }

    def best(self, count: int) -> list[Point]:
        """Return points within the budget at several costs, at each the one with the largest network for the cost.

        Points are drawn at random; the cost is the first of milliseconds, instructions and MACs that can be foreseen,
        and the size what the network computes, or, where MACs are the cost, how much it can learn: its parameters.

        Raises:
            UsageError: all that was drawn is over the budget.
        """
        drawn = self._possible(draw(self._plan.space, _DRAWS_FOR_EACH * count, self._plan.seed))
        if self._table is not None:
            self._table.cover((item for point in drawn for item in self._candidate(point).layers), _MAX_POINTS)
        figures = [self.figures(point) for point in drawn]
        within = [index for index, item in enumerate(figures) if max(self.excess(item).values(), default=0) <= 0]
        if figures and not within:
            name, least = min((name, min(item[name] for item in figures)) for name in self.excess(figures[0]))
            raise UsageError(
                f"none of the {len(figures)} networks drawn is within the budget: the least {name} is {least:,.6g}, "
                f"the budget {self._plan.budget[name]:,.6g}",
                hint="raise the budget, or let the space have smaller networks",
            )
        cost, size = (self._plan.table_figure, "num_macs") if self._table else ("num_macs", "num_parameters")
        objectives = (Objective(str(cost)), Objective(size, maximize=True))
        kept = front([figures[index] for index in within], objectives)
        return [drawn[within[index]] for index in _spaced(kept, count)]

    def _possible(self, points: Sequence[Point]) -> list[Point]:
        """Return the points whose network can be built."""
        possible = []
        with stage("foresee"):
            for point in track(points, total=len(points), description="foresee"):
                try:
                    self._candidate(point)
                except EdgeoptError:  # the sampler will draw such a one too, and then the reason is reported
                    continue
                possible.append(point)
        return possible

    def _candidate(self, point: Point) -> Candidate:
        name = canonical_json(point)
        if name not in self._known:
            self._known[name] = foresee(self._plan.load(point))
        return self._known[name]


def _spaced(items: Sequence[int], count: int) -> list[int]:
    """Return so many of the items with even steps between, the last one first."""
    if len(items) <= count:
        return list(reversed(items))
    steps = [round(index * (len(items) - 1) / (count - 1)) for index in range(count)] if count > 1 else [len(items) - 1]
    return [items[step] for step in reversed(steps)]
