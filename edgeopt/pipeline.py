"""The main job, read from top to bottom: from a recipe to one verified bundle per target.

    model -train-> -compress-> -export-> FloatModel -calibrate-> Ranges -quantize-> QdqModel
    QdqModel -lower-> LoweredModel -verify-> ParityReport -bundle-> a folder that a build system can consume

The first line is :mod:`edgeopt.shared_stages`, the second :mod:`edgeopt.target_stages`. Every stage is cached under the
hash of its inputs, its settings, its own code and the packages it calls. A build in which nothing changed imports none
of torch, onnx and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.cache import Cache
from edgeopt.errors import AccuracyError, LatencyError, ParityError, UsageError
from edgeopt.provenance import metric_files
from edgeopt.recipe import LoadedRecipe, load_recipe
from edgeopt.runner import StageRecord, StageRunner
from edgeopt.shared_stages import SharedStages
from edgeopt.stage import stage
from edgeopt.target import TargetSpec, find_target
from edgeopt.target_stages import BuiltBundle, TargetStages

if TYPE_CHECKING:
    from edgeopt.calibrate.report import CalibrationReport

DEFAULT_OUT = Path("build")

Refused = ParityError | AccuracyError | LatencyError


@dataclass(frozen=True)
class BuildResult:
    """What a build made, did and read; ``float_model`` is the ONNX graph that everything was made from."""

    recipe_name: str
    bundles: tuple[BuiltBundle, ...]
    stages: tuple[StageRecord, ...]
    inputs_read: tuple[Path, ...]
    float_model: Path

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        bundles = [
            {
                "target": bundle.target,
                "path": str(bundle.path),
                "size_bytes": bundle.size_bytes,
                "integer_coverage": bundle.integer_coverage,
                "memory": None if bundle.memory is None else asdict(bundle.memory),
                "parity": None if bundle.report is None else bundle.report.to_json(),
                "accuracy": None if bundle.accuracy is None else bundle.accuracy.to_json(),
                "corrections": [dict(gain) for gain in bundle.corrections],
                "latency": None if bundle.speed is None else asdict(bundle.speed),
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
    cache: Path | None = None,
) -> BuildResult:
    """Build a recipe into one verified bundle per target, under ``out/RECIPE/TARGET``.

    Args:
        recipe: a loaded recipe, the path of one, or the name of a built-in one.
        targets: names of targets.
        out: where bundles go; left out, ``./build``.
        overrides: recipe values by dotted key, ``{"compress.prune.pruning_ratio": 0.3}``.
        verify: run every bundle and judge it.
        force: make every stage anew.
        cache: where the results of stages go, for builds that share them; left out, ``out/.cache``.

    Raises:
        ParityError: a verdict is no. All bundles were written; one that failed lies beside its place as
            ``TARGET.rejected`` and an older bundle in its place is untouched.
        AccuracyError: the same, for a drop over the recipe's limit that no plan within the budget kept.
        LatencyError: the same, for a bundle that is slower than the float network.
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
        runner = StageRunner(Cache((cache or place / ".cache").absolute(), force))
        shared = SharedStages(loaded, runner)
    bundles = tuple(TargetStages(loaded, shared, spec, place, verify=verify).bundle() for spec in specs)
    result = BuildResult(
        loaded.recipe.name,
        bundles,
        tuple(runner.records),
        _inputs_read(loaded, shared, specs),
        shared.float_model[0].path,
    )
    _refuse(result, shared.sample_warnings, loaded.recipe.latency.allow_slower)
    return result


def _refuse(result: BuildResult, sample_warnings: Sequence[str], allow_slower: bool) -> None:
    """Raise the first kind of verdict that is no, with all bundles of which it is."""
    suspect = f"look at the calibration samples first: {'; '.join(sample_warnings)}; " if sample_warnings else ""
    kinds: list[tuple[Sequence[tuple[BuiltBundle, tuple[str, ...]]], type[Refused], str, str]] = [
        (
            [(item, item.report.failures) for item in result.bundles if item.report and not item.report.passed],
            ParityError,
            "verify",
            "limits are [parity] in the recipe",
        ),
        (
            [(item, item.accuracy.failures) for item in result.bundles if item.accuracy and not item.accuracy.passed],
            AccuracyError,
            "accuracy",
            "raise max_drop or the budget in [accuracy], or lower parity.min_integer_coverage",
        ),
        (
            [(item, (item.speed.summary,)) for item in result.bundles if item.speed and item.speed.slower],
            LatencyError,
            "latency",
            "--allow-slower ships it all the same",
        ),
    ]
    for refused, kind, stage_name, hint in kinds:
        if refused and not (kind is LatencyError and allow_slower):
            failures = [f"{bundle.target}: {failure}" for bundle, found in refused for failure in found]
            kept = ", ".join(str(bundle.path) for bundle, _ in refused)
            doubt = "" if kind is LatencyError else suspect
            error = kind("; ".join(failures), hint=f"{doubt}the evidence lies in {kept}; {hint}")
            error.stage = stage_name
            error.result = result
            raise error


def calibration(
    loaded: LoadedRecipe, *, scheme: str = "asymmetric", out: Path | None = None, force: bool = False
) -> CalibrationReport:
    """Run a recipe's stages up to the ranges of one scheme, or find them in the cache, and report on every tensor."""
    from edgeopt.calibrate.report import calibration_report
    from edgeopt.calibrate.statistics import read_statistics

    with stage("recipe"):
        shared = SharedStages(loaded, StageRunner(Cache((out or DEFAULT_OUT).absolute() / ".cache", force)))
    ranges, _ = shared.ranges(scheme)
    return calibration_report(read_statistics(shared.calibration.folder), ranges, scheme)


def _inputs_read(loaded: LoadedRecipe, shared: SharedStages, specs: Sequence[TargetSpec]) -> tuple[Path, ...]:
    """Return every input file, for a depfile."""
    targets = (path for spec in specs for path in spec.files())
    accuracy = loaded.recipe.accuracy
    metric = metric_files(accuracy.metric, loaded.folder) if accuracy else ()
    labels = (given.file for given in loaded.recipe.labels.values() if given.file is not None)
    return tuple(
        sorted(
            {
                loaded.source,
                *shared.model_files,
                *shared.other_files,
                *shared.dataset.files(),
                *metric,
                *labels,
                *targets,
            }
        )
    )
