"""What a search looks for: space, objectives and budget, and all that makes no sense of them refused beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.errors import ModelError, UsageError, did_you_mean
from edgeopt.explore.pareto import Objective
from edgeopt.explore.sampling import Sampler
from edgeopt.explore.space import Choices, Dimension, Space, parse_dimension
from edgeopt.recipe import LoadedRecipe, load_recipe
from edgeopt.settings import SearchSettings
from edgeopt.target import find_target

FIGURES = (
    "metric", "model_bytes", "packed_bytes", "bundle_bytes", "num_parameters", "num_macs", "instructions", "latency_ms",
)  # fmt: skip
"""The figures of a trial that a search can be told to look at."""

MEASURED_ON_TARGET = ("instructions", "latency_ms")
_TABLES_FOR = "arm64"


@dataclass(frozen=True)
class SearchPlan:
    """What is looked for, and where.

    Attributes:
        recipe: a path, or the name of a built-in one.
        target: what candidates are built for.
        space: what they differ in.
        objectives: what makes one better than another.
        budget: the most that figures may be.
        base: recipe values that are replaced in all candidates.
        sampler: how they are drawn.
        seed: of the draws.
        trials: how many are built, those of earlier calls among them.
    """

    recipe: str | Path
    target: str
    space: Space
    objectives: tuple[Objective, ...]
    budget: Mapping[str, float] = field(default_factory=dict)
    base: Mapping[str, object] = field(default_factory=dict)
    sampler: Sampler = "tpe"
    seed: int = 0
    trials: int = 30

    @property
    def figures(self) -> tuple[str, ...]:
        """Every figure that something depends on, each once."""
        return tuple(dict.fromkeys([*(item.figure for item in self.objectives), *self.budget]))

    @property
    def table_figure(self) -> str | None:
        """The figure that a table of costs predicts for this plan."""
        known = [figure for figure in self.figures if figure in MEASURED_ON_TARGET]
        return known[0] if known and self.target == _TABLES_FOR else None

    def values(self, point: Mapping[str, object]) -> dict[str, object]:
        """Return the recipe values of a point, and those of all candidates.

        How fast a candidate is on this machine is no verdict here, and is measured only if something depends on it.
        """
        timing = {"latency.compare": "latency_ms" in self.figures, "latency.allow_slower": True}
        return {**timing, **self.base, **point}

    def load(self, point: Mapping[str, object]) -> LoadedRecipe:
        """Return the recipe at a point of the space."""
        return load_recipe(self.recipe, self.values(point))

    def to_json(self) -> dict[str, Any]:
        """Return as JSON types what has to be the same for a search to go on; it may go on for longer."""
        return {
            "recipe": str(self.recipe),
            "target": self.target,
            "space": {key: asdict(dimension) for key, dimension in self.space.items()},
            "objectives": [asdict(item) for item in self.objectives],
            "budget": dict(self.budget),
            "base": dict(self.base),
            "sampler": self.sampler,
            "seed": self.seed,
        }


def plan_for(
    recipe: str | Path,
    target: str = "arm64",
    *,
    space: Space | None = None,
    maximize: Sequence[str] = (),
    minimize: Sequence[str] = (),
    budget: Mapping[str, float] | None = None,
    base: Mapping[str, object] | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    trials: int | None = None,
) -> SearchPlan:
    """Return the plan that a recipe's ``[search]`` describes, with what is given here in place of what it says.

    A dimension and a limit replace those of the same name; objectives replace all of their kind.

    Raises:
        RecipeError: the recipe cannot be read.
        UsageError: a dimension of its space is no range.
    """
    told = load_recipe(recipe, base).recipe.search or SearchSettings()
    own = {key: _dimension(key, values) for key, values in told.space.items()}
    least = tuple(minimize or told.minimize)
    most = tuple(maximize) or tuple(figure for figure in told.maximize if figure not in least)
    objectives = [*(Objective(figure, maximize=True) for figure in most), *map(Objective, least)]
    return SearchPlan(
        recipe,
        target,
        {**own, **(space or {})},
        tuple(objectives),
        {**told.budget, **(budget or {})},
        dict(base or {}),
        sampler or told.sampler,
        seed,
        trials or told.trials,
    )


def _dimension(key: str, values: object) -> Dimension:
    return parse_dimension(f"{key}={values}")[1] if isinstance(values, str) else Choices(tuple(values))  # type: ignore[arg-type]


def refuse_nonsense(plan: SearchPlan) -> None:
    """Refuse a plan that cannot be searched, before anything is built.

    Each value of each dimension, and both ends of a range, must make a recipe that loads, whose factory takes it.

    Raises:
        UsageError: no space, no objective, or a figure that is not there or is not counted for this target.
        RecipeError: a key that is not in recipes, or a value that it cannot have.
        ModelError: the factory does not take an argument.
        TargetError: there is no such target.
    """
    if not plan.space:
        raise UsageError("nothing to search: the space is empty", hint="--space model.arguments.width=0.25:1.0")
    if not plan.objectives:
        raise UsageError("a search needs an objective", hint="--maximize metric --minimize num_macs")
    find_target(plan.target)
    for figure in plan.figures:
        if figure not in FIGURES:
            raise UsageError(f"there is no figure {figure!r}", hint=did_you_mean(figure, FIGURES))
    if len({item.figure for item in plan.objectives}) < len(plan.objectives):
        raise UsageError("a figure is an objective twice")
    if "instructions" in plan.figures and plan.target != _TABLES_FOR:
        raise UsageError(f"instructions are counted for {_TABLES_FOR}, got --target {plan.target}")
    for figure, most in plan.budget.items():
        if figure == "metric":
            raise UsageError("a budget is the most that a network may cost, and metric is no cost: maximize it")
        if not 0 < most < math.inf:
            raise UsageError(f"a budget is a number above 0, got {figure}={most:g}")
    for key, dimension in plan.space.items():
        ends = dimension.values if isinstance(dimension, Choices) else (dimension.low, dimension.high)
        for value in ends:
            _refuse_value(plan, key, value)


def _refuse_value(plan: SearchPlan, key: str, value: object) -> None:
    from edgeopt.source import call_factory

    loaded = plan.load({key: value})
    if not key.startswith("model."):
        return
    if loaded.recipe.model.factory is None:
        raise ModelError(
            f"--space {key}: the graph of a model file is fixed", hint="name a 'factory' that builds the network"
        )
    call_factory(loaded.recipe.model, loaded.folder)
