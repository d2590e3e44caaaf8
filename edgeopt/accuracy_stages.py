"""The stages that hold one target's accuracy: measure the lowered model, and where it drops too far, search a plan.

    plan -quantize, lower-> Candidate -measure-> drop; over the limit: -sensitivity-> moves -search-> a plan that holds

A trial is a plan that goes through the same stages as the one that is shipped. Each of them is cached, so that a search
that was killed repeats none of its trials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeopt.accuracy.report import AccuracyReport, Measured, measured_of, report_of, shown
from edgeopt.accuracy.resolution import check_resolution
from edgeopt.accuracy.search import Budget, Trial, best, search
from edgeopt.artifacts import LoweredModel, QdqModel
from edgeopt.bundle.manifest import Manifest
from edgeopt.cache import CacheEntry
from edgeopt.errors import LoweringError, MetricError, QuantizationError, did_you_mean
from edgeopt.provenance import fingerprint, metric_files
from edgeopt.recipe import LoadedRecipe
from edgeopt.runner import ONNX, RUNTIMES, StageRunner, entry_digest, read_report, save_report, settings_key
from edgeopt.settings import AccuracySettings, QuantizeSettings
from edgeopt.shared_stages import SharedStages
from edgeopt.stage import logger, report_progress
from edgeopt.target import TargetSpec

# Noise is a smooth figure: a few samples rank the groups.
_NUM_SENSITIVITY_SAMPLES = 8


@dataclass(frozen=True)
class Candidate:
    """One plan's model: the QDQ graph, the file that it was lowered to, and what a manifest says of that."""

    plan: QuantizeSettings
    source: QdqModel
    source_entry: CacheEntry
    lowered: LoweredModel
    entry: CacheEntry
    model: Manifest


