"""An ONNX graph in ONNX Runtime, with the watched tensors as further outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt.diff.network import Answers
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession


class OnnxNetwork:
    """A float, QDQ or lowered graph.

    Args:
        title: what reports call it.
        model: the graph; it stays as it is.
        names: the name in ``model`` of each tensor of the float graph that it has.
    """

    def __init__(self, title: str, model: ir.Model, names: Mapping[str, str]) -> None:
        self.title = title
        self._model = model
        self._names = names
        self._outputs: dict[str, str] = {}
        self._session: OnnxSession | None = None

    @property
    def tensors(self) -> Sequence[str]:
        """Return the recorded names."""
        return list(self._names)

    def watch(self, tensors: Sequence[str]) -> None:
        """Load the graph with these as outputs; those that are inputs are the sample's own."""
        inputs = {value.name for value in self._model.graph.inputs}
        self._outputs = {name: self._names[name] for name in tensors if self._names[name] not in inputs}
        proto = ir.to_proto(self._model)
        assert isinstance(proto, onnx.ModelProto)
        present = {value.name for value in proto.graph.output}
        described = {value.name: value for value in proto.graph.value_info}
        for stored in dict.fromkeys(self._outputs.values()):
            if stored not in present:
                proto.graph.output.append(described.get(stored) or onnx.helper.make_empty_tensor_value_info(stored))
        self._session = OnnxSession(proto.SerializeToString())

    def answers(self, sample: Sample) -> Answers:
        """Run the graph and return what the watched tensors hold."""
        assert self._session is not None, "watch() comes first"
        found = self._session.run(sample.inputs)
        return {name: np.asarray(found[stored], np.float32) for name, stored in self._outputs.items()}
