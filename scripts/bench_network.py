"""A network to measure: its recipe, samples, float graph and bundles, each made when first asked for."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from bench_timing import run_watched

from edgeopt import parity
from edgeopt.affine import quantize_to
from edgeopt.artifacts import FloatModel, TensorInfo
from edgeopt.dataset import checked_samples, find_dataset
from edgeopt.recipe import load_recipe
from edgeopt.samples import Sample, Split
from edgeopt.session import OnnxSession
from edgeopt.settings import InputSettings

_TO_LAYOUT = {("NCHW", "NHWC"): (0, 2, 3, 1), ("NHWC", "NCHW"): (0, 3, 1, 2)}


class NotMeasured(Exception):
    """Why a figure is missing from the table."""


class Network:
    """One recipe under the bench; what it builds lies in a folder of its own below ``work``."""

    def __init__(self, reference: str, work: Path) -> None:
        self.reference = reference
        self.loaded = load_recipe(reference)
        self.name = self.loaded.recipe.name
        self.inputs = self.loaded.recipe.model.inputs
        self.folder = work / self.name

    @cached_property
    def bundles(self) -> Mapping[str, Path]:
        """The folder of each target's bundle, built by the command line without a verdict."""
        built = self._built()
        if (
            len(self._cached("export")) != 1 or len(self._cached("refine-asymmetric")) != 1
        ):  # what an older edgeopt left; it cannot be told apart
            shutil.rmtree(self.folder)
            built = self._built()
        return {bundle["target"]: Path(bundle["path"]) for bundle in built["bundles"]}

    @cached_property
    def manifests(self) -> Mapping[str, dict[str, Any]]:
        """``bundle.json`` of each target."""
        return {target: parity.read_bundle(str(path)) for target, path in self.bundles.items()}

    @cached_property
    def float_graph(self) -> FloatModel:
        """The float ONNX graph that all bundles of the network come from."""
        assert self.bundles
        (path,) = self._cached("export")
        inputs = tuple(TensorInfo(name, given.dtype, given.shape) for name, given in self.inputs.items())
        outputs = tuple(TensorInfo(name, "float32", ()) for name in OnnxSession(path).output_names)
        return FloatModel(path, inputs, outputs)

    @property
    def qdq_graph(self) -> Path:
        """The quantized graph that the arm64 bundle was lowered from."""
        assert self.bundles
        (path,) = self._cached("refine-asymmetric")
        return path

    def exported_program(self) -> Path:
        """Return the network that was exported to ONNX as a program that torch.export saved."""
        import torch

        from edgeopt.artifacts import TorchModel
        from edgeopt.compress.rebuild import rebuild
        from edgeopt.source import example_inputs

        assert self.bundles
        recipe, cache, path = self.loaded.recipe, self.folder / ".cache", self.folder / "network.pt2"
        if recipe.model.path is not None:
            raise NotMeasured("a network that comes as a file has no PyTorch module to convert")
        steps = (*(["train"] if recipe.train else []), *recipe.compress)
        made = [path for step in steps for path in cache.glob(f"{step}-{'[0-9a-f]' * 20}")]
        last = TorchModel(made[-1] / "structure.json", made[-1] / "weights.safetensors") if made else TorchModel()
        module = rebuild(recipe.model, self.loaded.folder, last)
        torch.export.save(torch.export.export(module, example_inputs(recipe.model)), path)
        return path

    def model(self, target: str) -> Path:
        """Return the model file of a bundle."""
        return self.bundles[target] / str(self.manifests[target]["model"]["file"])

    def samples(self, split: Split, count: int) -> list[Sample]:
        """Return the first samples of a split, checked as in a build, held in memory."""
        settings = self.loaded.recipe.calibration
        dataset = find_dataset(settings, self.loaded.folder).open(split, self.inputs)
        return list(checked_samples(dataset, min(count, len(dataset)), self.inputs, split))

    def float_answers(self, samples: list[Sample]) -> list[dict[str, Any]]:
        """Return what the float graph answers."""
        session = OnnxSession(self.float_graph.path)
        return [dict(session.run(sample.inputs)) for sample in samples]

    def answers(self, target: str, samples: list[Sample]) -> list[dict[str, Any]]:
        """Return what a bundle answers in its runtime, one thread, fed as an application would feed it."""
        return bundle_answers(self.bundles[target], self.inputs, samples)

    def fed(self, target: str, sample: Sample) -> dict[str, Any]:
        """Return a sample as a bundle's model takes it: in its layout, and as integers if it takes integers."""
        return fed(self.manifests[target], self.inputs, sample)

    def _built(self) -> dict[str, Any]:
        result = self.folder / "build.json"
        command = [*build_command(self.reference, self.folder), "--no-verify", "--json", str(result)]
        self.folder.mkdir(parents=True, exist_ok=True)
        finished = run_watched(command)
        if finished.exit_code != 0:
            raise NotMeasured(f"edgeopt build {self.name}: {last_line(finished.errors)}")
        built: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return built

    def _cached(self, stage: str) -> list[Path]:
        return sorted(self.folder.glob(f".cache/{stage}-*/model.onnx"))


def build_command(reference: str, out: Path) -> list[str]:
    """Return the command that builds a recipe for all targets."""
    return [sys.executable, "-m", "edgeopt", "build", reference, "--target", "all", "--out", str(out), "-q"]


def bundle_answers(
    bundle: Path, inputs: Mapping[str, InputSettings], samples: Sequence[Sample]
) -> list[dict[str, Any]]:
    """Return what a bundle answers in its runtime, one thread, fed as an application would feed it."""
    manifest = parity.read_bundle(str(bundle))
    model = bundle / str(manifest["model"]["file"])
    run = parity.open_model(str(model), parity.find_runtime(manifest["model"]["format"]))
    return [run(fed(manifest, inputs, sample)) for sample in samples]


def fed(manifest: Mapping[str, Any], inputs: Mapping[str, InputSettings], sample: Sample) -> dict[str, Any]:
    """Return a sample as a bundle's model takes it: in its layout, and as integers if it takes integers."""
    return {
        facts["name"]: as_taken(sample.inputs[facts["name"]], inputs[facts["name"]].layout, facts)
        for facts in manifest["inputs"]
    }


def as_taken(array: Any, given_layout: str, facts: Mapping[str, Any]) -> Any:
    """Return an array in the layout and dtype that a model's input has."""
    axes = _TO_LAYOUT.get((given_layout, facts["layout"]))
    values = array if axes is None else array.transpose(axes)
    if facts["dtype"] != "float32":
        values = quantize_to(facts["dtype"], values, facts["scale"], facts["zero_point"])
    return np.ascontiguousarray(values)


def last_line(text: str) -> str:
    """Return the last line of what a command printed."""
    return (text.strip().splitlines() or ["no message"])[-1]
