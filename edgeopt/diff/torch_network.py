"""The network in PyTorch, run operator by operator under the names that the exporter gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from edgeopt.diff.network import Answers
from edgeopt.samples import Sample


class TorchNetwork:
    """An exported program.

    Args:
        program: what ``torch.onnx`` translated.
        names: the name in the program of each tensor of the float graph, as the export recorded it.
        inputs: the recipe's inputs, in the order of the network's arguments.
    """

    title = "torch"

    def __init__(self, program: torch.export.ExportedProgram, names: Mapping[str, str], inputs: Sequence[str]) -> None:
        self._module = program.module()
        self._names = names
        self._inputs = inputs
        self._watched: dict[str, str] = {}

    @property
    def tensors(self) -> Sequence[str]:
        """Return what the export recorded."""
        return list(self._names)

    def watch(self, tensors: Sequence[str]) -> None:
        """Keep these while the program runs."""
        self._watched = {self._names[name]: name for name in tensors}

    def answers(self, sample: Sample) -> Answers:
        """Run the program and return what the watched tensors hold."""
        recorder = _Recorder(self._module, frozenset(self._watched))
        with torch.no_grad():
            recorder.run(*(torch.from_numpy(np.array(sample.inputs[name])) for name in self._inputs))
        return {self._watched[name]: value.numpy().astype(np.float32) for name, value in recorder.seen.items()}


class _Recorder(fx.Interpreter):
    """Keeps the value of every node that is watched."""

    def __init__(self, module: fx.GraphModule, watched: frozenset[str]) -> None:
        super().__init__(module)
        self._is_watched = watched
        self.seen: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        if n.name in self._is_watched:
            self.seen[n.name] = value.detach()
        return value
