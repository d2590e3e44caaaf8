"""A .tflite file in LiteRT, with the watched tensors as further outputs, so that the kernels stay those that ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from edgeopt.affine import quantize_to
from edgeopt.diff.network import Answers, in_network_order
from edgeopt.inspection import Place
from edgeopt.samples import Sample


class TfliteNetwork:
    """A model file.

    Args:
        title: what reports call it.
        path: the file; it stays as it is.
        places: where the file holds each tensor of the float graph, as the lowering recorded it.
    """

    def __init__(self, title: str, path: Path, places: Mapping[str, Place]) -> None:
        self.title = title
        self._content = path.read_bytes()
        self._places = places
        self._watched: list[str] = []
        self._interpreter: Interpreter | None = None

    @property
    def tensors(self) -> Sequence[str]:
        """Return the recorded names."""
        return list(self._places)

    def watch(self, tensors: Sequence[str]) -> None:
        """Load the file with these as outputs; those that are inputs are the sample's own."""
        model = schema.ModelT.InitFromPackedBuf(self._content, 0)
        graph = model.subgraphs[0]
        indices = {tensor.name.decode(): index for index, tensor in enumerate(graph.tensors)}
        inputs = {int(index) for index in graph.inputs}
        self._watched = [name for name in tensors if indices[self._places[name].name] not in inputs]
        wanted = [indices[self._places[name].name] for name in self._watched]
        graph.outputs = np.array(list(dict.fromkeys([*graph.outputs, *wanted])), np.int32)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        self._interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=1)
        self._interpreter.allocate_tensors()

    def answers(self, sample: Sample) -> Answers:
        """Run the file and return what the watched tensors hold."""
        interpreter = self._interpreter
        assert interpreter is not None, "watch() comes first"
        for facts in interpreter.get_input_details():
            interpreter.set_tensor(facts["index"], self._given(facts, sample))
        interpreter.invoke()
        found = {facts["name"]: facts for facts in interpreter.get_output_details()}
        answers = {}
        for name in self._watched:
            place = self._places[name]
            real = _real(interpreter.get_tensor(found[place.name]["index"]), found[place.name])
            answers[name] = np.asarray(in_network_order(real, place.order), np.float32)
        return answers

    def _given(self, facts: Mapping[str, Any], sample: Sample) -> NDArray[np.generic]:
        """Return a sample's input as the file takes it: in its order of axes, on its integers."""
        name = str(facts["name"])
        place = next((item for item in self._places.items() if item[1].name == name), (name, Place(name)))
        array = sample.inputs[place[0]]
        array = array.transpose(place[1].order) if place[1].order else array
        scale, zero_point = facts["quantization"]
        dtype = np.dtype(facts["dtype"])
        return array if not scale else quantize_to(dtype.name, array, scale, zero_point)


def _real(stored: NDArray[np.generic], facts: Mapping[str, Any]) -> NDArray[np.generic]:
    scale, zero_point = facts["quantization"]
    return stored if not scale else (stored.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
