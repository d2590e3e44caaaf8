"""The forms that a recipe's network takes on its way to a target, opened by name; what is not cached is built."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeopt.accuracy_stages import Candidate
from edgeopt.cache import Cache
from edgeopt.diff.network import Network
from edgeopt.errors import UsageError, did_you_mean
from edgeopt.inspection import Place
from edgeopt.recipe import LoadedRecipe
from edgeopt.runner import StageRunner
from edgeopt.samples import Sample, Split
from edgeopt.shared_stages import SharedStages
from edgeopt.target import find_target
from edgeopt.target_stages import TargetStages
from edgeopt.verdict import checked_manifest


class Forms:
    """One recipe's network for one target.

    Args:
        loaded: the recipe.
        target: the target's name.
        out: where builds of it go, with their cache.
    """

    def __init__(self, loaded: LoadedRecipe, target: str, out: Path) -> None:
        self._shared = SharedStages(loaded, StageRunner(Cache(out / ".cache", force=False)))
        self._stages = TargetStages(loaded, self._shared, find_target(target), out, verify=True)
        self._recipe = loaded.recipe
        self._openers: Mapping[str, Callable[[], Network]] = {
            "torch": self._torch,
            "float": self._float,
            "corrected": self._corrected,
            "qdq": self._qdq,
            "bundle": self._bundle,
        }

    @cached_property
    def tensors(self) -> list[tuple[str, str, str]]:
        """Name, operator and node of each tensor of the float graph, in graph order."""
        graph = ir.load(self._shared.float_model[0].path).graph
        return [(str(v.name), node.op_type, str(node.name)) for node in graph for v in node.outputs]

    def samples(self, split: Split, count: int) -> list[Sample]:
        """Return the first samples of a split.

        Raises:
            DataError: there are fewer.
        """
        return self._shared.samples(split, count)

    def open(self, name: str) -> Network:
        """Open a form: ``torch``, ``float``, ``corrected``, ``qdq``, ``bundle``, or a bundle or ``.onnx`` file.

        Raises:
            UsageError: there is no such form or file, or the recipe's network has no such form.
        """
        if name in self._openers:
            return self._openers[name]()
        path = Path(name)
        if path.is_dir():
            manifest = checked_manifest(path)
            places = {tensor: _place(place) for tensor, place in manifest["tensors"].items()}
            return _lowered_network(name, path / manifest["model"]["file"], places)
        if path.suffix == ".onnx" and path.is_file():
            return self._graph(name, path)
        raise UsageError(
            f"{name!r} is no form of a network, bundle or .onnx file", hint=did_you_mean(name, list(self._openers))
        )

    @cached_property
    def _candidate(self) -> Candidate:
        return self._stages.chosen()[0]

    def _torch(self) -> Network:
        from edgeopt.diff.torch_network import TorchNetwork
        from edgeopt.export import TORCH_NAMES, export_program
        from edgeopt.source import load_exported_program

        model = self._recipe.model
        record = self._shared.float_model[0].path.with_name(TORCH_NAMES)
        if not record.is_file():
            raise UsageError(f"{model.path} came as ONNX: it has no form in PyTorch", hint="edgeopt diff float bundle")
        network = load_exported_program(model.path) if model.path else self._shared.network()
        program = export_program(network, model, self._recipe.export).exported_program
        assert program is not None
        return TorchNetwork(program, json.loads(record.read_text(encoding="utf-8")), list(model.inputs))

    def _float(self) -> Network:
        return self._graph("float", self._shared.float_model[0].path)

    def _corrected(self) -> Network:
        return self._graph("corrected", self._shared.corrected_model[0].path)

    def _graph(self, title: str, path: Path) -> Network:
        from edgeopt.diff.onnx_network import OnnxNetwork

        model = ir.load(path)
        present = {str(value.name) for node in model.graph for value in node.outputs}
        return OnnxNetwork(title, model, {name: name for name, _, _ in self.tensors if name in present})

    def _qdq(self) -> Network:
        from edgeopt.diff.onnx_network import OnnxNetwork
        from edgeopt.quantize.names import own_places, read_names
        from edgeopt.quantize.unsigned import with_unsigned_activations

        source = self._candidate.source
        model = with_unsigned_activations(ir.load(source.path))
        present = own_places(model)
        names = {name: item.real for name, item in read_names(source).items() if item.real in present}
        return OnnxNetwork("qdq", model, names)

    def _bundle(self) -> Network:
        candidate = self._candidate
        places = {name: _place(place) for name, place in candidate.model["tensors"].items()}
        return _lowered_network("bundle", candidate.lowered.path, places)


def _lowered_network(title: str, path: Path, places: Mapping[str, Place]) -> Network:
    if path.suffix == ".tflite":
        from edgeopt.diff.tflite_network import TfliteNetwork

        return TfliteNetwork(title, path, places)
    from edgeopt.diff.onnx_network import OnnxNetwork

    return OnnxNetwork(title, ir.load(path), {name: place.name for name, place in places.items()})


def _place(content: Mapping[str, Any]) -> Place:
    return Place(content["name"], tuple(content["order"]))
