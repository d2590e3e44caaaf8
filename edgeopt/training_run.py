"""The PyTorch half of a build on its own: the teacher and the chain, into the cache where a build finds them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeopt.cache import Cache
from edgeopt.errors import UsageError
from edgeopt.recipe import LoadedRecipe
from edgeopt.runner import StageRecord, StageRunner
from edgeopt.shared_stages import SharedStages
from edgeopt.stage import stage
from edgeopt.torch_stage import TrainIn, own_processes
from edgeopt.training import TrainSettings, trainings_in


@dataclass(frozen=True)
class TrainResult:
    """What a training made and did: the files of the network that is exported, and each stage's report by name."""

    recipe_name: str
    structure: Path
    weights: Path
    stages: tuple[StageRecord, ...]
    reports: Mapping[str, object]

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        return {
            "recipe": self.recipe_name,
            "structure": str(self.structure),
            "weights": str(self.weights),
            "stages": [asdict(record) for record in self.stages],
            "reports": dict(self.reports),
        }


def train(loaded: LoadedRecipe, *, out: Path, force: bool = False) -> TrainResult | None:
    """Train and compress a recipe's network, in the processes of ``torchrun`` if it started this one.

    Args:
        loaded: the recipe.
        out: its cache is ``out/.cache``, as that of a build.
        force: make every stage anew.

    Returns:
        What came of it; nothing in the processes of ``torchrun`` that only help the first one.

    Raises:
        UsageError: the recipe trains nothing.
        RecipeError: there are more processes than cores.
        EdgeoptError: anything else that stops a stage; each class says what.
    """
    recipe = loaded.recipe
    if recipe.train is None and not recipe.compress:
        raise UsageError(f"recipe {recipe.name!r} trains nothing", hint="it has neither [train] nor [[compress]]")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _stages(loaded, out, own_processes, force=force)
    from edgeopt.compress.processes import Torchrun, check_cores, started_by_torchrun

    if not started_by_torchrun():
        raise UsageError(
            "WORLD_SIZE is set, but torchrun did not start this", hint="torchrun --nproc-per-node 2 -m ..."
        )
    check_cores(
        int(os.environ["LOCAL_WORLD_SIZE"]), oversubscribe=any(item.oversubscribe for item in _trainings(loaded))
    )
    group = Torchrun()
    if group.rank > 0:
        group.follow()
        return None
    try:
        return _stages(loaded, out, group.do, force=force)
    finally:
        group.end()


def _stages(loaded: LoadedRecipe, out: Path, train_in: TrainIn, *, force: bool) -> TrainResult:
    with stage("recipe"):
        runner = StageRunner(Cache(out.absolute() / ".cache", force))
        shared = SharedStages(loaded, runner, train_in)
    student, _ = shared.student
    assert student.structure is not None
    assert student.weights is not None
    return TrainResult(loaded.recipe.name, student.structure, student.weights, tuple(runner.records), shared.history())


def _trainings(loaded: LoadedRecipe) -> list[TrainSettings]:
    """Return everything in a recipe that trains."""
    teacher = [loaded.recipe.train] if loaded.recipe.train else []
    return teacher + [item for step in loaded.recipe.compress.values() for item in trainings_in(step)]
