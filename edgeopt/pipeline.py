"""The main job, read from top to bottom: from a recipe to one verified bundle per target.

    model -train-> -prune-> -distill-> -export-> FloatModel -calibrate-> Ranges -quantize-> QdqModel
    QdqModel -lower-> LoweredModel -verify-> ParityReport -bundle-> a folder that a build system can consume

Every stage is cached under the hash of its inputs, its settings, its own code and the packages it calls. A build in
which nothing changed imports none of torch, onnx and onnxruntime.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeopt.artifacts import FloatModel, LoweredModel, QdqModel, Ranges, TensorInfo, TorchModel, canonical_json
from edgeopt.bundle.manifest import Manifest, tool_versions
from edgeopt.cache import Cache, CacheEntry
from edgeopt.dataset import DatasetFolder, checked_samples, find_dataset
from edgeopt.errors import ParityError, UsageError
from edgeopt.inspection import Border, Inspection, TensorFacts
from edgeopt.provenance import fingerprint, model_files, python_files
from edgeopt.recipe import LoadedRecipe, load_recipe, settings_for
from edgeopt.samples import Dataset, Sample
from edgeopt.settings import QuantizeSettings
from edgeopt.stage import stage
from edgeopt.target import LoweringRequest, TargetSpec, discover_targets, find_target, load_backend
from edgeopt.verdict import ParityReport, judge_model

DEFAULT_OUT = Path("build")

_TORCH = ("torch", "torch-pruning", "lightning-fabric", "safetensors", "numpy")
_ONNX = ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
_RUNTIMES = ("onnxruntime", "ai-edge-litert", "numpy")
_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class StageRecord:
    """What one stage did: whether its result was cached, how long it took, and one line for people."""

    name: str
    cached: bool
    seconds: float
    summary: str


@dataclass(frozen=True)
class BuiltBundle:
    """One bundle; ``report`` is ``None`` if the build did not verify. A refused one lies in ``NAME.rejected``."""

    target: str
    path: Path
    size_bytes: int
    integer_coverage: float
    report: ParityReport | None


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
        job = _Build(loaded, (out or DEFAULT_OUT).absolute(), verify, force)
    bundles = tuple(job.bundle(spec) for spec in specs)
    failures = [
        f"{bundle.target}: {failure}" for bundle in bundles if bundle.report for failure in bundle.report.failures
    ]
    result = BuildResult(loaded.recipe.name, bundles, tuple(job.records), job.inputs_read(specs))
    if failures:
        kept = ", ".join(str(bundle.path) for bundle in bundles if bundle.report and not bundle.report.passed)
        error = ParityError("; ".join(failures), hint=f"the evidence lies in {kept}; limits are [parity] in the recipe")
        error.stage = "verify"
        error.result = result
        raise error
    return result


@dataclass
class _Build:
    """One build: every stage is made at most once, when the first target asks for it."""

    loaded: LoadedRecipe
    out: Path
    verify: bool
    force: bool
    records: list[StageRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recipe = self.loaded.recipe
        self.folder = self.loaded.folder
        self.cache = Cache(self.out / ".cache", self.force)
        self.dataset: DatasetFolder = find_dataset(self.recipe.calibration, self.folder)
        self.model_files = model_files(self.recipe.model, self.folder)
        self._made: dict[str, Any] = {}
        self._compressions: dict[str, CacheEntry] = {}

    def inputs_read(self, specs: Sequence[TargetSpec]) -> tuple[Path, ...]:
        """Return every input file, for a depfile."""
        targets = (path for spec in specs for path in spec.files())
        return tuple(sorted({self.loaded.source, *self.model_files, *self.dataset.files(), *targets}))

    # ------------------------------------------------------------ PyTorch: train, prune, distil

    @cached_property
    def teacher(self) -> tuple[TorchModel, CacheEntry | None]:
        """The network as the recipe gives it, trained if the recipe says so."""
        settings = self.recipe.train
        if settings is None:
            return TorchModel(), None

        def make(folder: Path) -> str:
            from edgeopt.compress.train import train_stage

            _, report = train_stage(
                self._rebuild, TorchModel(), self._open("train"), self._open("held_out"), settings, folder
            )
            _report(folder, asdict(report))
            return f"{report.held_out_score:.1%} on {report.num_held_out} held-out samples"

        key = [*self._source_key, *self.dataset.key(), _plain(settings), str(self.recipe.calibration.options)]
        entry = self._stage("train", "compress/train.py", _TORCH, key, make, resumable=True)
        self._compressions["train"] = entry
        return TorchModel(weights=entry.folder / "weights.safetensors"), entry

    @cached_property
    def student(self) -> tuple[TorchModel, CacheEntry | None]:
        """The network that is exported: the teacher, pruned and distilled if the recipe says so."""
        teacher, teacher_entry = self.teacher
        settings = self.recipe.prune
        if settings is None:
            return teacher, teacher_entry
        # All targets count, asked for or not: one network serves them all, and it must not depend on the command line.
        round_to = settings.round_to or max(spec.round_to for spec in discover_targets().values())

        def make(folder: Path) -> str:
            from edgeopt.compress.prune import prune_stage
            from edgeopt.source import example_inputs

            inputs = example_inputs(self.recipe.model)
            _, report = prune_stage(self._rebuild, teacher, inputs, settings, round_to, folder)
            _report(folder, asdict(report))
            before, after = report.before, report.after
            return (
                f"{before.num_parameters:,} -> {after.num_parameters:,} parameters, "
                f"{before.num_macs:,} -> {after.num_macs:,} MACs"
            )

        key = [*self._source_key, _digest(teacher_entry), _plain(settings), str(round_to)]
        entry = self._stage("prune", "compress/prune.py", _TORCH, key, make)
        self._compressions["prune"] = entry
        pruned = TorchModel(entry.folder / "pruning.json", entry.folder / "weights.safetensors")
        return (pruned, entry) if self.recipe.distill is None else self._distilled(pruned, entry, teacher)

    def _distilled(
        self, student: TorchModel, student_entry: CacheEntry, teacher: TorchModel
    ) -> tuple[TorchModel, CacheEntry]:
        settings = self.recipe.distill
        assert settings is not None

        def make(folder: Path) -> str:
            from edgeopt.compress.distill import distill_stage

            train_set, held_out = self._open("train"), self._open("held_out")
            _, report = distill_stage(self._rebuild, student, teacher, train_set, held_out, settings, folder)
            _report(folder, asdict(report))
            return f"{report.held_out_score:.1%} on {report.num_held_out} held-out samples"

        key = [
            *self._source_key,
            _digest(student_entry),
            _digest(self.teacher[1]),
            *self.dataset.key(),
            _plain(settings),
        ]
        entry = self._stage("distill", "compress/distill.py", _TORCH, key, make, resumable=True)
        self._compressions["distill"] = entry
        return TorchModel(student.pruning, entry.folder / "weights.safetensors"), entry

    # ------------------------------------------------------------ ONNX: export, calibrate, quantize

    @cached_property
    def float_model(self) -> tuple[FloatModel, CacheEntry]:
        """The clean float graph that was compared with its source."""
        model, settings = self.recipe.model, self.recipe.export
        student, student_entry = self.student

        def make(folder: Path) -> str:
            from edgeopt.export import export_torch, import_onnx
            from edgeopt.source import load_exported_program

            samples = self._samples("calibration", min(settings.num_samples, self.recipe.calibration.num_samples))
            if model.path is not None and model.path.suffix == ".onnx":
                exported = import_onnx(model.path, model, settings, samples, folder)
            else:
                network = load_exported_program(model.path) if model.path else self._rebuild(student)
                exported = export_torch(network, model, settings, samples, folder)
            _report(folder, {"inputs": _plain(exported.inputs), "outputs": _plain(exported.outputs)})
            return f"{exported.path.stat().st_size:,} bytes of float ONNX"

        key = [*self._source_key, _digest(student_entry), *self.dataset.key(), _plain(settings)]
        entry = self._stage("export", "export.py", (*_TORCH, *_ONNX), key, make)
        border = _read_report(entry)
        inputs, outputs = (tuple(map(_tensor_info, json.loads(border[side]))) for side in ("inputs", "outputs"))
        return FloatModel(entry.folder / "model.onnx", inputs, outputs), entry

    @cached_property
    def ranges(self) -> tuple[CacheEntry, Callable[[], tuple[Ranges, tuple[str, ...]]]]:
        """The calibration statistics that every scheme and target shares."""
        source, source_entry = self.float_model
        settings = self.recipe.calibration

        def make(folder: Path) -> str:
            import onnx_ir as ir

            from edgeopt.calibrate.statistics import calibrate
            from edgeopt.quantize.placement import quantized_tensors
            from edgeopt.quantize.scheme import SCHEMES

            graph = ir.load(source.path).graph
            everything = QuantizeSettings()
            tensors = [name for item in SCHEMES.values() for name in quantized_tensors(graph, item, everything)]
            samples = checked_samples(
                self._open("calibration"), settings.num_samples, self.recipe.model.inputs, "calibration"
            )
            found, _ = calibrate(source, tuple(dict.fromkeys(tensors)), samples, settings.num_samples, folder)
            return f"{len(found.tensors)} tensors over {found.num_samples} samples"

        def read() -> tuple[Ranges, tuple[str, ...]]:
            from edgeopt.calibrate.statistics import read_ranges

            return read_ranges(entry.folder / "ranges.json")

        key = [_digest(source_entry), *self.dataset.key(), _plain(settings)]
        entry = self._stage("calibrate", "calibrate/statistics.py", _ONNX, key, make)
        return entry, read

    @cached_property
    def reference(self) -> CacheEntry:
        """What the float graph answers on the held-out samples."""
        source, source_entry = self.float_model
        ranges_entry, read = self.ranges

        def make(folder: Path) -> str:
            from edgeopt.bundle.golden import save_golden
            from edgeopt.bundle.reference import float_reference

            save_golden(float_reference(source, self.held_out, read()[1]), folder / "reference.npz")
            return f"{len(self.held_out)} held-out samples"

        key = [_digest(source_entry), _digest(ranges_entry), *self.dataset.key(), _plain(self.recipe.calibration)]
        return self._stage("reference", "bundle/reference.py", _ONNX, key, make)

    def qdq(self, scheme_name: str, settings: QuantizeSettings) -> tuple[QdqModel, CacheEntry]:
        """The QDQ graph of one scheme, made once for all targets that share it."""
        source, source_entry = self.float_model
        ranges_entry, read = self.ranges

        def make(folder: Path) -> str:
            from edgeopt.quantize.qdq import quantize
            from edgeopt.quantize.scheme import scheme_named

            made = quantize(source, read()[0], scheme_named(scheme_name), settings, folder)
            return f"{made.path.stat().st_size:,} bytes of QDQ ONNX"

        known = f"{scheme_name} {_plain(settings)}"
        if known not in self._made:
            key = [_digest(source_entry), _digest(ranges_entry), scheme_name, _plain(settings)]
            entry = self._stage(f"quantize-{scheme_name}", "quantize/qdq.py", _ONNX, key, make)
            self._made[known] = QdqModel(entry.folder / "model.onnx", scheme_name), entry
        made: tuple[QdqModel, CacheEntry] = self._made[known]
        return made

    # ------------------------------------------------------------ one target: lower, verify, bundle

    def bundle(self, spec: TargetSpec) -> BuiltBundle:
        """Lower, verify and write the bundle of one target."""
        quantize_settings, limits, overrides = settings_for(self.recipe, spec.name)
        limits = replace(limits, max_steps=spec.max_steps if limits.max_steps is None else limits.max_steps)
        source, source_entry = self.qdq(spec.scheme, quantize_settings)
        layouts = {
            name: overrides.input_layout or spec.image_layout
            for name, given in self.recipe.model.inputs.items()
            if given.layout != "any"
        }
        dynamic = any(given.dynamic_batch for given in self.recipe.model.inputs.values())
        request = LoweringRequest(self.recipe.name, layouts, dynamic, overrides.max_batch)

        def make(folder: Path) -> str:
            from edgeopt.bundle.manifest import describe_model
            from edgeopt.quantize.border import border_of

            backend = load_backend(spec)
            border = border_of(source, self.ranges[1]()[0], self.recipe.model.inputs)
            lowered = backend.lower(source, border, request, folder)
            inspection = backend.inspect(lowered.path)
            model = describe_model(self.recipe.name, spec, lowered, inspection, limits)
            extra = [path.name for path in lowered.extra_files]
            _report(folder, {"model": model, "extra_files": extra})
            return _integer_summary(inspection)

        key = [_digest(source_entry), _plain(request), _plain(limits), *fingerprint(spec.files()), *self._source_key]
        code = spec.folder / "backend.py"
        entry = self._stage(f"lower-{spec.name}", code, (*_ONNX, "ai-edge-litert"), key, make)
        described = _read_report(entry)
        lowered = _lowered(entry.folder, described, spec)
        judged = self._judged(spec, source, source_entry, lowered, entry, described["model"])
        return self._written(spec, lowered, described["model"], judged)

    def _judged(
        self,
        spec: TargetSpec,
        source: QdqModel,
        source_entry: CacheEntry,
        lowered: LoweredModel,
        lowered_entry: CacheEntry,
        model: Manifest,
    ) -> CacheEntry:
        """Run the model on every held-out sample; the golden vectors stay for the bundle."""

        def make(folder: Path) -> str:
            from edgeopt.bundle.golden import first_samples, load_golden, save_golden
            from edgeopt.bundle.reference import quantized_reference

            answers = load_golden(self.reference.folder / "reference.npz")
            golden = quantized_reference(source, self.held_out, answers, self.recipe.model.inputs, lowered.border)
            save_golden(first_samples(golden, self.recipe.calibration.num_golden), folder / "golden.npz")
            if not self.verify:
                _report(folder, {"parity": None})
                return "not run"
            report = judge_model(lowered.path, model, golden, spec.runtime_package)
            _report(folder, {"parity": report.to_json()})
            return _parity_summary(report)

        key = [
            _digest(source_entry), _digest(lowered_entry), _digest(self.reference), str(self.verify),
            str(self.recipe.calibration.num_golden),
        ]  # fmt: skip
        key += _code_key(_PACKAGE / "bundle/reference.py")
        return self._stage(f"verify-{spec.name}", "verdict.py", _RUNTIMES, key, make)

    def _written(self, spec: TargetSpec, lowered: LoweredModel, model: Manifest, judged: CacheEntry) -> BuiltBundle:
        from edgeopt.bundle.writer import write_bundle
        from edgeopt.verdict import report_from

        parity = _read_report(judged)["parity"]
        report = None if parity is None else report_from(parity, parity["runtime"])
        place = spec.name if report is None or report.passed else f"{spec.name}.rejected"
        destination = self.out / self.recipe.name / place
        facts, recipe = dict(self.dataset.facts), self.loaded.resolved()
        with stage(f"bundle-{spec.name}"):
            start = time.monotonic()
            write_bundle(
                destination, spec, lowered, judged.folder / "golden.npz", model,
                recipe=recipe, dataset=facts, history=self._history(), verdict=parity,
            )  # fmt: skip
            size_bytes = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file())
            self.records.append(
                StageRecord(f"bundle-{spec.name}", False, time.monotonic() - start, f"{size_bytes:,} bytes")
            )
        return BuiltBundle(spec.name, destination, size_bytes, float(model["integer_coverage"]), report)

    # ------------------------------------------------------------ what stages are made of

    @cached_property
    def held_out(self) -> list[Sample]:
        """The samples that judge, read once for all targets."""
        return self._samples("held_out", self.recipe.calibration.num_held_out)

    @cached_property
    def _source_key(self) -> tuple[str, ...]:
        return (*fingerprint(self.model_files), _plain(self.recipe.model))

    def _open(self, split: Any) -> Dataset:
        return self.dataset.open(split, self.recipe.model.inputs)

    def _samples(self, split: Any, count: int) -> list[Sample]:
        return list(checked_samples(self._open(split), count, self.recipe.model.inputs, split))

    def _rebuild(self, artifact: TorchModel) -> Any:
        from edgeopt.compress.rebuild import rebuild

        return rebuild(self.recipe.model, self.folder, artifact)

    def _history(self) -> dict[str, object]:
        """What training, pruning and distilling reported, for the manifest."""
        return {name: _read_report(entry) for name, entry in self._compressions.items()}

    def _stage(
        self,
        name: str,
        code: str | Path,
        packages: Sequence[str],
        key: Sequence[str],
        make: Callable[[Path], str],
        *,
        resumable: bool = False,
    ) -> CacheEntry:
        """Make or find the result of one stage, and record what happened."""
        full_key = [name, *tool_versions(packages), *_code_key(_PACKAGE / code), *key]

        def make_with_summary(folder: Path) -> None:
            (folder / "summary.txt").write_text(make(folder), encoding="utf-8")

        start = time.monotonic()
        with stage(name):
            entry = self.cache.entry(name, full_key, make_with_summary, resumable=resumable)
        summary = (entry.folder / "summary.txt").read_text(encoding="utf-8")
        self.records.append(StageRecord(name, entry.hit, time.monotonic() - start, summary))
        return entry


def _code_key(start: Path) -> tuple[str, ...]:
    return fingerprint(python_files(start, _PACKAGE.parent))


def _plain(value: Any) -> str:
    """Return settings as text for a key: paths by name, so that the folder of a checkout does not matter."""
    if isinstance(value, (list, tuple)):
        return json.dumps([asdict(item) for item in value], sort_keys=True)
    return json.dumps(
        asdict(value), sort_keys=True, default=lambda item: item.name if isinstance(item, Path) else dict(item)
    )


def _digest(entry: CacheEntry | None) -> str:
    return "" if entry is None else entry.digest()


def _report(folder: Path, content: Mapping[str, Any]) -> None:
    (folder / "report.json").write_text(canonical_json(content), encoding="utf-8")


def _read_report(entry: CacheEntry) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((entry.folder / "report.json").read_text(encoding="utf-8"))
    return content


def _tensor_info(content: Mapping[str, Any]) -> TensorInfo:
    return TensorInfo(content["name"], content["dtype"], tuple(content["shape"]))


def _lowered(folder: Path, described: Mapping[str, Any], spec: TargetSpec) -> LoweredModel:
    model = described["model"]
    inputs, outputs = (
        tuple(TensorFacts(**{**facts, "shape": tuple(facts["shape"])}) for facts in model[side])
        for side in ("inputs", "outputs")
    )
    extra = tuple(folder / name for name in described["extra_files"])
    return LoweredModel(folder / spec.model_file, Border(inputs, outputs), extra, model["model"]["notes"])


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
