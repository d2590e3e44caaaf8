"""Many builds of one recipe, side by side on Ray, with their results in one table.

Every trial is checked before the first one starts. A trial's result is written when it ends, so that the same command
goes on with what is missing, whatever stopped it. Trials that failed are missing, too: the second time, what made them
fail may be gone.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.artifacts import canonical_json
from edgeopt.atomic import write_text
from edgeopt.errors import UsageError
from edgeopt.explore.pool import Ended, PoolSettings, Shipped, ray_pool
from edgeopt.explore.record import TrialRecord, read_record, trial_identity, write_record
from edgeopt.explore.table import csv_text
from edgeopt.explore.trial import TrialResult, run_trial, trial_folder
from edgeopt.recipe import builtin_recipes, load_recipe
from edgeopt.stage import logger, report_progress, stage
from edgeopt.target import find_target


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that is to be made.

    ``name`` is what people call it: the target and the values that other trials do not have. ``identity`` is the hash
    of all that its result depends on.
    """

    name: str
    target: str
    overrides: Mapping[str, object]
    identity: str


@dataclass(frozen=True)
class SweepResult:
    """The trials in the order in which they were planned; ``num_known`` of them did not have to run."""

    recipe: str
    trials: tuple[TrialRecord, ...]
    num_known: int

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        return {"recipe": self.recipe, "trials": [record.to_json() for record in self.trials]}


def plan(
    recipe: str | Path, targets: Sequence[str], points: Sequence[Mapping[str, object]], *, instructions: bool = False
) -> list[PlannedTrial]:
    """Return the trials for every target and point; what cannot be built is refused here, before anything starts.

    Targets change last, so that trials side by side share as little as can be: one that needs what another one is
    just making waits for it.

    Args:
        recipe: the path of one, or the name of a built-in one.
        targets: names of targets.
        points: recipe values by dotted key; all have the same keys, and no two the same values.
        instructions: see :func:`sweep`.

    Raises:
        UsageError: there is no target or no point.
        RecipeError: a point does not fit the recipe.
        EdgeoptError: the network's files or the samples are not there, or there is no such target.
    """
    if not targets or not points:
        raise UsageError("a sweep needs a target and a point", hint="--target arm64 --grid KEY=a,b,c")
    specs = [find_target(name) for name in dict.fromkeys(targets)]
    loaded = [(point, load_recipe(recipe, point)) for point in points]
    varied = [key for key in points[0] if any(repr(point.get(key)) != repr(points[0][key]) for point in points)]
    return [
        PlannedTrial(
            ", ".join([spec.name, *(f"{key}={point[key]}" for key in varied)]),
            spec.name,
            dict(point),
            trial_identity(made, spec, instructions=instructions),
        )
        for spec in specs
        for point, made in loaded
    ]


def sweep(
    recipe: str | Path,
    trials: Sequence[PlannedTrial],
    out: Path,
    pool: PoolSettings,
    *,
    instructions: bool = False,
) -> SweepResult:
    """Run the trials that ``out`` has no result of, and return all; ``sweep.json`` and ``sweep.csv`` are always whole.

    Args:
        recipe: the path of one, or the name of a built-in one.
        trials: from :func:`plan`.
        out: the folder of the sweep.
        pool: where trials run, and how many side by side.
        instructions: count those of an inference on an emulated Raspberry Pi 4, of ``arm64`` trials.

    Raises:
        MissingDependencyError: Ray is not installed.
        DeviceError: the cluster does not answer.
        UsageError: more CPUs are asked for than there are.
        StorageError: results cannot be written.
    """
    out = out.absolute()
    loaded = load_recipe(recipe)
    path, name = loaded.source, loaded.recipe.name
    pool = pool.filled()
    records: dict[str, TrialRecord] = {}
    for trial in trials:
        known = read_record(out, trial.target, trial.overrides, trial.identity)
        if known is not None and known.result.status != "failed":
            records[trial.name] = known
    num_known = len(records)
    missing = {trial.name: trial for trial in trials if trial.name not in records}

    def result() -> SweepResult:
        return SweepResult(name, tuple(records[item.name] for item in trials if item.name in records), num_known)

    _write(out, result())
    if not missing:
        return result()
    shipped = _shipped(path, out) if pool.address is not None else None
    given = path.name if shipped else str(path)
    with stage("sweep"), ray_pool(pool, token_file=out / ".ray-token", shipped=shipped) as running:
        logger.info("dashboard: %s", running.dashboard)
        report_progress("trials", num_known, len(trials))
        tasks = {
            trial.name: (given, trial.target, dict(trial.overrides), str(out), instructions)
            for trial in missing.values()
        }
        for ended in running.run(_on_worker, tasks):
            record = _record(missing[ended.name], ended)
            write_record(out, record)
            records[ended.name] = record
            _write(out, result())
            logger.info("%s: %s in %.0f s", ended.name, record.result.status, record.result.seconds)
            report_progress("trials", len(records), len(trials))
    return result()


def _shipped(recipe: Path, out: Path) -> Shipped | None:
    """Return what a cluster's nodes get a copy of: the recipe's folder, without what builds have written there."""
    if recipe in [item.path for item in builtin_recipes()]:
        return None
    inside = out.is_relative_to(recipe.parent) and out != recipe.parent
    return Shipped(recipe.parent, (".git", "build", *([out.relative_to(recipe.parent).as_posix()] if inside else [])))


def _on_worker(
    recipe: str, target: str, overrides: Mapping[str, object], out: str, instructions: bool
) -> dict[str, Any]:
    """Run one trial on a node and say which node it was; what the build logs goes to the trial's folder."""
    with _logged(trial_folder(Path(out), target, overrides) / "trial.log"):
        try:
            result = run_trial(recipe, target, overrides, Path(out), instructions=instructions)
        except Exception:  # no error of edgeopt's: its traceback is of use where the trial's other lines are
            logger.exception("%s ended by a mistake", recipe)
            raise
    return {"node": platform.node(), "result": result.to_json()}


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        handler.close()


def _record(trial: PlannedTrial, ended: Ended) -> TrialRecord:
    if ended.value is None:
        failed = TrialResult(trial.target, dict(trial.overrides), "failed", ended.error, ended.seconds)
        return TrialRecord(trial.identity, ended.attempts, "", failed)
    result = TrialResult.from_json(ended.value["result"])
    return TrialRecord(trial.identity, ended.attempts, ended.value["node"], result)


def _write(out: Path, result: SweepResult) -> None:
    write_text(out / "sweep.json", canonical_json(result.to_json()))
    write_text(out / "sweep.csv", csv_text(result.trials))