class AccuracyStages:
    """The contract of one target: ``build`` makes a candidate of a plan, ``judge`` has its verdict of parity."""

    def __init__(
        self,
        loaded: LoadedRecipe,
        shared: SharedStages,
        spec: TargetSpec,
        settings: AccuracySettings,
        build: Callable[[QuantizeSettings], Candidate],
        judge: Callable[[Candidate], CacheEntry],
    ) -> None:
        self._folder = loaded.folder
        self._recipe = loaded.recipe
        self._shared = shared
        self._spec = spec
        self._settings = settings
        self._build = build
        self._judge = judge

    @property
    def _runner(self) -> StageRunner:
        return self._shared.runner

    def held(self, plan: QuantizeSettings) -> tuple[Candidate, AccuracyReport]:
        """Return the recipe's plan if it holds, else the best one that the search finds, with the verdict."""
        check_resolution(self._settings, self._recipe.calibration.num_held_out)
        first = self._build(plan)
        measured, entry = self._measured(first)
        if measured.drop <= self._settings.max_drop:
            return first, AccuracyReport(measured, self._settings.max_drop, True, {})
        found = self._searched(first, entry)
        return self._build(_with(plan, found)), found

    def _measured(self, candidate: Candidate) -> tuple[Measured, CacheEntry]:
        """Run a candidate on all held-out samples in its own runtime."""
        reference, settings = self._shared.reference, self._settings
        output = self._output()

        def make(folder: Path) -> str:
            from edgeopt.accuracy.answers import answered
            from edgeopt.accuracy.labels import truth_of
            from edgeopt.accuracy.measure import measure, save_parts
            from edgeopt.accuracy.metrics import metric_named
            from edgeopt.bundle.golden import load_golden

            metric = metric_named(settings.metric, self._folder)
            floats = load_golden(reference.folder / "reference.npz")[f"float/{output}"]
            truth = truth_of(self._shared.held_out, metric, floats)
            given = answered(
                candidate.lowered.path, candidate.model, output, self._shared.held_out, self._recipe.model.inputs,
                self._spec.runtime_package,
            )  # fmt: skip
            found, parts = measure(metric, output, truth, floats, given.answers)
            save_parts(parts, folder)
            save_report(folder, {"measured": asdict(found), "median_ms": given.median_ms})
            return _summary(found)

        key = [
            entry_digest(candidate.entry),
            entry_digest(reference),
            *self._shared.dataset.key(),
            settings_key(self._recipe.calibration),
            settings.metric,
            output,
            *fingerprint(metric_files(settings.metric, self._folder)),
        ]
        entry = self._runner.run(f"accuracy-{self._spec.name}", "accuracy/measure.py", RUNTIMES, key, make)
        return measured_of(read_report(entry)["measured"]), entry

    def _searched(self, first: Candidate, measured: CacheEntry) -> AccuracyReport:
        """Find the fewest moves with which the limit holds; the result is kept, and so is every trial."""

        def make(folder: Path) -> str:
            with self._runner.folded():
                report = self._search(first)
            save_report(folder, report.to_json())
            return _found(report)

        key = [
            entry_digest(first.entry),
            entry_digest(measured),
            entry_digest(first.source_entry),
            settings_key(self._settings),
            settings_key(first.plan),
            repr(first.model["limits"]["min_integer_coverage"]),
            ",".join(self._spec.precisions),
        ]
        entry = self._runner.run(f"search-{self._spec.name}", "accuracy_stages.py", (*ONNX, *RUNTIMES), key, make)
        return report_of(read_report(entry))

    def _search(self, first: Candidate) -> AccuracyReport:
        from edgeopt.accuracy.measure import load_parts
        from edgeopt.accuracy.metrics import metric_named
        from edgeopt.accuracy.moves import moved, plan_after, ranked_moves
        from edgeopt.accuracy.paired import drop_interval

        settings = self._settings
        allowed = [precision for precision in settings.precisions if precision in self._spec.precisions]
        moves = ranked_moves(*self._sensitivity(first), allowed)
        trials = [self._trial(first.plan, first.plan, 0)]

        def try_moves(number: int) -> Trial:
            plan = plan_after(first.plan, moves[:number])
            trials.append(self._trial(plan, first.plan, number))
            self._tell(trials)
            return trials[-1]

        self._tell(trials)
        search(trials[0], len(moves), try_moves, Budget(settings.max_trials, 60 * settings.max_minutes))
        chosen = best(trials)
        found, entry = self._measured(self._build(_with(first.plan, chosen)))
        floats, actual = load_parts(entry.folder)
        interval = drop_interval(metric_named(settings.metric, self._folder), floats, actual, len(trials))
        return AccuracyReport(
            measured=replace(found, interval=interval),
            max_drop=settings.max_drop,
            passed=chosen.holds,
            nodes=moved(_with(first.plan, chosen), first.plan),
            trials=tuple(trials),
        )

    def _trial(self, plan: QuantizeSettings, given: QuantizeSettings, number: int) -> Trial:
        """Measure a plan; one that cannot be built, or whose runtime answers other than it should, is a trial too."""
        from edgeopt.accuracy.moves import moved

        nodes = dict(moved(plan, given))
        try:
            candidate = self._build(plan)
        except (QuantizationError, LoweringError) as error:
            return Trial(number, nodes, failure=error.message)
        found, entry = self._measured(candidate)
        coverage = candidate.model["integer_coverage"]
        is_accurate = found.drop <= self._settings.max_drop
        is_integer = coverage >= candidate.model["limits"]["min_integer_coverage"]
        refused = read_report(self._judge(candidate))["parity"]["failures"] if is_accurate and is_integer else []
        return Trial(
            num_moves=number,
            nodes=nodes,
            drop=found.drop,
            is_accurate=is_accurate and not refused,
            is_integer=is_integer,
            failure="; ".join(refused) or None,
            size_bytes=candidate.lowered.path.stat().st_size,
            integer_coverage=coverage,
            median_ms=read_report(entry)["median_ms"],
        )

    def _sensitivity(self, first: Candidate) -> tuple[Any, Any]:
        """Return the quantizer groups and the damage of each, from calibration samples."""
        import onnx_ir as ir

        from edgeopt.accuracy.groups import quantizer_groups
        from edgeopt.accuracy.sensitivity import Damage
        from edgeopt.quantize.scheme import scheme_named

        source, source_entry = self._shared.corrected_model
        groups = quantizer_groups(ir.load(source.path), scheme_named(self._spec.scheme), first.plan)

        def make(folder: Path) -> str:
            from edgeopt.accuracy.sensitivity import damages

            count = min(_NUM_SENSITIVITY_SAMPLES, self._recipe.calibration.num_samples)
            samples = self._shared.samples("calibration", count)
            found = damages(ir.load(first.source.path), ir.load(source.path), groups, samples, [self._output()])
            save_report(folder, {"damages": [asdict(damage) for damage in found]})
            return f"{len(groups)} groups"

        key = [entry_digest(first.source_entry), entry_digest(source_entry), settings_key(first.plan), self._output()]
        key += self._shared.dataset.key()
        name = f"sensitivity-{first.source.scheme}"
        entry = self._runner.run(name, "accuracy/sensitivity.py", ONNX, key, make)
        return groups, [Damage(**damage) for damage in read_report(entry)["damages"]]

    def _tell(self, trials: list[Trial]) -> None:
        """Say how far the search has come, and what was best."""
        now, so_far = trials[-1], best(trials)
        drop = now.failure or f"drop {now.drop:.4g}"
        logger.debug("%d moves: %s, %.1f %% on integers", now.num_moves, drop, 100 * now.integer_coverage)
        note = f"best so far: drop {so_far.drop:.4g} with {so_far.num_moves} moves"
        report_progress(f"search {self._spec.name}", len(trials), self._settings.max_trials, note)

    def _output(self) -> str:
        """Return the output that is judged: the one that the recipe names, else the only one."""
        names = [tensor.name for tensor in self._shared.float_model[0].outputs]
        asked = self._settings.output
        if asked is None and len(names) > 1:
            raise MetricError(
                f"the network has the outputs {', '.join(names)}, and [accuracy] judges one",
                hint="write output = 'NAME'",
            )
        if asked is not None and asked not in names:
            raise MetricError(f"[accuracy] output: there is no output {asked!r}", hint=did_you_mean(asked, names))
        return asked or names[0]


def _with(plan: QuantizeSettings, found: Trial | AccuracyReport) -> QuantizeSettings:
    return replace(plan, nodes={**plan.nodes, **found.nodes})


def _summary(found: Measured) -> str:
    figures = f"{shown(found.float_figure, found.unit)} -> {shown(found.figure, found.unit)}"
    return f"{found.metric} {figures} on {found.num_samples} held-out samples"


def _found(report: AccuracyReport) -> str:
    drop = shown(report.measured.drop, report.measured.unit)
    verdict = "holds" if report.passed else "does not hold"
    return f"{verdict}: drop {drop} with {len(report.nodes)} nodes moved, {len(report.trials)} plans tried"
