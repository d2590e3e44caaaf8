"""The main job, read from top to bottom: from a recipe to one verified bundle per target.

    model -train-> -prune-> -distill-> -export-> FloatModel -calibrate-> Ranges -quantize-> QdqModel
    QdqModel -lower-> LoweredModel -verify-> ParityReport -bundle-> a folder that a build system can consume

The first line is :mod:`edgeopt.shared_stages`, the second :mod:`edgeopt.target_stages`. Every stage is cached under the
hash of its inputs, its settings, its own code and the packages it calls. A build in which nothing changed imports none
of torch, onnx and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeopt.cache import Cache
from edgeopt.errors import ParityError, UsageError
from edgeopt.recipe import LoadedRecipe, load_recipe
from edgeopt.runner import StageRecord, StageRunner
from edgeopt.shared_stages import SharedStages
from edgeopt.stage import stage
from edgeopt.target import TargetSpec, find_target
from edgeopt.target_stages import BuiltBundle, TargetStages

DEFAULT_OUT = Path("build")


@dataclass(frozen=True)
class BuildResult:
    """What a build made, did and read."""

    recipe_name: str
    bundles: tuple[BuiltBundle, ...]
    stages: tuple[StageRecord, ...]
    inputs_read: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        bundles = [
            {
                "target": bundle.target,
                "path": str(bundle.path),
                "size_bytes": bundle.size_bytes,
                "integer_coverage": bundle.integer_coverage,
                "parity": None if bundle.report is None else bundle.report.to_json(),
            }
            for bundle in self.bundles
        ]
        return {
            "recipe": self.recipe_name,
            "bundles": bundles,
            "stages": [asdict(record) for record in self.stages],
            "inputs_read": [str(path) for path in self.inputs_read],
        }


def build(
    recipe: LoadedRecipe | str | Path,
    *,
    targets: Sequence[str] = ("arm64",),
    out: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    verify: bool = True,
    force: bool = False,
) -> BuildResult:
    """Build a recipe into one verified bundle per target, under ``out/RECIPE/TARGET``.

    Args:
        recipe: a loaded recipe, the path of one, or the name of a built-in one.
        targets: names of targets.
        out: where bundles and the cache (``.cache``) go; left out, ``./build``.
        overrides: recipe values by dotted key, ``{"prune.pruning_ratio": 0.3}``.
        verify: run every bundle and judge it.
        force: make every stage anew.

    Raises:
        ParityError: a verdict is no. All bundles were written; one that failed lies beside its place as
            ``TARGET.rejected`` and an older bundle in its place is untouched.
        EdgeoptError: anything else that stops a build; each class says what.
    """
    if not targets:
        raise UsageError("a build needs at least one target", hint="--target arm64, or --target all")
    if isinstance(recipe, LoadedRecipe) and overrides:
        raise UsageError("overrides go with a recipe's name or path; a loaded recipe has its values")
    with stage("recipe"):
        loaded = recipe if isinstance(recipe, LoadedRecipe) else load_recipe(recipe, overrides)
        specs = [find_target(name) for name in dict.fromkeys(targets)]
        place = (out or DEFAULT_OUT).absolute()
        runner = StageRunner(Cache(place / ".cache", force))
        shared = SharedStages(loaded, runner)
    bundles = tuple(TargetStages(loaded, shared, spec, place, verify=verify).bundle() for spec in specs)
    failures = [
        f"{bundle.target}: {failure}" for bundle in bundles if bundle.report for failure in bundle.report.failures
    ]
    result = BuildResult(loaded.recipe.name, bundles, tuple(runner.records), _inputs_read(loaded, shared, specs))
    if failures:
        kept = ", ".join(str(bundle.path) for bundle in bundles if bundle.report and not bundle.report.passed)
        error = ParityError("; ".join(failures), hint=f"the evidence lies in {kept}; limits are [parity] in the recipe")
        error.stage = "verify"
        error.result = result
        raise error
    return result


def _inputs_read(loaded: LoadedRecipe, shared: SharedStages, specs: Sequence[TargetSpec]) -> tuple[Path, ...]:
    """Return every input file, for a depfile."""
    targets = (path for spec in specs for path in spec.files())
    return tuple(sorted({loaded.source, *shared.model_files, *shared.dataset.files(), *targets}))
