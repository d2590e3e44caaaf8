"""The stages that all targets share: from the model to one QDQ graph a scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.artifacts import FloatModel, QdqModel, Ranges, TensorInfo, TorchModel, read_ranges
from edgeopt.cache import CacheEntry
from edgeopt.dataset import checked_samples
from edgeopt.errors import DataError
from edgeopt.provenance import fingerprint, model_files, network_files
from edgeopt.recipe import LoadedRecipe
from edgeopt.runner import ONNX, TORCH, StageRunner, entry_digest, read_report, save_report, settings_key
from edgeopt.samples import Sample, Split
from edgeopt.settings import QuantizeSettings
from edgeopt.stage import logger
from edgeopt.steps import Step, other_networks
from edgeopt.torch_stage import RecipeNetworks, TorchStage, TrainIn, own_processes
from edgeopt.training import TrainSettings, trainings_in, wherever

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


class SharedStages:
    """One recipe's stages up to the QDQ graph; each is made at most once, when the first target asks for it."""

    def __init__(self, loaded: LoadedRecipe, runner: StageRunner, train_in: TrainIn = own_processes) -> None:
        self.recipe = loaded.recipe
        self.runner = runner
        self.networks = RecipeNetworks(loaded)
        self.dataset = self.networks.dataset()
        if self.dataset.is_random and not self.recipe.calibration.allow_random:
            raise DataError(
                f"the samples of {self.recipe.calibration.dataset!r} are random numbers: int8 with ranges from them is "
                "no better than chance allows",
                hint="give real samples; --allow-random-calibration takes these all the same, and the bundle says so",
            )
        others = (network for step in self.recipe.compress.values() for network in other_networks(step))
        self.model_files = model_files(self.recipe.model, loaded.folder)
        self.other_files = tuple(path for network in others for path in network_files(network, loaded.folder))
        self._folder = loaded.folder
        self._train_in = train_in
        self._ranges: dict[str, CacheEntry] = {}
        self._qdq: dict[tuple[str, str], tuple[QdqModel, CacheEntry]] = {}
        self._compressions: dict[str, CacheEntry] = {}

    # ------------------------------------------------------------ PyTorch: train, prune, distil

    @cached_property
    def teacher(self) -> tuple[TorchModel, CacheEntry | None]:
        """The network as the recipe gives it, trained if the recipe says so."""
        settings = self.recipe.train
        if settings is None:
            return TorchModel(), None

        make = self._making(TorchStage(self.networks, None, TorchModel(), TorchModel()), settings)
        key = [*self.source_key, *self.dataset.key(), settings_key(wherever(settings))]
        entry = self.runner.run("train", "compress/train.py", TORCH, key, make, resumable=True)
        self._compressions["train"] = entry
        return _network_in(entry), entry

    @cached_property
    def student(self) -> tuple[TorchModel, CacheEntry | None]:
        """The network that is exported: the teacher after every step of the chain."""
        model, entry = self.teacher
        for name, step in self.recipe.compress.items():
            entry = self._step(name, step, model, entry)
            model = _network_in(entry)
        return model, entry

    def _step(self, name: str, step: Step, source: TorchModel, source_entry: CacheEntry | None) -> CacheEntry:
        make = self._making(TorchStage(self.networks, name, source, self.teacher[0]), step)
        before = (entry_digest(source_entry), entry_digest(self.teacher[1]))
        others = (fingerprint(network_files(network, self._folder)) for network in other_networks(step))
        key = [
            *self.source_key,
            *before,
            *self.dataset.key(),
            settings_key(wherever(step)),
            str(self.networks.round_to),
        ]
        key += [part for files in others for part in files]
        entry = self.runner.run(name, f"compress/{step.method}.py", TORCH, key, make, resumable=True)
        self._compressions[name] = entry
        return entry

    def _making(self, job: TorchStage, settings: TrainSettings | Step) -> Callable[[Path], str]:
        """Return what makes a stage's result, where the settings say that they train in several processes."""
        trainings = trainings_in(settings)

        def make(folder: Path) -> str:
            report, summary = self._train_in(job, folder, trainings) if trainings else job(folder)
            save_report(folder, report)
            return summary

        return make

    # ------------------------------------------------------------ ONNX: export, calibrate, quantize

    @cached_property
    def float_model(self) -> tuple[FloatModel, CacheEntry]:
        """The clean float graph that was compared with its source."""
        model, settings = self.recipe.model, self.recipe.export
        student, student_entry = self.student

        def make(folder: Path) -> str:
            from edgeopt.export import export_torch, import_onnx
            from edgeopt.source import load_exported_program

            samples = self.samples("calibration", min(settings.num_samples, self.recipe.calibration.num_samples))
            if model.path is not None and model.path.suffix == ".onnx":
                exported = import_onnx(model.path, model, settings, samples, folder)
            else:
                network = load_exported_program(model.path) if model.path else self.networks.rebuild(student)
                exported = export_torch(network, model, settings, samples, folder)
            save_report(
                folder, {side: [asdict(info) for info in getattr(exported, side)] for side in ("inputs", "outputs")}
            )
            return f"{exported.path.stat().st_size:,} bytes of float ONNX"

        key = [*self.source_key, entry_digest(student_entry), *self.dataset.key(), settings_key(settings)]
        entry = self.runner.run("export", "export.py", (*TORCH, *ONNX), key, make)
        border = read_report(entry)
        inputs, outputs = (tuple(map(_tensor_info, border[side])) for side in ("inputs", "outputs"))
        return FloatModel(entry.folder / "model.onnx", inputs, outputs), entry

    @cached_property
    def corrected_model(self) -> tuple[FloatModel, CacheEntry]:
        """The float graph with the corrections that help int8: what is calibrated and quantized, and judges nothing."""
        source, source_entry = self.float_model

        def make(folder: Path) -> str:
            from edgeopt.correct.float_graph import correct
            from edgeopt.correct.gain import report, summary

            recipe, samples = self.recipe, self._teaching()
            _, gains = correct(source, recipe.correct, recipe.calibration, recipe.quantize, samples, folder)
            save_report(folder, report(gains))
            return summary(gains)

        method = (self.recipe.calibration.method, repr(self.recipe.calibration.percentile))
        tried = (*method, settings_key(self.recipe.quantize))
        key = [entry_digest(source_entry), *self.dataset.key(), *self._teaching_key(), *tried]
        entry = self.runner.run("correct", "correct/float_graph.py", ONNX, key, make)
        return replace(source, path=entry.folder / "model.onnx"), entry

    @cached_property
    def calibration(self) -> CacheEntry:
        """The calibration statistics that every scheme, method and target shares."""
        source = self.corrected_model[0]
        settings = self.recipe.calibration
        histograms = settings.method != "minmax"
        inputs = self.dataset.declared(self.recipe.model.inputs)

        def make(folder: Path) -> str:
            import onnx_ir as ir

            from edgeopt.calibrate.statistics import calibrate
            from edgeopt.quantize.placement import quantized_tensors
            from edgeopt.quantize.scheme import SCHEMES

            graph = ir.load(source.path).graph
            everything = QuantizeSettings()
            tensors = [name for item in SCHEMES.values() for name in quantized_tensors(graph, item, everything)]
            watched, count = tuple(dict.fromkeys(tensors)), settings.num_samples
            samples = checked_samples(self.networks.open("calibration"), count, inputs, "calibration")
            found = calibrate(source, watched, samples, count, folder, inputs=inputs, histograms=histograms)
            save_report(folder, {"warnings": found.warnings})
            return f"{len(found.tensors)} tensors over {len(found.digests)} samples"

        # The graph alone: what the corrections report of themselves changes no statistic.
        made_from = [*fingerprint(sorted(source.path.parent.glob("model.onnx*"))), *self.dataset.key()]
        made_from.append(str(settings.num_samples))
        key = [*made_from, str(histograms), *map(settings_key, inputs.values())]
        entry = self.runner.run("calibrate", "calibrate/statistics.py", ONNX, key, make)
        for warning in read_report(entry)["warnings"]:
            logger.warning("calibration samples: %s", warning)
        return entry

    @property
    def sample_warnings(self) -> list[str]:
        """What cannot be right with the calibration samples."""
        return list(read_report(self.calibration)["warnings"])

    @property
    def sample_facts(self) -> dict[str, object]:
        """What is known of the samples, for the manifest: what the data set declares, and what was warned about."""
        return {**self.dataset.facts, "warnings": self.sample_warnings}

    def ranges(self, scheme_name: str) -> tuple[Ranges, CacheEntry]:
        """The ranges that the recipe's method chooses for one scheme, from the statistics that all share."""
        source, source_entry = self.corrected_model
        settings = self.recipe.calibration

        def make(folder: Path) -> str:
            from edgeopt.calibrate.ranges import choose_ranges
            from edgeopt.calibrate.statistics import read_statistics
            from edgeopt.quantize.scheme import scheme_named

            statistics = read_statistics(self.calibration.folder)
            params_of = scheme_named(scheme_name).activation_params
            found = choose_ranges(source, statistics, params_of, settings, folder)
            narrowed = sum(item != found.observed[name] for name, item in found.tensors.items())
            return f"{settings.method}: {narrowed} of {len(found.tensors)} tensors clipped"

        if scheme_name not in self._ranges:
            made_from = [entry_digest(source_entry), entry_digest(self.calibration)]
            key = [*made_from, scheme_name, settings.method, repr(settings.percentile)]
            self._ranges[scheme_name] = self.runner.run(f"ranges-{scheme_name}", "calibrate/ranges.py", ONNX, key, make)
        return read_ranges(self._ranges[scheme_name].folder / "ranges.json"), self._ranges[scheme_name]

    @cached_property
    def reference(self) -> CacheEntry:
        """What the float graph answers on the held-out samples."""
        source, source_entry = self.float_model
        num_held_out = self.recipe.calibration.num_held_out

        def make(folder: Path) -> str:
            from edgeopt.bundle.golden import save_golden
            from edgeopt.bundle.reference import float_reference
            from edgeopt.calibrate.plausibility import refuse_collapse
            from edgeopt.calibrate.statistics import read_statistics

            statistics = read_statistics(self.calibration.folder)
            golden = float_reference(source, self.held_out, statistics.digests)
            refuse_collapse(golden, [output.name for output in source.outputs], statistics.warnings)
            save_golden(golden, folder / "reference.npz")
            return f"{num_held_out} held-out samples"

        key = [
            entry_digest(source_entry),
            entry_digest(self.calibration),
            *self.dataset.key(),
            settings_key(self.recipe.calibration),
        ]
        return self.runner.run("reference", "bundle/reference.py", ONNX, key, make)

    def qdq(self, scheme_name: str, settings: QuantizeSettings) -> tuple[QdqModel, CacheEntry]:
        """The QDQ graph of one scheme, corrected, made once for all targets that share it."""
        source, source_entry = self.corrected_model
        ranges, ranges_entry = self.ranges(scheme_name)

        def make(folder: Path) -> str:
            from edgeopt.quantize.qdq import quantize
            from edgeopt.quantize.scheme import scheme_named

            made = quantize(source, ranges, scheme_named(scheme_name), settings, folder)
            return f"{made.path.stat().st_size:,} bytes of QDQ ONNX"

        known = (scheme_name, settings_key(settings))
        if known not in self._qdq:
            key = [entry_digest(source_entry), entry_digest(ranges_entry), scheme_name, settings_key(settings)]
            entry = self.runner.run(f"quantize-{scheme_name}", "quantize/qdq.py", ONNX, key, make)
            if settings.precision != "float16":
                entry = self._refined(QdqModel(entry.folder / "model.onnx", scheme_name), entry)
            self._qdq[known] = QdqModel(entry.folder / "model.onnx", scheme_name), entry
        return self._qdq[known]

    def _refined(self, made: QdqModel, made_entry: CacheEntry) -> CacheEntry:
        """Correct biases and roundings of a QDQ graph, if the recipe says so."""
        source, source_entry = self.corrected_model
        if not self.recipe.correct.refines:
            return made_entry

        def make(folder: Path) -> str:
            from edgeopt.correct.gain import report, summary
            from edgeopt.correct.qdq_graph import refine

            _, gains = refine(made, source, self.recipe.correct, self._teaching(), folder)
            save_report(folder, report(gains))
            return summary(gains)

        key = [entry_digest(source_entry), entry_digest(made_entry), *self.dataset.key(), *self._teaching_key()]
        return self.runner.run(f"refine-{made.scheme}", "correct/qdq_graph.py", ONNX, key, make)

    def _teaching(self) -> list[Mapping[str, NDArray[np.generic]]]:
        """The calibration samples that corrections look at."""
        count = min(self.recipe.correct.num_samples, self.recipe.calibration.num_samples)
        return [sample.inputs for sample in self.samples("calibration", count)]

    def _teaching_key(self) -> tuple[str, str]:
        return str(self.recipe.calibration.num_samples), settings_key(self.recipe.correct)

    def quantized_answers(self, source: QdqModel, source_entry: CacheEntry) -> CacheEntry:
        """What a QDQ graph answers on the held-out samples, for all targets that lower it."""

        def make(folder: Path) -> str:
            from edgeopt.bundle.golden import save_golden
            from edgeopt.bundle.reference import quantized_answers

            save_golden(quantized_answers(source, self.held_out), folder / "quantized.npz")
            return f"{self.recipe.calibration.num_held_out} held-out samples"

        key = [entry_digest(source_entry), *self.dataset.key(), settings_key(self.recipe.calibration)]
        return self.runner.run(f"reference-{source.scheme}", "bundle/reference.py", ONNX, key, make)

    @cached_property
    def held_out(self) -> list[Sample]:
        """The samples that judge, read once for all targets."""
        return self.samples("held_out", self.recipe.calibration.num_held_out)

    @cached_property
    def source_key(self) -> tuple[str, ...]:
        """What stands for the network as the recipe names it."""
        return (*fingerprint(self.model_files), settings_key(self.recipe.model))

    def samples(self, split: Split, count: int) -> list[Sample]:
        """Return the first samples of a split, checked, held in memory."""
        return list(checked_samples(self.networks.open(split), count, self.recipe.model.inputs, split))

    def network(self) -> nn.Module:
        """Return the network that is exported, in PyTorch."""
        return self.networks.rebuild(self.student[0])

    def history(self) -> dict[str, object]:
        """What training, pruning and distilling reported, for the manifest."""
        return {name: read_report(entry) for name, entry in self._compressions.items()}

    def gains(self, quantized: CacheEntry) -> list[dict[str, object]]:
        """What each correction brought on the way to a QDQ graph."""
        refined = (quantized.folder / "report.json").is_file()
        entries = [self.corrected_model[1], *([quantized] if refined else [])]
        return [gain for entry in entries for gain in read_report(entry)["gains"]]


def _network_in(entry: CacheEntry) -> TorchModel:
    """Return the network that a stage wrote; torch is not needed to name two files."""
    return TorchModel(entry.folder / "structure.json", entry.folder / "weights.safetensors")


def _tensor_info(content: Mapping[str, object]) -> TensorInfo:
    return TensorInfo(str(content["name"]), str(content["dtype"]), tuple(content["shape"]))  # type: ignore[arg-type]
