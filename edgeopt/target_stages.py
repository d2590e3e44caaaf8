"""The stages of one target: lower the QDQ graph, run the result on every held-out sample, write the bundle."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeopt.accuracy.report import AccuracyReport
from edgeopt.accuracy_stages import AccuracyStages, Candidate
from edgeopt.artifacts import FloatModel, LoweredModel, Memory, QdqModel, canonical_json
from edgeopt.atomic import locked
from edgeopt.budget import keep_budget
from edgeopt.bundle.lost_weights import lost_weights
from edgeopt.cache import CacheEntry
from edgeopt.errors import RecipeError
from edgeopt.inspection import Border, Inspection, TensorFacts
from edgeopt.labels import labels_of
from edgeopt.provenance import fingerprint
from edgeopt.recipe import LoadedRecipe, settings_for
from edgeopt.runner import (
    ONNX,
    PACKAGE,
    RUNTIMES,
    StageRecord,
    StageRunner,
    code_key,
    entry_digest,
    read_report,
    save_report,
    settings_key,
)
from edgeopt.settings import ParityLimits, Precision, QuantizeSettings, TargetOverrides
from edgeopt.shared_stages import SharedStages
from edgeopt.speed import SpeedReport
from edgeopt.stage import logger, stage
from edgeopt.target import Layout, LoweringRequest, TargetSpec, load_backend
from edgeopt.verdict import ParityReport, judge_model, open_quietly, report_from

_MIN_INTEGER_COVERAGE = 0.95


@dataclass(frozen=True)
class BuiltBundle:
    """One bundle; ``report`` is ``None`` if the build did not verify. A refused one lies in ``NAME.rejected``."""

    target: str
    path: Path
    size_bytes: int
    integer_coverage: float
    memory: Memory | None
    report: ParityReport | None
    accuracy: AccuracyReport | None = None
    speed: SpeedReport | None = None
    corrections: Sequence[Mapping[str, object]] = ()


class TargetStages:
    """One target's stages, on top of what all targets share."""

    def __init__(
        self, loaded: LoadedRecipe, shared: SharedStages, spec: TargetSpec, out: Path, *, verify: bool
    ) -> None:
        self._loaded = loaded
        self.recipe = loaded.recipe
        self.shared = shared
        self.spec = spec
        self._out = out
        self._verify = verify

    @property
    def runner(self) -> StageRunner:
        """What runs the stages."""
        return self.shared.runner

    def bundle(self) -> BuiltBundle:
        """Lower, verify and write the bundle of one target."""
        candidate, accuracy = self.chosen()
        if candidate.lowered.memory is not None:
            with stage(f"budget-{self.spec.name}"):
                keep_budget(candidate.lowered.memory, settings_for(self.recipe, self.spec.name)[2], self.spec.name)
        return self._written(candidate, self._judged(candidate), accuracy, self._compared(candidate))

    def chosen(self) -> tuple[Candidate, AccuracyReport | None]:
        """Quantize and lower by the recipe's plan, or by the one that the accuracy contract finds."""
        plan = settings_for(self.recipe, self.spec.name)[0]
        self._check_precisions(plan)
        if self.recipe.accuracy is None or not self._verify:
            return self._candidate(plan), None
        stages = AccuracyStages(
            self._loaded, self.shared, self.spec, self.recipe.accuracy, self._candidate, self._judged
        )
        return stages.held(plan)

    def _candidate(self, plan: QuantizeSettings) -> Candidate:
        """Quantize and lower by a plan."""
        limits = settings_for(self.recipe, self.spec.name)[1]
        source, source_entry = self.shared.qdq(self.spec.scheme, plan)
        ranges, ranges_entry = self.shared.ranges(self.spec.scheme)
        request = self._request()
        labels = labels_of(self.recipe.labels, self.shared.float_model[0].outputs)

        def make(folder: Path) -> str:
            from edgeopt.bundle.manifest import describe_model
            from edgeopt.bundle.weight_gains import weight_gains
            from edgeopt.quantize.border import border_of
            from edgeopt.quantize.names import network_places, read_names

            backend = load_backend(self.spec)
            border = border_of(source, ranges, self.recipe.model.inputs)
            lowered = backend.lower(source, border, request, folder)
            inspection = backend.inspect(lowered.path)
            judged_by = self._complete(limits, lowered.border, plan.precision)
            places = network_places(read_names(source), lowered.tensors)
            gains = weight_gains(self.shared.student[0], lowered.path, self.spec)
            model = describe_model(self.recipe.name, self.spec, lowered, inspection, judged_by, places, labels, gains)
            extra = [path.name for path in lowered.extra_files]
            save_report(folder, {"model": model, "extra_files": extra})
            return "; ".join([_integer_summary(inspection), *(gain.remark for gain in gains)])

        key = [
            self.recipe.name,
            entry_digest(source_entry),
            entry_digest(ranges_entry),
            entry_digest(self.shared.student[1]),
            settings_key(request),
            settings_key(limits),
            canonical_json(labels),
            *fingerprint(self.spec.files()),
            *self.shared.source_key,
            *code_key(PACKAGE / "bundle/weight_gains.py"),
        ]
        code = self.spec.folder / "backend.py"
        packages = (*ONNX, "ai-edge-litert", self.spec.runtime_package)
        entry = self.runner.run(f"lower-{self.spec.name}", code, packages, key, make)
        described = read_report(entry)
        for remark in lost_weights(described["model"]["weights"], plan, self.recipe.correct):
            logger.warning("%s: %s", self.spec.name, remark)
        lowered = _lowered(entry.folder, described, self.spec.model_file)
        return Candidate(plan, source, source_entry, lowered, entry, described["model"])

    def _check_precisions(self, settings: QuantizeSettings) -> None:
        """Refuse a precision that the target's kernels do not have."""
        asked = {"precision": settings.precision, **{f"nodes.{name!r}": kind for name, kind in settings.nodes.items()}}
        for key, precision in asked.items():
            if precision not in self.spec.precisions:
                raise RecipeError(
                    f"[quantize] {key}: {self.spec.name} has no kernels for {precision!r}, "
                    f"expected one of {', '.join(self.spec.precisions)}",
                    hint=f"[targets.{self.spec.name}.quantize] says it for this target alone",
                )

    def _complete(self, limits: ParityLimits, border: Border, precision: Precision) -> ParityLimits:
        """Take the target's facts for what the recipe leaves out; steps of 16 bits are 256 times as fine."""
        is_wide = any(facts.integer_dtype == "int16" for facts in border.outputs)
        is_dynamic = any(facts.is_dynamic for facts in border.outputs)
        facts: dict[str, Any] = {
            "max_steps": self.spec.max_int16_steps if is_wide else self.spec.max_steps,
            "max_built_in_steps": self.spec.max_built_in_steps,
            **(dict.fromkeys(("max_steps", "max_built_in_steps"), self.spec.max_dynamic_steps) if is_dynamic else {}),
            "min_integer_coverage": 0.0 if precision == "float16" else _MIN_INTEGER_COVERAGE,
        }
        return replace(limits, **{name: fact for name, fact in facts.items() if getattr(limits, name) is None})

    def _request(self) -> LoweringRequest:
        """Return how the recipe wants the model lowered."""
        overrides = settings_for(self.recipe, self.spec.name)[2]
        return LoweringRequest(self._layouts(overrides), self._output_layouts(overrides), overrides.max_batch)

    def _layouts(self, overrides: TargetOverrides) -> dict[str, Layout]:
        """Return how the model takes each image: as the recipe asks, else as the target prefers."""
        layouts: dict[str, Layout] = {}
        for name, given in self.recipe.model.inputs.items():
            if given.layout == "any":
                continue
            layouts[name] = overrides.input_layout or self.spec.image_layout or given.layout
            if self.spec.model_format == "onnx" and layouts[name] != given.layout:
                raise RecipeError(
                    f"[targets.{self.spec.name}] input_layout: {self.spec.name} takes {name!r} as the network does, "
                    f"{given.layout}, got {layouts[name]}"
                )
        return layouts

    def _output_layouts(self, overrides: TargetOverrides) -> dict[str, Layout]:
        """Return how the model gives each output with four axes, which the network gives channels first."""
        layout = overrides.output_layout or self.spec.image_layout or "NCHW"
        if self.spec.model_format == "onnx" and layout != "NCHW":
            raise RecipeError(
                f"[targets.{self.spec.name}] output_layout: {self.spec.name} gives outputs as the network does, NCHW, "
                f"got {layout}"
            )
        return {output.name: layout for output in self.shared.float_model[0].outputs if len(output.shape) == 4}

    def _judged(self, candidate: Candidate) -> CacheEntry:
        """Run the model on every held-out sample; the golden vectors stay for the bundle."""
        quantized_entry = self.shared.quantized_answers(candidate.source, candidate.source_entry)
        lowered = candidate.lowered

        def make(folder: Path) -> str:
            from edgeopt.bundle.golden import first_samples, load_golden, save_golden
            from edgeopt.bundle.reference import built_in_reference, golden_vectors

            answers = load_golden(self.shared.reference.folder / "reference.npz")
            quantized = load_golden(quantized_entry.folder / "quantized.npz")
            golden = golden_vectors(self.shared.held_out, answers, quantized, self.recipe.model.inputs, lowered.border)
            if self.spec.model_format == "tflite":
                golden |= built_in_reference(lowered.path, candidate.model["num_macs"], golden, lowered.border)
            save_golden(first_samples(golden, self.recipe.calibration.num_golden), folder / "golden.npz")
            if not self._verify:
                save_report(folder, {"parity": None})
                return "not run"
            report = judge_model(lowered.path, candidate.model, golden, self.spec.runtime_package)
            save_report(folder, {"parity": report.to_json()})
            return _parity_summary(report)

        made_from = (quantized_entry, candidate.entry, self.shared.reference)
        key = [*map(entry_digest, made_from), str(self._verify), str(self.recipe.calibration.num_golden)]
        key += code_key(PACKAGE / "bundle/reference.py")
        packages = (*RUNTIMES, self.spec.runtime_package)
        return self.runner.run(f"verify-{self.spec.name}", "verdict.py", packages, key, make)

    def _compared(self, candidate: Candidate) -> SpeedReport | None:
        """Time the model against the float network in the same runtime, if the target's own runtime is here."""
        if not (self._verify and self.recipe.latency.compare and self.spec.timed_here):
            return None
        source, source_entry = self.shared.float_model

        def make(folder: Path) -> str:
            from edgeopt.speed import compare

            with TemporaryDirectory() as scratch:  # a float file is large, and of no use afterwards
                floating = self._inference(self._floating(source, Path(scratch)))
                report = compare(floating, self._inference(candidate.lowered))
            save_report(folder, asdict(report))
            return report.summary

        key = [entry_digest(candidate.entry), entry_digest(source_entry), *self.shared.dataset.key()]
        entry = self.runner.run(f"latency-{self.spec.name}", "speed.py", RUNTIMES, key, make)
        return SpeedReport(**read_report(entry))

    def _floating(self, source: FloatModel, folder: Path) -> LoweredModel:
        """Lower the float graph as the quantized one is lowered."""
        from edgeopt.quantize.border import border_of

        graph = QdqModel(source.path, self.spec.scheme)
        border = border_of(graph, self.shared.ranges(self.spec.scheme)[0], self.recipe.model.inputs)
        return load_backend(self.spec).lower(graph, border, self._request(), folder)

    def _inference(self, model: LoweredModel) -> Callable[[], object]:
        """Open a model on one thread, and return what runs it on the first held-out sample."""
        from edgeopt.accuracy.answers import fed_to

        run, _ = open_quietly(model.path, self.spec.model_format, self.spec.runtime_package, threads=1)
        tensors = [asdict(facts) for facts in model.border.inputs]
        return partial(run, fed_to(self.shared.held_out[0], tensors, self.recipe.model.inputs))

    def _written(
        self,
        candidate: Candidate,
        judged: CacheEntry,
        accuracy: AccuracyReport | None,
        speed: SpeedReport | None,
    ) -> BuiltBundle:
        from edgeopt.bundle.writer import write_bundle

        parity = read_report(judged)["parity"]
        report = None if parity is None else report_from(parity, parity["runtime"])
        accepted = self._out / self.recipe.name / self.spec.name
        rejected = accepted.with_name(f"{accepted.name}.rejected")
        slower = speed is not None and speed.slower and not self.recipe.latency.allow_slower
        refused = slower or any(item is not None and not item.passed for item in (report, accuracy))
        destination = rejected if refused else accepted
        facts, recipe = self.shared.sample_facts, self._loaded.resolved()
        corrections = self.shared.gains(candidate.source_entry)
        lock = self.runner.cache.root / f".bundle-{self.recipe.name}-{self.spec.name}.lock"
        with stage(f"bundle-{self.spec.name}"), locked(lock):
            start = time.monotonic()
            write_bundle(
                destination, self.spec, candidate.lowered, judged.folder / "golden.npz", candidate.model,
                recipe=recipe, dataset=facts, history=self.shared.history(), corrections=corrections, verdict=parity,
                accuracy=None if accuracy is None else accuracy.lasting(),
            )  # fmt: skip
            if destination == accepted:
                shutil.rmtree(rejected, ignore_errors=True)
            size_bytes = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file())
            self.runner.records.append(
                StageRecord(f"bundle-{self.spec.name}", False, time.monotonic() - start, f"{size_bytes:,} bytes")
            )
        coverage = float(candidate.model["integer_coverage"])
        return BuiltBundle(
            self.spec.name,
            destination,
            size_bytes,
            coverage,
            candidate.lowered.memory,
            report,
            accuracy,
            speed,
            tuple(corrections),
        )


def _lowered(folder: Path, described: Mapping[str, Any], model_file: str) -> LoweredModel:
    model = described["model"]
    inputs, outputs = (
        tuple(TensorFacts(**{**facts, "shape": tuple(facts["shape"])}) for facts in model[side])
        for side in ("inputs", "outputs")
    )
    extra = tuple(folder / name for name in described["extra_files"])
    memory = None if model["memory"] is None else Memory(**model["memory"])
    return LoweredModel(folder / model_file, Border(inputs, outputs), extra, model["model"]["notes"], memory=memory)


def _integer_summary(inspection: Inspection) -> str:
    return (
        f"{inspection.size_bytes:,} bytes, {inspection.integer_coverage:.1%} of the MACs on integers, "
        f"{len(inspection.float_operators)} operators still float"
    )


def _parity_summary(report: ParityReport) -> str:
    if not report.passed:
        return "no: " + "; ".join(report.failures)
    worst = max(output.max_steps for output in report.outputs)
    ratio = min(output.sqnr_db for output in report.outputs)
    return f"yes: at most {worst} steps, at least {ratio:.1f} dB"
